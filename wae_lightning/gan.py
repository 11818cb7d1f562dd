"""WAE-GAN."""

from __future__ import annotations

from typing import Any

from torch import nn

from wae_lightning.base import WAE
from wae_lightning.penalties import Penalty
from wae_lightning.penalties.adversarial import Adversarial, OptimizerCallable

__all__ = ["WAEGAN"]


class WAEGAN(WAE):
    """Wasserstein auto-encoder with a latent critic: Algorithm 1 of Tolstikhin et al. (ICLR 2018).

    In each step the critic is updated first, then the auto-encoder against the updated critic:
    :class:`~wae_lightning.training.two_optimizers.CriticFirst`. Optimization is manual; the trainer's flags for
    clipping, accumulation, precision, length and distribution nevertheless do what they do elsewhere, and ``max_steps``
    counts updates of the auto-encoder.

    Args:
        critic: Network (n, d) -> (n,). None: four layers of 512, as in the paper.
        critic_optimizer: Makes the critic's optimizer. None: Adam with learning rate 1e-3, β₁ = 0.5.
        penalty: An :class:`~wae_lightning.penalties.Adversarial` with more settings, instead of the two above.
        penalty_weight: λ, on the encoder's and on the critic's loss. It must match the scale of the cost: the encoder's
            gain from fooling the critic is at most log 2 or so, however far the codes are off.
        wae: The other arguments of :class:`~wae_lightning.base.WAE`.

    Raises:
        ValueError: If an argument is out of its range or two parts do not fit together.

    Example:
        >>> from wae_lightning import WAEGAN
        >>> WAEGAN(latent_dim=4).sample(2).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        critic: nn.Module | None = None,
        critic_optimizer: OptimizerCallable | None = None,
        penalty: Penalty | None = None,
        penalty_weight: float = 1.0,
        **wae: Any,
    ) -> None:
        if penalty is None:
            penalty = Adversarial(critic, critic_optimizer)
        elif not isinstance(penalty, Adversarial):
            raise ValueError(f"WAEGAN needs an Adversarial penalty, got {type(penalty).__name__}: use WAEMMD for it")
        elif critic is not None or critic_optimizer is not None:
            raise ValueError("give critic and critic_optimizer to WAEGAN or to its penalty, not to both")
        super().__init__(penalty=penalty, penalty_weight=penalty_weight, **wae)

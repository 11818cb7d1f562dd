"""WAE-MMD."""

from wae_lightning.base import WAE
from wae_lightning.penalties.adversarial import Adversarial

__all__ = ["WAEMMD"]


class WAEMMD(WAE):
    """Wasserstein auto-encoder with a penalty that needs no second optimizer; by default the MMD.

    I. Tolstikhin et al., "Wasserstein auto-encoders", ICLR 2018, Algorithm 2. (The paper prints a discriminator among
    the inputs of that algorithm; it is a misprint, there is none.) The arguments are those of
    :class:`~wae_lightning.base.WAE`.

    Example:
        >>> from wae_lightning import WAEMMD
        >>> WAEMMD(penalty_weight=10.0).sample(2).shape
        torch.Size([2, 1, 28, 28])
    """

    def _check_penalty(self) -> None:
        if isinstance(self.penalty, Adversarial):
            raise ValueError("WAEMMD takes a penalty without a critic, got Adversarial: use WAEGAN for it")
        super()._check_penalty()

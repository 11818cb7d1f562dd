"""The adversarial penalty: a critic tells codes from draws from the prior."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from wae_lightning.networks.critic import Critic
from wae_lightning.penalties.penalty import Penalty
from wae_lightning.precision import in_full_precision
from wae_lightning.priors import Normal, Prior

__all__ = ["Adversarial", "LRSchedulerCallable", "OptimizerCallable"]

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


class Adversarial(Penalty):
    r"""The penalty of WAE-GAN: the encoder's non-saturating loss against a critic with its own optimizer.

    With the critic's logit :math:`\ell`, the encoder descends :math:`E \log(1 + e^{-\ell(z)})` and the critic
    :math:`E \log(1 + e^{-\ell(z')}) + E \log(1 + e^{\ell(z)})`, z codes and z' draws from the prior: Algorithm 1 of
    I. Tolstikhin et al., "Wasserstein auto-encoders", ICLR 2018, in the form of the authors' code (binary cross-entropy
    on logits). Where the two distributions agree and the critic is at its best, the penalty is log 2, not 0.

    Args:
        critic: Network (n, d) -> (n,) or (n, 1). None: four layers of 512, as in the paper.
        optimizer: Makes the critic's optimizer from its parameters. None: Adam with learning rate 1e-3, β₁ = 0.5.
        lr_scheduler: Makes the critic's learning-rate scheduler from its optimizer.
        lr_interval: Whether that scheduler steps after each ``epoch`` or after each ``step``.
        steps: Updates of the critic for each one of the auto-encoder, at least 1.
        log_prior: Add the prior's log-density to the logit, so that the critic only has to learn that of the codes
            (``gan_p_trick`` of the authors' code; L. Mescheder et al., "Adversarial variational Bayes", ICML 2017).
            Normal priors only.
        gradient_penalty: Weight of E‖∇ℓ(z')‖² at draws from the prior in the critic's loss (R₁ of L. Mescheder et al.,
            "Which training methods for GANs do actually converge?", ICML 2018); 0: none.

    Raises:
        ValueError: If an argument is out of its range or the critic does not fit the prior.

    Example:
        >>> from wae_lightning import WAEGAN
        >>> model = WAEGAN(penalty=Adversarial(steps=2, log_prior=True))
    """

    def __init__(
        self,
        critic: nn.Module | None = None,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        steps: int = 1,
        log_prior: bool = False,
        gradient_penalty: float = 0.0,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps of the critic must be at least 1, got {steps}")
        if not gradient_penalty >= 0:
            raise ValueError(f"gradient_penalty must be 0 or more, got {gradient_penalty}")
        self.critic = critic
        self.make_optimizer = optimizer or _adam
        self.make_lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.steps = steps
        self.log_prior = log_prior
        self.gradient_penalty = gradient_penalty
        self.prior: Prior | None = None

    def set_prior(self, prior: Prior) -> None:
        if self.log_prior and not isinstance(prior, Normal):
            raise ValueError(f"log_prior needs a Normal prior, got {type(prior).__name__}")
        self.prior = prior
        if self.critic is None:
            self.critic = Critic(prior.latent_dim)
        try:
            logits = self.critic(torch.zeros(2, prior.latent_dim))
        except RuntimeError:
            raise ValueError(f"the critic does not take codes of latent_dim {prior.latent_dim}") from None
        if logits.shape not in ((2,), (2, 1)):
            raise ValueError(f"the critic must map (n, d) to (n,) or (n, 1), got {tuple(logits.shape)} for n = 2")

    def logits(self, z: Tensor) -> Tensor:
        """The critic's logits for codes (n, d), positive for what it takes for draws from the prior: (n,)."""
        assert self.critic is not None
        assert self.prior is not None
        # the model's own weights may be in half precision; the loss is not
        weight = next((p for p in self.critic.parameters() if p.is_floating_point()), z)
        logits: Tensor = in_full_precision(self.critic(z.to(weight.dtype))).flatten()
        return logits + self.prior.log_prob(z) if self.log_prior else logits

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        """The encoder's loss; the critic is a constant in it."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            return F.softplus(-self.logits(z)).mean()
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)

    def critic_loss(self, z: Tensor, z_prior: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The critic's loss, and which shares of codes and of draws from the prior it tells rightly.

        Args:
            z: Codes (n, d), detached from the encoder.
            z_prior: Draws from the prior (m, d).
        """
        if self.gradient_penalty:
            z_prior = z_prior.detach().requires_grad_()
        of_codes, of_prior = self.logits(z), self.logits(z_prior)
        loss = F.softplus(of_codes).mean() + F.softplus(-of_prior).mean()
        if self.gradient_penalty:
            (gradient,) = torch.autograd.grad(of_prior.sum(), z_prior, create_graph=True)
            loss = loss + self.gradient_penalty * gradient.square().sum(1).mean()
        return loss, {
            "train/critic_accuracy_codes": (of_codes.detach() < 0).float().mean(),
            "train/critic_accuracy_prior": (of_prior.detach() > 0).float().mean(),
        }


def _adam(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.5, 0.999))

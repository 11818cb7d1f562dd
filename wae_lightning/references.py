"""Auto-encoders that are no WAE, on the same networks: the rows that a table of WAEs is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wae_lightning.base import WAE
from wae_lightning.costs import BinaryCrossEntropy, Cost
from wae_lightning.noise import GaussianNoise
from wae_lightning.penalties import NoPenalty, Penalty
from wae_lightning.precision import in_full_precision

__all__ = ["VAE", "AutoEncoder"]


class AutoEncoder(WAE):
    """Plain auto-encoder: the cost alone. Nothing makes its codes follow the prior that ``sample`` draws from.

    Args:
        wae: Arguments of :class:`~wae_lightning.base.WAE`; not ``penalty`` and ``penalty_weight``.

    Example:
        >>> AutoEncoder(latent_dim=4).encode(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 4])
    """

    def __init__(self, **wae: Any) -> None:
        for name in ("penalty", "penalty_weight"):
            if name in wae:
                raise ValueError(f"AutoEncoder has no {name}: a WAE without penalty is what it is")
        super().__init__(penalty=NoPenalty(), penalty_weight=0.0, **wae)


class _Divergence(Penalty):
    """The mean over codes of KL(N(mean, diag variance) || N(0, I)), of rows (z, mean, variance)."""

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        _, mean, variance = z.chunk(3, dim=1)
        return 0.5 * (mean.square() + variance - 1 - variance.log()).sum(1).mean()


class VAE(WAE):
    r"""Variational auto-encoder: minimises :math:`E\, c(x, G(z)) + \beta\, KL(q(z|x) \,\|\, N(0, I))`, z ~ q(z|x).

    D. Kingma, M. Welling, "Auto-encoding variational Bayes", ICLR 2014; with β other than 1, I. Higgins et al.,
    "beta-VAE", ICLR 2017. Where a WAE pulls the mixture of all codes to the prior, a VAE pulls those of each example.
    Logged are the WAE's quantities, ``penalty`` being the mean divergence in nats.

    Args:
        cost: Negative log-likelihood of an input given its code. None: the Bernoulli one, the binary cross-entropy.
        penalty_weight: β, 0 or more.
        noise: None: ``GaussianNoise()``, so that the encoder puts out mean and log-variance; nothing else fits.
        wae: Other arguments of :class:`~wae_lightning.base.WAE`; not ``penalty``, ``standardize_codes`` or another
            prior than N(0, I).

    Raises:
        ValueError: If an argument does not fit.

    Example:
        >>> VAE(latent_dim=4).sample(2).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self, cost: Cost | None = None, penalty_weight: float = 1.0, noise: GaussianNoise | None = None, **wae: Any
    ) -> None:
        for name in ("penalty", "standardize_codes", "prior", "gather_codes", "code_queue", "flow"):
            if wae.get(name):
                raise ValueError(f"VAE has no {name}: its penalty is the divergence of each code from N(0, I)")
        noise = GaussianNoise() if noise is None else noise
        if not isinstance(noise, GaussianNoise):
            raise ValueError(f"VAE needs a Gaussian encoder, noise=GaussianNoise(); got {type(noise).__name__}")
        cost = BinaryCrossEntropy() if cost is None else cost
        super().__init__(cost=cost, penalty=_Divergence(), penalty_weight=penalty_weight, noise=noise, **wae)

    def draw_codes(self, x: Tensor) -> Tensor:
        """Draws codes and says where from: rows (z, mean, variance), (B, 3 · latent_dim)."""
        features = self._features(x)
        assert isinstance(self.noise, GaussianNoise)
        with torch.autocast(features.device.type, enabled=False):
            features = in_full_precision(features)
            mean, variance = self.noise.mean(features), self.noise.variance(features)
            return torch.cat([mean + variance.sqrt() * torch.randn_like(mean), mean, variance], dim=1)

    def terms(self, x: Tensor, code: Tensor) -> dict[str, Tensor]:
        return super().terms(x, code[:, : self.latent_dim])

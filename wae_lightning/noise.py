"""Encoder noise: how the output of the encoder network becomes a code, deterministic or random.

The modes are those of the authors' code (github.com/tolstikhin/wae): deterministic, additive noise on the input,
Gaussian, and implicit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wae_lightning.parts import Part

__all__ = ["EncoderNoise", "FixedNoise", "GaussianNoise", "ImplicitNoise", "InputNoise"]

SHARE_WITHIN_CUT = math.erf(math.sqrt(2))  # of a normal distribution, within two standard deviations


class EncoderNoise(Part, nn.Module):
    """No noise: the code is the encoder's output. Base of the random modes."""

    features_per_dimension = 1
    """How many features the encoder network must put out for each latent dimension."""

    def on_input(self, x: Tensor) -> Tensor:
        """Perturbs the input of the encoder, (B, *input); called in training only."""
        return x

    def mean(self, features: Tensor) -> Tensor:
        """The code without noise, (B, latent_dim), from the encoder's features."""
        return features

    def forward(self, features: Tensor) -> Tensor:
        """Draws a code, (B, latent_dim), from the encoder's features (B, features_per_dimension · latent_dim)."""
        return self.mean(features)


def _positive(name: str, value: float) -> float:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return value


class InputNoise(EncoderNoise):
    """Adds truncated normal noise (cut at two standard deviations) to the encoder's input in training.

    Args:
        std: Its standard deviation before the cut; the data is in [0, 1]. The authors' value is 0.01.
    """

    def __init__(self, std: float = 0.01) -> None:
        super().__init__()
        self.std = _positive("std of the input noise", std)

    def on_input(self, x: Tensor) -> Tensor:
        # by the inverse of the distribution function: torch's trunc_normal_ waits for the device four times
        noise = torch.empty_like(x, dtype=torch.float32).uniform_(-SHARE_WITHIN_CUT, SHARE_WITHIN_CUT)
        noise = noise.erfinv_().mul_(math.sqrt(2) * self.std)
        return x + noise.clamp_(-2 * self.std, 2 * self.std).to(x.dtype)


class FixedNoise(EncoderNoise):
    """z = √(1 - s²) · mean + s · ε, ε ~ N(0, I): keeps the variance of codes that have variance 1.

    Args:
        std: s, in (0, 1): the share of the noise.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> round(FixedNoise(0.5)(torch.randn(10_000, 1)).var().item(), 1)
        1.0
    """

    def __init__(self, std: float) -> None:
        super().__init__()
        if not 0 < std < 1:
            raise ValueError(f"std of FixedNoise must lie between 0 and 1, got {std}")
        self.std = std

    def mean(self, features: Tensor) -> Tensor:
        return math.sqrt(1 - self.std**2) * features

    def forward(self, features: Tensor) -> Tensor:
        return self.mean(features) + self.std * torch.randn_like(features)


class GaussianNoise(EncoderNoise):
    """z ~ N(mean(x), diag(var(x))): the encoder puts out the mean and the log-variance, side by side.

    As in the authors' code the log-variance is clipped to ±50 and 10⁻⁸ is added to the variance.

    Args:
        initial_std: The standard deviation where the network's log-variance output is 0, so about the one at the start.

    Example:
        >>> features = torch.zeros(3, 2 * 4)  # mean and log-variance of 4 dimensions
        >>> GaussianNoise(initial_std=0.3)(features).shape, GaussianNoise(initial_std=0.3).variance(features)[0, 0]
        (torch.Size([3, 4]), tensor(0.0900))
    """

    features_per_dimension = 2

    def __init__(self, initial_std: float = 1.0) -> None:
        super().__init__()
        self.initial_std = _positive("initial_std", initial_std)

    def mean(self, features: Tensor) -> Tensor:
        return features.chunk(2, dim=1)[0]

    def variance(self, features: Tensor) -> Tensor:
        """The variance of each latent dimension, (B, latent_dim)."""
        log_variance = features.chunk(2, dim=1)[1].clamp(-50, 50)
        return self.initial_std**2 * log_variance.exp() + 1e-8

    def forward(self, features: Tensor) -> Tensor:
        mean = self.mean(features)
        return mean + self.variance(features).sqrt() * torch.randn_like(mean)


class ImplicitNoise(EncoderNoise):
    """z = m + A(m) ε, ε ~ N(0, I), with the matrix A(m) put out by three tanh layers of 2d, 4d and 6d units.

    Args:
        latent_dim: d.
    """

    def __init__(self, latent_dim: int = 8) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {latent_dim}")
        d = latent_dim
        self.mixing = nn.Sequential(
            nn.Linear(d, 2 * d), nn.Tanh(), nn.Linear(2 * d, 4 * d), nn.Tanh(), nn.Linear(4 * d, 6 * d), nn.Tanh(),
            nn.Linear(6 * d, d * d),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        matrix: Tensor = self.mixing(features).unflatten(1, (features.shape[1], features.shape[1]))
        return features + (matrix @ torch.randn_like(features).unsqueeze(2)).squeeze(2)

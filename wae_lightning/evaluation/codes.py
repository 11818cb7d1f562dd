"""How well the codes follow the prior."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wae_lightning.base import WAE
from wae_lightning.kernels import InverseMultiquadric
from wae_lightning.penalties import mmd_test

__all__ = ["compare_moments", "compare_with_prior"]

TEST_CODES = 1000


def compare_with_prior(part: str, z: Tensor, model: WAE) -> dict[str, float]:
    """Moments of codes against the prior's, and the MMD between both with its p-value."""
    kernel = InverseMultiquadric()
    kernel.set_expected_squared_distance(model.prior.expected_squared_distance)
    some = z[torch.randperm(len(z))[:TEST_CODES]]
    squared, p_value = mmd_test(some, model.prior.sample(len(some)), kernel, permutations=500)
    found = compare_moments(z, model.prior.sample) | {"mmd": squared, "mmd_p_value": p_value}
    return {f"{part}_codes_{name}": value for name, value in found.items()}


def compare_moments(z: Tensor, sample: Callable[[int], Tensor]) -> dict[str, float]:
    """Compares mean, standard deviation and covariance of codes with those of the prior."""
    z, z_prior = z.double(), sample(1_000_000).double()
    covariance = z.T.cov()
    scale = z_prior.std(0)
    off_diagonal = covariance[~torch.eye(len(covariance), dtype=torch.bool)]
    return {
        "largest_mean_error": float((z.mean(0) - z_prior.mean(0)).abs().max()),
        "smallest_std_ratio": float((z.std(0) / scale).min()),
        "largest_std_ratio": float((z.std(0) / scale).max()),
        "mean_absolute_covariance": float(off_diagonal.abs().mean()) if len(off_diagonal) else 0.0,
    }

"""Penalties from optimal transport. All estimate a squared 2-Wasserstein distance, and none is negative.

The distance between two samples of one distribution is positive: these estimates are biased upwards, the less the
larger the batch.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wae_lightning.kernels import squared_distances
from wae_lightning.penalties.penalty import Penalty
from wae_lightning.precision import full_float32, in_full_precision
from wae_lightning.sorting import in_order

__all__ = ["ExactWasserstein", "MaxSlicedWasserstein", "Sinkhorn", "SlicedWasserstein"]


def _optional(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"this penalty needs {package}: pip install {package}") from None


def _in_one_dimension(z: Tensor, z_prior: Tensor, directions: Tensor) -> Tensor:
    """Squared 2-Wasserstein distances of projections onto unit columns (d, L): shape (L,)."""
    if len(z) != len(z_prior):
        raise ValueError(f"sliced distances need as many codes as draws, got {len(z)} and {len(z_prior)}")
    ordered, ordered_prior = (in_order(x @ directions, 0) for x in (z, z_prior))
    return (ordered - ordered_prior).square().mean(0)


def _random_directions(z: Tensor, count: int) -> Tensor:
    return F.normalize(torch.randn(z.shape[1], count, device=z.device, dtype=z.dtype), dim=0)


class SlicedWasserstein(Penalty):
    r"""Squared sliced Wasserstein distance :math:`E_\theta W_2^2(\theta^T z, \theta^T z')` over random directions.

    S. Kolouri et al., "Sliced Wasserstein auto-encoders", ICLR 2019; N. Bonneel et al., JMIV 2015. Per direction it is
    a sort. It is about 1/d of the distance in d dimensions.

    Args:
        projections: Number of random directions, drawn anew each time, at least 1.

    Raises:
        ValueError: If ``projections`` is not positive, or there are not as many codes as draws from the prior.

    Example:
        >>> z = torch.randn(100, 4)
        >>> SlicedWasserstein(projections=10)(z, z)
        tensor(0.)
    """

    def __init__(self, projections: int = 50) -> None:
        super().__init__()
        if projections < 1:
            raise ValueError(f"projections must be at least 1, got {projections}")
        self.projections = projections

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        return _in_one_dimension(z, z_prior, _random_directions(z, self.projections)).mean()


class MaxSlicedWasserstein(SlicedWasserstein):
    r"""Squared max-sliced Wasserstein distance :math:`\max_\theta W_2^2(\theta^T z, \theta^T z')`.

    I. Deshpande et al., "Max-sliced Wasserstein distance and its use for GANs", CVPR 2019. The worst of some random
    directions is improved by gradient ascent on the sphere; the result is a lower bound of the maximum.

    Args:
        projections: Number of random directions to start from, at least 1.
        steps: Steps of the ascent, 0 or more.

    Raises:
        ValueError: If an argument is out of its range, or there are not as many codes as draws from the prior.
    """

    def __init__(self, projections: int = 50, steps: int = 10) -> None:
        super().__init__(projections)
        if steps < 0:
            raise ValueError(f"steps must be 0 or more, got {steps}")
        self.steps = steps

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        # the ascent needs gradients also where the caller, such as a trainer that validates, has switched them off
        with torch.inference_mode(False), torch.enable_grad():
            fixed, fixed_prior = z.detach().clone(), z_prior.detach().clone()
            directions = _random_directions(fixed, self.projections)
            worst = directions.index_select(1, _in_one_dimension(fixed, fixed_prior, directions).argmax().view(1))
            for _ in range(self.steps):
                worst = worst.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(_in_one_dimension(fixed, fixed_prior, worst).sum(), worst)
                # a fixed point of this map is a stationary point on the sphere; W2² grows along its own gradient
                worst = F.normalize(worst + F.normalize(gradient, dim=0), dim=0)
        return _in_one_dimension(z, z_prior, worst.detach()).squeeze()


class ExactWasserstein(Penalty):
    """Squared 2-Wasserstein distance between the batch of codes and the batch of draws, by linear programming.

    Gradients flow through the distances at the optimal plan. Computed on the CPU by POT (R. Flamary et al., JMLR 2021),
    the extra ``ot`` of this package; about 4 ms at n = 100, growing like n³.

    Raises:
        ImportError: If POT is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        _optional("ot", "POT")

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        ot = _optional("ot", "POT")
        squared = squared_distances(z, z_prior)
        # the plan is a constant: by the envelope theorem the gradient is that of the distances alone
        plan = ot.emd([], [], squared.detach().cpu().double().numpy())
        return (squared * torch.as_tensor(plan, dtype=squared.dtype, device=squared.device)).sum()


class Sinkhorn(Penalty):
    """Debiased Sinkhorn divergence with squared distances: between the exact distance (blur 0) and an MMD (large blur).

    J. Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn divergences", AISTATS 2019; G.
    Patrini et al., "Sinkhorn autoencoders", UAI 2019. Computed by GeomLoss, the extra ``ot`` of this package.

    Args:
        blur: Square root of the entropic regularisation, in units of the codes, positive.
        scaling: Ratio of successive blurs while annealing, in (0, 1): the nearer to 1, the more exact and the slower.

    Raises:
        ValueError: If an argument is out of its range.
        ImportError: If GeomLoss is not installed.
    """

    def __init__(self, blur: float = 0.1, scaling: float = 0.9) -> None:
        super().__init__()
        if not blur > 0:
            raise ValueError(f"blur must be positive, got {blur}")
        if not 0 < scaling < 1:
            raise ValueError(f"scaling must lie between 0 and 1, got {scaling}")
        geomloss = _optional("geomloss", "GeomLoss")
        self.loss = geomloss.SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, backend="tensorized")

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        # GeomLoss switches gradients on and leaves them so
        with torch.set_grad_enabled(torch.is_grad_enabled()), full_float32(z.device):
            # it takes half the squared distance as its cost
            return 2 * self.loss(in_full_precision(z), in_full_precision(z_prior))  # type: ignore[no-any-return]

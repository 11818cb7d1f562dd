"""The Cramér-Wold distance to a normal prior."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from wae_lightning.kernels import squared_distances
from wae_lightning.penalties.mmd import mean_off_diagonal
from wae_lightning.penalties.penalty import Penalty
from wae_lightning.priors import Normal, Prior

__all__ = ["CramerWold", "mean_of_projections"]


@functools.cache
def _squared_cosines(d: int) -> tuple[tuple[float, float], ...]:
    """Nodes u and weights w with E f(θ₁²) = Σ w f(u) for θ uniform on the sphere in d dimensions.

    θ₁ = sin α has the density cos^(d-2) α. Gauss-Legendre on panels that halve towards α = 0 follows exp(-s u) for s
    up to about a million.
    """
    if d == 1:
        return ((1.0, 1.0),)
    nodes, weights = np.polynomial.legendre.leggauss(10)
    edges = np.array([0.0, *(math.pi / 2 * 2.0**-k for k in range(11, -1, -1))])
    centers, halves = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    angles = (centers[:, None] + halves[:, None] * nodes).ravel()
    weights = (halves[:, None] * weights).ravel() * np.cos(angles) ** (d - 2)
    keep = weights > 1e-18 * weights.max()
    total = weights[keep].sum()
    return tuple(zip((np.sin(angles[keep]) ** 2).tolist(), (weights[keep] / total).tolist(), strict=True))


class _MeanOfProjections(torch.autograd.Function):
    """Keeps one tensor for the backward pass where autograd would keep one for each node."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, s: Tensor, d: int) -> Tensor:
        value, derivative = torch.zeros_like(s), torch.zeros_like(s)
        for node, weight in _squared_cosines(d):
            term = torch.exp(s * -node)
            value.add_(term, alpha=weight)
            derivative.add_(term, alpha=-weight * node)
        ctx.save_for_backward(derivative)
        return value

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # create_graph=True: what is saved would count as a constant
            raise NotImplementedError("CramerWold has no second derivative: create_graph must be False")
        (derivative,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * derivative, None


def mean_of_projections(s: Tensor, d: int) -> Tensor:
    r"""Computes :math:`\varphi_d(s) = E e^{-s \theta_1^2} = {}_1F_1(\tfrac12; \tfrac d2; -s)`, θ uniform on a sphere.

    Args:
        s: Any shape, not negative.
        d: Number of dimensions, at least 1.

    Returns:
        The shape of ``s``, in (0, 1].
    """
    return _MeanOfProjections.apply(s, d)  # type: ignore[no-any-return]


class CramerWold(Penalty):
    r"""Squared Cramér-Wold distance between the codes and a normal prior, in closed form.

    The L² distance between smoothed one-dimensional projections, averaged over all directions (S. Knop et al.,
    "Cramer-Wold auto-encoder", JMLR 2020). With the smoothing variance γ and the prior N(0, σ² I) it is

    .. math::
        \frac{E\,\varphi_d(\|z_1 - z_2\|^2 / 4\gamma)}{\sqrt{4\pi\gamma}} + \frac{1}{\sqrt{4\pi(\gamma + \sigma^2)}}
        - \frac{2\, E\,\varphi_d(\|z\|^2 / (4\gamma + 2\sigma^2))}{\sqrt{2\pi(2\gamma + \sigma^2)}}

    with :math:`\varphi_d` of :func:`mean_of_projections`, which the authors approximate for d ≥ 20 and do not offer for
    2 < d < 20; here it is exact for every d. Pairs of a code with itself are left out, so that the estimate is unbiased
    and may be negative. ``z_prior`` is not used: there is no noise from draws from the prior.

    Args:
        smoothing: γ / σ², positive. None: Silverman's rule (4 / 3n)^(2/5), as the authors have it.

    Raises:
        ValueError: If ``smoothing`` is not positive, the prior is not normal, or there are fewer than 2 codes.
    """

    def __init__(self, smoothing: float | None = None) -> None:
        super().__init__()
        if smoothing is not None and not (smoothing > 0 and math.isfinite(smoothing)):
            raise ValueError(f"smoothing must be positive and finite (or None for Silverman's rule), got {smoothing}")
        self.smoothing = smoothing
        self.prior_variance = 1.0

    def set_prior(self, prior: Prior) -> None:
        if not isinstance(prior, Normal):
            raise ValueError(f"CramerWold needs a Normal prior, got {type(prior).__name__}")
        self.prior_variance = prior.scale**2

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        n, d = z.shape
        if n < 2:
            raise ValueError(f"the Cramér-Wold distance needs at least 2 codes, got {n}: raise the batch size")
        variance = self.prior_variance
        gamma = variance * (self.smoothing or (4 / (3 * n)) ** 0.4)
        within = mean_of_projections(squared_distances(z, z) / (4 * gamma), d)
        across = mean_of_projections(z.square().sum(1) / (4 * gamma + 2 * variance), d)
        return (
            mean_off_diagonal(within) / math.sqrt(4 * math.pi * gamma)
            + 1 / math.sqrt(4 * math.pi * (gamma + variance))
            - 2 * across.mean() / math.sqrt(2 * math.pi * (2 * gamma + variance))
        )

"""Kernels on codes: (n, d), (m, d) -> (n, m)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wae_lightning.parts import Part
from wae_lightning.precision import full_float32, in_full_precision

__all__ = [
    "RBF",
    "InverseMultiquadric",
    "Kernel",
    "Laplacian",
    "NegativeDistance",
    "distances",
    "median_bandwidth",
    "squared_distances",
]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    r"""Computes all squared Euclidean distances :math:`\|x_i - y_j\|^2` by one matrix product.

    The expansion :math:`\|x\|^2 + \|y\|^2 - 2xy` is evaluated around the mean of ``y``, which keeps its rounding error
    small for codes far from the origin, and is clamped at 0. No square root is taken, so that gradients are finite
    where two rows coincide. Computed in float32 (float64 stays) also under autocast and TF32.

    Args:
        x: Points of shape (n, d).
        y: Points of shape (m, d).

    Returns:
        Shape (n, m), never negative.

    Raises:
        ValueError: If the two are not matrices with the same number of columns.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"expected points of shapes (n, d) and (m, d), got {tuple(x.shape)} and {tuple(y.shape)}")
    same = x is y
    with full_float32(x.device):
        x, y = in_full_precision(x), in_full_precision(y)
        center = y.detach().mean(0)
        x = x - center
        y = x if same else y - center
        x_norms = x.square().sum(1, keepdim=True)
        y_norms = x_norms if same else y.square().sum(1, keepdim=True)
        return torch.addmm(x_norms + y_norms.T, x, y.T, alpha=-2).clamp_min(0)


def distances(squared: Tensor) -> Tensor:
    """Takes the root of squared distances (any shape), with gradient 0, not infinity, where two points coincide."""
    # the clamp passes no gradient below its bound, and just above it the root's derivative is still finite
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()


def median_bandwidth(x: Tensor, y: Tensor) -> Tensor:
    """The median heuristic: the median distance between two different points of the pooled sample.

    A. Gretton et al., "A kernel two-sample test", JMLR 2012, section 8.

    Args:
        x: Points of shape (n, d).
        y: Points of shape (m, d).

    Returns:
        A scalar without gradient, at least 1e-6 so that a kernel of that bandwidth exists even if all points coincide.

    Raises:
        ValueError: If there are no two points.
    """
    pooled = (x if x is y else torch.cat([x, y])).detach()
    if len(pooled) < 2:
        raise ValueError("the median heuristic needs at least 2 points")
    row, column = torch.triu_indices(len(pooled), len(pooled), offset=1, device=pooled.device)
    return squared_distances(pooled, pooled)[row, column].median().sqrt().clamp_min(1e-6)


class Kernel(Part, nn.Module, ABC):
    """A positive definite kernel that depends on the distance of two codes only (conditionally definite is enough)."""

    @abstractmethod
    def of_squared_distances(self, squared: Tensor) -> Tensor:
        """Evaluates the kernel elementwise on squared distances (any shape)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Evaluates the kernel on every pair of rows: (n, d), (m, d) -> (n, m)."""
        return self.fitted(x, y).of_squared_distances(squared_distances(x, y))

    def fitted(self, x: Tensor, y: Tensor) -> Kernel:
        """Returns this kernel with every constant known that depends on the two samples being compared."""
        return self

    def set_expected_squared_distance(self, expected: float) -> None:
        """Tells the kernel the scale of the prior; the model calls this once, when it is built."""


class _KernelWithBandwidth(Kernel):
    """A kernel of distance / bandwidth; a bandwidth that is a tensor does not wait for the device."""

    def __init__(self, bandwidth: float | None = None) -> None:
        super().__init__()
        if bandwidth is not None and not (bandwidth > 0 and math.isfinite(bandwidth)):
            raise ValueError(
                f"bandwidth of the {type(self).__name__} kernel must be positive and finite (or None for the median), "
                f"got {bandwidth}"
            )
        self.bandwidth: float | Tensor | None = bandwidth

    @abstractmethod
    def _with_bandwidth(self, squared: Tensor, bandwidth: float | Tensor) -> Tensor: ...

    def of_squared_distances(self, squared: Tensor) -> Tensor:
        if self.bandwidth is None:
            name = type(self).__name__
            raise ValueError(f"{name}(bandwidth=None) depends on the samples: call kernel(x, y) or kernel.fitted(x, y)")
        return self._with_bandwidth(squared, self.bandwidth)

    def fitted(self, x: Tensor, y: Tensor) -> Kernel:
        if self.bandwidth is not None:
            return self
        kernel = type(self)()
        kernel.bandwidth = median_bandwidth(x, y)
        return kernel


class RBF(_KernelWithBandwidth):
    r"""Gaussian kernel :math:`\exp(-\|x - y\|^2 / 2\sigma^2)`.

    Args:
        bandwidth: σ, positive; None chooses it anew for each pair of samples by :func:`median_bandwidth`.

    Raises:
        ValueError: If ``bandwidth`` is not positive and finite.

    Example:
        >>> RBF(bandwidth=1.0)(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])).item() == torch.tensor(-1.0).exp().item()
        True
    """

    def _with_bandwidth(self, squared: Tensor, bandwidth: float | Tensor) -> Tensor:
        return torch.exp(squared * (-0.5 / bandwidth**2))


class Laplacian(_KernelWithBandwidth):
    r"""Laplacian kernel :math:`\exp(-\|x - y\| / \sigma)` with the Euclidean norm; its gradient at x = y is taken as 0.

    Its heavier tails than the Gaussian's still pull codes that are far from the prior.

    Args:
        bandwidth: σ, positive; None chooses it anew for each pair of samples by :func:`median_bandwidth`.

    Raises:
        ValueError: If ``bandwidth`` is not positive and finite.

    Example:
        >>> Laplacian(bandwidth=5.0)(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([[0.3679]])
    """

    def _with_bandwidth(self, squared: Tensor, bandwidth: float | Tensor) -> Tensor:
        return torch.exp(-distances(squared) / bandwidth)


class NegativeDistance(Kernel):
    r"""The conditionally positive definite kernel :math:`-\|x - y\|`, whose MMD is the energy distance.

    D. Sejdinovic et al., "Equivalence of distance-based and RKHS-based statistics in hypothesis testing", Annals of
    Statistics 2013. It has no bandwidth; its gradient at x = y is taken as 0.

    Example:
        >>> NegativeDistance()(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
        tensor([[-5.]])
    """

    def of_squared_distances(self, squared: Tensor) -> Tensor:
        return -distances(squared)


class InverseMultiquadric(Kernel):
    r"""Sum of inverse multiquadric kernels :math:`\sum_s s c / (s c + \|x - y\|^2)`.

    The form and the seven scales are those of the authors' code (github.com/tolstikhin/wae); the paper (Tolstikhin et
    al., "Wasserstein auto-encoders", ICLR 2018, section 4) states the single scale 1 with c = 2dσ².

    Args:
        c: The constant of scale 1, positive; None: the expected squared distance of two draws from the prior (2dσ² for
            a normal prior), which the model fills in.
        scales: The factors s, all positive.

    Raises:
        ValueError: If ``c`` or a scale is not positive and finite, or the kernel is called before ``c`` is known.

    Example:
        >>> InverseMultiquadric(c=1.0, scales=(1.0, 2.0))(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]))
        tensor([[0.8333]])
    """

    def __init__(self, c: float | None = None, scales: Sequence[float] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)) -> None:
        super().__init__()
        if c is not None and not (c > 0 and math.isfinite(c)):
            raise ValueError(f"c of the inverse multiquadric kernel must be positive and finite (or None), got {c}")
        if not scales or not all(scale > 0 and math.isfinite(scale) for scale in scales):
            raise ValueError(
                f"scales of the inverse multiquadric kernel must be positive and finite, got {tuple(scales)}"
            )
        self.c = c
        self._c_from_prior = c is None
        self.scales = tuple(scales)

    def of_squared_distances(self, squared: Tensor) -> Tensor:
        if self.c is None:
            raise ValueError(
                "InverseMultiquadric(c=None) takes c from the prior of a model; outside of a model pass c, "
                "for N(0, I) in d dimensions c=2*d"
            )
        return _SumOfInverseMultiquadrics.apply(squared, tuple(scale * self.c for scale in self.scales))  # type: ignore[no-any-return]

    def set_expected_squared_distance(self, expected: float) -> None:
        # also when c is known already: a penalty may move on to a model with another prior
        if self._c_from_prior:
            self.c = expected


class _SumOfInverseMultiquadrics(torch.autograd.Function):
    """Keeps one matrix for the backward pass where autograd would keep two for each scale."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, squared: Tensor, constants: tuple[float, ...]) -> Tensor:
        flat = squared.flatten()
        value = torch.zeros_like(flat)
        derivative = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        # on the CPU a part at a time that stays in its cache for all constants: up to three times as fast
        size = 2**18 if squared.device.type == "cpu" else max(flat.numel(), 1)
        for start in range(0, flat.numel(), size):
            part = slice(start, start + size)
            for c in constants:
                inverse = (flat[part] + c).reciprocal_()
                value[part].add_(inverse, alpha=c)
                if derivative is not None:
                    derivative[part].addcmul_(inverse, inverse, value=-c)
        if derivative is not None:
            ctx.save_for_backward(derivative.view_as(squared))
        return value.view_as(squared)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # create_graph=True: what is saved would count as a constant
            raise NotImplementedError("InverseMultiquadric has no second derivative: create_graph must be False")
        (derivative,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad * derivative, None

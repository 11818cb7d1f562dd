"""Reconstruction costs c(target, reconstruction): (B, *shape), (B, *shape) -> (B,)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.neighbors import check_point_sets, nearest_neighbors
from wae_lightning.parts import Part
from wae_lightning.precision import full_float32, in_full_precision
from wae_lightning.sorting import in_order

__all__ = [
    "AbsoluteError",
    "BinaryCrossEntropy",
    "ChamferDistance",
    "Cost",
    "EarthMoversDistance",
    "Euclidean",
    "PyramidError",
    "SinkhornDistance",
    "SquaredError",
    "chamfer_distance",
    "check_point_sets",
    "earth_movers_distance",
    "nearest_neighbors",
    "sinkhorn_distance",
    "transport_plan",
]

PATCH_DIRECTIONS = 16


class Cost(Part, nn.Module, ABC):
    """A cost of each sample, in float32 or float64, summed over its dimensions and multiplied by ``scale``.

    Args:
        scale: Positive factor of the whole cost. The authors' code (github.com/tolstikhin/wae) uses 0.05 with squared,
            0.2 with Euclidean and 0.02 with absolute error.

    Raises:
        ValueError: If ``scale`` is not positive and finite, or, when called, if the two shapes differ.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale of the cost must be positive and finite, got {scale}")
        self.scale = scale

    @abstractmethod
    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor: ...

    def mean(self, reconstruction: Tensor) -> Tensor:
        """The mean of what the cost takes a reconstruction to stand for: itself, unless the cost says otherwise."""
        return reconstruction

    def forward(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        """Returns the cost of each sample, shape (B,)."""
        if target.shape != reconstruction.shape:
            raise ValueError(
                f"target and reconstruction must have one shape, "
                f"got {tuple(target.shape)} and {tuple(reconstruction.shape)}"
            )
        with full_float32(target.device):
            return self.scale * self._unscaled(in_full_precision(target), in_full_precision(reconstruction))


class SquaredError(Cost):
    """scale · Σ (x - y)².

    Example:
        >>> SquaredError(scale=0.5)(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
        tensor([5.])
    """

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return (target - reconstruction).square().flatten(1).sum(1)


class Euclidean(Cost):
    """scale · √(10⁻⁸ + Σ (x - y)²); the small constant keeps the gradient finite at 0, as in the authors' code."""

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return ((target - reconstruction).square().flatten(1).sum(1) + 1e-8).sqrt()


class AbsoluteError(Cost):
    """scale · Σ |x - y|.

    Example:
        >>> AbsoluteError(scale=0.5)(torch.zeros(1, 2), torch.tensor([[1.0, -3.0]]))
        tensor([2.])
    """

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return (target - reconstruction).abs().flatten(1).sum(1)


class PyramidError(Cost):
    r"""scale · (Σ |x - y| + Σ_j 4^j Σ (detail · |L_j(x) - L_j(y)| + patches · |S_j(x) - S_j(y)|)).

    L_j is what averaging over squares of 2 x 2 pixels takes from level j of a pyramid: what one scale adds. So
    blurred edges cost as much as wrong areas do, and reconstructions stay sharp where the absolute error alone gives
    them up. P. Bojanowski et al., "Optimizing the latent space of generative networks", ICML 2018, take these weights.

    S_j are the projections of the 7 x 7 patches of L_j, at every second pixel, on 16 random directions, in order of
    size within squares of 16 x 16 patches, and divided by 16: the two pictures' sliced Wasserstein distance of patches
    there (the idea: E. Heitz et al., "A sliced Wasserstein loss for neural texture synthesis", CVPR 2021, on features
    of a network). It asks for the right patches, not for their places, so what the code does not tell exactly, as hair,
    is drawn and not left out. Directions, and where the squares begin, are drawn anew each time in training; in
    evaluation mode they are the same ones always. Patches that do not fill a square are left out, and the others weigh
    the more. Levels below 8 pixels have none.

    Args:
        scale: Factor of the whole cost.
        detail: Weight of the pyramid, 0 or more.
        levels: Number of levels, at least 1; no level is smaller than 4 x 4.
        patches: Weight of the distance of patches, 0 or more. Too much of it draws dots.

    Raises:
        ValueError: If an argument is out of its range, or, when called, if these are no images (B, C, H, W).
    """

    def __init__(self, scale: float = 1.0, detail: float = 2.0, levels: int = 4, patches: float = 0.0) -> None:
        super().__init__(scale)
        for name, weight in ("detail", detail), ("patches", patches):
            if not (weight >= 0 and math.isfinite(weight)):
                raise ValueError(f"{name} must be 0 or more and finite, got {weight}")
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        self.detail = detail
        self.levels = levels
        self.patches = patches

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        if target.ndim != 4:
            raise ValueError(f"PyramidError compares images (B, C, H, W), got {tuple(target.shape)}")
        cost = (target - reconstruction).abs().flatten(1).sum(1)
        for level in range(self.levels):
            if min(target.shape[2:]) < 4:
                break
            (edges, target), (drawn, reconstruction) = _split(target), _split(reconstruction)
            cost = cost + 4**level * self.detail * (edges - drawn).abs().flatten(1).sum(1)
            if self.patches and min(edges.shape[2:]) >= 8:
                cost = cost + 4**level * self.patches * _distance_of_patches(edges, drawn, self.training)
        return cost


def _split(images: Tensor) -> tuple[Tensor, Tensor]:
    """The finest level of the Laplacian pyramid of images, and the images at half their size."""
    coarse = F.avg_pool2d(images, 2, ceil_mode=True)
    return images - F.interpolate(coarse, size=images.shape[2:], mode="bilinear", align_corners=False), coarse


def _random_filters(images: Tensor, anew: bool) -> Tensor:
    """Directions in the space of the images' patches, of length 1: (PATCH_DIRECTIONS, C, 7, 7)."""
    generator, device = (None, images.device) if anew else (torch.Generator().manual_seed(0), torch.device("cpu"))
    # in float32: the same numbers for images in any precision
    drawn = torch.randn(PATCH_DIRECTIONS, images.shape[1] * 7 * 7, generator=generator, device=device)
    return F.normalize(drawn, dim=1).view(PATCH_DIRECTIONS, -1, 7, 7).to(images)


def _distance_of_patches(x: Tensor, y: Tensor, anew: bool) -> Tensor:
    """The sum over patches of :class:`PyramidError`, (B,); images go on at the opposite edge."""
    begin = [int(torch.randint(n, ())) if anew else 0 for n in x.shape[2:]]
    filters = _random_filters(x, anew)

    def ordered(images: Tensor) -> tuple[Tensor, float]:
        moved = F.pad(images.roll(begin, (2, 3)), (3, 3, 3, 3), mode="circular")
        projected = F.conv2d(moved, filters, stride=2)
        height, width = (min(n, 16) for n in projected.shape[2:])
        squares = projected.unfold(2, height, height).unfold(3, width, width)
        return in_order(squares.flatten(4)), projected.numel() / squares.numel()

    with torch.no_grad():
        wanted, share = ordered(x)
    return (wanted - ordered(y)[0]).abs().flatten(1).sum(1) * share / PATCH_DIRECTIONS


class BinaryCrossEntropy(Cost):
    """scale · -Σ [x log p + (1 - x) log(1 - p)], for values in [0, 1]; least at p = x, where it is not 0 for greys.

    p is y = the reconstruction, or with another ``temperature`` T its logit over T made a share again, σ(σ⁻¹(y) / T).
    Where a pixel is uncertain, p is grey, and with T > 1 what the decoder puts out is T times as decided: the picture
    is crisper, and its likelihood, that of p, the same.

    p is kept between 10⁻¹² and 1 - 6·10⁻⁸ (in float32), so that no pixel costs more than 28, and none has a gradient of
    NaN.

    Args:
        scale: Factor of the whole cost.
        temperature: T, positive.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, scale: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__(scale)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        self.temperature = temperature

    def mean(self, reconstruction: Tensor) -> Tensor:
        if self.temperature == 1:
            return reconstruction
        inside = in_full_precision(reconstruction).clamp(1e-12, 1 - torch.finfo(torch.float32).eps / 2)
        return ((inside.log() - (-inside).log1p()) / self.temperature).sigmoid()

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        # at 0 and 1 PyTorch's gradient is 10¹²: too much for a sigmoid in half precision
        inside = self.mean(reconstruction).clamp(1e-12, 1 - torch.finfo(reconstruction.dtype).eps / 2)
        return F.binary_cross_entropy(inside, target, reduction="none").flatten(1).sum(1)


# ---- point sets: (B, N, 3), whose rows have no order -----------------------------------------------------------------


def _rows(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(1, index.unsqueeze(2).expand(-1, -1, 3))


def chamfer_distance(a: Tensor, b: Tensor, squared: bool = True) -> Tensor:
    r"""Computes the Chamfer distance of each pair of point sets.

    .. math::
        \frac{1}{N} \sum_{x \in a} \min_{y \in b} \|x - y\|^2 + \frac{1}{M} \sum_{y \in b} \min_{x \in a} \|x - y\|^2

    Means over points, both directions added. H. Fan, H. Su, L. Guibas, "A point set generation network for 3D object
    reconstruction from a single image", CVPR 2017 (with sums); P. Achlioptas et al., "Learning representations and
    generative models for 3D point clouds", ICML 2018 (with means, as here). The nearest neighbours are searched without
    gradient and only the chosen pairs are differentiated: the same value and, off ties, the same gradient as by the
    full matrix of distances, without keeping one. Computed in float32 (float64 stays) also under autocast.

    Args:
        a: Point sets (B, N, 3).
        b: Point sets (B, M, 3); N and M may differ.
        squared: False: distances instead of squared distances.

    Returns:
        Shape (B,), 0 or more.

    Raises:
        ValueError: If a shape is wrong, or, on the CPU, a coordinate is not finite.

    Example:
        >>> square = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]])
        >>> chamfer_distance(square, square.flip(1)), chamfer_distance(square, square[:, :2])
        (tensor([0.]), tensor([0.5000]))
    """
    check_point_sets(a, b)
    with full_float32(a.device):
        a, b = in_full_precision(a), in_full_precision(b)
        to_b, to_a = nearest_neighbors(a.detach(), b.detach())
        from_a = (a - _rows(b, to_b)).square().sum(2)
        from_b = (b - _rows(a, to_a)).square().sum(2)
        if not squared:
            # the root has no gradient at 0
            from_a, from_b = (d.clamp(min=torch.finfo(d.dtype).tiny).sqrt() for d in (from_a, from_b))
        return from_a.mean(1) + from_b.mean(1)


def earth_movers_distance(a: Tensor, b: Tensor) -> Tensor:
    r"""Computes the exact earth mover's distance of each pair of point sets of one size.

    .. math::
        \min_\pi \frac{1}{N} \sum_i \| a_i - b_{\pi(i)} \|

    over all permutations, not squared (Y. Rubner et al., IJCV 2000). Differentiable; the assignment is searched on the
    CPU and takes about 0.02, 0.12 and 1 s for a pair of 512, 1024 and 2048 points, so this serves evaluation.

    Args:
        a: Point sets (B, N, 3).
        b: Point sets (B, N, 3).

    Returns:
        Shape (B,).

    Raises:
        ValueError: If a shape is wrong or a coordinate is not finite.

    Example:
        >>> a = torch.rand(2, 10, 3)
        >>> earth_movers_distance(a, a.flip(1)) < 1e-6
        tensor([True, True])
    """
    check_point_sets(a, b)
    if a.shape != b.shape:
        raise ValueError(f"the earth mover's distance needs as many points on both sides, got {a.shape} and {b.shape}")
    with full_float32(a.device):
        a, b = in_full_precision(a), in_full_precision(b)
        distances = torch.cdist(a.detach(), b.detach(), compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
        partners = torch.stack([torch.from_numpy(linear_sum_assignment(matrix)[1]) for matrix in distances])
        squared = (a - _rows(b, partners.to(b.device))).square().sum(2)
        return squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt().mean(1)


def sinkhorn_distance(a: Tensor, b: Tensor, blur: float = 0.02, iterations: int = 50) -> Tensor:
    r"""Computes the transport cost Σ P_ij ‖a_i - b_j‖² of each pair of point sets under an entropic plan P.

    M. Cuturi, "Sinkhorn distances", NeurIPS 2013, in the logarithmic domain, with the entropy's weight ε = blur²
    annealed from the diameter of the clouds. The plan is found without gradient and then held fixed. Its columns have
    equal weights exactly, its rows only after many iterations: for clouds of 80 to 500 points in the unit cube the
    result lies up to an eighth below the exact squared cost after 50 iterations and within a twentieth after 200; in
    the end it is about ε above. It needs the (B, N, M) matrix of distances in memory.

    Args:
        a: Point sets (B, N, 3).
        b: Point sets (B, M, 3).
        blur: √ε, positive, in the unit of the coordinates.
        iterations: Number of Sinkhorn updates, at least 1.

    Returns:
        Shape (B,), 0 or more.

    Raises:
        ValueError: If a shape is wrong or an argument is out of its range.
    """
    if not (blur > 0 and math.isfinite(blur)) or iterations < 1:
        raise ValueError(f"blur must be positive and iterations at least 1, got {blur} and {iterations}")
    check_point_sets(a, b)
    with full_float32(a.device):
        a, b = in_full_precision(a), in_full_precision(b)
        center = a.detach().mean(1, keepdim=True)
        a, b = a - center, b - center
        with torch.no_grad():
            cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()
            plan = transport_plan(cost, blur, iterations) / b.shape[1]
        moved: Tensor = (plan.sum(2) * a.square().sum(2)).sum(1) + (plan.sum(1) * b.square().sum(2)).sum(1)
        moved = moved - 2 * (a * (plan @ b)).sum((1, 2))
        return moved.clamp(min=0)


@torch.no_grad()
def transport_plan(cost: Tensor, blur: float, iterations: int) -> Tensor:
    """The entropic plan of :func:`sinkhorn_distance` for squared distances (B, N, M): its columns sum to 1.

    Args:
        cost: Squared distances (B, N, M).
        blur: Root of the entropy's weight.
        iterations: How often rows and columns are normalised in turn.
    """
    log_n, log_m = math.log(cost.shape[1]), math.log(cost.shape[2])
    widths = cost.amax((1, 2)).sqrt().clamp(min=blur)
    f, g = cost.new_zeros(cost.shape[:2]), cost.new_zeros(cost.shape[0], cost.shape[2])
    for i in range(iterations):
        # geometric from the diameter to the blur over the first half
        share = min(2 * i / iterations, 1.0)
        epsilon = (widths ** (1 - share) * blur**share).square().view(-1, 1, 1)
        f = -epsilon[:, 0] * (((g.unsqueeze(1) - cost) / epsilon).logsumexp(2) - log_m)
        g = -epsilon[:, 0] * (((f.unsqueeze(2) - cost) / epsilon).logsumexp(1) - log_n)
    # g has just made the columns sum to 1; as a softmax, that does not overflow at a diameter of 10^5 blurs
    plan: Tensor = ((f.unsqueeze(2) - cost) / epsilon).softmax(1)
    return plan


class _PointSetCost(Cost):
    """A cost between point sets (B, N, 3) and (B, M, 3), the same for any order of their rows."""

    def forward(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return self.scale * self._unscaled(target, reconstruction)


class ChamferDistance(_PointSetCost):
    """scale · :func:`chamfer_distance`.

    Args:
        scale: Factor of the whole cost.
        squared: False: distances instead of squared distances.

    Example:
        >>> cloud = torch.rand(2, 50, 3)
        >>> ChamferDistance()(cloud, cloud.flip(1))  # the order of the points does not matter
        tensor([0., 0.])
    """

    def __init__(self, scale: float = 1.0, squared: bool = True) -> None:
        super().__init__(scale)
        self.squared = squared

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return chamfer_distance(target, reconstruction, self.squared)


class SinkhornDistance(_PointSetCost):
    """scale · :func:`sinkhorn_distance`, a differentiable relative of the earth mover's distance for training.

    Args:
        scale: Factor of the whole cost.
        blur: See :func:`sinkhorn_distance`.
        iterations: See :func:`sinkhorn_distance`.
    """

    def __init__(self, scale: float = 1.0, blur: float = 0.02, iterations: int = 50) -> None:
        super().__init__(scale)
        self.blur = blur
        self.iterations = iterations

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return sinkhorn_distance(target, reconstruction, self.blur, self.iterations)


class EarthMoversDistance(_PointSetCost):
    """scale · :func:`earth_movers_distance`; exact and slow."""

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return earth_movers_distance(target, reconstruction)

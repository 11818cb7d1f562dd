"""Metrics of point sets: of reconstructions, of sets of samples, and of codes.

Definitions of the sets' metrics: P. Achlioptas et al., "Learning representations and generative models for 3D point
clouds", ICML 2018 (MMD, COV, JSD), and G. Yang et al., "PointFlow", ICCV 2019 (1-NNA, and the reductions used here).
Values are raw; where tables multiply them (PointFlow's: MMD-CD by 10³, MMD-EMD by 10²) the keys do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from wae_lightning.costs import chamfer_distance, check_point_sets, earth_movers_distance
from wae_lightning.precision import are_integers, full_float32, in_float64

__all__ = [
    "ClassifierAgreement",
    "LinearSVMAccuracy",
    "OccupancyDivergence",
    "PointSetDistances",
    "PointSetReconstruction",
    "linear_svm",
    "pairwise_distances",
]

Distance = Literal["cd", "emd"]
_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cd": chamfer_distance, "emd": earth_movers_distance}


def _known_distance(distance: str) -> Callable[[Tensor, Tensor], Tensor]:
    if distance not in _DISTANCES:
        raise ValueError(f"distance must be 'cd' or 'emd', got {distance!r}")
    return _DISTANCES[distance]


@torch.no_grad()
def pairwise_distances(a: Tensor, b: Tensor | None = None, distance: Distance = "cd") -> Tensor:
    """Computes the distance of each point set of ``a`` to each of ``b``.

    Args:
        a: Point sets (n, N, 3).
        b: Point sets (m, M, 3). None: ``a`` again, in half of the time.
        distance: ``cd``: Chamfer, the two mean squared nearest-neighbour distances added; ``emd``: earth mover's, the
            mean matched distance, not squared (then N = M, and it takes n · m times that of one pair).

    Returns:
        float32 (n, m), also under autocast and TF32.

    Raises:
        ValueError: If the distance is unknown or a shape is wrong.
    """
    _known_distance(distance)
    for points in (a, b):
        if points is not None:
            check_point_sets(points)
    others = a if b is None else b
    result = torch.zeros(len(a), len(others), device=a.device, dtype=torch.float32)
    if distance == "cd":
        # around a common center, lest the products lose small distances; |x|² - 2xy + |y|² in a single product
        center = a.float().mean((0, 1))
        left, right = a.float() - center, others.float() - center
        left = torch.cat([left, left.square().sum(2, keepdim=True), torch.ones_like(left[:, :, :1])], 2)
        right = torch.cat([-2 * right, torch.ones_like(right[:, :, :1]), right.square().sum(2, keepdim=True)], 2)
        right = right.transpose(1, 2).contiguous()
    # as many matrices at once as fit into the cache of a CPU, and many more on a GPU
    at_once = max((2**19 if a.device.type == "cpu" else 2**26) // (a.shape[1] * others.shape[1]), 1)
    for i in range(len(a)):
        for start in range(0 if b is not None else i + 1, len(others), at_once):
            columns = slice(start, start + at_once)
            if distance == "emd":
                result[i, columns] = earth_movers_distance(a[i].expand(len(others[columns]), -1, -1), others[columns])
            else:
                with full_float32(a.device):
                    matrices = left[i] @ right[columns]
                result[i, columns] = matrices.amin(2).clamp(min=0).mean(1) + matrices.amin(1).clamp(min=0).mean(1)
    return result if b is not None else result + result.T


class PointSetReconstruction(Metric):
    """Mean distance between point sets and their reconstructions.

    Args:
        distance: ``cd`` or ``emd``, see :func:`pairwise_distances`.

    Example:
        >>> metric = PointSetReconstruction()
        >>> metric.update(torch.zeros(1, 5, 3), torch.ones(1, 4, 3))
        >>> metric.compute()
        tensor(6.)
    """

    full_state_update = False
    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, distance: Distance = "cd") -> None:
        super().__init__()
        self._distance = _known_distance(distance)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, target: Tensor, reconstruction: Tensor) -> None:
        """Adds point sets (B, N, 3) and their reconstructions (B, M, 3)."""
        self.total += self._distance(target, reconstruction).detach().sum()
        self.count += len(target)

    def compute(self) -> Tensor:
        return self.total / self.count


class PointSetDistances(Metric):
    """Compares a set of samples S with a set of real point sets R by all their pairwise distances.

    With D[s, r] the distance of sample s to real set r, :meth:`compute` returns

    - ``1-NNA``: the share of S ∪ R whose nearest other member comes from the same side; 0.5 is ideal, 1 the worst.
      ``1-NNA samples`` and ``1-NNA real`` are its two halves. These three need as many samples as real sets and are
      left out otherwise.
    - ``COV``: the share of R that is the nearest real set of some sample; higher is better.
    - ``MMD``: the mean over r of min_s D[s, r] (no kernel: the minimum matching distance); lower is better.
    - ``nearest real``: the mean over s of min_r D[s, r]; with R the training set, a very low value means memorisation.

    Args:
        distance: ``cd`` or ``emd``, see :func:`pairwise_distances`.

    Raises:
        ValueError: On :meth:`compute`, if one side has no sets.

    Example:
        >>> metric = PointSetDistances()
        >>> points = torch.rand(6, 20, 3)
        >>> metric.update(points[:3], real=True)
        >>> metric.update(points[3:] + 9, real=False)
        >>> metric.compute()["1-NNA"]
        tensor(1.)
    """

    full_state_update = False
    real_sets: list[Tensor]
    sample_sets: list[Tensor]

    def __init__(self, distance: Distance = "cd") -> None:
        super().__init__()
        _known_distance(distance)
        self.distance: Distance = distance
        self.add_state("real_sets", [], dist_reduce_fx="cat")
        self.add_state("sample_sets", [], dist_reduce_fx="cat")

    def update(self, points: Tensor, real: bool) -> None:
        """Adds point sets (B, N, 3), real ones or samples."""
        check_point_sets(points)
        (self.real_sets if real else self.sample_sets).append(points.detach())

    def compute(self) -> dict[str, Tensor]:
        for side, sets in (("real", self.real_sets), ("sample", self.sample_sets)):
            if not len(sets):
                raise ValueError(f"expected {side} sets, found none: call update first")
        real, samples = dim_zero_cat(self.real_sets), dim_zero_cat(self.sample_sets)
        across = pairwise_distances(samples, real, self.distance)
        metrics = {
            "COV": torch.tensor(len(torch.unique(across.argmin(1))) / len(real), device=across.device),
            "MMD": across.amin(0).mean(),
            "nearest real": across.amin(1).mean(),
        }
        if len(real) != len(samples):
            return metrics
        within_samples, within_real = (pairwise_distances(x, None, self.distance) for x in (samples, real))
        n = len(samples)
        everything = torch.cat([torch.cat([within_samples, across], 1), torch.cat([across.T, within_real], 1)])
        nearest = everything.fill_diagonal_(torch.inf).argmin(1)
        same_side = ((nearest < n) == (torch.arange(2 * n, device=nearest.device) < n)).float()
        return {
            "1-NNA": same_side.mean(),
            "1-NNA samples": same_side[:n].mean(),
            "1-NNA real": same_side[n:].mean(),
            **metrics,
        }


def _nearest(points: Tensor, grid: Tensor) -> Tensor:
    return torch.cdist(points, grid, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


class OccupancyDivergence(Metric):
    """Jensen-Shannon divergence, in bits, between where the points of samples and of real sets lie ("JSD").

    Each point counts for the nearest of the grid points that lie in a ball; of the two shares of each grid point the
    divergence is taken. The literature's grid is 28³ and its ball has radius 0.5, so its sets must fit in there; for
    sets in the unit ball say ``radius=1``. Farther points count for the surface.

    Args:
        resolution: Grid points along each axis.
        radius: Radius of the ball around the origin.
    """

    full_state_update = False
    higher_is_better = False
    cells: Tensor
    real_counts: Tensor
    sample_counts: Tensor

    def __init__(self, resolution: int = 28, radius: float = 0.5) -> None:
        super().__init__()
        if resolution < 2 or not radius > 0:
            raise ValueError(f"resolution must be 2 or more and radius positive, got {resolution} and {radius}")
        self.resolution = resolution
        self.radius = radius
        axis = torch.linspace(-radius, radius, resolution)
        grid = torch.cartesian_prod(axis, axis, axis)
        inside = grid.norm(dim=1) <= radius
        self.register_buffer("_grid", grid[inside], persistent=False)
        cells = torch.full((resolution**3,), -1)
        cells[inside] = torch.arange(int(inside.sum()))
        self.register_buffer("_cells", cells, persistent=False)
        for side in ("real_counts", "sample_counts"):
            self.add_state(side, torch.zeros(int(inside.sum()), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, points: Tensor, real: bool) -> None:
        """Adds point sets (B, N, 3), real ones or samples."""
        check_point_sets(points)
        points = points.detach().float().flatten(0, 1)
        # on a cubic grid rounding finds the nearest point; only if that lies outside the ball all are compared
        index = ((points / self.radius + 1) / 2 * (self.resolution - 1)).round().long().clamp(0, self.resolution - 1)
        cells: Tensor = self._cells[(index * index.new_tensor([self.resolution**2, self.resolution, 1])).sum(1)]  # type: ignore[index]
        outside = (cells < 0).nonzero().flatten()
        for rows in torch.split(outside, 4096):
            cells[rows] = _nearest(points[rows], self._grid)  # type: ignore[arg-type]
        counts = torch.bincount(cells, minlength=len(self.real_counts))
        if real:
            self.real_counts += counts
        else:
            self.sample_counts += counts

    def compute(self) -> Tensor:
        """The divergence, in [0, 1].

        Raises:
            ValueError: If one side has no points.
        """
        if not (self.real_counts.any() and self.sample_counts.any()):
            raise ValueError("the divergence needs real sets and samples, and one of them is missing")
        p, q = (in_float64(counts) / counts.sum().item() for counts in (self.real_counts, self.sample_counts))
        middle = (p + q) / 2
        divergences = (torch.special.xlogy(x, x / middle).nan_to_num().sum() for x in (p, q))
        return (sum(divergences, start=p.new_zeros(())) / (2 * math.log(2))).float().to(self.real_counts.device)


class ClassifierAgreement(Metric):
    """Accuracy of a classifier on reconstructions, as a share of its accuracy on the inputs.

    :meth:`compute` returns ``inputs``, ``reconstructions`` (two accuracies) and ``share``, their ratio.

    Args:
        classifier: Network (B, N, 3) -> logits (B, classes), trained on real sets; it judges in evaluation mode.
    """

    full_state_update = False
    correct: Tensor
    count: Tensor

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.add_state("correct", torch.zeros(2), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, target: Tensor, reconstruction: Tensor, labels: Tensor) -> None:
        """Adds inputs (B, N, 3), their reconstructions (B, M, 3) and the labels of the inputs (B,).

        Raises:
            ValueError: If there is another number of one than of the others.
        """
        if not len(target) == len(reconstruction) == len(labels) or labels.ndim != 1:
            shapes = " and ".join(str(tuple(x.shape)) for x in (target, reconstruction, labels))
            raise ValueError(f"expected (B, N, 3), (B, M, 3) and labels (B,), got {shapes}")
        if isinstance(self.classifier, nn.Module):  # a module that holds this metric may have set it to training
            self.classifier.eval()
        self.correct += torch.stack(
            [(self.classifier(x).argmax(1) == labels).sum() for x in (target, reconstruction)]
        ).to(self.correct)
        self.count += len(labels)

    def compute(self) -> dict[str, Tensor]:
        inputs, reconstructions = self.correct / self.count
        return {"inputs": inputs, "reconstructions": reconstructions, "share": reconstructions / inputs}


def linear_svm(x: Tensor, labels: Tensor, c: float = 1.0) -> tuple[Tensor, Tensor]:
    """Fits linear support vector machines, one class against the rest, with the squared hinge loss.

    For each class: min_w ½ ‖w‖² + c Σ max(0, 1 - y (w·x + b))², the bias counted in ‖w‖ (R.-E. Fan et al.,
    "LIBLINEAR", JMLR 2008, which scikit-learn's ``LinearSVC`` uses), to convergence by L-BFGS in float64.

    Args:
        x: Features (n, d).
        labels: Class numbers (n,).
        c: Weight of the losses, positive.

    Returns:
        Weights (classes, d) and biases (classes,) in float64: the class of ``x`` is the argmax of ``x @ w.T + b``.
    """
    x = F.pad(in_float64(x.detach()), (0, 1), value=1.0)
    signs = 2 * in_float64(F.one_hot(labels)) - 1
    weights = x.new_zeros(signs.shape[1], x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=1000, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * weights.square().sum() + c * (1 - signs * (x @ weights.T)).relu().square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return weights.detach()[:, :-1], weights.detach()[:, -1]


class LinearSVMAccuracy(Metric):
    """Accuracy of a linear support vector machine that reads the class off the codes.

    Fitted to the codes of the training set, one a cloud without augmentation, each dimension standardised by the
    training set's mean and deviation; measured on the codes of the test set.

    Args:
        c: See :func:`linear_svm`.
    """

    full_state_update = False
    higher_is_better = True
    codes: list[Tensor]
    labels: list[Tensor]
    test_codes: list[Tensor]
    test_labels: list[Tensor]

    def __init__(self, c: float = 1.0) -> None:
        super().__init__()
        self.c = c
        for state in ("codes", "labels", "test_codes", "test_labels"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, codes: Tensor, labels: Tensor, train: bool) -> None:
        """Adds codes (B, d) and labels (B,) of training or of test clouds.

        Raises:
            ValueError: If the shapes are others, or the labels no integers.
        """
        if codes.ndim != 2 or labels.shape != codes.shape[:1] or not are_integers(labels):
            raise ValueError(
                f"expected codes (B, d) and integers (B,), got {tuple(codes.shape)} and {str(labels.dtype)[6:]} of "
                f"{tuple(labels.shape)}"
            )
        labels = labels.long()
        (self.codes if train else self.test_codes).append(codes.detach())
        (self.labels if train else self.test_labels).append(labels)

    def compute(self) -> Tensor:
        """The accuracy, in [0, 1].

        Raises:
            ValueError: If there are no two training codes or no test code, or one is not finite.
        """
        if not (len(self.codes) and len(self.test_codes)):
            raise ValueError("a support vector machine needs codes of training and of test clouds: some are missing")
        codes, test_codes = in_float64(dim_zero_cat(self.codes)), in_float64(dim_zero_cat(self.test_codes))
        if len(codes) < 2:
            raise ValueError("a support vector machine needs at least 2 training codes, got 1")
        if not (codes.isfinite().all() and test_codes.isfinite().all()):
            raise ValueError("a support vector machine takes finite codes, and some are not")
        mean, deviation = codes.mean(0), codes.std(0).clamp(min=1e-12)
        weights, biases = linear_svm((codes - mean) / deviation, dim_zero_cat(self.labels), self.c)
        predicted = ((test_codes - mean) / deviation @ weights.T + biases).argmax(1)
        labels = dim_zero_cat(self.test_labels)
        return (predicted.to(labels.device) == labels).float().mean()

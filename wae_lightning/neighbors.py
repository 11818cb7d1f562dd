"""Batches of point sets: their check, and which point of another set is nearest to each point of a set."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from scipy.spatial import cKDTree
from torch import Tensor

__all__ = ["FusedSearch", "check_point_sets", "nearest_neighbors"]


def check_point_sets(*clouds: Tensor) -> None:
    """Checks that each tensor is a batch of point sets, (B, N, 3), and that the batch sizes agree.

    Raises:
        ValueError: If not.
    """
    for points in clouds:
        if points.dim() == 3 and points.shape[1] == 3 and points.shape[2] != 3:
            raise ValueError(
                f"point sets have shape (B, N, 3), one row per point; got (B, 3, N) = {tuple(points.shape)}: "
                "transpose it with points.transpose(1, 2)"
            )
        if points.dim() != 3 or points.shape[2] != 3 or points.shape[1] < 1 or not points.is_floating_point():
            raise ValueError(f"point sets must be floats of shape (B, N, 3), got {points.dtype} {tuple(points.shape)}")
        if points.shape[0] != clouds[0].shape[0]:
            raise ValueError(f"the two batches must agree in size, got {len(clouds[0])} and {len(points)} point sets")
        # on a GPU the check would wait for the device at every step; there the distance comes out as NaN. A graph that
        # is exported or compiled cannot depend on values.
        if points.device.type == "cpu" and not torch.compiler.is_compiling() and not points.isfinite().all():
            raise ValueError("point sets must be finite, got NaN or infinite coordinates")


@torch.no_grad()
def nearest_neighbors(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the nearest point of ``b`` for each point of ``a``, and the reverse.

    Exact: by k-d trees on the CPU; on a CUDA GPU, where ``torch.compile`` works, by a kernel that keeps no distance;
    else by matrices of distances, a few clouds at a time. Of equally near points any may be chosen.

    Args:
        a: Point sets (B, N, 3).
        b: Point sets (B, M, 3).

    Returns:
        Row numbers in ``b``, int64 (B, N), and row numbers in ``a``, int64 (B, M).
    """
    if a.device.type == "cpu":
        return _neighbors_by_trees(a, b)
    found = _fused(a, b) if a.device.type == "cuda" and not torch.compiler.is_compiling() else None
    return _neighbors_by_matrices(a, b) if found is None else found


def _neighbors_by_trees(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    to_b, to_a = (torch.empty(points.shape[:2], dtype=torch.int64) for points in (a, b))
    for i, (x, y) in enumerate(zip(a.numpy(), b.numpy(), strict=True)):
        # unbalanced trees are quicker to build, and as exact
        to_b[i] = torch.from_numpy(cKDTree(y, balanced_tree=False, compact_nodes=False).query(x)[1])
        to_a[i] = torch.from_numpy(cKDTree(x, balanced_tree=False, compact_nodes=False).query(y)[1])
    return to_b, to_a


def _neighbors_by_matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    found = []
    clouds_at_once = max(2**24 // (a.shape[1] * b.shape[1]), 1)
    for x, y in zip(torch.split(a, clouds_at_once), torch.split(b, clouds_at_once), strict=True):
        # by differences: |x|² - 2xy + |y|² would lose small distances to rounding, and to TF32 on a GPU
        distances = (x[:, :, None, 0] - y[:, None, :, 0]).square_()
        for axis in (1, 2):
            difference = x[:, :, None, axis] - y[:, None, :, axis]
            distances.addcmul_(difference, difference)
        found.append((distances.argmin(2), distances.argmin(1)))
    return torch.cat([to_b for to_b, _ in found]), torch.cat([to_a for _, to_a in found])


def _nearest(x: Tensor, y: Tensor) -> Tensor:
    """The row in ``y`` (B, M, 3) that is nearest to each in ``x`` (B, N, 3), by differences as above, (B, N)."""
    # coordinate by coordinate: the compiler keeps no array of what it only adds up
    first, second, third = (
        (p.unsqueeze(2) - q.unsqueeze(1)).square() for p, q in zip(x.unbind(2), y.unbind(2), strict=True)
    )
    return (first + second + third).argmin(2)


class FusedSearch:
    """The neighbours by :func:`torch.compile`, which makes one kernel of differences, squares, sum and search.

    Its first result is compared with that by matrices. Where it differs, or nothing can be compiled (no Triton, no
    compiler, another shape too many), a warning says so, and this and all further results are None.
    """

    def __init__(self) -> None:
        self._search: Callable[[Tensor, Tensor], Tensor] | None = None
        self._checked = False
        self._fails = False

    def __call__(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
        if self._fails:
            return None
        try:
            self._search = self._search or torch.compile(_nearest, dynamic=True, fullgraph=True)
            found = self._search(a, b), self._search(b, a)
            if not self._checked:
                _compare(found, a, b)
            self._checked = True
            return found
        except Exception as error:
            self._fails = True
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            warnings.warn(f"neighbours are searched for by matrices, as the fused search fails: {reason}", stacklevel=4)
            return None


def _compare(found: tuple[Tensor, Tensor], a: Tensor, b: Tensor) -> None:
    """Checks that the points found are as near as those that matrices find."""
    for x, y, *both in zip((a, b), (b, a), found, _neighbors_by_matrices(a, b), strict=True):
        near = [(x - torch.take_along_dim(y, index.unsqueeze(2), 1)).square().sum(2) for index in both]
        if not torch.allclose(near[0], near[1], rtol=1e-4, atol=1e-12, equal_nan=True):
            raise ArithmeticError("it finds other points than the nearest")


_fused = FusedSearch()

"""One file -> one point cloud, whatever its format, and how clouds are normalized and augmented."""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.lists import read_lines
from datamodules.off import read_off, sample_surface
from datamodules.ply import read_ply

__all__ = ["CLOUD_ENDINGS", "NORMALIZATIONS", "augment", "normalize", "read_cloud"]

_TEXT = (".txt", ".xyz", ".pts", ".asc", ".csv")
CLOUD_ENDINGS = (".off", ".ply", ".npy", ".npz", *_TEXT)
"""How the names of files that ``read_cloud`` reads end, in any case."""

NORMALIZATIONS = ("unit_sphere", "unit_box", "whole_set", "none")


def normalize(
    clouds: Tensor, how: str, center: Tensor | list[float] | None = None, size: float | None = None
) -> Tensor:
    """Moves and scales clouds (N, P, 3).

    Args:
        clouds: Points; to keep the details of coordinates far from 0, in float64.
        how: ``unit_sphere`` moves the mean of each cloud to 0 and its farthest point to radius 1; ``unit_box`` moves
            the middle of its bounding box to 0 and makes the longest side 1; ``whole_set`` subtracts ``center`` and
            divides by ``size``, which are those of the training set; ``none`` changes nothing.
        center: (3,), the mean of all training points; for ``whole_set`` only.
        size: Their standard deviation; for ``whole_set`` only.

    Returns:
        Clouds of the same shape and type. A cloud whose points are all the same only moves.

    Raises:
        ValueError: If ``how`` is unknown, lacks what it needs, or the coordinates are too large to be squared.
    """
    if how == "none":
        return clouds
    if how == "whole_set":
        if center is None or size is None:
            raise ValueError("normalization 'whole_set' needs the center and the size of the training set")
        return (clouds - torch.as_tensor(center).to(clouds)) / size
    if how == "unit_sphere":
        clouds = clouds - clouds.mean(dim=1, keepdim=True)
        sizes = clouds.norm(dim=2).amax(dim=1)
    elif how == "unit_box":
        low, high = clouds.amin(dim=1, keepdim=True), clouds.amax(dim=1, keepdim=True)
        clouds = clouds - (low + high) / 2
        sizes = (high - low).amax(dim=(1, 2))
    else:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {how!r}")
    if not sizes.isfinite().all():
        raise ValueError("expected coordinates whose squares are finite numbers, found larger ones")
    return clouds / torch.where(sizes > 0, sizes, 1)[:, None, None]


def augment(
    points: Tensor,
    up_axis: str,
    rotate: bool,
    scale: tuple[float, float],
    stretch: tuple[float, float],
    jitter: float,
    shift: float,
    flip: bool = False,
    stretch_parts: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Mirrors, turns, scales, stretches, jitters and moves each cloud (B, P, 3) by itself, as the data module says."""
    count, device = len(points), points.device
    if flip:
        signs = 2.0 * torch.randint(2, (count, 1, 3), device=device) - 1
        signs[:, :, 1 if up_axis == "y" else 2] = 1
        points = points * signs
    if rotate:
        angle = 2 * math.pi * torch.rand(count, device=device)
        cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
        rows = (cos, zero, sin, zero, one, zero, -sin, zero, cos)
        if up_axis == "z":
            rows = (cos, -sin, zero, sin, cos, zero, zero, zero, one)
        points = points @ torch.stack(rows, dim=1).view(count, 3, 3).to(points)
    for interval, axes in ((scale, 1), (stretch, 3)):
        if tuple(interval) != (1, 1):
            points = points * torch.empty(count, 1, axes, device=device).uniform_(*interval)
    if tuple(stretch_parts) != (1, 1):
        points = _stretch_parts(points, *stretch_parts)
    if jitter:
        points = points + (jitter * torch.randn_like(points)).clamp_(-2 * jitter, 2 * jitter)
    if shift:
        points = points + torch.empty(count, 1, 3, device=device).uniform_(-shift, shift)
    return points


def _stretch_parts(points: Tensor, least: float, most: float) -> Tensor:
    """Stretches what lies on either side of a random place of each axis; the mean of each cloud (B, P, 3) stays."""
    low, high, mean = points.amin(1, keepdim=True), points.amax(1, keepdim=True), points.mean(1, keepdim=True)
    from_place = points - torch.lerp(low, high, torch.rand_like(low))
    before, behind = (torch.empty_like(low).uniform_(least, most) for _ in range(2))
    stretched = from_place * torch.where(from_place < 0, before, behind)
    return stretched - stretched.mean(1, keepdim=True) + mean


def read_cloud(
    path: Path,
    num_points: int,
    seed: int = 0,
    normalization: str = "none",
    dtype: torch.dtype = torch.float32,
    **moments: Any,
) -> Tensor:
    """Reads the point clouds of a file: one, or all of an array with three axes.

    Meshes (``.off``, and ``.ply`` with faces) are sampled uniformly by area. ``.npy`` and ``.npz`` hold an array
    (P, 3 or more) or (N, P, 3 or more); of several arrays in ``.npz`` it is ``samples``, ``points``, ``pos``, ``pc`` or
    ``arr_0``. Text has a point in each line, separated by blanks or commas, perhaps below a line of names or a count.
    Coordinates are the columns named x, y and z, and without such names the first three. Others are left out.

    Args:
        path: The file; its ending tells the format.
        num_points: Points drawn from a mesh. Of a cloud with more points this many are drawn; one with fewer keeps its
            points.
        seed: Seed of what is drawn.
        normalization: See :func:`normalize`; computed from all the points that are in the file.
        dtype: Type of the result; ``normalization`` happens before the numbers are rounded to it.
        **moments: ``center`` and ``size``, for ``whole_set``.

    Returns:
        (N, at most num_points, 3).

    Raises:
        ValueError: If the file is not what its ending says, is damaged, or holds no finite points.
    """
    try:
        generator = np.random.default_rng(seed)
        points = normalize(torch.from_numpy(_all_points(path, num_points, generator)), normalization, **moments)
    except ValueError as error:
        raise error if str(error).startswith(f"{path}") else ValueError(f"{path}: {error}") from None
    if points.shape[1] > num_points:
        points = points[:, torch.from_numpy(generator.permutation(points.shape[1])[:num_points])]
    return points.to(dtype)


def _all_points(path: Path, num_points: int, generator: np.random.Generator) -> np.ndarray:
    """The points (N, P, 3) of a file, float64 unless the file holds shorter ones."""
    ending = path.suffix.lower()
    if ending in (".off", ".ply"):
        points, triangles = (read_off if ending == ".off" else read_ply)(path)
        if len(triangles):
            middle = points.mean(0)  # the sampled points are float32
            points = sample_surface(points - middle, triangles, num_points, generator) + middle
    elif ending == ".npy":
        with path.open("rb") as file:
            points = _read_npy(path, file, path.stat().st_size)
    elif ending == ".npz":
        points = _read_npz(path)
    elif ending in _TEXT:
        points = _read_text(path)
    else:
        raise ValueError(f"{path}: expected a point cloud in one of {', '.join(CLOUD_ENDINGS)}")
    if points.ndim not in (2, 3) or points.shape[-1] < 3 or not points.size or points.dtype.kind not in "fiu":
        shape = " x ".join(map(str, points.shape))
        raise ValueError(f"{path}: expected numbers of shape P x 3 or N x P x 3, found {points.dtype} of {shape}")
    points = points.reshape(-1, *points.shape[-2:])[..., :3]
    points = points.astype(np.float32 if points.dtype.itemsize <= 4 and points.dtype.kind == "f" else np.float64)
    if not np.isfinite(points).all():
        raise ValueError(f"{path}: a point has a coordinate that is not finite")
    return points


def _read_npy(path: Path, file: Any, size: int) -> np.ndarray:
    """Reads an array of numbers from an open file of ``size`` bytes; its header must not make us allocate more."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, by_columns, dtype = read_header[version](file)
        count = math.prod(shape)
        if dtype.kind not in "fiu":
            raise ValueError(f"expected numbers, found {dtype}")
        if count * dtype.itemsize > size:
            raise ValueError(f"its header promises {' x '.join(map(str, shape))} numbers, more than the file holds")
        content = file.read(count * dtype.itemsize)
        array = np.frombuffer(content, dtype, count)
    except Exception as error:  # numpy's header parser and zipfile each have exceptions of their own
        raise ValueError(f"{path}: not a complete NumPy array of numbers ({error})") from None
    return array.reshape(shape, order="F" if by_columns else "C")


def _read_npz(path: Path) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            known = [name for name in ("samples", "points", "pos", "pc", "arr_0") if name in arrays]
            if not known and len(arrays) != 1:
                raise ValueError(f"{path}: expected an array named samples, found {', '.join(arrays) or 'none'}")
            member = archive.getinfo(arrays[known[0]] if known else next(iter(arrays.values())))
            # deflate shrinks at most 1032 times
            with archive.open(member) as file:
                return _read_npy(path, file, min(member.file_size, 1100 * path.stat().st_size))
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib and its other decompressors each have exceptions of their own
        raise ValueError(f"{path}: not an NPZ file of plain arrays ({error})") from None


def _read_text(path: Path) -> np.ndarray:
    whole = read_lines(path)
    lines = [line for line in (re.split(r"#|//", line)[0].strip() for line in whole) if line]
    if lines and _is_no_point(lines[0].replace(";", ",")):
        names = _column_names(lines.pop(0))
    else:  # NumPy and CloudCompare make a comment of them
        names = _column_names(next((line for line in whole if line.strip()), "").lstrip("#/ \t"))
    if any("," in line and ";" in line for line in lines):
        raise ValueError(f"{path}: found lines with both , and ;: numbers with a decimal comma cannot be read")
    lines = [line.replace(";", ",") for line in lines]
    if not lines:
        raise ValueError(f"{path}: expected a point in each line, found none")
    try:
        numbers = np.loadtxt(lines, delimiter="," if "," in lines[0] else None, comments=None, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: expected as many numbers in each line ({error})") from None
    if not {"x", "y", "z"} <= set(names) or names[:3] == ["x", "y", "z"]:
        return numbers  # whose first three are the coordinates
    if len(names) != numbers.shape[1]:
        raise ValueError(f"{path}: found {len(names)} names of columns over lines of {numbers.shape[1]} numbers")
    return numbers[:, [names.index(axis) for axis in "xyz"]]


def _column_names(line: str) -> list[str]:
    """The names in a line of names, in lower case; of any other line its words."""
    separator = next((mark for mark in (";", ",", "\t") if mark in line), None)
    return [word.strip("\"' \r\n").lower() for word in line.split(separator)]


def _is_no_point(line: str) -> bool:
    """Whether a first line holds names of columns, or the number of points."""
    words = line.replace(",", " ").split()
    try:
        return len([float(word) for word in words]) == 1
    except ValueError:
        return True

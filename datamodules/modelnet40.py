"""ModelNet40 as point clouds, from its HDF5 or its OFF distribution, and synthetic shapes for a start without data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np
import torch
from torch import Tensor

from datamodules.base import BatchDataModule, TensorRows, training_and_validation_rows
from datamodules.cache import Cache, Sources, cache_key, md5_of, open_or_build
from datamodules.off import read_off, sample_surface
from datamodules.order import BatchRows
from datamodules.shapes import SHAPES, make_shapes
from wae_lightning.lightning import rank_zero_info

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ModelNet40DataModule", "PointClouds", "augment", "normalize"]

Clouds = tuple[Tensor, Tensor]  # points (N, P, 3) and labels (N,)

_MD5 = {
    "ply_data_train0.h5": "3176385ffc31a7b6b5af22191fd920d1",
    "ply_data_train1.h5": "e3f613fb500559403b34925112754dc4",
    "ply_data_train2.h5": "0c56e233a090ff87c3049d4ce08e7d8b",
    "ply_data_train3.h5": "9d2af465adfa33a3285c369f3ca66c45",
    "ply_data_train4.h5": "dff38de489b2c41bfaeded86c2208984",
    "ply_data_test0.h5": "e9732e6d83b09e79e9a7617df058adee",
    "ply_data_test1.h5": "aba4b12a67c34391cc3c015a6f08ed4b",
}
_SHAPES_PER_CLASS = {"train": 100, "test": 25}


class ModelNet40DataModule(BatchDataModule):
    """ModelNet40 (Z. Wu et al., "3D ShapeNets: A Deep Representation for Volumetric Shapes", 2015) as point clouds.

    Batches are ``(points, labels)``: float32 (B, num_points, 3) and int64 (B,), numbered as in ``class_names``. The
    whole set is in memory, with all the points of each cloud: training draws a fresh random subset for every batch,
    validation and test always use the first ``num_points``. The official test set stays the test set; validation is
    taken out of the training set by ``split_seed``.

    Three sources: ``hdf5`` is the distribution ``modelnet40_ply_hdf5_2048`` (2048 points a cloud, y up); ``off`` the
    meshes (z up), from whose surface twice ``num_points`` points are drawn uniformly by area, once, into a cache;
    ``shapes`` are synthetic solids and furniture made by formula (z up, 16 classes, 100 training and 25 test clouds
    each), which are no ModelNet40 and need no data.

    Args:
        root: A folder with ``train_files.txt`` (HDF5) or with ``<class>/{train,test}/*.off``, or the parent of
            ``modelnet40_ply_hdf5_2048/`` or ``ModelNet40/``. None: use ``data/`` if the set lies there and the
            synthetic shapes otherwise; one line tells which. A root that is given must hold the set.
        batch_size: Clouds per batch.
        num_workers: Worker processes of the DataLoader; 0 is fastest because a batch is a few index operations.
        num_points: Points per cloud.
        source: ``auto`` takes what ``root`` holds (HDF5 before OFF); ``hdf5``, ``off`` or ``shapes`` ask for one.
        classes: Names of the classes to keep, in the order of their new labels; None keeps all.
        normalization: ``unit_sphere`` moves the mean of a cloud to 0 and its farthest point to radius 1; ``unit_box``
            moves the middle of its bounding box to 0 and makes the longest side 1; ``whole_set`` subtracts one mean
            and divides by one standard deviation, both those of all training points; ``none`` leaves the files'
            values. It is computed from all the points that a cloud has, not from the subset in a batch.
        up_axis: The axis that is up in the batches; clouds stored with another one are turned.
        rotate: Turn each training cloud by a random angle about the up axis.
        scale: Multiply each training cloud by a factor drawn uniformly from this interval.
        stretch: The same with a factor of its own for each axis.
        jitter: Standard deviation of Gaussian noise added to each training point, cut off at twice its value.
        shift: Move each training cloud by a vector drawn uniformly from [-shift, shift] along each axis.
        val_fraction: Share of the training set that becomes the validation set.
        split_seed: Seed of that split, and of the synthetic shapes.
        cache_dir: Folder of the cache that the OFF meshes need; None puts it beside them.
        on_device: Whether all clouds lie on the trainer's device, as in :class:`~datamodules.base.BatchDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or a file is damaged.
        FileNotFoundError: If ``root`` holds no such set.
        OSError: If the cache cannot be written.

    Example:
        >>> shapes = ModelNet40DataModule(num_points=256, batch_size=8, source="shapes", classes=["chair", "lamp"])
        >>> shapes.setup("fit")
        >>> points, labels = next(iter(shapes.train_dataloader()))
        >>> points.shape, labels.shape
        (torch.Size([8, 256, 3]), torch.Size([8]))
    """

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        num_points: int = 2048,
        source: Literal["auto", "hdf5", "off", "shapes"] = "auto",
        classes: list[str] | None = None,
        normalization: Literal["unit_sphere", "unit_box", "whole_set", "none"] = "unit_sphere",
        up_axis: Literal["y", "z"] = "y",
        rotate: bool = False,
        scale: tuple[float, float] = (1.0, 1.0),
        stretch: tuple[float, float] = (1.0, 1.0),
        jitter: float = 0.0,
        shift: float = 0.0,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        cache_dir: str | Path | None = None,
        on_device: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, on_device)
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}")
        for name, value, allowed in (
            ("source", source, ("auto", "hdf5", "off", "shapes")),
            ("normalization", normalization, ("unit_sphere", "unit_box", "whole_set", "none")),
            ("up_axis", up_axis, ("y", "z")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, interval in ("scale", scale), ("stretch", stretch):
            if not 0 < interval[0] <= interval[1] < math.inf:
                raise ValueError(f"{name} must be an interval of positive factors, got {tuple(interval)}")
        for name, amount in ("jitter", jitter), ("shift", shift):
            if not 0 <= amount < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {amount}")
        self.root = None if root is None else Path(root)
        self.num_points = num_points
        self.source = source
        self.classes = classes
        self.normalization = normalization
        self.up_axis = up_axis
        self.rotate = rotate
        self.scale = scale
        self.stretch = stretch
        self.jitter = jitter
        self.shift = shift
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.class_names: list[str] = []
        """Names of the classes, after ``setup``: label k is ``class_names[k]``."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says about the data; distances under different normalizations do not compare."""
        return super().state_dict() | {
            "num_points": self.num_points,
            "classes": self.classes,
            "normalization": self.normalization,
            "up_axis": self.up_axis,
        }

    def prepare_data(self) -> None:
        source, folder = self._locate()
        if source == "off":
            self._open_cache(folder)

    def setup(self, stage: str = "fit") -> None:
        if hasattr(self, "test_set"):
            return
        source, folder = self._locate()
        if source == "hdf5":
            names, train, test = self._from_hdf5(folder)
        elif source == "off":
            names, train, test = self._from_off(folder)
        else:
            names, train, test = self._from_shapes()
        self.class_names = names if self.classes is None else self._known(self.classes, names)
        train, test = (self._chosen(clouds, names) for clouds in (train, test))
        stored_up: Literal["y", "z"] = "y" if source == "hdf5" else "z"
        train_points, test_points = (turned(points, stored_up, self.up_axis) for points, _ in (train, test))
        rows, val_rows = training_and_validation_rows(len(train_points), self.val_fraction, self.split_seed)
        if self.normalization == "whole_set":
            # in double precision: millions of points
            mean = train_points[rows].double().mean(dim=(0, 1))
            deviation = (train_points[rows] - mean).square().mean().sqrt()
            train_points, test_points = (
                ((points - mean) / deviation).float() for points in (train_points, test_points)
            )
        elif self.normalization != "none":
            train_points, test_points = (
                normalize(points, self.normalization) for points in (train_points, test_points)
            )
        self.train_set = PointClouds(train_points, train[1], self.num_points, rows, fresh=True)
        self.val_set = PointClouds(train_points, train[1], self.num_points, val_rows)
        self.test_set = PointClouds(test_points, test[1], self.num_points)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        points, *rest = batch
        if self.trainer is not None and self.trainer.training:
            points = augment(points, self.up_axis, self.rotate, self.scale, self.stretch, self.jitter, self.shift)
        return (points, *rest)

    def plot(self, batch: Any, count: int = 8) -> Figure:
        """Draws the first clouds of a batch, upright and with equal axes, under the names of their classes.

        Args:
            batch: ``(points, labels)``.
            count: How many clouds at most.

        Returns:
            A figure of its own, unknown to pyplot: save it with ``figure.savefig(path)``.
        """
        from matplotlib.figure import Figure

        clouds = turned(batch[0][:count].detach().float().cpu(), self.up_axis, "z")  # matplotlib's z axis is upright
        columns = min(4, len(clouds))
        rows = math.ceil(len(clouds) / columns)
        figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
        for place, (cloud, label) in enumerate(zip(clouds, batch[1], strict=False), 1):
            axes = figure.add_subplot(rows, columns, place, projection="3d")
            middle = (cloud.amax(0) + cloud.amin(0)) / 2
            reach = float((cloud - middle).abs().max()) or 1.0
            axes.scatter(*cloud.T.numpy(), s=1.5, c=cloud[:, 2].numpy(), cmap="viridis", linewidths=0)
            for limits, center in zip((axes.set_xlim, axes.set_ylim, axes.set_zlim), middle.tolist(), strict=True):
                limits(center - reach, center + reach)
            axes.set_box_aspect((1, 1, 1))
            axes.set_axis_off()
            axes.set_title(self.class_names[int(label)] if self.class_names else str(int(label)))
        return figure

    def _locate(self) -> tuple[str, Path]:
        """Which source to read, and the folder of its files."""
        root = self.root or Path("data")
        if self.source == "shapes":
            return "shapes", root
        wanted = ("hdf5", "off") if self.source == "auto" else (self.source,)
        for folder in (root, root / "modelnet40_ply_hdf5_2048", root / "ModelNet40"):
            if "hdf5" in wanted and (folder / "train_files.txt").is_file():
                return "hdf5", folder
            if "off" in wanted and next(folder.glob("*/train/*.off"), None) is not None:
                return "off", folder
        if self.root is None and self.source == "auto":
            return "shapes", root
        raise FileNotFoundError(
            f"{root}: no ModelNet40 here. Expected train_files.txt, test_files.txt, shape_names.txt and "
            "ply_data_*.h5 (the archive modelnet40_ply_hdf5_2048.zip of PointNet's authors), or "
            "<class>/train/*.off and <class>/test/*.off (the archive ModelNet40.zip of Princeton's ModelNet page), in "
            "this folder or in modelnet40_ply_hdf5_2048/ or ModelNet40/ below it. Search for the archive's name, and "
            "unpack it there; nothing is downloaded for you. source='shapes' needs no data."
        )

    def _from_hdf5(self, folder: Path) -> tuple[list[str], Clouds, Clouds]:
        names_file = folder / "shape_names.txt"
        if not names_file.is_file():
            raise FileNotFoundError(f"{names_file}: no such file. Expected the names of the classes, one a line")
        names = names_file.read_text(errors="replace").split()
        files = {part: _listed_files(folder / f"{part}_files.txt") for part in ("train", "test")}
        train, test = (_joined([read_clouds(path, len(names)) for path in files[part]], files[part]) for part in files)
        paths = [*files["train"], *files["test"]]
        original = {path.name: md5_of(path) for path in paths}
        rank_zero_info(
            f"Using {len(train[0]):,} training and {len(test[0]):,} test clouds of {train[0].shape[1]} points from "
            f"{folder} (the files are {'' if original == _MD5 else 'not '}ModelNet40's own, by their md5)."
        )
        self._check_num_points(min(train[0].shape[1], test[0].shape[1]), folder)
        return names, train, test

    def _from_off(self, folder: Path) -> tuple[list[str], Clouds, Clouds]:
        cache, files = self._open_cache(folder)
        names = sorted({path.parts[-3] for path in files})
        labels = torch.tensor([names.index(path.parts[-3]) for path in files])
        split = sum(path.parts[-2] == "train" for path in files)
        rank_zero_info(f"Using {split:,} training and {len(files) - split:,} test meshes from {folder}.")
        clouds = cache.map()
        return names, (clouds[:split], labels[:split]), (clouds[split:], labels[split:])

    def _open_cache(self, folder: Path) -> tuple[Cache, list[Path]]:
        """The points drawn from the meshes, and the meshes' files: those for training first."""
        train, test = (sorted(folder.glob(f"*/{part}/*.off")) for part in ("train", "test"))
        if not test:
            raise FileNotFoundError(f"{folder}: expected test meshes at <class>/test/*.off, found training meshes only")
        files = train + test
        points = 2 * self.num_points  # so that training has fresh subsets to draw
        key = cache_key("off 1", ((str(path.relative_to(folder)), path.stat()) for path in files))
        path = (self.cache_dir or folder) / f"modelnet40_{points}_{key}.h5"
        return open_or_build(path, (points, 3), "float32", lambda: (_Meshes(files, points), {})), files

    def _from_shapes(self) -> tuple[list[str], Clouds, Clouds]:
        names = sorted(SHAPES)
        wanted = names if self.classes is None else self._known(self.classes, names)
        rank_zero_info(
            f"Using synthetic shapes of {len(wanted)} classes, made by formula; they are not ModelNet40. "
            "For that pass --data.root DIR."
        )
        parts = []
        for part, (name, count) in enumerate(_SHAPES_PER_CLASS.items()):
            del name
            clouds = [make_shapes(shape, count, 2 * self.num_points, 2 * self.split_seed + part) for shape in wanted]
            labels = torch.tensor([names.index(shape) for shape in wanted]).repeat_interleave(count)
            parts.append((torch.from_numpy(np.concatenate(clouds)), labels))
        return names, parts[0], parts[1]

    def _chosen(self, clouds: Clouds, names: list[str]) -> Clouds:
        """The clouds of the wanted classes, with labels that number ``class_names``."""
        if self.classes is None:
            return clouds
        renumbered = torch.full((len(names),), -1)
        renumbered[[names.index(name) for name in self.class_names]] = torch.arange(len(self.class_names))
        labels = renumbered[clouds[1]]
        for label, name in enumerate(self.class_names):
            if not (labels == label).any():
                raise ValueError(f"classes: the training or the test set has no {name!r}")
        return clouds[0][labels >= 0], labels[labels >= 0]

    @staticmethod
    def _known(classes: list[str], names: list[str]) -> list[str]:
        for name in classes:
            if name not in names:
                raise ValueError(f"classes: {name!r} is not one of {', '.join(names)}")
        if not classes or len(set(classes)) < len(classes):
            raise ValueError(f"classes must name at least one class, and each once, got {classes}")
        return list(classes)

    def _check_num_points(self, available: int, folder: Path) -> None:
        if self.num_points > available:
            raise ValueError(
                f"num_points must be at most {available}, the points of each cloud in {folder}, got {self.num_points}"
            )


class PointClouds(TensorRows):
    """Point clouds in memory.

    Args:
        points: float32 (N, P, 3), the points of each cloud in random order.
        labels: int64 (N,).
        num_points: Points per cloud in a batch, at most P.
        rows: Which clouds this data set consists of; None means all. Nothing is copied.
        fresh: Draw a new random subset of the points for every batch; otherwise take the first ``num_points``. One draw
            serves the whole batch: as the points of a cloud are in random order, the same places in two clouds are
            independent draws. It is a function of the batch's seed, if its indices come with one
            (:class:`~datamodules.order.BatchRows`), and otherwise from torch's global generator.
    """

    def __init__(
        self, points: Tensor, labels: Tensor, num_points: int, rows: Tensor | None = None, fresh: bool = False
    ) -> None:
        super().__init__(points, labels, rows)
        self.num_points = num_points
        self.fresh = fresh

    @property
    def points(self) -> Tensor:
        """All points of all clouds, also those of other rows."""
        return self.examples

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Clouds:
        rows = self.rows_of(indices)
        points, available = self.points, self.points.shape[1]
        if self.num_points == available:
            return points.index_select(0, rows), self.labels[rows]
        if not self.fresh:
            return points[:, : self.num_points].index_select(0, rows), self.labels[rows]
        # a worker process has a generator of its own, a device is reached from this process only
        generator = torch.Generator().manual_seed(indices.seed) if isinstance(indices, BatchRows) else None
        places = torch.randperm(available, generator=generator, device=self.device)[: self.num_points]
        return points.index_select(0, rows).index_select(1, places), self.labels[rows]


def turned(points: Tensor, from_up: str, to_up: str) -> Tensor:
    """Turns points (..., 3) about the x axis so that ``to_up`` ("y" or "z") is up where ``from_up`` was."""
    if from_up == to_up:
        return points
    x, y, z = points.unbind(-1)
    return torch.stack((x, z, -y) if from_up == "z" else (x, -z, y), dim=-1)


def normalize(points: Tensor, normalization: str) -> Tensor:
    """Moves and scales each cloud (N, P, 3) by itself, as ``unit_sphere`` or ``unit_box``; see the data module.

    A cloud whose points are all the same only moves.
    """
    if normalization == "unit_sphere":
        points = points - points.mean(dim=1, keepdim=True)
        size = points.norm(dim=2).amax(dim=1)
    else:
        low, high = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
        points = points - (low + high) / 2
        size = (high - low).amax(dim=(1, 2))
    return points / torch.where(size > 0, size, 1)[:, None, None]


def augment(
    points: Tensor,
    up_axis: str,
    rotate: bool,
    scale: tuple[float, float],
    stretch: tuple[float, float],
    jitter: float,
    shift: float,
) -> Tensor:
    """Turns, scales, stretches, jitters and moves each cloud (B, P, 3) by itself, on its device; see the class."""
    count, device = len(points), points.device
    if rotate:
        angle = 2 * math.pi * torch.rand(count, device=device)
        cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
        rows = (cos, zero, sin, zero, one, zero, -sin, zero, cos)
        if up_axis == "z":
            rows = (cos, -sin, zero, sin, cos, zero, zero, zero, one)
        points = points @ torch.stack(rows, dim=1).view(count, 3, 3)
    for interval, axes in ((scale, 1), (stretch, 3)):
        if tuple(interval) != (1, 1):
            points = points * torch.empty(count, 1, axes, device=device).uniform_(*interval)
    if jitter:
        points = points + (jitter * torch.randn_like(points)).clamp_(-2 * jitter, 2 * jitter)
    if shift:
        points = points + torch.empty(count, 1, 3, device=device).uniform_(-shift, shift)
    return points


def read_clouds(path: Path, num_classes: int) -> Clouds:
    """Reads one file of the HDF5 distribution.

    Args:
        path: HDF5 with ``data``, float (N, P, 3), and ``label``, integers (N, 1) or (N,).
        num_classes: Labels must be below it.

    Returns:
        float32 (N, P, 3) and int64 (N,).

    Raises:
        ValueError: If the file is no HDF5 file, lacks one of the two, or one is not as it must be.
    """
    if not h5py.is_hdf5(path):
        raise ValueError(f"{path}: not an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            for name in ("data", "label"):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise ValueError(f"{path}: expected a data set {name!r}, found {', '.join(file) or 'nothing'}")
            data, label = file["data"], file["label"]
            if data.ndim != 3 or data.shape[2] != 3 or data.dtype.kind != "f":
                raise ValueError(f"{path}: expected 'data' to be float of shape (N, P, 3), found {_type_of(data)}")
            if label.shape not in ((len(data),), (len(data), 1)) or label.dtype.kind not in "iu":
                raise ValueError(
                    f"{path}: expected 'label' to be integers of shape ({len(data)}, 1), found {_type_of(label)}"
                )
            # gzip shrinks at most 1032 times; a header that claims more must not make us allocate it
            if data.nbytes + label.nbytes > 1100 * path.stat().st_size:
                raise ValueError(f"{path}: 'data' claims the shape {data.shape}, more than the file can hold")
            points = torch.from_numpy(data[()].astype(np.float32, copy=False))
            labels = torch.from_numpy(label[()].astype(np.int64).reshape(-1))
    except Exception as error:  # h5py has no common exception for damaged files
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: not a complete HDF5 file ({error})") from None
    finite = points.isfinite().all(dim=2).all(dim=1)
    if not finite.all():
        raise ValueError(f"{path}: cloud {int((~finite).nonzero()[0])} has coordinates that are not finite")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        bad = labels[(labels < 0) | (labels >= num_classes)]
        raise ValueError(f"{path}: found the label {int(bad[0])}; shape_names.txt has {num_classes} classes")
    return points, labels


def _listed_files(list_file: Path) -> list[Path]:
    """The files that a list of the HDF5 distribution names, by base name: the paths are its authors'."""
    if not list_file.is_file():
        raise FileNotFoundError(f"{list_file}: no such file. Expected the names of the ply_data_*.h5, one a line")
    lines = list_file.read_text(errors="replace").splitlines()
    files = [list_file.parent / Path(line.strip()).name for line in lines if line.strip()]
    if not files:
        raise ValueError(f"{list_file}: the list is empty; expected the names of the ply_data_*.h5, one a line")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file, though {list_file.name} names it")
    return files


def _joined(clouds: list[Clouds], files: list[Path]) -> Clouds:
    for (points, _), file in zip(clouds, files, strict=True):
        if points.shape[1] != clouds[0][0].shape[1]:
            raise ValueError(
                f"{file}: {points.shape[1]} points a cloud; expected {clouds[0][0].shape[1]} as in {files[0].name}"
            )
    return torch.cat([points for points, _ in clouds]), torch.cat([labels for _, labels in clouds])


def _type_of(dataset: Any) -> str:
    return f"{dataset.dtype} of shape {dataset.shape}"


class _Meshes(Sources):
    def __init__(self, files: list[Path], num_points: int) -> None:
        super().__init__(files, (num_points, 3), "float32")

    def read(self, index: int) -> np.ndarray:
        path = self.files[index]
        vertices, triangles = read_off(path)
        try:
            return sample_surface(vertices, triangles, self.shape[0], np.random.default_rng(index))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

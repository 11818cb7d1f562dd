"""ModelNet40 as point clouds, from any of its distributions, and synthetic shapes for a start without data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.base import BatchDataModule, TensorRows, check_seed, training_and_validation_rows
from datamodules.cache import Cache, md5_of
from datamodules.cloud_sets import (
    MODELNET40_MD5,
    SOURCES,
    CloudFiles,
    Clouds,
    cloud_files,
    hdf5_files,
    locate,
    open_clouds,
    read_class_names,
    read_hdf5,
)
from datamodules.clouds import NORMALIZATIONS, augment, normalize
from datamodules.order import BatchRows
from datamodules.shapes import SHAPES, make_shapes
from wae_lightning.lightning import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ModelNet40DataModule", "PointClouds", "augment"]

_LARGEST_RADIUS = 10.0  # beyond it, networks made for clouds of radius 1 see nothing but the distance from the origin
_LARGEST_FACTOR = 1e6
_SHAPES_PER_CLASS = {"train": 100, "test": 25}


class ModelNet40DataModule(BatchDataModule):
    """ModelNet40 (Z. Wu et al., "3D ShapeNets: A Deep Representation for Volumetric Shapes", 2015) as point clouds.

    Batches are ``(points, labels)``: float32 (B, num_points, 3) and int64 (B,), numbered as in ``class_names``. The
    whole set is in memory, with all the points of each cloud: training draws a fresh random subset for every batch,
    validation and test always use the first ``num_points`` (HDF5 files have to hold them in random order). The official
    test set stays the test set; validation is taken out of the training set by ``split_seed``.

    Sources: ``hdf5`` is the distribution ``modelnet40_ply_hdf5_2048`` (2048 points a cloud, y up); ``txt`` is
    ``modelnet40_normal_resampled`` (10,000 points, y up; normals are left out); ``off`` the meshes (z up);
    ``shapes`` are synthetic solids and furniture made by formula (z up, 16 classes, 100 training and 25 test clouds
    each), which are no ModelNet40 and need no data. ``files`` is any other folder of clouds or meshes, a file each
    (:func:`~datamodules.clouds.read_cloud` tells the formats), in ``<class>/{train,val,test}/`` as PointFlow's
    ShapeNet, or with these levels missing or the other way round; such files count as y up. A ``val`` folder is the
    validation set; without a ``test`` folder anywhere, ``val_fraction`` of the clouds is set aside for the test, too.
    Of every file of one cloud, twice ``num_points`` points are drawn once into a cache, from meshes uniformly by area.

    Args:
        root: A folder of one of these sources, or the parent of ``modelnet40_ply_hdf5_2048/``,
            ``modelnet40_normal_resampled/`` or ``ModelNet40/``. None: use ``data/`` if the set lies there and the
            synthetic shapes otherwise; one line tells which. A root that is given must hold the set.
        batch_size: Clouds per batch.
        num_workers: Worker processes of the DataLoader; 0 is fastest because a batch is a few index operations.
        num_points: Points per cloud.
        source: ``auto`` takes what ``root`` holds, in the order above; the other names ask for one.
        classes: Names of the classes to keep, in the order of their new labels; None keeps all.
        normalization: ``unit_sphere``, ``unit_box``, ``whole_set`` (by mean and deviation of all training points) or
            ``none``, as in :func:`~datamodules.clouds.normalize`. It is computed from all the points that a cloud has
            (of a mesh those drawn), not from the subset in a batch. ``none`` warns of coordinates far from 0.
        up_axis: The axis that is up in the batches; clouds stored with another one are turned.
        rotate: Turn each training cloud by a random angle about the up axis.
        scale: Multiply each training cloud by a factor drawn uniformly from this interval.
        stretch: The same with a factor of its own for each axis.
        stretch_parts: Cut each training cloud at a random place of each axis and multiply the lengths on either side by
            factors drawn uniformly from this interval: a chair gets another back without getting other legs.
        jitter: Standard deviation of Gaussian noise added to each training point, cut off at twice its value.
        shift: Move each training cloud by a vector drawn uniformly from [-shift, shift] along each axis.
        val_fraction: Share of the training set that becomes the validation set.
        split_seed: Seed of that split, and of the synthetic shapes.
        cache_dir: Folder of the cache of single files; None puts it beside them.
        on_error: ``raise`` stops at the first of the single files that cannot be read; ``skip`` leaves such files out
            and reports how many and which.
        on_device: Whether all clouds lie on the trainer's device, as in :class:`~datamodules.base.BatchDataModule`.
        flip: Mirror each training cloud along each of the two level axes, with probability 1/2 each.

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
        source: Literal["auto", "hdf5", "txt", "off", "files", "shapes"] = "auto",
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
        on_error: Literal["raise", "skip"] = "raise",
        on_device: bool | None = None,
        flip: bool = False,
        stretch_parts: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__(batch_size, num_workers, on_device)
        if num_points < 1:
            raise ValueError(f"num_points must be at least 1, got {num_points}")
        for name, value, allowed in (
            ("source", source, SOURCES),
            ("normalization", normalization, NORMALIZATIONS),
            ("up_axis", up_axis, ("y", "z")),
            ("on_error", on_error, ("raise", "skip")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, interval in ("scale", scale), ("stretch", stretch), ("stretch_parts", stretch_parts):
            if not 0 < interval[0] <= interval[1] <= _LARGEST_FACTOR:
                raise ValueError(
                    f"{name} must be an interval of positive factors up to {_LARGEST_FACTOR:g}, got {tuple(interval)}"
                )
        for name, amount in ("jitter", jitter), ("shift", shift):
            if not 0 <= amount <= _LARGEST_FACTOR:
                raise ValueError(f"{name} must be 0 or more, up to {_LARGEST_FACTOR:g}, got {amount}")
        self.root = None if root is None else Path(root)
        self.num_points = num_points
        self.source = source
        self.classes = classes
        self.normalization = normalization
        self.up_axis = up_axis
        self.rotate = rotate
        self.scale = scale
        self.stretch = stretch
        self.stretch_parts = stretch_parts
        self.flip = flip
        self.jitter = jitter
        self.shift = shift
        self.val_fraction = val_fraction
        self.split_seed = check_seed(split_seed)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.on_error = on_error
        self.moments: dict[str, Any] = {}
        """After ``setup`` with ``whole_set``: ``center``, three numbers, and ``size``, for ``normalize``."""
        self.files_up: str | None = None
        """After ``setup``, of files: which axis is up in them, before clouds are turned to ``up_axis``."""
        self.class_names: list[str] = []
        """Names of the classes, after ``setup``: label k is ``class_names[k]``."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says about the data; distances under different normalizations do not compare."""
        return super().state_dict() | {
            "num_points": self.num_points,
            "classes": self.classes,
            "normalization": self.normalization,
            "up_axis": self.up_axis,
            "files_up": self.files_up,
            **self.moments,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns when a checkpoint was trained on differently prepared data; nothing else is restored."""
        # what is turned to one axis may have come from another; the others are not known before setup
        unknown = ("files_up",) if self.moments else ("files_up", "center", "size")
        super().load_state_dict({name: value for name, value in state_dict.items() if name not in unknown})

    def prepare_data(self) -> None:
        source, folder = locate(self.root, self.source)
        if source not in ("hdf5", "shapes"):
            self._open_cache(cloud_files(source, folder), folder)

    def setup(self, stage: str = "fit") -> None:
        if hasattr(self, "test_set"):
            return
        source, folder = locate(self.root, self.source)
        val_part: Clouds | None = None
        if source == "hdf5":
            names, train, test = self._from_hdf5(folder)
        elif source == "shapes":
            names, train, test = self._from_shapes()
        else:
            names, train, val_part, test = self._from_files(source, folder)
        self.class_names = names if self.classes is None else self._known(self.classes, names)
        train, test = (self._chosen(clouds, names) for clouds in (train, test))
        rows, val_rows = torch.arange(len(train[0])), torch.empty(0, dtype=torch.long)
        if val_part is None:
            rows, val_rows = training_and_validation_rows(len(train[0]), self.val_fraction, self.split_seed)
        else:
            val_part = self._chosen(val_part, names)
            val_rows = torch.arange(len(val_part[0])) + len(rows)
            train = torch.cat([train[0], val_part[0]]), torch.cat([train[1], val_part[1]])
        stored_up: Literal["y", "z"] = "z" if source in ("off", "shapes") else "y"
        self.files_up = None if source == "shapes" else stored_up
        train_points, test_points = (turned(points, stored_up, self.up_axis) for points, _ in (train, test))
        if self.normalization == "whole_set":
            # in double precision: millions of points
            center = train_points[rows].double().mean(dim=(0, 1))
            deviation = (train_points[rows] - center).square().mean().sqrt()
            self.moments = {"center": center.tolist(), "size": float(deviation) or 1.0}
            train_points, test_points = train_points.double(), test_points.double()
        train_points, test_points = (
            normalize(points, self.normalization, **self.moments).float() for points in (train_points, test_points)
        )
        radius = float(train_points.norm(dim=2).max()) if self.normalization == "none" else 0.0
        if not radius <= _LARGEST_RADIUS:
            rank_zero_warn(
                f"normalization='none': found a point {radius:.4g} from the origin; models expect clouds of radius 1 "
                "or so, and their cost grows with its square. normalization='unit_sphere' moves and scales each cloud."
            )
        self.train_set = PointClouds(train_points, train[1], self.num_points, rows, fresh=True)
        self.val_set = PointClouds(train_points, train[1], self.num_points, val_rows)
        self.test_set = PointClouds(test_points, test[1], self.num_points)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        points, *rest = batch
        if self.trainer is not None and self.trainer.training:
            amounts = self.scale, self.stretch, self.jitter, self.shift
            points = augment(points, self.up_axis, self.rotate, *amounts, self.flip, self.stretch_parts)
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

    def _from_hdf5(self, folder: Path) -> tuple[list[str], Clouds, Clouds]:
        names = read_class_names(folder / "shape_names.txt")
        files = [hdf5_files(folder, part) for part in ("train", "test")]
        train, test = (read_hdf5(part, len(names)) for part in files)
        original = {path.name: md5_of(path) for part in files for path in part}
        rank_zero_info(
            f"Using {len(train[0]):,} training and {len(test[0]):,} test clouds of {train[0].shape[1]} points from "
            f"{folder} (the files are {'' if original == MODELNET40_MD5 else 'not '}ModelNet40's own, by their md5)."
        )
        available = min(train[0].shape[1], test[0].shape[1])
        if self.num_points > available:
            raise ValueError(
                f"num_points must be at most {available}, the points of each cloud in {folder}, got {self.num_points}"
            )
        return names, train, test

    def _from_files(self, source: str, folder: Path) -> tuple[list[str], Clouds, Clouds | None, Clouds]:
        found = cloud_files(source, folder)
        cache = self._open_cache(found, folder)
        clouds, labels, good = cache.map(), torch.tensor(found.labels), cache.good_rows
        if found.parts:
            parts = torch.tensor(found.parts)[good]
            train, val, test = (good[parts == part] for part in range(3))
        else:
            # by another permutation than validation's
            rest_and_test = training_and_validation_rows(len(good), self.val_fraction, self.split_seed + 1)
            train, test = (good[rows] for rows in rest_and_test)
            val = good[:0]
        for name, rows in ("training", train), ("test", test):
            if not len(rows):
                raise ValueError(f"{folder}: expected {name} clouds that can be read, found none")
        rank_zero_info(
            f"Using {len(train) + len(val):,} training and {len(test):,} test "
            f"{'meshes' if source == 'off' else 'clouds'} from {folder}."
        )
        train_part, val_part, test_part = ((clouds[rows], labels[rows]) for rows in (train, val, test))
        return found.names, train_part, val_part if len(val) else None, test_part

    def _open_cache(self, found: CloudFiles, folder: Path) -> Cache:
        return open_clouds(found.files, folder, self.num_points, self.normalization, self.cache_dir, self.on_error)

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

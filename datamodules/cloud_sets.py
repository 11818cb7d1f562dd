"""Folders of point clouds as ModelNet40, ShapeNet and others are offered: which files, classes and parts they hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from datamodules.cache import Cache, Sources, cache_key, open_or_build
from datamodules.clouds import CLOUD_ENDINGS, read_cloud
from datamodules.lists import is_junk, last_part, read_names

__all__ = [
    "SOURCES",
    "CloudFiles",
    "CloudSources",
    "cloud_files",
    "hdf5_files",
    "locate",
    "read_class_names",
    "read_hdf5",
]

SOURCES = ("auto", "hdf5", "txt", "off", "files", "shapes")

Clouds = tuple[Tensor, Tensor]  # points (N, P, 3) and labels (N,)

MODELNET40_MD5 = {
    "ply_data_train0.h5": "3176385ffc31a7b6b5af22191fd920d1",
    "ply_data_train1.h5": "e3f613fb500559403b34925112754dc4",
    "ply_data_train2.h5": "0c56e233a090ff87c3049d4ce08e7d8b",
    "ply_data_train3.h5": "9d2af465adfa33a3285c369f3ca66c45",
    "ply_data_train4.h5": "dff38de489b2c41bfaeded86c2208984",
    "ply_data_test0.h5": "e9732e6d83b09e79e9a7617df058adee",
    "ply_data_test1.h5": "aba4b12a67c34391cc3c015a6f08ed4b",
}
_FOLDERS = ("modelnet40_ply_hdf5_2048", "modelnet40_hdf5_2048", "modelnet40_normal_resampled", "ModelNet40")
# text may be anything: only files of other endings are taken for clouds where nobody asked for clouds
_UNMISTAKABLE = tuple(ending for ending in CLOUD_ENDINGS if ending not in (".txt", ".csv"))
PARTS = ("train", "val", "test")
_NAMES_OF_PARTS = {
    **dict.fromkeys(("train", "training"), 0),
    **dict.fromkeys(("val", "valid", "validation"), 1),
    **dict.fromkeys(("test", "testing"), 2),
}
_NAMES_OF_LISTS = ("modelnet40", "modelnet10")


class CloudFiles(NamedTuple):
    """The files of a set, a cloud each: those for training first, then validation, then test.

    ``parts`` are indices into ``PARTS``, or empty if the set is not divided; ``labels`` are indices into ``names``.
    """

    names: list[str]
    files: list[Path]
    labels: list[int]
    parts: list[int]


def locate(root: Path | None, source: str) -> tuple[str, Path]:
    """Finds out what a root holds.

    Args:
        root: The folder; None is ``data``, where nothing but the sets of ModelNet40 is looked for.
        source: One of ``SOURCES``; ``auto`` takes what is there, and the synthetic shapes if there is no root.

    Returns:
        The source to read, and the folder of its files.

    Raises:
        FileNotFoundError: If the source is not there.
    """
    folder = root or Path("data")
    if source == "shapes":
        return "shapes", folder
    wanted = SOURCES[1:4] if source == "auto" else (source,)
    below = [folder / name for name in _FOLDERS]
    for place in (folder, *below, *(place / place.name for place in below)):
        for candidate in wanted:
            if _holds(place, candidate):
                return candidate, place
    if root is None and source == "auto":
        return "shapes", folder
    if source == "auto" and clouds_in_folders(folder, _UNMISTAKABLE).files:
        return "files", folder
    raise FileNotFoundError(
        f"{folder}: no ModelNet40 here. Expected train_files.txt, test_files.txt, shape_names.txt and "
        "ply_data_*.h5 (the archive modelnet40_ply_hdf5_2048.zip of PointNet's authors), modelnet40_train.txt and its "
        "companions (modelnet40_normal_resampled.zip), or <class>/train/*.off and <class>/test/*.off (the archive "
        "ModelNet40.zip of Princeton's ModelNet page), in this folder or in one with the archive's name below it, or a "
        f"folder of clouds, a file each ({', '.join(CLOUD_ENDINGS)}). Search for the archive's name, and unpack it "
        "there; nothing is downloaded for you. source='shapes' needs no data."
    )


def _holds(folder: Path, source: str) -> bool:
    """Whether a folder looks like one of a source."""
    if source == "hdf5":
        without_lists = (folder / "shape_names.txt").is_file() and any(folder.glob("*train*.h5"))
        return (folder / "train_files.txt").is_file() or without_lists
    if source == "txt":
        return any((folder / f"{name}_train.txt").is_file() for name in _NAMES_OF_LISTS)
    if source == "off":
        return any(not is_junk(path.relative_to(folder)) for path in folder.glob("*/train/*.[oO][fF][fF]"))
    return bool(clouds_in_folders(folder, CLOUD_ENDINGS).files)


def cloud_files(source: str, folder: Path) -> CloudFiles:
    """The files of a source that has one for each cloud: ``txt``, ``off`` or ``files``.

    Raises:
        FileNotFoundError: If a list or a file is missing, or there are no files for the test.
        ValueError: If a list is damaged.
    """
    if source == "txt":
        return clouds_in_lists(folder)
    found = clouds_in_folders(folder, (".off",) if source == "off" else _UNMISTAKABLE)
    if not found.files:
        found = clouds_in_folders(folder, CLOUD_ENDINGS)
    if found.parts and 2 not in found.parts:
        what, where = ("meshes", "*.off") if source == "off" else ("clouds", "...")
        raise FileNotFoundError(f"{folder}: expected test {what} at <class>/test/{where}, found training {what} only")
    return found


def clouds_in_folders(folder: Path, endings: Sequence[str]) -> CloudFiles:
    """Finds all files with one of ``endings`` (lower case) at any depth.

    A folder on the way called ``train``, ``val`` or ``test`` tells the part, the others the class:
    ``chair/train/1.off`` (ModelNet40), ``03001627/val/1.npy`` (PointFlow's ShapeNet), ``train/chair/1.ply``,
    ``chair/1.npz``. If some files are in such a part, the others are left out.
    """
    found = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.suffix.lower() in endings and not is_junk(inside) and path.is_file():
            parts = [_NAMES_OF_PARTS[name.lower()] for name in inside.parts[:-1] if name.lower() in _NAMES_OF_PARTS]
            classes = [name for name in inside.parts[:-1] if name.lower() not in _NAMES_OF_PARTS]
            found.append((parts[-1] if parts else -1, path, "/".join(classes) or folder.resolve().name))
    divided = any(part >= 0 for part, _, _ in found)
    found = sorted(entry for entry in found if entry[0] >= 0 or not divided)
    names = sorted({name for _, _, name in found})
    labels = [names.index(name) for _, _, name in found]
    return CloudFiles(names, [path for _, path, _ in found], labels, [part for part, _, _ in found] if divided else [])


def clouds_in_lists(folder: Path) -> CloudFiles:
    """Finds the files of ``modelnet40_normal_resampled``.

    ``modelnet40_train.txt`` and ``modelnet40_test.txt`` (or ``modelnet10_...``) name clouds such as
    ``night_stand_0001``, whose file is ``night_stand/night_stand_0001.txt``; ``modelnet40_shape_names.txt`` has the
    names of the classes.

    Raises:
        FileNotFoundError: If a list or a file that one names is missing.
        ValueError: If a list is empty, or names a cloud of no class.
    """
    stem = next(name for name in _NAMES_OF_LISTS if (folder / f"{name}_train.txt").is_file())
    names = read_class_names(folder / f"{stem}_shape_names.txt")
    labels = {name.replace(" ", "_"): label for label, name in enumerate(names)}
    found = CloudFiles(names, [], [], [])
    for part in (0, 2):
        list_file = folder / f"{stem}_{PARTS[part]}.txt"
        for line in read_names(list_file, "the names of clouds"):
            cloud = last_part(line).removesuffix(".txt").replace(" ", "_")
            name = cloud.rpartition("_")[0]
            if name not in labels:
                raise ValueError(
                    f"{list_file}: expected CLASS_NUMBER with a class of {stem}_shape_names.txt, found {line!r}"
                )
            places = [folder / name / f"{cloud}.txt", folder / name.replace("_", " ") / f"{line.strip()}.txt"]
            file = next((place for place in places if place.is_file()), None)
            if file is None:
                raise FileNotFoundError(f"{places[0]}: no such file, though {list_file.name} names it")
            found.files.append(file)
            found.labels.append(labels[name])
            found.parts.append(part)
    return found


def read_class_names(path: Path) -> list[str]:
    """The names of classes: line k, from 0, is the name of label k. A name may hold blanks."""
    names = read_names(path, "the names of the classes")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: expected each class once, found {name!r} more than once")
    return names


class CloudSources(Sources):
    """The points of each file: twice ``num_points``, so that training has fresh subsets to draw.

    Args:
        files: The files.
        num_points: The least that a file must hold; one with less than twice as many repeats some.
        normalization: How each cloud is normalized before it is rounded to ``dtype``; ``none`` leaves it.
        dtype: ``float32`` or ``float64``.
    """

    def __init__(self, files: list[Path], num_points: int, normalization: str = "none", dtype: str = "float32") -> None:
        super().__init__(files, (2 * num_points, 3), dtype)
        self.normalization = normalization

    def read(self, index: int) -> np.ndarray:
        path, wanted = self.files[index], self.shape[0]
        dtype = torch.float64 if self.dtype == "float64" else torch.float32
        clouds = read_cloud(path, wanted, index, self.normalization, dtype)
        if len(clouds) != 1 or clouds.shape[1] < wanted // 2:
            raise ValueError(
                f"{path}: expected one cloud of at least {wanted // 2} points, found {len(clouds)} of {clouds.shape[1]}"
            )
        # in random order, since validation and test take the first ones
        points = np.random.default_rng(index).permutation(clouds[0].numpy())
        return np.resize(points, (wanted, 3))


def open_clouds(
    files: list[Path], folder: Path, num_points: int, normalization: str, cache_dir: Path | None, on_error: str
) -> Cache:
    """The cache of the points of each file, built if it is missing.

    Clouds are normalized before they are rounded to float32, lest the coordinates of a map lose their details; what is
    needed of the whole set first, stays in float64.
    """
    how, dtype = ("none", "float64") if normalization == "whole_set" else (normalization, "float32")
    key = cache_key(("clouds 2", how, dtype), ((str(path.relative_to(folder)), path.stat()) for path in files))
    sources = CloudSources(files, num_points, how, dtype)
    path = (cache_dir or folder) / f"modelnet40_{sources.shape[0]}_{key}.h5"
    return open_or_build(path, sources.shape, dtype, lambda: (sources, {}), on_error)


def hdf5_files(folder: Path, part: str) -> list[Path]:
    """The HDF5 files of a part: those that its list names, by base name as the paths are its authors'.

    A folder without any list has them by their names (``ply_data_train0.h5``, ``train0.h5``).

    Raises:
        FileNotFoundError: If the list of this part alone, or a file that it names, is missing, or there is no file.
    """
    if not any((folder / f"{name}_files.txt").is_file() for name in ("train", "test")):
        found = sorted(path for path in folder.glob(f"*{part}*.h5") if not is_junk(Path(path.name)))
        if not found:
            raise FileNotFoundError(
                f"{folder}: expected a file ply_data_{part}0.h5, or {part}_files.txt, found neither"
            )
        return found
    list_file = folder / f"{part}_files.txt"
    names = [last_part(line) for line in read_names(list_file, "the names of the ply_data_*.h5")]
    files = [folder / name for name in names if not is_junk(Path(name))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file, though {list_file.name} names it")
    return files


def read_hdf5(files: list[Path], num_classes: int) -> Clouds:
    """Reads and joins files of one part; see :func:`read_clouds`."""
    clouds = [read_clouds(path, num_classes) for path in files]
    for (points, _), file in zip(clouds, files, strict=True):
        if points.shape[1] != clouds[0][0].shape[1]:
            raise ValueError(
                f"{file}: {points.shape[1]} points a cloud; expected {clouds[0][0].shape[1]} as in {files[0].name}"
            )
    if not sum(len(points) for points, _ in clouds):
        raise ValueError(f"{', '.join(map(str, files)) or 'the list of files'}: expected clouds, found none")
    return torch.cat([points for points, _ in clouds]), torch.cat([labels for _, labels in clouds])


def read_clouds(path: Path, num_classes: int) -> Clouds:
    """Reads one file of the HDF5 distribution.

    Args:
        path: HDF5 with ``data``, float (N, P, 3), or (N, P, 6) with normals, which are left out, and ``label``,
            integers (N, 1) or (N,).
        num_classes: Labels must be below it.

    Returns:
        float32 (N, P, 3), or float64 if the file has it, and int64 (N,).

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
            if data.ndim != 3 or data.shape[2] not in (3, 6) or data.dtype.kind != "f":
                raise ValueError(f"{path}: expected 'data' to be float of shape (N, P, 3), found {_type_of(data)}")
            if label.shape not in ((len(data),), (len(data), 1)) or label.dtype.kind not in "iu":
                raise ValueError(
                    f"{path}: expected 'label' to be integers of shape ({len(data)}, 1), found {_type_of(label)}"
                )
            # gzip shrinks at most 1032 times; a header that claims more must not make us allocate it
            if data.nbytes + label.nbytes > 1100 * path.stat().st_size:
                raise ValueError(f"{path}: 'data' claims the shape {data.shape}, more than the file can hold")
            points = torch.from_numpy(data[..., :3].astype(f"f{max(data.dtype.itemsize, 4)}", copy=False))
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


def _type_of(dataset: Any) -> str:
    return f"{dataset.dtype} of shape {dataset.shape}"

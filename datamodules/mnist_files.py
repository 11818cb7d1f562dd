"""MNIST and its kin in the other forms in which they are offered: NumPy archives, tables of pixels, Parquet."""

from __future__ import annotations

import gzip
import io
import re
import zipfile
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.idx import find_folders, set_named_in

__all__ = ["find_tables", "read_table"]

ENDINGS = (".npz", ".csv", ".csv.gz", ".parquet")


def find_tables(root: Path, name: str, split: str = "") -> dict[str, list[Path]]:
    """Looks for files of a set in the places of :func:`~datamodules.idx.find_folders`.

    They are called ``mnist.npz``, as Keras's; or have ``train`` or ``test`` in their name, or in that of the folder
    that they lie in, as ``mnist_train.csv``, ``train-00000-of-00001.parquet`` and ``test/0000.parquet``.

    Args:
        root: The folder to look in.
        name: torchvision's name of the set: ``MNIST``, ``FashionMNIST``, ``KMNIST`` or ``EMNIST``.
        split: Of EMNIST, its split, which must be part of the file's name, or of its folder's.

    Returns:
        The files of ``train`` and ``test``, all of one ending; of an archive that has both, the same file. Empty if
        there is nothing.
    """
    for files in find_folders(root, name):
        for ending in ENDINGS:
            found: dict[str, list[Path]] = {}
            for path in files:
                if not path.name.lower().endswith(ending) or split not in f"{path.parent.name}/{path.name}".lower():
                    continue
                if set_named_in(path.name) not in (None, name):
                    continue
                whole = re.sub(r"[^a-z]", "", path.name.lower().removesuffix(ending))
                parts = [
                    part for part in ("train", "test") if re.search(rf"(?<![a-z]){part}(?![a-z])", path.name.lower())
                ]
                if not parts and path.parent.name.lower() in ("train", "test"):
                    parts = [path.parent.name.lower()]
                if ending == ".npz" and whole in ("mnist", name.lower()):
                    parts = ["train", "test"]
                for part in parts:
                    found.setdefault(part, []).append(path)
            if found:
                return found
    return {}


def read_table(paths: list[Path], part: str) -> tuple[Tensor, Tensor | None]:
    """Reads images and labels from files that :func:`find_tables` has found.

    Args:
        paths: The files of one part, in order.
        part: ``train`` or ``test``, of an archive that has both.

    Returns:
        uint8 (N, 1, 28, 28), and int64 (N,) or None if there are no labels.

    Raises:
        ValueError: If a file is damaged, or is not such a table.
        ModuleNotFoundError: If it is Parquet and pyarrow is not installed.
    """
    first = paths[0].name.lower()
    if first.endswith(".npz"):
        images, labels = read_npz(paths, part)
    else:
        read = read_parquet if first.endswith(".parquet") else read_csv
        found = [read(path) for path in paths]
        images = np.concatenate([one for one, _ in found])
        known = [one for _, one in found if one is not None]
        labels = np.concatenate(known) if len(known) == len(found) else None
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.shape[1:] not in ((28, 28), (784,)) or not len(images):
        raise ValueError(f"{paths[0]}: expected images of 28 x 28, found an array of {_shape(images)}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"{paths[0]}: {_shape(labels)} labels for {len(images)} images")
    for array, name in ((images, "pixels"), (labels, "labels")):
        if array is not None and not (array.dtype.kind in "iuf" and (array >= 0).all() and (array <= 255).all()):
            raise ValueError(f"{paths[0]}: expected {name} from 0 to 255, found {array.dtype} with others")
    if images.dtype.kind == "f" and images.max() <= 1:
        raise ValueError(f"{paths[0]}: expected pixels from 0 to 255, found fractions up to {images.max():.4g}")
    pixels = torch.from_numpy(np.ascontiguousarray(images.astype(np.uint8))).reshape(-1, 1, 28, 28)
    return pixels, None if labels is None else torch.from_numpy(labels.astype(np.int64))


def _shape(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape))


def read_npz(paths: list[Path], part: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Keras's ``x_train``, ``y_train``, ``x_test``, ``y_test``; or images and labels in two files, as KMNIST has."""
    arrays: dict[str, np.ndarray] = {}
    for path in paths:
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("it is no ZIP file")
            with zipfile.ZipFile(path) as archive:  # deflate shrinks at most 1032 times; a bomb is not unpacked
                if sum(member.file_size for member in archive.infolist()) > 1100 * path.stat().st_size:
                    raise ValueError("it claims more than it can hold")
            with np.load(path, allow_pickle=False) as file:
                for name in file.files:
                    if name == "arr_0" or part in name:
                        named = path.name if name == "arr_0" else name
                        kind = "labels" if re.match("y_|.*label", named.lower()) else "images"
                        arrays[kind] = np.asarray(file[name])
        except Exception as error:  # zipfile, zlib, numpy and ast each have exceptions of their own
            raise ValueError(f"{path}: not an NPZ file of plain arrays ({error})") from None
    if "images" not in arrays:
        raise ValueError(f"{paths[0]}: expected arrays x_{part} and y_{part}")
    return arrays["images"], arrays.get("labels")


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """A line for each image: its label, unless the header lacks one, and 784 pixels."""
    try:
        open_text = gzip.open if path.suffix.lower() == ".gz" else open
        with open_text(path, "rt", encoding="utf-8-sig") as file:
            first = file.readline()
            has_header = not re.match(r"\s*\"?\d", first)
            file.seek(0)
            table = np.loadtxt(file, np.int16, delimiter=",", skiprows=int(has_header), ndmin=2, quotechar='"')
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a table of whole numbers ({' '.join(str(error).split())})") from None
    if table.shape[1] == 784:
        return table, None
    names = [name.strip().strip('"').lower() for name in first.split(",")] if has_header else []
    at = next((names.index(name) for name in ("label", "class", "y") if name in names), 0)
    if table.shape[1] != 785:
        raise ValueError(f"{path}: expected a label and 784 pixels in each line, found {table.shape[1]} numbers")
    return np.delete(table, at, axis=1), table[:, at]


def read_parquet(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Hugging Face's columns: ``image``, a PNG each, and ``label``."""
    try:
        import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise ModuleNotFoundError(
            f"{path}: Parquet is read by pyarrow, which is not installed: pip install pyarrow, or take the set as IDX "
            "files, mnist.npz or CSV"
        ) from None
    try:
        table: Any = parquet.read_table(path)
    except Exception as error:  # pyarrow's own
        raise ValueError(f"{path}: not a Parquet file ({' '.join(str(error).split())[:200]})") from None
    names = table.column_names
    images = next((name for name in ("image", "img") if name in names), None)
    if images is None:
        raise ValueError(f"{path}: expected columns image and label, found {', '.join(names)}")
    pictures = []
    for number, value in enumerate(table[images].to_pylist()):
        content: Any = value.get("bytes") if isinstance(value, dict) else value
        try:
            with Image.open(io.BytesIO(content), formats=["PNG", "JPEG"]) as picture:
                if picture.size != (28, 28):
                    raise ValueError(f"{picture.width} x {picture.height} pixels")
                pictures.append(np.asarray(picture.convert("L")))
        except Exception as error:  # Pillow has no common exception for damaged files
            raise ValueError(f"{path}: image {number} is no PNG of 28 x 28 ({error})") from None
    return np.stack(pictures), table["label"].to_numpy() if "label" in names else None

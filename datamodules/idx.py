"""Files in the IDX format of MNIST, and the names and places under which its archives and mirrors offer them."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["find_folders", "find_idx_files", "read_idx", "set_named_in"]

_NAMES_OF_SETS = {
    "MNIST": {"mnist", "mnistdataset"},
    "FashionMNIST": {"fashionmnist", "fashion"},
    "KMNIST": {"kmnist", "kuzushijimnist"},
    "EMNIST": {"emnist"},
}


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Reads a file of unsigned bytes in the IDX format, plain or gzipped.

    Layout: two zero bytes, the type code 8, the number of dimensions, each size as a big-endian 32-bit integer, then
    the data (Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998).

    Args:
        path: The file; one that begins as gzip files do, or ends in ``.gz``, is decompressed on the way.
        dimensions: How many dimensions the array must have: 3 for images, 1 for labels.

    Returns:
        A uint8 tensor of the shape that the header states.

    Raises:
        ValueError: If the file is not such an array or its length is not what the header promises.
    """
    header_size = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b" or path.suffix.lower() == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            header = file.read(header_size)
            if header[:4] != magic:
                found = header[:4].hex() or "nothing"
                raise ValueError(f"{path}: expected the IDX magic number {magic.hex()}, found {found}")
            if len(header) < header_size:
                raise ValueError(
                    f"{path}: truncated: {len(header)} bytes are fewer than the {header_size} of an IDX header"
                )
            shape = [int.from_bytes(header[at : at + 4], "big") for at in range(4, header_size, 4)]
            promised = f"{path}: its header promises {' x '.join(map(str, shape))} = {math.prod(shape)} bytes of data"
            # gzip shrinks at most 1032 times; a header that claims more must not make us allocate it
            if math.prod(shape) > path.stat().st_size * (1100 if packed else 1):
                most = f"at most {1100 * path.stat().st_size}" if packed else path.stat().st_size - header_size
                raise ValueError(f"{promised}, found {most}: the file is truncated or damaged")
            data = bytearray(file.read(math.prod(shape)))
            missing = len(data) - math.prod(shape)
            # the rest is counted only where it is no bomb: a plain file, or the one byte that betrays it
            extra = len(file.read(1)) if packed else path.stat().st_size - header_size - len(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a complete {'gzip ' if packed else ''}file ({error})") from None
    if missing or extra:
        raise ValueError(
            f"{promised}, found {len(data) + extra}{' or more' if packed and extra else ''}: the file is truncated or "
            "damaged"
        )
    return torch.frombuffer(data, dtype=torch.uint8).reshape(shape)


def find_idx_files(root: Path, name: str, stems: tuple[str, ...]) -> dict[tuple[str, str], Path]:
    """Looks for the images and labels of a set in all the places where archives and mirrors leave them.

    Found are files of any case, with ``.`` or ``-`` before ``idx``, gzipped or not, also where each lies in a folder of
    its own name, in the folders of :func:`find_folders`.

    Args:
        root: The folder to look in.
        name: torchvision's name of the set: ``MNIST``, ``FashionMNIST``, ``KMNIST`` or ``EMNIST``.
        stems: What the names of the training and of the test files may begin with.

    Returns:
        Files by (stem, ``images`` or ``labels``), of the first folder that has any; perhaps not all of them.
    """
    wanted = {
        f"{stem}-{kind}-{idx}-ubyte": (stem, kind)
        for stem in stems
        for kind, idx in (("images", "idx3"), ("labels", "idx1"))
    }
    for files in find_folders(root, name):
        found: dict[tuple[str, str], Path] = {}
        for path in files:
            key = re.sub(r"\.gz$", "", path.name.lower()).replace(".", "-")
            if key in wanted:
                found.setdefault(wanted[key], path)
        if found:
            return found
    return {}


def find_folders(root: Path, name: str) -> Iterator[list[Path]]:
    """The files of each folder in which a set may lie, and of the folders in it.

    The folders, best first: ``root/NAME/raw`` (torchvision's), ``root/NAME``, ``root/raw`` and ``root``. One that bears
    the name of another of these sets is never entered.

    Args:
        root: The folder to look in.
        name: torchvision's name of the set.
    """
    mine = [folder for folder in _folders(root, name) if _is_of(folder, name)]
    for base in [*(folder / "raw" for folder in mine), *mine, root / "raw", root]:
        # a root that is the folder of another set
        if base in (root / "raw", root) and not _may_hold(root.resolve(), name):
            continue
        yield [*_files(base), *(file for folder in _folders(base, name) for file in _files(folder))]


def set_named_in(name: str) -> str | None:
    """torchvision's name of the set that a file's name speaks of, if it speaks of one."""
    plain = _plain(name)
    for of_set in ("FashionMNIST", "KMNIST", "EMNIST", "MNIST"):  # in whose names the last one is found, too
        if any(alias in plain for alias in _NAMES_OF_SETS[of_set]):
            return of_set
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _is_of(folder: Path, name: str) -> bool:
    return _plain(folder.name) in _NAMES_OF_SETS[name]


def _may_hold(folder: Path, name: str) -> bool:
    """Whether a folder does not bear the name of another set, nor lies, as ``raw``, in one that does."""
    named = folder.parent if folder.name.lower() == "raw" else folder
    return not any(_is_of(named, other) for other in _NAMES_OF_SETS if other != name)


def _folders(base: Path, name: str) -> Iterator[Path]:
    if base.is_dir():
        yield from (path for path in sorted(base.iterdir()) if path.is_dir() and _may_hold(path, name))


def _files(folder: Path) -> list[Path]:
    """The files of a folder, those that are not gzipped first."""
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return sorted(files, key=lambda path: (path.suffix.lower() == ".gz", path.name))

"""Lists of names as text: what editors, systems and archives add to them is forgiven."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

import numpy as np

__all__ = ["is_junk", "last_part", "read_lines", "read_names", "read_picture_list"]


def read_lines(path: Path) -> list[str]:
    """Reads lines of text in UTF-8, or in UTF-16 with its mark, with any line ends and without a byte-order mark."""
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return content.decode(encoding, errors="replace").splitlines()


def read_names(path: Path, what: str) -> list[str]:
    """Reads names, one a line; a name may hold blanks.

    Args:
        path: The list.
        what: What the names stand for, for the messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Expected {what}, one a line")
    names = [line.strip() for line in read_lines(path) if line.strip()]
    if not names:
        raise ValueError(f"{path}: the list is empty; expected {what}, one a line")
    return names


def last_part(name: str) -> str:
    """The last part of a path as any system writes it."""
    return PureWindowsPath(name.strip()).name


def is_junk(path: Path) -> bool:
    """Whether a path, relative to the folder of a set, is hidden or was added to an archive by a Mac."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def read_picture_list(path: Path, columns: Sequence[str] | None = None) -> tuple[list[str], list[str], np.ndarray]:
    """Reads one of CelebA's lists, as its authors wrote it or as CSV.

    Args:
        path: Lines of a file name and integers. In the authors' files they are separated by blanks; in CSV by commas,
            below a line of names (``image_id,...``).
        columns: Names of the columns of a list whose authors' file has none. None: there the number of pictures and
            the names of the columns stand in the first two lines.

    Returns:
        File names, names of the columns, integers of shape (N, columns) as int8.

    Raises:
        ValueError: If the list is empty, or a line is not as it must be.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the list is empty; expected a line for each picture")
    if "," in lines[0][1]:
        head, promised = _split(lines[0][1])[1:], None
        if not all(re.fullmatch(r"[+-]?\d+", word) for word in head):
            lines = lines[1:]
        elif columns is None:
            raise ValueError(
                f"{path}: expected image_id and the attributes' names in line 1, found {lines[0][1][:80]!r}"
            )
        columns = head if columns is None else columns
    elif columns is None:
        if len(lines) < 2 or not lines[0][1].strip().isdecimal():
            raise ValueError(f"{path}: expected the number of pictures in line 1 and the attributes' names in line 2")
        promised, columns = int(lines[0][1]), lines[1][1].split()
        lines = lines[2:]
    else:
        promised = None
    if promised is not None and len(lines) != promised:
        raise ValueError(f"{path}: line 1 promises {promised} pictures, found {len(lines)} lines of them")
    if not lines:
        raise ValueError(f"{path}: the list is empty; expected a line for each picture")
    names = []
    values = np.empty((len(lines), len(columns)), dtype=np.int8)
    for row, (number, line) in enumerate(lines):
        name, *integers = _split(line)
        try:
            if len(integers) != len(columns):
                raise ValueError
            values[row] = [int(integer) for integer in integers]
        except (ValueError, OverflowError):
            raise ValueError(
                f"{path}, line {number}: expected a file name and {len(columns)} small integers, found {line[:80]!r}"
            ) from None
        names.append(last_part(name))
    return names, list(columns), values


def _split(line: str) -> list[str]:
    """The words of a line: between commas if there are any, else between blanks."""
    words = line.split(",") if "," in line else line.split()
    words = [word.strip().strip('"') for word in words]
    while len(words) > 1 and not words[-1]:
        words.pop()
    return words

"""Point clouds and triangle meshes in the PLY format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["read_ply"]

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LONGEST_HEADER = 2**16


class _Property(NamedTuple):
    name: str
    type: str
    count_type: str | None  # of a list


class _Element(NamedTuple):
    name: str
    rows: int
    properties: list[_Property]


def read_ply(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the vertices and the faces of a PLY file; polygons are cut into triangles that fan out.

    The format is that of G. Turk, "The PLY Polygon File Format", 1994: ``ascii``, ``binary_little_endian`` or
    ``binary_big_endian``. Taken are the properties ``x``, ``y`` and ``z`` of ``vertex`` and the list
    ``vertex_indices`` (or ``vertex_index``) of ``face``; everything else is skipped.

    Args:
        path: The file.

    Returns:
        Vertices, float64 (V, 3), and triangles, int64 (T, 3): none for a point cloud.

    Raises:
        ValueError: If the file is no such file, ends early, or a face names a vertex that is not there.
    """
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    order, elements, start = _header(path, content)
    vertices, corners, lengths = np.empty((0, 3)), np.empty(0), np.empty(0, dtype=np.int64)
    read = _Words(path, content[start:]) if order == "" else _Bytes(path, memoryview(content)[start:], order)
    for element in elements:
        if not element.properties:
            continue
        names = [part.name for part in element.properties]
        list_name = next((name for name in ("vertex_indices", "vertex_index") if name in names), None)
        wanted = list_name if element.name == "face" else None
        columns, values, counts = read.element(element, wanted)
        if element.name == "vertex":
            lists = [part.name for part in element.properties if part.count_type is not None]
            if lists:
                raise ValueError(f"{path}: vertices with a list, {lists[0]}, cannot be read")
            if not {"x", "y", "z"} <= columns.keys():
                raise ValueError(f"{path}: expected the properties x, y and z, found {', '.join(names) or 'none'}")
            vertices = np.stack([columns[axis].astype(np.float64) for axis in "xyz"], axis=1)
        elif wanted is not None:
            corners, lengths = values, counts
    if not len(vertices):
        raise ValueError(f"{path}: expected vertices, found none")
    if not np.isfinite(vertices).all():
        raise ValueError(f"{path}: a vertex has a coordinate that is not finite")
    bad = corners[~((corners >= 0) & (corners < len(vertices)) & (corners == np.floor(corners)))]
    if len(bad):
        raise ValueError(f"{path}: a face names vertex {bad[0]:g}; expected 0 to {len(vertices) - 1}")
    return vertices, _fans(corners.astype(np.int64), lengths)


def _header(path: Path, content: bytes) -> tuple[str, list[_Element], int]:
    """The byte order ("" for text), the elements, and where the data begin."""
    end = re.search(rb"(\r\n|\n|\r)end_header[ \t]*(\r\n|\n|\r)", content[:_LONGEST_HEADER])
    if not content.startswith(b"ply") or end is None:
        found = content[:40].decode(errors="replace")
        raise ValueError(f"{path}: expected a PLY file, from 'ply' to 'end_header', found {found!r}")
    # after a header with ends of lines of one byte, data may begin with the other byte
    start = end.end() - (end[2] == b"\r\n" and end[1] != b"\r\n")
    order = None
    elements: list[_Element] = []
    for line in content[: end.start()].decode(errors="replace").splitlines()[1:]:
        words = line.split()
        try:
            if not words or words[0] in ("comment", "obj_info"):
                continue
            if words[0] == "format":
                order = _BYTE_ORDERS[words[1]]
            elif words[0] == "element" and words[2].isdecimal():
                elements.append(_Element(words[1], int(words[2]), []))
            elif words[0] == "property" and words[1] == "list" and _TYPES[words[2]][0] != "f":
                elements[-1].properties.append(_Property(words[4], _TYPES[words[3]], _TYPES[words[2]]))
            elif words[0] == "property" and words[1] != "list":
                elements[-1].properties.append(_Property(words[2], _TYPES[words[1]], None))
            else:
                raise KeyError
        except LookupError:
            raise ValueError(f"{path}: expected a format, an element or a property, found {line[:60]!r}") from None
    if order is None:
        raise ValueError(f"{path}: expected a line 'format ascii 1.0' or of another format, found none")
    return order, elements, start


def _fans(corners: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Triangles (T, 3) of polygons whose corners stand one after another."""
    starts = np.repeat(np.cumsum(lengths) - lengths, np.maximum(lengths - 2, 0))
    ends = np.concatenate([np.arange(1, length - 1) for length in lengths.tolist()] or [np.empty(0, dtype=np.int64)])
    return np.stack([corners[starts], corners[starts + ends], corners[starts + ends + 1]], axis=1)


_Columns = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]  # scalar properties; one list's values and lengths


class _Words:
    """Reads one element after another from text."""

    def __init__(self, path: Path, body: bytes) -> None:
        self.path = path
        try:
            self.numbers = np.array(body.split(), dtype=np.float64)
        except ValueError as error:
            raise ValueError(f"{path}: expected numbers only after the header ({error})") from None
        self.at = 0

    def element(self, element: _Element, wanted: str | None) -> _Columns:
        width = len(element.properties)
        if width * element.rows > len(self.numbers) - self.at:
            raise _too_short(self.path, element)
        if all(part.count_type is None for part in element.properties):
            rows = self.numbers[self.at : self.at + width * element.rows].reshape(element.rows, width)
            self.at += rows.size
            return {part.name: rows[:, column] for column, part in enumerate(element.properties)}, rows[:0, 0], _NONE
        lists, lengths = [], []
        for _ in range(element.rows):
            for part in element.properties:
                count = 1 if part.count_type is None else self._take(1, element)[0]
                if not 0 <= count <= len(self.numbers) or count != int(count):
                    raise ValueError(f"{self.path}: expected the length of a list, found {count:g}")
                values = self._take(int(count), element)
                if part.name == wanted:
                    lists.append(values)
                    lengths.append(len(values))
        return {}, np.concatenate(lists) if lists else np.empty(0), np.array(lengths, dtype=np.int64)

    def _take(self, count: int, element: _Element) -> np.ndarray:
        if self.at + count > len(self.numbers):
            raise _too_short(self.path, element)
        self.at += count
        return self.numbers[self.at - count : self.at]


class _Bytes:
    """The same from binary data."""

    def __init__(self, path: Path, body: memoryview, order: str) -> None:
        self.path = path
        self.body = body
        self.order = order
        self.at = 0

    def element(self, element: _Element, wanted: str | None) -> _Columns:
        if all(part.count_type is None for part in element.properties):
            names = [f"{column}" for column in range(len(element.properties))]  # twice the same name is no error
            formats = [self.order + part.type for part in element.properties]
            rows = self._take(np.dtype({"names": names, "formats": formats}), element.rows, element)
            columns = {part.name: rows[name] for part, name in zip(element.properties, names, strict=True)}
            return columns, np.empty(0), _NONE
        if len(element.properties) == 1 and element.rows and (found := self._equal_lists(element)) is not None:
            return {}, found.reshape(-1), np.full(element.rows, found.shape[1])
        lists, lengths = [], []
        for _ in range(element.rows):
            for part in element.properties:
                count = 1
                if part.count_type is not None:
                    count = self._take(np.dtype(self.order + part.count_type), 1, element)[0]
                values = self._take(np.dtype(self.order + part.type), int(count), element)
                if part.name == wanted:
                    lists.append(values)
                    lengths.append(len(values))
        return {}, np.concatenate(lists) if lists else np.empty(0), np.array(lengths, dtype=np.int64)

    def _equal_lists(self, element: _Element) -> np.ndarray | None:
        """The lists (N, length) of an element whose lists are all as long as its first, read at once."""
        [part] = element.properties
        start = self.at
        length = int(self._take(np.dtype(f"{self.order}{part.count_type}"), 1, element)[0])
        self.at = start
        row = np.dtype(
            [("length", f"{self.order}{part.count_type}"), ("list", self.order + part.type, (max(length, 0),))]
        )
        if row.itemsize * element.rows > len(self.body) - start:
            return None
        rows = self._take(row, element.rows, element)
        if (rows["length"] == length).all():
            return rows["list"]
        self.at = start
        return None

    def _take(self, dtype: np.dtype, count: int, element: _Element) -> np.ndarray:
        size = dtype.itemsize * count
        if not 0 <= size <= len(self.body) - self.at:
            raise _too_short(self.path, element)
        self.at += size
        return np.frombuffer(self.body[self.at - size : self.at], dtype, count)


_NONE = np.empty(0, dtype=np.int64)


def _too_short(path: Path, element: _Element) -> ValueError:
    return ValueError(
        f"{path}: its header promises {element.rows} times {element.name!r}, more than the file holds: it is "
        "truncated or its counts do not match"
    )

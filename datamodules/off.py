"""Triangle meshes in the Object File Format, and points on their surface."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

__all__ = ["read_off", "sample_surface"]

# ModelNet40 has many files whose counts follow the magic word without any blank: "OFF490 518 0"
_HEADER = re.compile(rb"\s*(?:([A-Z0-9]*?)OFF\s*)?(\d+)[ \t]+(\d+)[ \t]+\d+[ \t]*(?:\r?\n|\r|$)", re.IGNORECASE)
_WORD = re.compile(rb"\s*([A-Z0-9]*?)(OFF)(\s+BINARY\b)?", re.IGNORECASE)
# how many numbers may follow the three coordinates, by what the prefix promises: normals 3, colours 3 or 4, texture 2.
# Many writers put normals or colours there without promising them.
_EXTRAS = {"N": (3,), "C": (3, 4), "ST": (2,)}
_UNPROMISED = (0, 3, 4, 6, 7)


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a mesh; polygons are cut into triangles that fan out from their first corner.

    Layout (Geomview manual, "OFF Files"): the word OFF, the numbers of vertices, faces and edges, three coordinates for
    each vertex, and for each face a line of the number of its corners, their vertices from 0, and possibly a colour.
    ``#`` begins a comment. The prefixes ``N``, ``C`` and ``ST`` announce normals, colours and texture coordinates
    behind the coordinates; they are skipped. The word may be missing.

    Args:
        path: The file, in ASCII.

    Returns:
        Vertices, float64 (V, 3), and triangles, int64 (T, 3).

    Raises:
        ValueError: If the file is no such mesh, is binary or has not three dimensions, its counts do not match, or a
            face names a vertex that is not there.
    """
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise ValueError(f"{path}: the file is empty; expected a mesh in the Object File Format")
    if b"#" in content:
        content = re.sub(rb"#[^\r\n]*", b"", content)
    extras = _extras(path, content)
    header = _HEADER.match(content)
    if header is None:
        found = content[:40].decode(errors="replace")
        raise ValueError(f"{path}: expected 'OFF' and the numbers of vertices, faces and edges, found {found!r}")
    vertex_count, face_count = int(header[2]), int(header[3])
    body = content[header.end() :]
    # The shortest vertex line is "0 0 0" and the shortest face longer; a header must not make us allocate the rest.
    if 6 * (vertex_count + face_count) > len(body) + 1:
        raise ValueError(
            f"{path}: its header promises {vertex_count} vertices and {face_count} faces, more than the "
            f"{len(body)} bytes after it can hold: the file is truncated or its counts do not match"
        )
    vertices, corners = _plain_triangles(body, vertex_count, face_count, extras) or _by_lines(
        path, body, vertex_count, face_count, extras
    )
    if not np.isfinite(vertices).all():
        raise ValueError(f"{path}: a vertex has a coordinate that is not finite")
    bad = corners[~((corners >= 0) & (corners < vertex_count) & (corners == np.floor(corners)))]
    if len(bad):
        raise ValueError(f"{path}: a face names vertex {bad[0]:g}; expected 0 to {vertex_count - 1}")
    return vertices, corners.astype(np.int64)


def _extras(path: Path, content: bytes) -> tuple[int, ...]:
    """How many numbers may follow the coordinates of a vertex, by the letters before OFF."""
    word = _WORD.match(content)
    if word is None:
        return _UNPROMISED
    prefix = word[1].decode()
    if word[3]:
        raise ValueError(f"{path}: expected an OFF file in ASCII, found a binary one; convert it, for example to PLY")
    if "4" in prefix or ("n" in prefix and word[2] == b"OFF"):
        raise ValueError(f"{path}: expected a mesh in three dimensions, found {prefix}OFF")
    letters = re.fullmatch(r"(ST)?([CN]*)", prefix.upper())
    if letters is None or len(set(letters[2])) < len(letters[2]):
        raise ValueError(f"{path}: expected OFF, perhaps with the prefixes ST, C and N, found {prefix}OFF")
    promised = [*(["ST"] if letters[1] else []), *letters[2]]
    if not promised:
        return _UNPROMISED
    sums = {0}
    for name in promised:
        sums = {total + count for total in sums for count in _EXTRAS[name]}
    return tuple(sorted(sums))


def _plain_triangles(
    body: bytes, vertex_count: int, face_count: int, extras: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices and corners, as floats, of a mesh of triangles with nothing else; None if it is not such a mesh."""
    try:
        numbers = np.array(body.split(), dtype=np.float64)
    except ValueError:
        return None
    faces = numbers[3 * vertex_count :]
    if 0 not in extras or not vertex_count or len(faces) != 4 * face_count or not (faces[::4] == 3).all():
        return None
    return numbers[: 3 * vertex_count].reshape(-1, 3), faces.reshape(-1, 4)[:, 1:]


def _by_lines(
    path: Path, body: bytes, vertex_count: int, face_count: int, extras: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3), and triangles (T, 3) as floats, of faces with any number of corners and perhaps colours."""
    lines = _one_vertex_a_line(
        [words for line in body.splitlines() if (words := line.split())], vertex_count, face_count
    )
    if len(lines) != vertex_count + face_count:
        raise ValueError(
            f"{path}: its header promises {vertex_count} vertices of 3 coordinates and {face_count} faces, so "
            f"{vertex_count + face_count} lines; found {len(lines)} lines"
        )
    width = len(lines[0]) if lines else 3
    for number, words in enumerate(lines[:vertex_count]):
        if len(words) - 3 not in extras or len(words) != width:
            wanted = " or ".join(str(3 + count) for count in extras)
            raise ValueError(
                f"{path}: expected {wanted} numbers for each vertex, as many as for the first; found "
                f"{_shown(words)} for vertex {number}"
            )
    try:
        vertices = np.array([words[:3] for words in lines[:vertex_count]], dtype=np.float64).reshape(-1, 3)
        triangles = []
        for words in lines[vertex_count:]:
            count = float(words[0])
            if not 1 <= count < len(words) or count != int(count):
                raise _WrongFace(words)
            corners = np.array(words[1 : int(count) + 1], dtype=np.float64)
            triangles += [corners[[0, corner, corner + 1]] for corner in range(1, len(corners) - 1)]
    except _WrongFace as error:
        raise ValueError(
            f"{path}: a face should list its number of corners and as many vertices: {_shown(error.args[0])}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: expected numbers only after the header ({error})") from None
    return vertices, np.array(triangles, dtype=np.float64).reshape(-1, 3)


def _one_vertex_a_line(lines: list[list[bytes]], vertex_count: int, face_count: int) -> list[list[bytes]]:
    """Breaks lines anew if the coordinates, which may be broken anywhere, end where the faces begin."""
    first_face = len(lines) - face_count
    words = [word for line in lines[: max(first_face, 0)] for word in line]
    if first_face == vertex_count or len(words) != 3 * vertex_count:
        return lines
    return [words[start : start + 3] for start in range(0, len(words), 3)] + lines[first_face:]


class _WrongFace(Exception):
    """A line that is no face."""


def _shown(words: list[bytes]) -> str:
    return repr(b" ".join(words)[:60].decode(errors="replace"))


def sample_surface(vertices: np.ndarray, triangles: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws points uniformly by area.

    A triangle is drawn with probability proportional to its area, and in it the point a + u (b - a) + v (c - a), where
    (u, v) is uniform in the unit square, mirrored into its lower half.

    Args:
        vertices: (V, 3).
        triangles: Vertices of each triangle, (T, 3).
        count: Number of points.
        rng: Source of randomness.

    Returns:
        float32 (count, 3), in random order.

    Raises:
        ValueError: If the surface has no area.
    """
    a, b, c = vertices[triangles[:, 0]], vertices[triangles[:, 1]], vertices[triangles[:, 2]]
    areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    total = np.cumsum(areas)
    if not len(total) or not 0 < total[-1] < np.inf:
        raise ValueError("the faces have no area, so no points can be drawn from them")
    # side="right" never picks a triangle without area
    chosen = np.searchsorted(total, rng.random(count) * total[-1], side="right").clip(max=len(total) - 1)
    u, v = rng.random((2, count, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    a, b, c = a[chosen], b[chosen], c[chosen]
    points: np.ndarray = a + u * (b - a) + v * (c - a)
    return points.astype(np.float32)

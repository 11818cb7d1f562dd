"""Triangle meshes in the Object File Format, and points on their surface."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

__all__ = ["read_off", "sample_surface"]

# ModelNet40 has many files whose counts follow the magic word without any blank: "OFF490 518 0"
_HEADER = re.compile(rb"\s*OFF\s*(\d+)[ \t]+(\d+)[ \t]+\d+[ \t]*\r?(?:\n|$)")


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads a mesh; polygons are cut into triangles that fan out from their first corner.

    Layout: the word OFF, the numbers of vertices, faces and edges, a line of three coordinates for each vertex, and
    for each face a line of the number of its corners, their vertices from 0, and possibly a colour. ``#`` begins a
    comment.

    Args:
        path: The file, in ASCII.

    Returns:
        Vertices, float64 (V, 3), and triangles, int64 (T, 3).

    Raises:
        ValueError: If the file is no such mesh, its counts do not match, or a face names a vertex that is not there.
    """
    content = path.read_bytes()
    if not content.strip():
        raise ValueError(f"{path}: the file is empty; expected a mesh in the Object File Format")
    if b"#" in content:
        content = re.sub(rb"#[^\n]*", b"", content)
    header = _HEADER.match(content)
    if header is None:
        found = content[:40].decode(errors="replace")
        raise ValueError(f"{path}: expected 'OFF' and the numbers of vertices, faces and edges, found {found!r}")
    vertex_count, face_count = int(header[1]), int(header[2])
    body = content[header.end() :]
    # The shortest vertex line is "0 0 0" and the shortest face longer; a header must not make us allocate the rest.
    if 6 * (vertex_count + face_count) > len(body) + 1:
        raise ValueError(
            f"{path}: its header promises {vertex_count} vertices and {face_count} faces, more than the "
            f"{len(body)} bytes after it can hold: the file is truncated or its counts do not match"
        )
    try:
        numbers = np.array(body.split(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: expected numbers only after the header ({error})") from None
    vertices = numbers[: 3 * vertex_count].reshape(-1, 3) if len(numbers) >= 3 * vertex_count else numbers[:0]
    faces = numbers[3 * vertex_count :]
    if len(vertices) and len(faces) == 4 * face_count and (faces[::4] == 3).all():
        corners = faces.reshape(-1, 4)[:, 1:]
    else:
        corners = _fans(path, body, vertex_count, face_count)
    if not np.isfinite(vertices).all():
        raise ValueError(f"{path}: a vertex has a coordinate that is not finite")
    bad = corners[(corners < 0) | (corners >= vertex_count) | (corners != np.floor(corners))]
    if len(bad):
        raise ValueError(f"{path}: a face names vertex {bad[0]:g}; expected 0 to {vertex_count - 1}")
    return vertices, corners.astype(np.int64)


def _fans(path: Path, body: bytes, vertex_count: int, face_count: int) -> np.ndarray:
    """Triangles (T, 3), as floats, of faces with any number of corners and perhaps colours after them."""
    lines = [line for line in body.splitlines() if line.strip()]
    if len(lines) != vertex_count + face_count or any(len(line.split()) != 3 for line in lines[:vertex_count]):
        raise ValueError(
            f"{path}: its header promises {vertex_count} vertices of 3 coordinates and {face_count} faces, so "
            f"{vertex_count + face_count} lines; found {len(lines)} lines that do not match"
        )
    triangles = []
    for line in lines[vertex_count:]:
        corners = np.array(line.split(), dtype=np.float64)
        if not 1 <= corners[0] < len(corners):
            raise ValueError(f"{path}: a face should list its number of corners and as many vertices: {line[:60]!r}")
        triangles += [corners[[1, corner, corner + 1]] for corner in range(2, int(corners[0]))]
    return np.array(triangles).reshape(-1, 3)


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

"""Synthetic point clouds: simple solids and furniture with random proportions, uniform on their surface, by formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["SHAPES", "make_shapes"]

Draw = Callable[[np.random.Generator, int], np.ndarray]
Size = Callable[[float, float], float]  # size(low, high): a uniform draw


@dataclass(frozen=True)
class Surface:
    """A piece of surface: its area, and how to draw points (n, 3) uniformly from it."""

    area: float
    draw: Draw


def parallelogram(corner: np.ndarray, u: np.ndarray, v: np.ndarray) -> Surface:
    """The points corner + s u + t v for s, t in [0, 1]."""
    return Surface(
        float(np.linalg.norm(np.cross(u, v))), lambda rng, n: corner + rng.random((n, 1)) * u + rng.random((n, 1)) * v
    )


def triangle(corner: np.ndarray, u: np.ndarray, v: np.ndarray) -> Surface:
    """The points corner + s u + t v for s, t >= 0 and s + t <= 1."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        s, t = rng.random((2, n, 1))
        s, t = np.where(s + t > 1, 1 - s, s), np.where(s + t > 1, 1 - t, t)
        points: np.ndarray = corner + s * u + t * v
        return points

    return Surface(float(np.linalg.norm(np.cross(u, v))) / 2, draw)


def box(center: tuple[float, float, float], size: tuple[float, float, float]) -> list[Surface]:
    """The six faces of a box."""
    low, edges = np.array(center) - np.array(size) / 2, np.diag(size)
    faces = []
    for axis in range(3):
        u, v = edges[axis - 1], edges[axis - 2]
        faces += [parallelogram(low, u, v), parallelogram(low + edges[axis], u, v)]
    return faces


def frustum(bottom: float, top: float, low: float, high: float) -> Surface:
    """The side of a cone cut off, round the z axis: radius ``bottom`` at z = low, ``top`` at z = high.

    Equal radii give a cylinder, one radius of 0 a cone, equal heights a ring or disc. The area up to a radius grows
    with its square, so the square is what is uniform.
    """

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        share = rng.random(n)
        if bottom != top:
            share = (np.sqrt(bottom**2 + share * (top**2 - bottom**2)) - bottom) / (top - bottom)
        radius, angle = bottom + share * (top - bottom), 2 * np.pi * rng.random(n)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle), low + share * (high - low)], axis=1)

    return Surface(float(np.pi * (bottom + top) * np.hypot(top - bottom, high - low)), draw)


def disc(radius: float, z: float) -> Surface:
    """A disc round the z axis."""
    return frustum(radius, 0, z, z)


def cylinder(radius: float, low: float, high: float) -> list[Surface]:
    """A closed cylinder round the z axis."""
    return [frustum(radius, radius, low, high), disc(radius, low), disc(radius, high)]


def zone(radius: float, low: float, high: float, center: float = 0.0) -> Surface:
    """The part of a sphere between two heights above its center; Archimedes: its height is uniform."""

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        z, angle = low + rng.random(n) * (high - low), 2 * np.pi * rng.random(n)
        across = np.sqrt(np.maximum(radius**2 - z**2, 0))
        return np.stack([across * np.cos(angle), across * np.sin(angle), center + z], axis=1)

    return Surface(float(2 * np.pi * radius * (high - low)), draw)


def torus(ring: float, tube: float) -> Surface:
    """A torus round the z axis; ``ring`` is the distance of the tube's middle from the axis.

    The density of the angle t round the tube is proportional to 1 + (tube / ring) cos t. A uniform t that is replaced
    by pi - t with probability (1 - (tube / ring) cos t) / 2 has just this density, and no draw is rejected.
    """

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        t, angle = 2 * np.pi * rng.random((2, n))
        t = np.where(2 * rng.random(n) < 1 + tube / ring * np.cos(t), t, np.pi - t)
        across = ring + tube * np.cos(t)
        return np.stack([across * np.cos(angle), across * np.sin(angle), tube * np.sin(t)], axis=1)

    return Surface(float(4 * np.pi**2 * ring * tube), draw)


def _legs(width: float, depth: float, height: float, thick: float) -> list[Surface]:
    x, y = (width - thick) / 2, (depth - thick) / 2
    corners = [(x, y), (x, -y), (-x, y), (-x, -y)]
    return [face for cx, cy in corners for face in box((cx, cy, height / 2), (thick, thick, height))]


def _sphere(size: Size) -> list[Surface]:
    radius = size(0.3, 1)
    return [zone(radius, -radius, radius)]


def _box(size: Size) -> list[Surface]:
    return box((0, 0, 0), (size(0.3, 1), size(0.3, 1), size(0.3, 1)))


def _cylinder(size: Size) -> list[Surface]:
    return cylinder(size(0.2, 0.6), 0, size(0.5, 1.5))


def _cone(size: Size) -> list[Surface]:
    radius = size(0.3, 0.7)
    return [frustum(radius, 0, 0, size(0.6, 1.5)), disc(radius, 0)]


def _torus(size: Size) -> list[Surface]:
    ring = size(0.5, 1)
    return [torus(ring, ring * size(0.15, 0.5))]


def _capsule(size: Size) -> list[Surface]:
    radius, height = size(0.2, 0.5), size(0.4, 1.2)
    return [frustum(radius, radius, 0, height), zone(radius, -radius, 0), zone(radius, 0, radius, height)]


def _pyramid(size: Size) -> list[Surface]:
    width, depth, height = size(0.5, 1), size(0.5, 1), size(0.5, 1.3)
    corners = np.array([(1, 1, 0), (-1, 1, 0), (-1, -1, 0), (1, -1, 0)]) * (width / 2, depth / 2, 0)
    tip = np.array((0, 0, height))
    sides = [triangle(tip, corners[i] - tip, corners[i - 1] - tip) for i in range(4)]
    return [*sides, parallelogram(corners[0], corners[1] - corners[0], corners[3] - corners[0])]


def _tube(size: Size) -> list[Surface]:
    outer, height = size(0.3, 0.6), size(0.5, 1.5)
    inner = outer * size(0.5, 0.85)
    walls = [frustum(radius, radius, 0, height) for radius in (outer, inner)]
    return [*walls, frustum(outer, inner, 0, 0), frustum(outer, inner, height, height)]


def _table(size: Size) -> list[Surface]:
    width, depth, height, thick = size(0.8, 1.6), size(0.6, 1), size(0.5, 0.9), size(0.04, 0.1)
    return box((0, 0, height + thick / 2), (width, depth, thick)) + _legs(width, depth, height, thick)


def _chair(size: Size) -> list[Surface]:
    width, depth, height, thick, back = (
        size(0.4, 0.6),
        size(0.4, 0.6),
        size(0.35, 0.5),
        size(0.03, 0.07),
        size(0.4, 0.7),
    )
    seat = box((0, 0, height + thick / 2), (width, depth, thick))
    rest = box((0, (depth - thick) / 2, height + thick + back / 2), (width, thick, back))
    return seat + rest + _legs(width, depth, height, thick)


def _lamp(size: Size) -> list[Surface]:
    foot, pole, height, shade = size(0.15, 0.3), size(0.015, 0.04), size(0.7, 1.4), size(0.2, 0.4)
    return [
        *cylinder(foot, 0, 0.04),
        frustum(pole, pole, 0.04, height),
        frustum(shade, shade * size(0.3, 0.8), height - size(0.2, 0.4), height),
    ]


def _bottle(size: Size) -> list[Surface]:
    body, neck = size(0.2, 0.35), size(0.06, 0.12)
    shoulder = size(0.5, 0.9)
    throat = shoulder + size(0.1, 0.3)
    top = throat + size(0.1, 0.35)
    return [
        disc(body, 0),
        frustum(body, body, 0, shoulder),
        frustum(body, neck, shoulder, throat),
        frustum(neck, neck, throat, top),
    ]


def _goblet(size: Size) -> list[Surface]:
    foot, stem, rim = size(0.2, 0.35), size(0.02, 0.05), size(0.25, 0.45)
    waist = size(0.3, 0.7)
    return [
        frustum(foot, stem, 0, 0.08),
        disc(foot, 0),
        frustum(stem, stem, 0.08, waist),
        frustum(stem, rim, waist, waist + size(0.25, 0.6)),
    ]


def _dumbbell(size: Size) -> list[Surface]:
    rod, length = size(0.04, 0.1), size(0.7, 1.4)
    faces = [frustum(rod, rod, 0, length)]
    for center in (0.0, length):
        radius = size(0.15, 0.35)
        faces.append(zone(radius, -radius, radius, center))
    return faces


def _shelf(size: Size) -> list[Surface]:
    width, depth, height, thick = size(0.6, 1.2), size(0.25, 0.45), size(0.8, 1.8), size(0.03, 0.06)
    sides = [face for x in (-width / 2, width / 2) for face in box((x, 0, height / 2), (thick, depth, height))]
    boards = round(size(2.5, 5.5))
    return sides + [
        face for z in np.linspace(0, height, boards) for face in box((0, 0, float(z)), (width - thick, depth, thick))
    ]


def _stairs(size: Size) -> list[Surface]:
    width, depth, height = size(0.5, 1), size(0.15, 0.3), size(0.1, 0.25)
    steps = round(size(2.5, 6.5))
    return [
        face
        for step in range(steps)
        for face in box((0, step * depth, (step + 1) * height / 2), (width, depth, (step + 1) * height))
    ]


SHAPES: dict[str, Callable[[Size], list[Surface]]] = {
    "bottle": _bottle,
    "box": _box,
    "capsule": _capsule,
    "chair": _chair,
    "cone": _cone,
    "cylinder": _cylinder,
    "dumbbell": _dumbbell,
    "goblet": _goblet,
    "lamp": _lamp,
    "pyramid": _pyramid,
    "shelf": _shelf,
    "sphere": _sphere,
    "stairs": _stairs,
    "table": _table,
    "torus": _torus,
    "tube": _tube,
}
"""The classes. Each function draws the sizes of one object and returns the pieces of its surface."""


def make_shapes(name: str, count: int, num_points: int, seed: int) -> np.ndarray:
    """Makes clouds of one class, each of other proportions; z is up.

    Where pieces touch or cross, all of their area counts, also that inside.

    Args:
        name: A key of ``SHAPES``.
        count: Number of clouds.
        num_points: Points of each cloud, in random order.
        seed: The same seed gives the same clouds.

    Returns:
        float32 (count, num_points, 3).
    """
    rng = np.random.default_rng([seed, *name.encode()])
    clouds = np.empty((count, num_points, 3), dtype=np.float32)
    for cloud in clouds:
        surfaces = SHAPES[name](lambda low, high: float(rng.uniform(low, high)))
        areas = np.array([surface.area for surface in surfaces])
        counts = rng.multinomial(num_points, areas / areas.sum())
        points = np.concatenate([surface.draw(rng, n) for surface, n in zip(surfaces, counts, strict=True)])
        cloud[:] = rng.permutation(points)
    return clouds

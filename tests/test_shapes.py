"""Synthetic shapes: points lie where the formula says and are uniform there."""

import numpy as np
import pytest
from scipy import stats

from datamodules.shapes import SHAPES, Surface, box, frustum, make_shapes, parallelogram, torus, triangle, zone

RNG = np.random.default_rng


@pytest.mark.parametrize("name", SHAPES)
def test_every_class_is_deterministic_varied_and_spread(name: str) -> None:
    clouds = make_shapes(name, 4, 500, seed=3)
    assert clouds.shape == (4, 500, 3)
    assert clouds.dtype == np.float32
    assert np.isfinite(clouds).all()
    assert np.array_equal(clouds, make_shapes(name, 4, 500, seed=3))
    assert not np.array_equal(clouds, make_shapes(name, 4, 500, seed=4))
    extents = np.ptp(clouds, axis=1)
    assert (extents > 0.05).all()
    assert len(np.unique(extents.round(2), axis=0)) == 4
    # random order: the first half is a fair sample of the whole
    assert (np.abs(clouds[:, :250].mean(1) - clouds.mean(1)) < 0.15 * extents).all()


def test_at_least_ten_classes() -> None:
    assert len(SHAPES) >= 10


def test_sphere_is_uniform() -> None:
    points = zone(2, -2, 2).draw(RNG(0), 5000)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 2)
    for axis in range(3):  # Archimedes: each coordinate is uniform
        assert stats.kstest((points[:, axis] + 2) / 4, "uniform").pvalue > 1e-3
    assert zone(2, -2, 2).area == pytest.approx(16 * np.pi)


def test_torus_is_uniform() -> None:
    points = torus(1, 0.5).draw(RNG(0), 20_000)
    across = np.hypot(points[:, 0], points[:, 1])
    np.testing.assert_allclose(np.hypot(across - 1, points[:, 2]), 0.5)
    # the density of the angle round the tube is (1 + r/R cos t) / 2 pi; its distribution function by hand
    t = np.arctan2(points[:, 2], across - 1) % (2 * np.pi)
    assert stats.kstest((t + 0.5 * np.sin(t)) / (2 * np.pi), "uniform").pvalue > 1e-3
    assert torus(1, 0.5).area == pytest.approx(2 * np.pi**2)


@pytest.mark.parametrize(("bottom", "top", "height"), [(1, 0, 2), (0.5, 0.5, 1), (1, 0.3, 0), (0, 0.7, 0), (0.2, 1, 1)])
def test_frustum_is_uniform(bottom: float, top: float, height: float) -> None:
    surface = frustum(bottom, top, 0, height)
    points = surface.draw(RNG(0), 10_000)
    radius = np.hypot(points[:, 0], points[:, 1])
    if bottom == top:
        np.testing.assert_allclose(radius, bottom)
        assert stats.kstest(points[:, 2] / height, "uniform").pvalue > 1e-3
    else:
        np.testing.assert_allclose(points[:, 2], height * (radius - bottom) / (top - bottom), atol=1e-12)
        low, high = sorted((bottom, top))
        assert stats.kstest((radius**2 - low**2) / (high**2 - low**2), "uniform").pvalue > 1e-3
    angle = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) % 1
    assert stats.kstest(angle, "uniform").pvalue > 1e-3
    # area by summing thin rings
    edges = np.linspace(bottom, top, 2001) if bottom != top else np.full(2001, bottom)
    slant = np.hypot(top - bottom, height) / 2000
    assert surface.area == pytest.approx(np.sum(np.pi * (edges[1:] + edges[:-1]) * slant))


def test_box_and_triangle_have_their_area() -> None:
    assert sum(face.area for face in box((0, 0, 0), (1, 2, 3))) == pytest.approx(22)
    faces = [face.draw(RNG(0), 500) for face in box((1, 1, 1), (1, 2, 3))]
    assert all(len(np.unique(points[:, axis])) == 1 for points, axis in zip(faces, (0, 0, 1, 1, 2, 2), strict=True))
    points = np.concatenate(faces)
    np.testing.assert_allclose(points.min(0), (0.5, 0, -0.5), atol=0.02)
    np.testing.assert_allclose(points.max(0), (1.5, 2, 2.5), atol=0.02)
    corner, u, v = np.zeros(3), np.array((2.0, 0, 0)), np.array((0, 0, 1.0))
    assert triangle(corner, u, v).area == pytest.approx(1)
    assert parallelogram(corner, u, v).area == pytest.approx(2)
    inside = triangle(corner, u, v).draw(RNG(0), 1000)
    assert (inside[:, 0] / 2 + inside[:, 2] <= 1 + 1e-12).all()
    np.testing.assert_allclose(inside.mean(0), (2 / 3, 0, 1 / 3), atol=0.05)


def test_pieces_get_points_in_proportion_to_area() -> None:
    """A table, whose legs reach below its top: the share of points in the legs against the areas."""
    sizes = iter([1.0, 1.0, 1.0, 0.1])
    surfaces: list[Surface] = SHAPES["table"](lambda low, high: next(sizes))
    legs = sum(surface.area for surface in surfaces[6:]) / sum(surface.area for surface in surfaces)
    assert legs == pytest.approx(4 * (4 * 0.1 + 2 * 0.01) / (4 * (4 * 0.1 + 2 * 0.01) + 2 + 4 * 0.1))
    clouds = make_shapes("table", 20, 2000, seed=0)
    tops = clouds[:, :, 2].max(axis=1, keepdims=True)
    assert 0.2 < (clouds[:, :, 2] < tops - 0.11).mean() < 0.6

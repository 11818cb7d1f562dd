"""Costs against NumPy, SciPy and the full matrix in float64."""

import math
import shutil
import warnings
from itertools import permutations, product

import numpy as np
import pytest
import torch
from benchmarks.turns import peak_megabytes
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance
from torch import Tensor
from torch.nn import functional as F

from wae_lightning import neighbors
from wae_lightning.costs import (
    AbsoluteError,
    BinaryCrossEntropy,
    ChamferDistance,
    EarthMoversDistance,
    Euclidean,
    PyramidError,
    SinkhornDistance,
    SquaredError,
    chamfer_distance,
    earth_movers_distance,
    sinkhorn_distance,
)
from wae_lightning.neighbors import nearest_neighbors


def clouds(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed))


def full_matrix_chamfer(a: Tensor, b: Tensor, squared: bool = True) -> Tensor:
    distances = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(3)
    if not squared:
        distances = distances.sqrt()
    return distances.amin(2).mean(1) + distances.amin(1).mean(1)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (SquaredError(0.05), lambda d: 0.05 * (d**2).sum(1)),
        (AbsoluteError(0.02), lambda d: 0.02 * np.abs(d).sum(1)),
        (Euclidean(0.2), lambda d: 0.2 * np.sqrt((d**2).sum(1) + 1e-8)),
    ],
)
def test_image_costs_sum_over_the_dimensions(cost, expected):
    x, y = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    difference = (x - y).double().numpy().reshape(4, -1)
    np.testing.assert_allclose(cost(x, y).numpy(), expected(difference), rtol=1e-5)


@pytest.mark.parametrize("size", [(16, 32), (8, 8), (4, 4)])
def test_the_pyramid_is_that_of_numpy(size):
    def enlarged(x):  # linear between the centres of squares, constant beyond the outermost
        for axis in (2, 3):
            n = x.shape[axis]
            places = (np.arange(2 * n) + 0.5) / 2 - 0.5
            x = np.apply_along_axis(lambda row, n=n, places=places: np.interp(places, np.arange(n), row), axis, x)
        return x

    def levels(x):
        while min(x.shape[2:]) >= 4:
            b, c, h, w = x.shape
            coarse = x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))
            yield x - enlarged(coarse)
            x = coarse

    x, y = torch.rand(2, 3, *size), torch.rand(2, 3, *size)
    a, b = x.double().numpy(), y.double().numpy()
    expected = np.abs(a - b).sum((1, 2, 3))
    for level, (edges, drawn) in enumerate(zip(list(levels(a))[:3], levels(b), strict=False)):
        expected += 4**level * 1.5 * np.abs(edges - drawn).sum((1, 2, 3))
    np.testing.assert_allclose(PyramidError(0.1, 1.5, 3)(x, y).numpy(), 0.1 * expected, rtol=1e-5)


def test_the_pyramid_minds_blurred_texture_more_than_the_absolute_error_does():
    x = torch.zeros(1, 1, 15, 15)
    x[:, :, ::2, ::2] = 1
    flat, shifted = x.mean().expand_as(x), x + 0.25
    absolute, pyramid = AbsoluteError(), PyramidError()
    assert pyramid(x, flat) / absolute(x, flat) > 2 * pyramid(x, shifted) / absolute(x, shifted)


@pytest.mark.parametrize("size", [(8, 8), (45, 70)])
def test_the_distance_of_patches_is_that_of_scipy(size):
    """One level; the draws are those that the cost makes, and the patches are cut out one by one."""
    x, y = torch.rand(2, 3, *size), torch.rand(2, 3, *size)
    torch.manual_seed(7)
    found = PyramidError(0.1, 0.0, 1, 0.5)(x, y)
    torch.manual_seed(7)
    down, right = (int(torch.randint(n, ())) for n in size)
    directions = torch.randn(16, 3 * 49)
    directions /= directions.norm(dim=1, keepdim=True)
    bands = [image - F.interpolate(F.avg_pool2d(image, 2, ceil_mode=True), size, mode="bilinear") for image in (x, y)]
    expected = (x - y).abs().sum((1, 2, 3))
    for row in range(2):

        def values(band, top, left, k, row=row):
            rows = (torch.arange(top - 3, top + 4) - down) % size[0]
            columns = (torch.arange(left - 3, left + 4) - right) % size[1]
            return float((band[row][:, rows][:, :, columns].flatten() * directions[k]).sum())

        counts = [(n + 1) // 2 for n in size]
        squares = [min(n, 16) for n in counts]
        # what fills no square is left out, and the rest stands for it
        share = math.prod(n / (n // s * s) for n, s in zip(counts, squares, strict=True))
        for i, j, k in product(*(range(n // s) for n, s in zip(counts, squares, strict=True)), range(16)):
            places = list(
                product(*(range(2 * s * i, 2 * s * (i + 1), 2) for s, i in zip(squares, (i, j), strict=True)))
            )
            sides = [[values(band, *place, k) for place in places] for band in bands]
            expected[row] += 0.5 * share * len(places) * wasserstein_distance(*sides) / 16
    torch.testing.assert_close(found, 0.1 * expected, rtol=1e-4, atol=0)


def test_patches_weigh_the_same_in_pictures_of_any_size():
    """Of noise, at 62 a quarter of the patches fill squares, at 64 all of them."""
    x, y = torch.rand(2, 4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    cost = PyramidError(detail=0, levels=1, patches=1)
    torch.manual_seed(0)
    found = {}
    for n in (46, 62, 63, 64):
        cut = x[..., :n, :n], y[..., :n, :n]
        found[n] = sum(float((cost(*cut) - AbsoluteError()(*cut)).sum()) / n**2 for _ in range(20))
    assert found == pytest.approx(dict.fromkeys(found, found[64]), rel=0.15)


def test_in_evaluation_mode_the_cost_of_a_picture_is_always_the_same():
    x, y = torch.rand(2, 5, 3, 32, 32)
    cost = PyramidError(patches=30)
    assert not torch.equal(cost(x, y), cost(x, y))
    cost.eval()
    whole = cost(x, y)
    state = torch.get_rng_state()
    torch.testing.assert_close(torch.cat([cost(x[:2], y[:2]), cost(x[2:], y[2:])]), whole)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_right_patches_cost_less_than_none_wherever_they_lie():
    draw = torch.Generator().manual_seed(0)
    grass, other = 0.5 + 0.1 * torch.randn(2, 1, 1, 32, 32, generator=draw)
    flat = torch.full_like(grass, 0.5)
    assert PyramidError(detail=0)(grass, other) > PyramidError(detail=0)(grass, flat)
    cost = PyramidError(detail=0, patches=30)
    assert cost(grass, other) < 0.5 * cost(grass, flat)
    wood, another = (0.5 + 0.1 * torch.randn(2, 1, 1, 1, 64, generator=draw)).expand(2, 1, 1, 64, 64)
    assert cost(wood, another) < 0.9 * cost(wood, another.mT)
    dots = flat.clone()
    dots[:, :, ::4, ::4] += 0.4  # of the same variance
    assert cost(grass, other) < 0.7 * cost(grass, dots)
    flat.requires_grad_()
    cost(flat.detach(), flat).sum().backward()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize(("arguments", "message"), [
    ({"detail": -1.0}, "detail must be 0 or more and finite, got -1.0"),
    ({"patches": float("inf")}, "patches must be 0 or more and finite, got inf"),
    ({"levels": 0}, "levels must be at least 1, got 0"),
])  # fmt: skip
def test_bad_pyramids(arguments, message):
    with pytest.raises(ValueError, match=message):
        PyramidError(**arguments)
    with pytest.raises(ValueError, match=r"compares images \(B, C, H, W\), got \(2, 9, 3\)"):
        PyramidError()(torch.rand(2, 9, 3), torch.rand(2, 9, 3))


@pytest.mark.parametrize("temperature", [1.0, 1.5, 0.5])
def test_binary_cross_entropy_is_that_of_numpy(temperature):
    x, y = torch.rand(4, 1, 8, 8), 0.02 + 0.96 * torch.rand(4, 1, 8, 8)
    a, b = x.double().numpy().reshape(4, -1), y.double().numpy().reshape(4, -1)
    b = b ** (1 / temperature) / (b ** (1 / temperature) + (1 - b) ** (1 / temperature))
    expected = -0.5 * (a * np.log(b) + (1 - a) * np.log(1 - b)).sum(1)
    cost = BinaryCrossEntropy(0.5, temperature)
    np.testing.assert_allclose(cost(x, y).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(cost.mean(y).numpy().reshape(4, -1), b, rtol=1e-5)
    wrong = torch.tensor([[0.0, 1.0]], requires_grad=True)
    cost(torch.tensor([[1.0, 0.0]]), wrong).sum().backward()
    assert wrong.grad.isfinite().all()


def test_bad_temperatures():
    with pytest.raises(ValueError, match="temperature must be positive and finite, got 0"):
        BinaryCrossEntropy(temperature=0.0)


def test_euclidean_has_a_gradient_at_zero():
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    Euclidean()(x.detach(), x).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("cost", [SquaredError(), AbsoluteError(), Euclidean()])
def test_image_costs_want_one_shape(cost):
    with pytest.raises(ValueError, match="must have one shape"):
        cost(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 5))


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="scale of the cost must be positive"):
        ChamferDistance(scale)


@pytest.fixture(params=["k-d trees", "matrices", "fused"])
def search(request, monkeypatch):
    """The ways to find nearest neighbours; all but the first are those of other devices than the CPU."""
    if request.param == "fused":  # its arithmetic: what is compiled is tested below
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        monkeypatch.setattr(neighbors, "_neighbors_by_trees", neighbors.FusedSearch())
    elif request.param == "matrices":
        monkeypatch.setattr(neighbors, "_neighbors_by_trees", neighbors._neighbors_by_matrices)


@pytest.mark.usefixtures("search")
@pytest.mark.parametrize(("n", "m"), [(256, 256), (100, 300), (1, 7)])
@pytest.mark.parametrize("squared", [True, False])
def test_chamfer_equals_the_full_matrix_in_float64(n, m, squared):
    a, b = clouds(3, n), clouds(3, m, seed=1)
    a_reference, b_reference = a.double().requires_grad_(), b.double().requires_grad_()
    expected = full_matrix_chamfer(a_reference, b_reference, squared)
    a.requires_grad_(), b.requires_grad_()
    found = chamfer_distance(a, b, squared)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    expected.sum().backward()
    found.sum().backward()
    for x, reference in ((a, a_reference), (b, b_reference)):
        torch.testing.assert_close(x.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("search")
def test_nearest_neighbors_by_brute_force():
    a, b = clouds(2, 50), clouds(2, 60, seed=1)
    to_b, to_a = nearest_neighbors(a, b)
    matrix = torch.cdist(a.double(), b.double())
    assert torch.equal(to_b, matrix.argmin(2))
    assert torch.equal(to_a, matrix.argmin(1))


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
def test_the_compiled_search_finds_the_same_and_keeps_no_matrix():
    search, a, b = neighbors.FusedSearch(), clouds(2, 50), clouds(2, 50, seed=1)
    for found, exact in zip(search(a, b), nearest_neighbors(a, b), strict=True):
        assert torch.equal(found, exact)
    a, b = clouds(4, 2000), clouds(4, 2000, seed=1)
    search(a, b)  # it may be compiled anew
    assert peak_megabytes(lambda: search(a, b), a.device) < 5
    assert peak_megabytes(lambda: neighbors._neighbors_by_matrices(a, b), a.device) > 50


@pytest.mark.parametrize("compiled", [lambda x, y: 1 / 0, lambda x, y: torch.zeros(x.shape[:2], dtype=torch.int64)])
def test_where_the_search_cannot_be_compiled_or_is_wrong_matrices_serve(monkeypatch, compiled):
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled)
    search, a, b = neighbors.FusedSearch(), clouds(2, 50), clouds(2, 60, seed=1)
    with pytest.warns(UserWarning, match="by matrices, as the fused search fails: (division by zero|it finds other)"):
        assert search(a, b) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert search(a, b) is None


def test_chamfer_gradient_by_differences():
    a, b = clouds(2, 12).double().requires_grad_(), clouds(2, 9, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(chamfer_distance, (a, b))


@pytest.mark.usefixtures("search")
def test_chamfer_far_from_the_origin():
    a, b = clouds(2, 300) / 3 + 1000, clouds(2, 300, seed=1) / 3 + 1000
    expected = full_matrix_chamfer(a.double(), b.double())
    torch.testing.assert_close(chamfer_distance(a, b).double(), expected, rtol=1e-3, atol=0)


def test_chamfer_is_the_same_under_bfloat16_autocast():
    a, b = clouds(2, 200), clouds(2, 200, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = chamfer_distance(a, b)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, chamfer_distance(a, b))


def test_chamfer_of_half_precision_is_computed_in_float32():
    a, b = clouds(2, 200).bfloat16(), clouds(2, 200, seed=1).bfloat16()
    torch.testing.assert_close(chamfer_distance(a, b), chamfer_distance(a.float(), b.float()))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 30), m=st.integers(1, 30), seed=st.integers(0, 1000), repeats=st.booleans())
def test_laws_of_the_chamfer_distance(n, m, seed, repeats):
    a, b = clouds(2, n, seed=seed), clouds(2, m, seed=seed + 1)
    if repeats:
        a = torch.cat([a, a[:, :1], a[:, :1]], 1)
    distance = chamfer_distance(a, b)
    assert (distance >= 0).all()
    assert torch.equal(chamfer_distance(a, a), torch.zeros(2))
    torch.testing.assert_close(distance, chamfer_distance(b, a))
    shuffled = chamfer_distance(a[:, torch.randperm(a.shape[1])], b[:, torch.randperm(m)])
    torch.testing.assert_close(distance, shuffled)
    torch.testing.assert_close(chamfer_distance(3 * a, 3 * b), 9 * distance)


def test_unsquared_chamfer_has_a_gradient_at_zero():
    a = clouds(1, 20).requires_grad_()
    chamfer_distance(a, a.detach(), squared=False).sum().backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("distance", [chamfer_distance, earth_movers_distance, sinkhorn_distance])
def test_bad_point_sets_are_named(distance):
    good = clouds(2, 20)
    with pytest.raises(ValueError, match=r"got \(B, 3, N\) = \(2, 3, 20\): transpose it"):
        distance(good, good.transpose(1, 2))
    with pytest.raises(ValueError, match=r"shape \(B, N, 3\), got torch.float32 \(20, 3\)"):
        distance(good[0], good[0])
    with pytest.raises(ValueError, match="must agree in size, got 2 and 1"):
        distance(good, good[:1])
    with pytest.raises(ValueError, match="must be floats"):
        distance(good.long(), good)
    for bad in (float("nan"), float("inf")):
        spoilt = good.clone()
        spoilt[1, 3, 0] = bad
        with pytest.raises(ValueError, match="must be finite"):
            distance(good, spoilt)


def test_earth_movers_distance_by_brute_force():
    a, b = clouds(2, 5).double().requires_grad_(), clouds(2, 5, seed=1).double()
    distances = (a.unsqueeze(2) - b.unsqueeze(1)).norm(dim=3)
    expected = torch.stack(
        [torch.stack([d[range(5), p].mean() for p in permutations(range(5))]).min() for d in distances]
    )
    torch.testing.assert_close(earth_movers_distance(a, b), expected)
    assert torch.autograd.gradcheck(lambda x: earth_movers_distance(x, b), a)


def test_earth_movers_distance_wants_equal_sizes():
    with pytest.raises(ValueError, match="as many points on both sides"):
        earth_movers_distance(clouds(1, 5), clouds(1, 6))


def test_sinkhorn_distance_is_close_to_the_exact_squared_cost():
    torch.manual_seed(0)
    a, b = torch.rand(3, 80, 3), torch.rand(3, 80, 3)
    matrices = torch.cdist(a, b).square().double().numpy()
    exact = [matrix[linear_sum_assignment(matrix)].mean() for matrix in matrices]
    np.testing.assert_allclose(sinkhorn_distance(a, b, blur=0.02, iterations=200).numpy(), exact, rtol=0.1)
    assert sinkhorn_distance(a, a, blur=0.02, iterations=200).max() < 3 * 0.02**2
    # what its docstring says of the default number of iterations
    ratios = sinkhorn_distance(a, b).numpy() / np.array(exact)
    assert 0.87 < ratios.min() < ratios.max() < 1.02


def test_sinkhorn_gradient_leads_to_the_target():
    target = torch.rand(1, 40, 3)
    points = torch.zeros(1, 40, 3).add(0.01 * torch.randn(1, 40, 3)).requires_grad_()
    for _ in range(60):
        (gradient,) = torch.autograd.grad(sinkhorn_distance(target, points).sum(), points)
        points.data -= 10 * gradient
    assert chamfer_distance(target, points).item() < 0.01


def test_sinkhorn_arguments():
    with pytest.raises(ValueError, match="blur must be positive"):
        sinkhorn_distance(clouds(1, 5), clouds(1, 5), blur=0)


@pytest.mark.parametrize(
    ("cost", "distance"),
    [
        (ChamferDistance(2.0), chamfer_distance),
        (ChamferDistance(2.0, squared=False), lambda a, b: full_matrix_chamfer(a, b, squared=False)),
        (EarthMoversDistance(2.0), earth_movers_distance),
        (SinkhornDistance(2.0), sinkhorn_distance),
        (SinkhornDistance(2.0, blur=0.3, iterations=4), lambda a, b: sinkhorn_distance(a, b, 0.3, 4)),
    ],
)
def test_cost_classes_scale_the_distances(cost, distance):
    a, b = clouds(2, 30), clouds(2, 30, seed=1)
    torch.testing.assert_close(cost(a, b), 2 * distance(a, b))


def test_rows_have_no_order_for_a_set_cost_but_do_for_squared_error():
    """Why the report got blobs: under the row-wise cost one point in the middle beats a perfect answer in new order."""
    cube = torch.rand(1, 1024, 3) * 2 - 1
    shuffled, blob = cube[:, torch.randperm(1024)], torch.zeros_like(cube)
    assert chamfer_distance(cube, shuffled).item() < 1e-12 < chamfer_distance(cube, blob).item()
    assert SquaredError()(cube, shuffled).item() > 1.8 * SquaredError()(cube, blob).item()

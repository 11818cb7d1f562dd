"""Kernels against double loops in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wae_lightning.kernels import (
    RBF,
    InverseMultiquadric,
    Laplacian,
    NegativeDistance,
    median_bandwidth,
    squared_distances,
)
from wae_lightning.penalties import MMD, CramerWold
from wae_lightning.priors import Normal

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
KERNELS = {
    "rbf": (RBF(1.3), lambda d2: math.exp(-d2 / (2 * 1.3**2))),
    "laplacian": (Laplacian(0.7), lambda d2: math.exp(-math.sqrt(d2) / 0.7)),
    "imq": (InverseMultiquadric(c=6.0), lambda d2: sum(6.0 * s / (6.0 * s + d2) for s in SCALES)),
    "imq, one scale": (InverseMultiquadric(c=6.0, scales=(1.0,)), lambda d2: 6.0 / (6.0 + d2)),
    "negative distance": (NegativeDistance(), lambda d2: -math.sqrt(d2)),
}


def double_loop(x, y):
    return [[sum((a - b) ** 2 for a, b in zip(r, c, strict=True)) for c in y.tolist()] for r in x.tolist()]


def codes(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_equals_its_formula_in_a_double_loop(name):
    kernel, formula = KERNELS[name]
    x, y = codes(6, 3), codes(4, 3, seed=1)
    expected = torch.tensor([[formula(d2) for d2 in row] for row in double_loop(x, y)], dtype=torch.float64)
    torch.testing.assert_close(kernel(x, y), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(kernel(x.float(), y.float()).double(), expected, rtol=2e-5, atol=1e-6)


def test_squared_distances_are_exact_far_from_the_origin_and_never_negative():
    x, y = codes(30, 5), codes(20, 5, seed=1)
    expected = torch.tensor(double_loop(x, y), dtype=torch.float64)
    torch.testing.assert_close(squared_distances(x, y), expected, rtol=1e-9, atol=1e-9)
    shifted = squared_distances((x + 1000).float(), (y + 1000).float())
    torch.testing.assert_close(shifted.double(), expected, rtol=1e-3, atol=1e-3)
    z = codes(50, 4, dtype=torch.float32)
    assert squared_distances(z, z).min() >= 0


@pytest.mark.parametrize("penalty", [MMD(), CramerWold()])
def test_a_second_derivative_is_refused_and_not_wrong(penalty):
    penalty.set_prior(Normal(3))
    x = codes(6, 3).requires_grad_()
    distance = penalty(x, codes(6, 3, seed=1))
    with pytest.raises(NotImplementedError, match="has no second derivative: create_graph must be False"):
        torch.autograd.grad(distance, x, create_graph=True)


@pytest.mark.parametrize("name", [*KERNELS, "rbf, median", "laplacian, median"])
def test_gradients_are_right_and_finite_where_codes_coincide(name):
    kernel = {"rbf, median": RBF(), "laplacian, median": Laplacian()}.get(name) or KERNELS[name][0]
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    kernel(x, x).sum().backward()
    assert torch.isfinite(x.grad).all()
    if name in KERNELS:
        distinct = codes(3, 2).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: kernel(z, codes(4, 2, seed=1)), distinct)


def test_the_median_heuristic_is_the_median_distance_of_the_pooled_sample():
    x, y = codes(5, 3), codes(4, 3, seed=1)
    pooled = torch.cat([x, y])
    lengths = sorted(math.sqrt(d2) for i, row in enumerate(double_loop(pooled, pooled)) for d2 in row[i + 1 :])
    # torch's median of an even number of values is the lower of the two in the middle
    assert median_bandwidth(x, y).item() == pytest.approx(lengths[(len(lengths) - 1) // 2])
    torch.testing.assert_close(RBF()(x, y), RBF(median_bandwidth(x, y).item())(x, y))
    assert torch.isfinite(RBF()(torch.ones(3, 2), torch.ones(3, 2))).all()


def test_the_constant_of_the_imq_kernel_comes_from_the_prior_unless_it_is_given():
    kernel = InverseMultiquadric()
    with pytest.raises(ValueError, match="outside of a model pass c, for N"):
        kernel(codes(2, 2), codes(2, 2))
    kernel.set_expected_squared_distance(8.0)
    assert kernel.c == 8.0
    kernel.set_expected_squared_distance(4.0)
    assert kernel.c == 4.0
    given_c = InverseMultiquadric(c=3.0)
    given_c.set_expected_squared_distance(8.0)
    assert given_c.c == 3.0


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(1, 6), st.floats(-3, 3), st.integers(0, 10_000))
def test_kernels_are_symmetric_bounded_and_blind_to_shifts(n, d, shift, seed):
    x, y = codes(n, d, seed), codes(n + 1, d, seed + 1)
    for name in ("rbf", "laplacian", "imq"):
        kernel, formula = KERNELS[name]
        torch.testing.assert_close(kernel(x, y), kernel(y, x).T)
        torch.testing.assert_close(kernel(x + shift, y + shift), kernel(x, y))
        assert kernel(x, y).max() <= formula(0.0) + 1e-9
        assert kernel(x, y).min() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RBF(-1.0), "bandwidth of the RBF kernel must be positive .* got -1.0"),
        (lambda: RBF(float("nan")), "bandwidth of the RBF kernel must be positive .* got nan"),
        (lambda: Laplacian(0.0), "bandwidth of the Laplacian kernel must be positive"),
        (lambda: InverseMultiquadric(c=-2.0), "c of the inverse multiquadric kernel must be positive .* got -2.0"),
        (lambda: InverseMultiquadric(scales=(1.0, 0.0)), r"scales .* must be positive.* got \(1.0, 0.0\)"),
        (lambda: InverseMultiquadric(scales=()), "scales .* must be positive"),
        (lambda: squared_distances(codes(2, 3), codes(2, 4)), r"\(n, d\) and \(m, d\), got \(2, 3\) and \(2, 4\)"),
        (lambda: RBF().of_squared_distances(torch.ones(2, 2)), "depends on the samples"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_gradient_flows_through_the_median():
    y, x = codes(4, 3, seed=1), codes(5, 3).requires_grad_()
    (found,) = torch.autograd.grad(RBF()(x, y).sum(), x)
    (expected,) = torch.autograd.grad(RBF(median_bandwidth(x, y).item())(x, y).sum(), x)
    torch.testing.assert_close(found, expected)

"""All penalties that compare two samples, one test for each law they must obey."""

import importlib
import math

import numpy as np
import ot
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from helpers import perceptrons, trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from wae_lightning import WAE, WAEMMD
from wae_lightning.kernels import RBF, InverseMultiquadric, Laplacian
from wae_lightning.noise import GaussianNoise
from wae_lightning.penalties import (
    MMD,
    CramerWold,
    EnergyDistance,
    ExactWasserstein,
    MaxSlicedWasserstein,
    MMDPlusPlus,
    Sinkhorn,
    SlicedWasserstein,
    mmd,
)
from wae_lightning.penalties.cramer_wold import mean_of_projections
from wae_lightning.priors import Normal, Sphere, Uniform

D = 4
UNBIASED = {
    "mmd, imq": MMD,
    "mmd, rbf": lambda: MMD(RBF(2.0)),
    "mmd, rbf with the median": lambda: MMD(RBF()),
    "mmd, laplacian": lambda: MMD(Laplacian(2.0)),
    "energy distance": EnergyDistance,
    "mmd++": lambda: MMDPlusPlus(dataset_size=1000, codes_per_input=2),
    "cramer-wold": CramerWold,
}
BIASED = {
    "sliced": SlicedWasserstein,
    "max-sliced": MaxSlicedWasserstein,
    "exact": ExactWasserstein,
    "sinkhorn": Sinkhorn,
}
ALL = UNBIASED | BIASED


def make(name, prior=None):
    penalty = ALL[name]()
    penalty.set_prior(prior or Normal(D))
    return penalty


def normal(n, seed, d=D):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", UNBIASED)
def test_it_is_zero_on_average_where_the_distributions_agree(name):
    penalty = make(name)
    # the median bandwidth depends on the draws, which leaves a bias far below the noise of one estimate
    values = torch.stack([penalty(normal(40, 2 * i), normal(40, 2 * i + 1)) for i in range(400)])
    assert values.mean().abs() < 4 * values.std() / math.sqrt(len(values))
    assert values.min() < 0 < values.max()


@pytest.mark.parametrize("name", BIASED)
def test_it_is_biased_upwards_the_less_the_larger_the_batch(name):
    penalty = make(name)
    small, large = (
        torch.stack([penalty(normal(n, 2 * i), normal(n, 2 * i + 1)) for i in range(10)]).mean() for n in (20, 200)
    )
    assert 0 < large < 0.8 * small


@pytest.mark.parametrize("name", ALL)
def test_it_grows_with_a_shift_of_the_codes(name):
    penalty = make(name)
    torch.manual_seed(0)
    values = [float(penalty(normal(200, 0) + shift, normal(200, 1))) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.05


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_finite_also_where_codes_coincide(name):
    penalty = make(name)
    for z in (normal(20, 0), torch.zeros(20, D), normal(20, 0)[:1].expand(20, D), 1e4 * normal(20, 0)):
        leaf = z.clone().requires_grad_()
        value = penalty(leaf, normal(20, 1))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize("name", ALL)
def test_training_moves_codes_back_to_the_prior(name):
    """Steps on codes drawn two standard deviations away; the exact Wasserstein distance tells how far they are."""
    penalty, distance = make(name), ExactWasserstein()
    torch.manual_seed(0)
    z = (0.5 * normal(100, 0) + 2).requires_grad_()
    before = distance(z, normal(100, 1)).item()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(60 if name == "sinkhorn" else 200):  # whose steps take ten times as long
        optimizer.zero_grad()
        penalty(z, torch.randn(100, D)).backward()
        optimizer.step()
    after = distance(z, normal(100, 1)).item()
    # two samples of the prior are about 1.5 apart themselves
    assert after < 0.5 * before


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(sorted(set(ALL) - {"sliced", "max-sliced", "mmd++"})), st.integers(0, 1000))
def test_the_order_of_codes_does_not_matter(name, seed):
    penalty = make(name)
    z, z_prior = normal(12, seed) + 0.3, normal(12, seed + 1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(penalty(z[order], z_prior[order.flip(0)]), penalty(z, z_prior), rtol=1e-3, atol=1e-4)


# ---- against independent references ---------------------------------------------------------------------------------


def mmd_in_a_double_loop(z, z_prior, kernel):
    """Algorithm 2 of the WAE paper, pair by pair."""

    def k(x, y):
        return kernel(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))

    z, z_prior = z.tolist(), z_prior.tolist()
    n, m = len(z), len(z_prior)
    within = sum(k(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_prior = sum(k(z_prior[i], z_prior[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within + within_prior - 2 * sum(k(x, y) for x in z for y in z_prior) / (n * m)


@pytest.mark.parametrize("prior", [Normal(3), Normal(3, 2.0), Uniform(3), Sphere(3, 1.5)], ids=str)
@pytest.mark.parametrize("sizes", [(7, 7), (5, 9)])
@pytest.mark.parametrize("kernel", ["imq", "rbf", "laplacian", "rbf, median"])
def test_mmd_agrees_with_a_double_loop(prior, sizes, kernel):
    z = prior.project(torch.randn(sizes[0], 3, generator=torch.Generator().manual_seed(3)).double() + 0.3)
    z_prior = prior.sample(sizes[1], torch.Generator().manual_seed(4)).double()
    z[1] = z[0]  # repeated codes
    z_prior[2] = z[0]
    c = prior.expected_squared_distance
    pooled = torch.cat([z, z_prior])
    median = torch.nn.functional.pdist(pooled).median().item()
    formulas = {
        "imq": (InverseMultiquadric(c), lambda d2: sum(s * c / (s * c + d2) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))),
        "rbf": (RBF(0.8), lambda d2: math.exp(-d2 / (2 * 0.64))),
        "laplacian": (Laplacian(0.8), lambda d2: math.exp(-math.sqrt(d2) / 0.8)),
        "rbf, median": (RBF(), lambda d2: math.exp(-d2 / (2 * median**2))),
    }
    ours, formula = formulas[kernel]
    expected = mmd_in_a_double_loop(z, z_prior, formula)
    assert mmd(z, z_prior, ours).item() == pytest.approx(expected, rel=1e-6)
    assert mmd(z.float(), z_prior.float(), ours).item() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("sizes", [(256, 256), (256, 257), (700, 500)], ids=str)
def test_mmd_of_few_and_of_many_codes_agrees_with_its_formula(sizes):
    # above 512 codes in all, and again above 2¹⁸ pairs, it is computed in other ways
    generator = torch.Generator().manual_seed(0)
    z, z_prior = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in sizes)
    z = (1.2 * z + 0.3).requires_grad_()

    def kernel(x, y):
        squared = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(2)
        return sum(8 * s / (8 * s + squared) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

    def off_diagonal(x):
        return (kernel(x, x).sum() - 7 * len(x)) / (len(x) * (len(x) - 1))

    expected = off_diagonal(z) + off_diagonal(z_prior) - 2 * kernel(z, z_prior).mean()
    (expected_gradient,) = torch.autograd.grad(expected, z)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        x = z.detach().to(dtype).requires_grad_()
        value = mmd(x, z_prior.to(dtype), InverseMultiquadric(8.0))
        assert value.item() == pytest.approx(expected.item(), rel=tolerance)
        (gradient,) = torch.autograd.grad(value, x)
        assert (gradient - expected_gradient).norm() < tolerance * expected_gradient.norm()


def test_mmd_can_be_differentiated_after_a_first_call_in_inference_mode():
    z, z_prior = torch.randn(11, 3), torch.randn(13, 3)
    with torch.inference_mode():
        value = mmd(z, z_prior, RBF(1.0))
    z.requires_grad_()
    again = mmd(z, z_prior, RBF(1.0))
    again.backward()
    torch.testing.assert_close(again.detach(), value.clone())
    assert z.grad.abs().sum() > 0


def test_the_energy_distance_agrees_with_scipy_in_one_dimension():
    z, z_prior = normal(30, 0, d=1).double() + 1, normal(25, 1, d=1).double()
    # SciPy's is the root of the V-statistic, with the zero diagonals in the means
    biased = scipy.stats.energy_distance(z[:, 0], z_prior[:, 0]) ** 2
    within, within_prior = (np.abs(a[:, None] - a[None]).mean() for a in (z[:, 0].numpy(), z_prior[:, 0].numpy()))
    expected = biased + within + within_prior - within * 30 / 29 - within_prior * 25 / 24
    assert EnergyDistance()(z, z_prior).item() == pytest.approx(expected, rel=1e-6)


def test_mmd_plus_plus_agrees_with_loops_over_pairs():
    n, k, size = 4, 3, 50
    penalty = MMDPlusPlus(size, k, RBF(1.0))
    z, z_prior = normal(n * k, 0).double(), normal(6, 1).double()
    gram = np.exp(-np.square(z.numpy()[:, None] - z.numpy()[None]).sum(2) / 2)
    same, other = [], []
    for i in range(n * k):
        for j in range(n * k):
            if i // k != j // k:
                other.append(gram[i, j])
            elif i != j:
                same.append(gram[i, j])
    prior = np.exp(-np.square(z_prior.numpy()[:, None] - z_prior.numpy()[None]).sum(2) / 2)
    across = np.exp(-np.square(z.numpy()[:, None] - z_prior.numpy()[None]).sum(2) / 2)
    expected = (size - 1) / size * np.mean(other) + np.mean(same) / size
    expected += prior[~np.eye(6, dtype=bool)].mean() - 2 * across.mean()
    assert penalty(z, z_prior).item() == pytest.approx(expected, rel=1e-9)


def test_mmd_plus_plus_is_unbiased_for_the_codes_of_the_whole_data_set():
    """Batches of 2 from a data set of 3 inputs whose codes have small noise: the plain MMD misses the equal pairs."""
    means, noise = torch.tensor([[-1.5], [0.0], [1.5]]).double(), 0.1
    kernel = RBF(1.0)
    torch.manual_seed(0)
    big = (means[torch.randint(3, (4000,))] + noise * torch.randn(4000, 1)).double()
    z_prior = torch.randn(4000, 1).double()
    truth = mmd(big, z_prior, kernel).item()
    penalty = MMDPlusPlus(dataset_size=3, codes_per_input=4, kernel=kernel)
    estimates = []
    for _ in range(3000):
        batch = means[torch.randperm(3)[:2]].repeat_interleave(4, dim=0)
        estimates.append(penalty(batch + noise * torch.randn(8, 1), torch.randn(8, 1).double()).item())
    error = np.std(estimates) / math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * error + 0.005)


def test_sliced_distance_agrees_with_pot_on_average():
    z, z_prior = normal(60, 0) + 1, normal(60, 1)
    torch.manual_seed(0)
    expected = ot.sliced_wasserstein_distance(z.numpy(), z_prior.numpy(), n_projections=20_000, seed=0) ** 2
    assert SlicedWasserstein(20_000)(z, z_prior).item() == pytest.approx(expected, rel=0.03)


def test_max_sliced_distance_starts_at_the_worst_of_its_directions():
    z, z_prior = normal(100, 0) * torch.arange(1, D + 1), normal(100, 1)
    torch.manual_seed(3)
    found = MaxSlicedWasserstein(20, steps=0)(z, z_prior)
    torch.manual_seed(3)
    directions = torch.randn(D, 20)
    directions /= directions.norm(dim=0)
    distances = [np.square(np.sort(z @ one) - np.sort(z_prior @ one)).mean() for one in directions.T]
    assert float(found) == pytest.approx(max(distances), rel=1e-4)


def test_max_sliced_distance_finds_the_worst_direction():
    # only one direction is wrong, and it is known
    z = normal(2000, 0)
    z[:, 2] += 3
    penalty, sliced = MaxSlicedWasserstein(10, steps=10), SlicedWasserstein(200)
    torch.manual_seed(0)
    ordered, ordered_prior = np.sort(z[:, 2].numpy()), np.sort(normal(2000, 1)[:, 2].numpy())
    assert penalty(z, normal(2000, 1)).item() == pytest.approx(((ordered - ordered_prior) ** 2).mean(), rel=0.05)
    assert penalty(z, normal(2000, 1)) > 2 * sliced(z, normal(2000, 1))


def test_exact_distance_agrees_with_scipys_assignment():
    z, z_prior = normal(30, 0).double() + 1, normal(30, 1).double()
    cost = np.square(z.numpy()[:, None] - z_prior.numpy()[None]).sum(2)
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    leaf = z.clone().requires_grad_()
    value = ExactWasserstein()(leaf, z_prior)
    assert value.item() == pytest.approx(cost[rows, columns].mean(), rel=1e-6)
    value.backward()
    torch.testing.assert_close(leaf.grad, 2 * (z - z_prior[torch.as_tensor(columns)]) / 30)


def test_exact_distance_takes_samples_of_different_sizes():
    z, z_prior = normal(20, 0).double() + 1, normal(30, 1).double()
    expected = ot.emd2([], [], ot.dist(z.numpy(), z_prior.numpy()))
    assert ExactWasserstein()(z, z_prior).item() == pytest.approx(expected, rel=1e-6)


def test_sinkhorn_comes_near_the_exact_distance():
    z, z_prior = normal(100, 0) + 1, normal(100, 1)
    exact = ExactWasserstein()(z, z_prior).item()
    assert Sinkhorn(blur=0.01, scaling=0.99)(z, z_prior).item() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 16, 19, 20, 64, 128])
def test_mean_of_projections_is_kummers_function(d):
    s = torch.tensor([0.0, 1e-3, 0.1, 1.0, 10.0, 50.0, 200.0, 600.0], dtype=torch.float64)
    expected = torch.tensor([scipy.special.hyp1f1(0.5, d / 2, -value) for value in s.tolist()], dtype=torch.float64)
    torch.testing.assert_close(mean_of_projections(s, d), expected, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(mean_of_projections(s.float(), d).double(), expected, rtol=1e-5, atol=1e-7)
    # far out it falls like the root of 1/s
    if d > 1:
        far = mean_of_projections(torch.tensor([1e5, 4e5], dtype=torch.float64), d)
        assert far[0] / far[1] == pytest.approx(2, rel=1e-3)
    assert torch.autograd.gradcheck(lambda x: mean_of_projections(x, d), (s[1:6].clone().requires_grad_(),))


@pytest.mark.parametrize(("d", "scale"), [(1, 1.0), (3, 1.0), (8, 2.0)])
def test_cramer_wold_agrees_with_random_projections(d, scale):
    """The mean over directions of the squared L² distance of smoothed projections, by sampling and by quadrature."""
    n, gamma = 12, 0.5 * scale**2
    z = scale * normal(n, 0, d=d).double() + 0.5
    penalty = CramerWold(smoothing=0.5)
    penalty.set_prior(Normal(d, scale))
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(3000, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    grid = np.linspace(-15 * scale, 15 * scale, 1501)
    step = grid[1] - grid[0]

    def density(x, variance):
        return np.exp(-(x**2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    total = []
    for theta in directions:
        bumps = density(grid[None] - (z.numpy() @ theta)[:, None], gamma)
        codes, prior = bumps.mean(0), density(grid, gamma + scale**2)
        overlaps = bumps @ bumps.T * step
        # without the pairs of a code with itself
        within = overlaps[~np.eye(n, dtype=bool)].mean()
        total.append(within + (prior**2).sum() * step - 2 * (codes * prior).sum() * step)
    error = np.std(total) / math.sqrt(len(total))
    assert penalty(z, z).item() == pytest.approx(np.mean(total), abs=4 * error + 1e-6)


@pytest.mark.parametrize(("n", "smoothing"), [(12, 0.4152436465), (324, 1 / 9)])
def test_cramer_wold_smooths_by_silvermans_rule(n, smoothing):
    z = 2 * normal(n, 0) + 0.3
    penalty, given = CramerWold(), CramerWold(smoothing)
    for each in (penalty, given):
        each.set_prior(Normal(D, 2.0))
    torch.testing.assert_close(penalty(z, z), given(z, z))


# ---- in models, and mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_it_trains_a_model_from_python_and_has_a_class_path(name, tmp_path):
    penalty = ALL[name]()
    several = penalty.codes_per_input > 1
    networks = perceptrons(features=4) if several else perceptrons()
    model = WAEMMD(**networks, penalty=penalty, noise=GaussianNoise() if several else None)
    fitting = trainer(tmp_path)
    fitting.fit(model, DataLoader(torch.rand(32, 1, 4, 4), 8))
    assert torch.isfinite(fitting.callback_metrics["train/penalty"])
    module = importlib.import_module("wae_lightning.penalties")
    assert getattr(module, type(penalty).__name__) is type(penalty)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_it_is_the_same_without_gradients_and_leaves_them_off(name, off):
    penalty, codes = make(name), normal(200, 0).chunk(2)
    torch.manual_seed(0)
    expected = penalty(*codes)
    torch.manual_seed(0)
    with off():
        inference_codes = [z + 0 for z in codes]
        found = penalty(*inference_codes)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, expected)


def test_a_missing_library_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for cls, package in ((ExactWasserstein, "POT"), (Sinkhorn, "GeomLoss")):
        with pytest.raises(ImportError, match=rf"this penalty needs {package}: pip install {package}"):
            cls()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MMD(RBF(1.0))(normal(1, 0), normal(5, 0)), "at least 2 codes of each kind, got 1 and 5"),
        (lambda: MMDPlusPlus(1), "dataset_size must be at least 2, got 1"),
        (lambda: MMDPlusPlus(10, 1), "codes_per_input must be at least 2, got 1"),
        (
            lambda: MMDPlusPlus(10, 3)(normal(7, 0), normal(7, 1)),
            "3 codes for each of at least 2 inputs, got 7: .*code_queue must give a multiple of codes_per_input=3",
        ),
        (lambda: WAE(penalty=MMDPlusPlus(10)), r"MMDPlusPlus needs a Gaussian encoder, noise=GaussianNoise\(\); got"),
        (lambda: SlicedWasserstein(0), "projections must be at least 1, got 0"),
        (lambda: SlicedWasserstein()(normal(3, 0), normal(4, 0)), "as many codes as draws, got 3 and 4"),
        (lambda: MaxSlicedWasserstein(steps=-1), "steps must be 0 or more, got -1"),
        (lambda: Sinkhorn(blur=0), "blur must be positive, got 0"),
        (lambda: Sinkhorn(scaling=1), "scaling must lie between 0 and 1, got 1"),
        (lambda: CramerWold(smoothing=-1), "smoothing must be positive and finite .* got -1"),
        (lambda: CramerWold().set_prior(Sphere(3)), "CramerWold needs a Normal prior, got Sphere"),
        (lambda: CramerWold()(normal(1, 0), normal(1, 0)), "needs at least 2 codes, got 1"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

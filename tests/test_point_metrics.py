"""Metrics of point sets against brute force and SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn

from wae_lightning.costs import chamfer_distance, earth_movers_distance
from wae_lightning.metrics import (
    ClassifierAgreement,
    LinearSVMAccuracy,
    OccupancyDivergence,
    PointSetDistances,
    PointSetReconstruction,
)
from wae_lightning.metrics.point_clouds import linear_svm, pairwise_distances


def clouds(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("name", "distance"), [("cd", chamfer_distance), ("emd", earth_movers_distance)])
def test_pairwise_distances_are_those_of_each_pair(name, distance):
    a, b = clouds(4, 20) + 5, clouds(5, 20, seed=1) + 5
    expected = torch.stack([torch.cat([distance(x[None], y[None]) for y in b]) for x in a])
    torch.testing.assert_close(pairwise_distances(a, b, name), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        pairwise_distances(a, distance=name), pairwise_distances(a, a, name), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_pairwise_distances_are_the_same_under_autocast(half):
    a = clouds(3, 50)
    b = a + 0.05 * clouds(3, 50, seed=1)
    expected = pairwise_distances(a, b)
    with torch.autocast("cpu", half):
        torch.testing.assert_close(pairwise_distances(a, b), expected)


def test_pairwise_distances_are_never_negative():
    a = clouds(3, 200) + 100
    assert pairwise_distances(a, a).min() >= 0


@pytest.mark.parametrize(("name", "distance"), [("cd", chamfer_distance), ("emd", earth_movers_distance)])
def test_reconstruction_is_the_mean_over_all_batches(name, distance):
    a, b = clouds(5, 30), clouds(5, 30, seed=1)
    metric = PointSetReconstruction(name)
    metric.update(a[:4], b[:4])
    metric.update(a[4:], b[4:])
    torch.testing.assert_close(metric.compute(), distance(a, b).mean())


def brute_force(samples: Tensor, real: Tensor) -> dict[str, float]:
    def d(x: Tensor, y: Tensor) -> float:
        return chamfer_distance(x[None].double(), y[None].double()).item()

    members = [(x, "s") for x in samples] + [(x, "r") for x in real]
    right = {"s": [], "r": []}
    for i, (x, side) in enumerate(members):
        others = [(d(x, y), other) for j, (y, other) in enumerate(members) if j != i]
        right[side].append(min(others)[1] == side)
    nearest = [min(range(len(real)), key=lambda r: d(s, real[r])) for s in samples]
    return {
        "1-NNA": np.mean(right["s"] + right["r"]),
        "1-NNA samples": np.mean(right["s"]),
        "1-NNA real": np.mean(right["r"]),
        "COV": len(set(nearest)) / len(real),
        "MMD": np.mean([min(d(s, r) for s in samples) for r in real]),
        "nearest real": np.mean([min(d(s, r) for r in real) for s in samples]),
    }


@settings(max_examples=10, deadline=None)
@given(n=st.integers(2, 7), seed=st.integers(0, 1000), spread=st.floats(0.1, 2.0))
def test_set_metrics_by_brute_force(n, seed, spread):
    centers = spread * clouds(2, n, 1, seed=seed + 2)
    real, samples = clouds(n, 9, seed=seed) + centers[0], clouds(n, 9, seed=seed + 1) + centers[1]
    metric = PointSetDistances()
    metric.update(real[:1], real=True)
    metric.update(real[1:], real=True)
    metric.update(samples, real=False)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx(brute_force(samples, real), rel=1e-4)


def test_set_metrics_of_copies_and_of_one_blob():
    real = clouds(20, 30) + 3 * clouds(20, 1, seed=5)
    copies, blobs = PointSetDistances(), PointSetDistances()
    for metric, samples in ((copies, real + 1e-5 * clouds(20, 30, seed=1)), (blobs, 0.01 * clouds(20, 30, seed=2))):
        metric.update(real, real=True)
        metric.update(samples, real=False)
    # the nearest neighbour of each copy is its original, so 1-NNA betrays memorisation by a value near 0
    assert copies.compute()["1-NNA"] == 0
    assert copies.compute()["COV"] == 1
    assert blobs.compute()["1-NNA"] > 0.9
    assert blobs.compute()["COV"] < 0.2


@pytest.mark.parametrize(("samples", "reals"), [(3, 7), (7, 3), (1, 4)])
def test_unequal_numbers_leave_out_1_nna_only(samples, reals):
    a, b = clouds(samples, 9), clouds(reals, 9, seed=1) + 0.5
    metric = PointSetDistances()
    metric.update(b, real=True)
    metric.update(a, real=False)
    distances = np.array([[chamfer_distance(x[None], y[None]).item() for y in b] for x in a])
    expected = {
        "COV": len(set(distances.argmin(1))) / reals,
        "MMD": distances.min(0).mean(),
        "nearest real": distances.min(1).mean(),
    }
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected, rel=1e-4)


def test_wrong_use_of_the_set_metrics_is_named():
    metric = PointSetDistances("emd")
    metric.update(clouds(3, 5), real=True)
    with pytest.raises(ValueError, match="expected sample sets, found none"):
        metric.compute()
    with pytest.raises(ValueError, match="must be 'cd' or 'emd', got 'l2'"):
        PointSetDistances("l2")
    with pytest.raises(ValueError, match="transpose"):
        metric.update(clouds(3, 5).transpose(1, 2), real=True)


def test_occupancy_divergence_by_brute_force():
    real, samples = 0.2 * clouds(3, 40), 0.3 * clouds(2, 50, seed=1) + 0.1
    metric = OccupancyDivergence(resolution=8)
    metric.update(real, real=True)
    metric.update(samples, real=False)
    axis = np.linspace(-0.5, 0.5, 8)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.linalg.norm(grid, axis=1) <= 0.5]
    counts = [
        np.bincount(
            np.linalg.norm(x.numpy().reshape(-1, 1, 3) - grid, axis=2).argmin(1), minlength=len(grid)
        )
        for x in (real, samples)
    ]  # fmt: skip
    assert float(metric.compute()) == pytest.approx(jensenshannon(*counts, base=2) ** 2, abs=1e-6)


def test_occupancy_divergence_is_between_0_and_1():
    for shift, expected in ((0.0, 0.0), (0.5, 1.0)):
        metric = OccupancyDivergence(radius=1.0)
        points = 0.05 * clouds(4, 100)
        metric.update(points - shift, real=True)
        metric.update(points + shift, real=False)
        assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="resolution must be 2 or more"):
        OccupancyDivergence(resolution=1)


class TallOrWide(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.std(1)[:, :2]


def test_classifier_agreement_is_a_ratio_of_accuracies():
    wide = clouds(10, 50) * torch.tensor([3.0, 1, 1])
    tall = clouds(10, 50, seed=1) * torch.tensor([1.0, 3, 1])
    target = torch.cat([wide, tall])
    reconstruction = torch.cat([wide, tall[:5], wide[:5]])
    metric = ClassifierAgreement(TallOrWide())
    metric.update(target, reconstruction, torch.arange(20) // 10)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx({"inputs": 1, "reconstructions": 0.75, "share": 0.75})


def test_a_judge_judges_in_evaluation_mode_and_every_cloud_once():
    judge = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 3))
    metric, x = ClassifierAgreement(judge), torch.randn(6, 4, 3) + 3
    labels = judge.eval()(x).argmax(1)
    metric.train()
    metric.update(x, x, labels)
    assert metric.compute()["inputs"] == 1
    assert torch.equal(judge[1].running_mean, torch.zeros(12))
    for wrong in (labels[:, None], labels[:1]):
        with pytest.raises(ValueError, match=r"expected \(B, N, 3\), \(B, M, 3\) and labels \(B,\), got \(6, 4, 3\)"):
            metric.update(x, x, wrong)


@pytest.mark.parametrize("sides", [(), (True,), (False,)])
def test_occupancy_of_one_side_is_no_divergence(sides):
    metric = OccupancyDivergence(resolution=4)
    for real in sides:
        metric.update(torch.rand(2, 9, 3), real=real)
    with pytest.raises(ValueError, match="needs real sets and samples, and one of them is missing"):
        metric.compute()


def test_what_a_support_vector_machine_cannot_use_is_refused():
    labels = torch.arange(20) % 2
    codes = torch.randn(20, 3) + 5 * labels[:, None]
    for wrong in (labels[:, None], labels.double(), labels > 0, labels[:3]):
        with pytest.raises(ValueError, match=r"expected codes \(B, d\) and integers \(B,\), got \(20, 3\) and"):
            LinearSVMAccuracy().update(codes, wrong, train=True)
    for dtype in (torch.uint8, torch.int32):
        metric = LinearSVMAccuracy()
        metric.update(codes, labels.to(dtype), train=True)
        with pytest.raises(ValueError, match="codes of training and of test clouds: some are missing"):
            metric.compute()
        metric.update(codes, labels.to(dtype), train=False)
        assert metric.compute() == 1
    nan = codes.index_fill(0, torch.tensor([4]), torch.nan)
    for train, test, message in ((nan, codes, "finite"), (codes, nan, "finite"), (codes[:1], codes, "at least 2")):
        metric = LinearSVMAccuracy()
        metric.update(train, labels[: len(train)], train=True)
        metric.update(test, labels, train=False)
        with pytest.raises(ValueError, match=message):
            metric.compute()


def test_linear_svm_reaches_the_optimum_that_scipy_finds():
    x, labels = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    weights, biases = linear_svm(x, labels, c=0.5)
    features = np.c_[x.double().numpy(), np.ones(60)]
    for k in range(3):
        sign = np.where(labels.numpy() == k, 1.0, -1.0)

        def objective(w: np.ndarray, sign: np.ndarray = sign) -> tuple[float, np.ndarray]:
            slack = np.maximum(1 - sign * (features @ w), 0)
            return 0.5 * w @ w + 0.5 * (slack**2).sum(), w - features.T @ (sign * slack)

        expected = minimize(objective, np.zeros(5), jac=True, tol=1e-10).x
        np.testing.assert_allclose(np.r_[weights[k].numpy(), biases[k]], expected, atol=1e-4)


def test_svm_accuracy_of_separable_codes_and_of_noise():
    labels = torch.arange(200) % 4
    separable = 5 * torch.eye(4)[labels] + 0.3 * torch.randn(200, 4)
    for codes, low, high in ((separable, 0.99, 1.0), (torch.randn(200, 4), 0.0, 0.5)):
        metric = LinearSVMAccuracy()
        metric.update(codes[:100], labels[:100], train=True)
        metric.update(codes[100:], labels[100:], train=False)
        assert low <= float(metric.compute()) <= high

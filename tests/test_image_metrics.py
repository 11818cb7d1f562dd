"""Sharpness, precision and recall, and the distances of evaluate.py, against references written out."""

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import torch

from datamodules import MNISTDataModule
from wae_lightning.evaluation.images import compare
from wae_lightning.metrics import PrecisionRecall, Sharpness


def test_sharpness_is_the_variance_of_scipys_laplacian():
    images = torch.rand(4, 3, 12, 9)
    metric = Sharpness()
    metric.update(images[:1])
    metric.update(images[1:])
    grey = np.tensordot(images.double().numpy(), [0.299, 0.587, 0.114], axes=([1], [0]))
    expected = np.mean([scipy.ndimage.laplace(image)[1:-1, 1:-1].var() for image in grey])
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-5)


def test_sharpness_falls_when_digits_are_blurred():
    data = MNISTDataModule()
    data.setup("test")
    digits = data.test_set.images[:100].float() / 255
    values = []
    for images in (digits, torch.nn.functional.avg_pool2d(digits, 3, 1, 1)):
        metric = Sharpness()
        metric.update(images)
        values.append(float(metric.compute()))
    assert values[1] < 0.5 * values[0]


def test_sharpness_refuses_other_shapes():
    for images in (*map(torch.rand, ((2, 2, 8, 8), (2, 1, 2, 8), (2, 8, 8))), torch.ones(2, 1, 8, 8).byte()):
        with pytest.raises(ValueError, match=r"images must be floats \(B, 1 or 3, H, W\), at least 3 x 3, got"):
            Sharpness().update(images)


@pytest.mark.parametrize("real", [False, True])
def test_precision_and_recall_refuse_what_is_not_finite(real):
    metric = PrecisionRecall()
    metric.update(torch.rand(20, 3), real=not real)
    metric.update(torch.rand(20, 3).index_fill(0, torch.tensor([3]), torch.nan), real=real)
    with pytest.raises(ValueError, match="take finite features, and some are not"):
        metric.compute()


def share_inside(points, centers, k):
    inside = 0
    for point in points:
        for center in centers:
            others = sorted(np.linalg.norm(center - other) for other in centers)
            if np.linalg.norm(point - center) <= others[k]:
                inside += 1
                break
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_agree_with_a_double_loop(k):
    real, samples = torch.randn(40, 3), 0.7 * torch.randn(30, 3) + 0.5
    metric = PrecisionRecall(k)
    for part in real.split(15):
        metric.update(part, real=True)
    metric.update(samples, real=False)
    found = metric.compute()
    real, samples = real.double().numpy(), samples.double().numpy()
    assert float(found["precision"]) == pytest.approx(share_inside(samples, real, k))
    assert float(found["recall"]) == pytest.approx(share_inside(real, samples, k))
    assert 0 < found["recall"] < 1


def test_precision_and_recall_are_not_each_other():
    # three real clusters, of which the samples know one, and half of them lie nowhere
    corners = torch.tensor([[0.0, 0], [100, 0], [0, 100]])
    cluster = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    real = torch.cat([corner + cluster for corner in corners])
    samples = torch.cat([cluster + 0.1, cluster[:2] + 50])
    metric = PrecisionRecall(k=1)
    metric.update(real, real=True)
    metric.update(samples, real=False)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx({"precision": 4 / 6, "recall": 4 / 12})
    # in evaluation, with its three neighbours: samples in the middle of what is real
    real, samples = 10 * torch.randn(300, 2), 0.1 * torch.randn(300, 2)
    found = compare(real.double(), samples.double())
    assert found["precision"] > 0.95
    assert found["recall"] < 0.05


def test_precision_and_recall_need_more_features_than_neighbours():
    metric = PrecisionRecall(k=3)
    metric.update(torch.rand(3, 2), real=True)
    metric.update(torch.rand(9, 2), real=False)
    with pytest.raises(ValueError, match="need more than 3 features, got 3, 9"):
        metric.compute()
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        PrecisionRecall(0)


def frechet(x, y):
    x, y = x.numpy(), y.numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)


def test_distances_of_features_agree_with_scipy_and_vanish_for_equal_sets():
    x = torch.randn(300, 5, dtype=torch.float64)
    y = torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64) + 1
    found = compare(x, y)
    assert found["fid"] == pytest.approx(frechet(x, y), rel=1e-6)
    same = compare(x, x)
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert same["precision"] == same["recall"] == 1
    # the cubic kernel's unbiased MMD, written out
    x, y = x[:200], y

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    def off_diagonal(matrix):
        return (matrix.sum() - matrix.diagonal().sum()) / (200 * 199)

    expected = off_diagonal(kernel(x, x)) + off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert compare(x, y)["kid"] == pytest.approx(float(expected), rel=1e-4)

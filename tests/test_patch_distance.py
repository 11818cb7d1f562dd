"""The distance of patches against SciPy's filters and one-dimensional distances, and what it sees: blur."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from torch.nn import functional as F
from torchmetrics.utilities.data import dim_zero_cat

from datamodules import MNISTDataModule
from wae_lightning.metrics import DigitFeatures, PatchDistance
from wae_lightning.metrics.completion import frechet_distance
from wae_lightning.metrics.patches import laplacian_pyramid, sliced_wasserstein

TAPS = np.array([1, 4, 6, 4, 1]) / 16


def scipy_pyramid(image):
    """One channel, (H, W)."""
    scales = []
    while min(image.shape) >= 16:
        coarse = scipy.ndimage.correlate(image, np.outer(TAPS, TAPS), mode="mirror")[::2, ::2]
        spread = np.zeros_like(image)
        spread[::2, ::2] = coarse
        scales.append(image - scipy.ndimage.correlate(spread, 4 * np.outer(TAPS, TAPS), mode="mirror"))
        image = coarse
    return [*scales, image]


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (1, 3, 16, 33), (1, 2, 64, 50)])
def test_the_pyramid_is_scipys(shape):
    images = torch.rand(shape)
    found = laplacian_pyramid(images)
    for b in range(shape[0]):
        for c in range(shape[1]):
            expected = scipy_pyramid(images[b, c].double().numpy())
            assert [scale.shape[2:] for scale in found] == [scale.shape for scale in expected]
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(ours[b, c].numpy(), theirs, atol=1e-6)


def test_the_distance_of_points_is_the_mean_of_scipys_along_directions():
    x, y = torch.randn(50, 4), 2 * torch.randn(50, 4) + 1
    directions = F.normalize(torch.randn(4, 40), dim=0)
    projected = [(points.double() @ directions.double()).numpy().T for points in (x, y)]
    expected = np.mean([scipy.stats.wasserstein_distance(a, b) for a, b in zip(*projected, strict=True)])
    assert float(sliced_wasserstein(x, y, directions)) == pytest.approx(expected, rel=1e-5)


def patches_of(image):
    """All 7 x 7 patches of one image (C, H, W)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (7, 7), axis=(1, 2))
    return windows.transpose(1, 2, 0, 3, 4).reshape(-1, image.shape[0], 49)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_distance_of_images_is_that_of_their_patches(channels):
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(20, channels, 16, 20, generator=generator)
    samples = 0.4 * torch.rand(20, channels, 16, 20, generator=generator) ** 2
    metric = PatchDistance(patches=400, directions=400)
    for part in real.split(7):
        metric.update(part, real=True)
    metric.update(samples.half() if channels == 1 else samples, real=False)
    found = metric.compute()
    assert list(found) == ["mean", "16x20", "8x10"]
    rng = np.random.default_rng(0)
    for number, name in enumerate(list(found)[1:]):
        sets = []
        for images in (real, samples):
            pyramids = [[scipy_pyramid(c)[number] for c in image] for image in images.double().numpy()]
            sets.append(np.concatenate([patches_of(np.stack(pyramid)) for pyramid in pyramids]))
        mean, std = sets[0].mean((0, 2), keepdims=True), sets[0].std((0, 2), keepdims=True)
        x, y = (((points - mean) / std).reshape(len(points), -1) for points in sets)
        directions = rng.standard_normal((x.shape[1], 400))
        directions /= np.linalg.norm(directions, axis=0)
        expected = np.abs(np.sort(x @ directions, 0) - np.sort(y @ directions, 0)).mean()
        assert float(found[name]) == pytest.approx(expected, rel=0.05)
    assert float(found["mean"]) == pytest.approx(np.mean([float(found[name]) for name in list(found)[1:]]))


def digits_and_blurred():
    """Training and test digits, 2,000 of each, and the training digits blurred by 0.7 pixels."""
    data = MNISTDataModule()
    data.setup("fit")
    train, test = (part.images[:2000].float() / 255 for part in (data.train_set, data.test_set))
    return train, test, torch.from_numpy(scipy.ndimage.gaussian_filter(train.numpy(), (0, 0, 0.7, 0.7)))


def test_blurred_digits_stand_out_in_patches_and_to_the_second_classifier():
    train, test, blurred = digits_and_blurred()
    metric = PatchDistance(directions=32, reset_real=False)
    metric.update(test, real=True)
    finest = []
    for images in (train, blurred, train):
        metric.reset()
        metric.update(images, real=False)
        finest.append(float(metric.compute()["28x28"]))
    # real images and draws stay the same from one set to the next
    assert finest[2] == finest[0]
    assert finest[1] > 10 * finest[0]
    first, twin = [], []
    for found, features in ((first, DigitFeatures()), (twin, DigitFeatures(twin=True))):
        real, *others = (features(images[:1000]).double() for images in (test, train, blurred))
        found += [frechet_distance(real, other) for other in others]
    assert twin[1] > 10 * twin[0]
    assert twin[1] / twin[0] > 3 * first[1] / first[0]


def test_of_the_larger_set_random_patches_are_taken():
    """Half of the images are dark, and in the larger set they come first."""
    dark = torch.arange(90) % 3 == 0
    images = torch.rand(90, 1, 16, 16) + ~dark[:, None, None, None]
    metric = PatchDistance()
    metric.update(images[dark.argsort(descending=True, stable=True)], real=True)
    metric.update(images[:30], real=False)
    assert 0 < metric.compute()["8x8"] < 0.2


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 28, 28), r"\(B, C, H, W\), at least 16 x 16, got \(2, 28, 28\)"),
        (torch.rand(2, 1, 28, 15), r"at least 16 x 16, got \(2, 1, 28, 15\)"),
        (torch.rand(2, 1, 32, 28), r"must be of one shape \(C, H, W\), got \(1, 32, 28\) after \(1, 28, 28\)"),
        (torch.rand(2, 3, 28, 28), r"must be of one shape \(C, H, W\), got \(3, 28, 28\) after \(1, 28, 28\)"),
        ((255 * torch.rand(2, 1, 28, 28)).byte(), r"floats \(B, C, H, W\), .* got \(2, 1, 28, 28\) of uint8"),
    ],
)
def test_other_images_are_refused(images, message):
    metric = PatchDistance()
    metric.update(torch.rand(2, 1, 28, 28), real=True)
    with pytest.raises(ValueError, match=message):
        metric.update(images, real=False)
    with pytest.raises(ValueError, match="needs real images and samples, and one of them is missing"):
        metric.compute()
    with pytest.raises(ValueError, match="patches and directions must be at least 1, got 0 and 1"):
        PatchDistance(patches=0, directions=1)


def filled(real, samples):
    metric = PatchDistance()
    for part in real:
        metric.update(part, real=True)
    for part in samples:
        metric.update(part, real=False)
    return metric


def test_processes_and_merged_metrics_join_their_patches():
    real, samples = torch.rand(40, 1, 18, 23), 0.5 * torch.rand(40, 1, 18, 23)
    whole = filled([real], [samples]).compute()
    joined = filled(real.split(20), samples.split(20))
    for state in ("real", "samples", "shapes"):  # as torchmetrics leaves them once processes have shared theirs
        setattr(joined, state, dim_zero_cat(getattr(joined, state)))
    assert joined.compute() == whole
    assert list(whole) == ["mean", "18x23", "9x12"]
    empty = PatchDistance()
    empty.merge_state(filled([real], [samples]))
    assert empty.compute() == whole
    for first, second in ((([real.mT], []), ([real], [samples])), (([real], []), ([], [samples.mT]))):
        first, second = filled(*first), filled(*second)
        first.merge_state(second)
        with pytest.raises(ValueError, match=r"of one shape \(C, H, W\), got \[1, 18, 23\] and \[1, 23, 18\]"):
            first.compute()
    with pytest.raises(NotImplementedError, match="use update and compute"):
        joined(real, real=True)


def test_real_images_that_are_kept_keep_their_shape():
    metric = PatchDistance(reset_real=False)
    metric.update(torch.rand(20, 1, 16, 16), real=True)
    metric.update(torch.rand(20, 1, 16, 16), real=False)
    before = metric.compute()
    metric.reset()
    with pytest.raises(ValueError, match=r"got \(1, 28, 28\) after \(1, 16, 16\)"):
        metric.update(torch.rand(20, 1, 28, 28), real=False)
    metric.update(torch.rand(20, 1, 16, 16), real=False)
    assert list(metric.compute()) == list(before)

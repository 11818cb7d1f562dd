"""Measures of completions against NumPy formulas, permutations and laws."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance

from datamodules import MNISTDataModule
from wae_lightning.image_parts import ImageParts
from wae_lightning.metrics import CodeDependence, CompletionMetrics, DigitClassifier, DigitFeatures
from wae_lightning.metrics.completion import (
    binary_cross_entropy,
    entropy_of_labels,
    frechet_distance,
    hsic,
    hsic_over_null,
    mean_pairwise_distance,
    negative_log_likelihood,
    r_squared,
    ranks_of_truth,
)

TOP = ImageParts((1, 28, 28), "top")


@pytest.fixture(scope="module")
def digits():
    data = MNISTDataModule(batch_size=60)
    data.setup("test")
    images, labels = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    return images, labels


def test_binary_cross_entropy_is_that_of_torch_also_at_0_and_1():
    target, completions = torch.rand(3, 10), torch.rand(3, 4, 10)
    completions[0, 0, :2] = torch.tensor([0.0, 1.0])
    expected = F.binary_cross_entropy(completions, target.unsqueeze(1).expand_as(completions), reduction="none").sum(2)
    torch.testing.assert_close(binary_cross_entropy(target, completions), expected)


def test_negative_log_likelihood_is_the_log_of_the_mean_weight():
    weights = np.random.default_rng(0).random((5, 100))
    found = negative_log_likelihood(torch.tensor(np.log(weights)))
    np.testing.assert_allclose(found, -np.log(weights.mean(1)))
    # weights far below the smallest float
    torch.testing.assert_close(negative_log_likelihood(torch.full((1, 100), -5000.0)), torch.tensor([5000.0]))


def test_entropy_of_labels_is_that_of_scipy():
    labels = torch.tensor([[0, 0, 0, 0], [1, 1, 2, 2], [0, 1, 2, 9]])
    expected = [stats.entropy(np.bincount(row, minlength=10)) for row in labels.numpy()]
    np.testing.assert_allclose(entropy_of_labels(labels), expected, rtol=1e-6)


def test_mean_pairwise_distance_equals_a_double_loop():
    features = np.random.default_rng(0).standard_normal((3, 5, 7))
    found = mean_pairwise_distance(torch.tensor(features))
    for row, value in zip(features, found, strict=True):
        pairs = [np.linalg.norm(row[i] - row[j]) for i in range(5) for j in range(5) if i != j]
        assert value.item() == pytest.approx(np.mean(pairs))
    equal = torch.randn(1, 1, 7).mul(1000).expand(2, 5, 7)
    assert (mean_pairwise_distance(equal) == 0).all()


def test_ranks_are_uniform_for_draws_from_one_distribution_and_extreme_for_one_answer():
    draws = torch.randn(20_000, 10, 1)
    counts = torch.bincount(ranks_of_truth(torch.randn(20_000, 1), draws).flatten(), minlength=11)
    assert stats.chisquare(counts).pvalue > 1e-4
    same = draws[:, :1].expand(-1, 9, -1)
    assert set(ranks_of_truth(torch.randn(20_000, 1), same).flatten().tolist()) == {0, 9}
    tied = ranks_of_truth(torch.zeros(20_000, 1), torch.zeros(20_000, 4, 1)).flatten()
    assert stats.chisquare(torch.bincount(tied, minlength=5)).pvalue > 1e-4


def kernel_by_loops(x):
    squared = ((x[:, None] - x[None]) ** 2).sum(2)
    median = np.median(np.sqrt(squared[np.triu_indices(len(x), 1)]))
    return np.exp(-squared / (2 * median**2))


def test_hsic_is_the_trace_formula_and_its_null_mean_that_of_permutations():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((7, 2))
    z = 0.3 * x + generator.standard_normal((7, 2))
    k, of_z = kernel_by_loops(x), kernel_by_loops(z)
    h = np.eye(7) - 1 / 7
    expected = np.trace(k @ h @ of_z @ h) / 7**2
    assert hsic(torch.tensor(x), torch.tensor(z)).item() == pytest.approx(expected)  # 21 distances have one median
    orders = map(list, itertools.permutations(range(7)))
    permuted = [np.trace(k @ h @ of_z[np.ix_(order, order)] @ h) / 7**2 for order in orders]
    found = hsic_over_null(torch.tensor(x), torch.tensor(z)).item()
    assert found == pytest.approx(expected / np.mean(permuted))


def test_hsic_over_null_is_about_one_for_independent_samples():
    torch.manual_seed(0)
    ratios = [hsic_over_null(torch.randn(100, 4), torch.randn(100, 3)).item() for _ in range(200)]
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)  # its standard error is 0.015
    x = torch.randn(200, 3)
    assert hsic_over_null(x, x) > 10


def test_r_squared_is_that_of_least_squares():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((100, 3)) + 5
    z = x @ generator.standard_normal((3, 2)) + 2 * generator.standard_normal((100, 2)) - 7
    design = np.hstack([x, np.ones((100, 1))])
    residual = z - design @ np.linalg.lstsq(design, z, rcond=None)[0]
    expected = 1 - (residual**2).sum() / ((z - z.mean(0)) ** 2).sum()
    assert r_squared(torch.tensor(x), torch.tensor(z)).item() == pytest.approx(expected)
    assert r_squared(torch.tensor(x), torch.tensor(x * 2 + 1)).item() == pytest.approx(1)


def test_code_dependence_collects_batches():
    x, z = torch.randn(100, 4), torch.randn(100, 3)
    metric = CodeDependence(hsic_codes=50)
    for rows in torch.arange(100).split(30):
        metric.update(x[rows], z[rows])
    found = metric.compute()
    assert found["hsic_over_null"].item() == pytest.approx(hsic_over_null(x[:50], z[:50]).item(), rel=1e-4)
    assert found["r_squared"].item() == pytest.approx(r_squared(x, z).item(), rel=1e-4)


def measured(images, completed, *labels, mask=TOP.mask, classifier=None, batch=25):
    metric = CompletionMetrics(mask, classifier)
    for rows in torch.arange(len(images)).split(batch):
        metric.update(images[rows], completed[rows], *(label[rows] for label in labels))
    return {name: value.item() for name, value in metric.compute().items()}


def test_errors_are_those_of_the_hidden_pixels():
    images = torch.rand(50, 2, 20, 16)
    mask = ImageParts((2, 20, 16), "3_quadrants").mask
    completed = torch.rand(50, 4, 2, 20, 16)
    found = measured(images, completed, mask=mask)
    truth = images[..., 10:, 8:].numpy().reshape(50, 1, -1)
    given = completed[..., 10:, 8:].numpy().reshape(50, 4, -1)
    psnr = -10 * np.log10(((given - truth) ** 2).mean(2))
    bce = -(truth * np.log(given) + (1 - truth) * np.log1p(-given)).sum(2)
    of_mean = -10 * np.log10(((given.mean(1) - truth[:, 0]) ** 2).mean(1))
    assert found["psnr"] == pytest.approx(psnr.mean(), rel=1e-4)
    assert found["psnr_best"] == pytest.approx(psnr.max(1).mean(), rel=1e-4)
    assert found["psnr_of_mean"] == pytest.approx(of_mean.mean(), rel=1e-4)
    assert found["bce"] == pytest.approx(bce.mean(), rel=1e-4)
    assert found["bce_best"] == pytest.approx(bce.min(1).mean(), rel=1e-4)
    ssim = [
        [structural_similarity_index_measure(completed[i, j : j + 1], images[i : i + 1], data_range=1.0).item()
         for j in range(4)] for i in range(5)
    ]  # fmt: skip
    first = measured(images[:5], completed[:5], mask=mask)
    assert first["ssim"] == pytest.approx(np.mean(ssim), rel=1e-4)
    assert first["ssim_best"] == pytest.approx(np.max(ssim, 1).mean(), rel=1e-4)
    assert not {"agreement", "fid", "label_entropy"} & set(found)


def test_classifier_measures(digits):
    images, labels = digits
    classifier = DigitClassifier.pretrained()
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(60, (60, 3), generator=generator)
    lower = TOP.split(images)[1]
    completed = TOP.join(TOP.split(images)[0].unsqueeze(1), lower[order])
    probabilities = F.one_hot(labels, 10) * 0.8 + 0.02
    found = measured(images, completed, labels, probabilities, classifier=classifier)
    predicted = torch.stack([classifier(completed[:, j]).argmax(1) for j in range(3)], 1)
    assert found["agreement"] == pytest.approx((predicted == labels[:, None]).float().mean().item())
    assert found["label_entropy"] == pytest.approx(entropy_of_labels(predicted).mean().item())
    assert found["agreement_reference"] == pytest.approx(0.82)
    assert 0.2 < found["label_entropy_reference"] < 0.45
    features = torch.stack([classifier.features(completed[:, j]) for j in range(3)], 1)
    real = classifier.features(images)
    of_class = [mean_pairwise_distance(real[labels == label]) for label in range(10) if (labels == label).sum() > 1]
    expected = mean_pairwise_distance(features).mean() / torch.stack(of_class).mean()
    assert found["diversity"] == pytest.approx(expected.item(), rel=1e-4)
    distance = FrechetInceptionDistance(feature=DigitFeatures())
    distance.update(images, real=True)
    distance.update(completed[:, 0], real=False)
    # with fewer images than features the square root of the covariance is known to few digits
    assert found["fid"] == pytest.approx(distance.compute().item(), rel=0.02)
    distance.reset()
    for side in range(2):
        distance.update(completed[:, side], real=bool(side))
    assert found["fid_floor"] == pytest.approx(distance.compute().item(), rel=0.02)


def test_one_answer_has_no_diversity_and_the_truth_the_best_agreement(digits):
    images, labels = digits
    same = images.unsqueeze(1).expand(-1, 10, -1, -1, -1)
    found = measured(images, 0.9 * same, labels, classifier=DigitClassifier.pretrained())
    assert found["diversity"] == 0
    assert found["label_entropy"] == 0
    assert found["agreement"] > 0.95
    assert found["psnr"] == pytest.approx(found["psnr_best"])
    assert found["rank_error"] == pytest.approx(9 / 11)  # the truth is the first or the last of eleven


def test_draws_from_the_truth_have_a_flat_rank_histogram():
    images, completed = torch.rand(1000, 1, 12, 12), torch.rand(1000, 10, 1, 12, 12)
    mask = ImageParts((1, 12, 12)).mask
    assert measured(images, completed, mask=mask, batch=200)["rank_error"] < 0.03
    assert measured(images, 0.5 + 0.1 * completed, mask=mask, batch=200)["rank_error"] > 0.3


def test_reset_forgets(digits):
    images, labels = digits
    metric = CompletionMetrics(TOP.mask, DigitClassifier.pretrained())
    metric.update(images, torch.rand(60, 2, 1, 28, 28), labels)
    metric.compute()
    metric.reset()
    same = images.unsqueeze(1).expand(-1, 2, -1, -1, -1)
    metric.update(images, same.clone())
    found = metric.compute()
    assert found["label_entropy"] == 0
    assert "agreement" not in found
    assert math.isinf(found["psnr"])


@pytest.mark.parametrize("shape", [(5, 1, 1, 28, 28), (4, 3, 1, 28, 28), (5, 3, 1, 28, 27), (5, 1, 28, 28)])
def test_completions_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"n >= 2 completions of each"):
        CompletionMetrics(TOP.mask).update(torch.rand(5, 1, 28, 28), torch.rand(shape))


def test_other_numbers_of_completions_are_refused_and_change_nothing():
    metric = CompletionMetrics(TOP.mask)
    images = torch.rand(5, 1, 28, 28)
    metric.update(images, torch.rand(5, 3, 1, 28, 28))
    before = metric.compute()
    with pytest.raises(ValueError, match="expected 3 completions of each image, as before, got 4"):
        metric.update(images, torch.rand(5, 4, 1, 28, 28))
    metric._computed = None  # torchmetrics remembers
    assert metric.compute() == before


def test_a_call_merging_and_labels_of_some_images_only(digits):
    images, labels = digits
    completed = torch.rand(60, 3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    classifier = DigitClassifier.pretrained()
    of_labelled = measured(images[:20], completed[:20], labels[:20], classifier=classifier)
    metric = CompletionMetrics(TOP.mask, classifier)
    assert metric(images[:20], completed[:20], labels[:20])["agreement"] == pytest.approx(of_labelled["agreement"])
    metric.update(images[20:], completed[20:])
    assert metric.compute()["agreement"] == pytest.approx(of_labelled["agreement"])  # of those with labels
    # spread over real images of a class: of those whose class is known
    known = metric.compute()["diversity"]
    first = CompletionMetrics(TOP.mask, classifier)
    first.update(images[:20], completed[:20], labels[:20])
    spread = mean_pairwise_distance(torch.stack([classifier.features(completed[:, j]) for j in range(3)], 1)).mean()
    of_known = mean_pairwise_distance(classifier.features(completed[:20].flatten(0, 1)).view(20, 3, -1)).mean()
    assert float(known) == pytest.approx(float(first.compute()["diversity"] * spread / of_known), rel=1e-4)
    whole = measured(images, completed, classifier=classifier, batch=60)
    first, second = (CompletionMetrics(TOP.mask, classifier) for _ in range(2))
    second.update(images, completed)
    first.merge_state(second)
    found = first.compute()
    assert {name: float(value) for name, value in found.items()} == pytest.approx(whole)


def test_one_image_has_everything_but_an_fid(digits):
    images, _ = digits
    found = measured(images[:1], torch.rand(1, 2, 1, 28, 28), classifier=DigitClassifier.pretrained())
    assert "psnr" in found
    assert not {"fid", "fid_floor"} & set(found)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.rand(1, 4), torch.rand(8, 4), r"at least 2 .* got \(1, 4\) and \(8, 4\)"),
        (torch.rand(8, 4), torch.rand(0, 4), r"got \(8, 4\) and \(0, 4\)"),
        (torch.rand(8, 4), torch.rand(8, 5), r"got \(8, 4\) and \(8, 5\)"),
        (torch.rand(8), torch.rand(8), r"got \(8,\) and \(8,\)"),
        (torch.full((8, 128), torch.nan), torch.rand(8, 128), "finite features, and some are not"),
        (torch.rand(8, 128), torch.full((8, 128), torch.inf), "finite features, and some are not"),
    ],
)
def test_the_frechet_distance_refuses_what_has_no_covariance(x, y, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)


def test_the_frechet_distance_of_one_feature():
    x, y = torch.randn(50, 1), 3 * torch.randn(40, 1) + 1
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet_distance(x, y).item() == pytest.approx(expected.item(), rel=1e-4)


def test_one_completion_has_no_pairwise_distance():
    with pytest.raises(ValueError, match="at least 2 completions, got 1"):
        mean_pairwise_distance(torch.rand(3, 1, 4))


def test_a_rank_counts_the_completions_below_the_truth():
    completions = torch.tensor([[[1.0], [2.0], [9.0]]]).expand(2, -1, -1)
    assert ranks_of_truth(torch.tensor([[5.0], [0.5]]), completions).flatten().tolist() == [2, 0]

"""Measures a model of images: distances between sets of features and of patches, reconstructions, sharpness, codes.

Fréchet distance (FID), kernel distance (KID), improved precision and recall, and patch distance are those of samples
from the prior and from mixtures fitted to the training codes. Keys say which features, and how many samples
(``fid_digits_10k``); values compare only under one key. ``floor`` is what real training images score against the test
images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from wae_lightning.base import WAE
from wae_lightning.callbacks.pictures import in_unit_range
from wae_lightning.evaluation.codes import (
    batches_of,
    compare_with_prior,
    encode_batches,
    noise_share,
    sizes_that_fit,
)
from wae_lightning.evaluation.lines import measure_lines, measure_traversals
from wae_lightning.metrics import DigitFeatures, PatchDistance, PrecisionRecall, Sharpness
from wae_lightning.metrics.completion import frechet_distance
from wae_lightning.metrics.digit_classifier import DigitClassifier
from wae_lightning.refinement import reconstruction_by
from wae_lightning.samplers import MixtureSampler
from wae_lightning.training.inputs import input_of
from wae_lightning.work import codes_at_once

__all__ = [
    "Comparison",
    "InceptionFeatures",
    "choose_features",
    "compare",
    "compare_pictures",
    "evaluate_images",
    "read_test_images",
    "read_training_images",
]

BATCH = 500
MIXTURES = (1, 10, 50)


class GivenFeatures(nn.Module):
    """Lets torchmetrics compare features that have been computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class InceptionFeatures(nn.Module):
    """The 2,048 pooled features of the network that FIDs are computed with, for images of 1 or 3 channels in [0, 1].

    Raises:
        ValueError: If torch-fidelity or its weights are missing.
    """

    def __init__(self, weights: Path | None) -> None:
        super().__init__()
        if weights is not None and not weights.is_file():
            raise ValueError(f"inception_weights {weights}: no such file")
        try:
            path = None if weights is None else str(weights)
            metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=path)
        except Exception as error:  # no package, no network, a damaged file: each has an exception of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"no Inception features: {reason}") from None
        self.network = metric.inception

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B, C, H, W) to features (B, dim)."""
        colored = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return self.network((colored.clamp(0, 1) * 255).round().byte())  # type: ignore[no-any-return]


def choose_features(
    wanted: str, shape: tuple[int, ...], weights: Path | None, content: str | None = None
) -> dict[str, nn.Module]:
    """Chooses the features in which images are compared.

    Args:
        wanted: ``inception``, ``digits``, or ``auto``: the digit classifiers for digits, unless there are ``weights``;
            Inception for all else.
        shape: (channels, height, width).
        weights: File of the Inception network's weights; None: torch-fidelity's cache, or its download.
        content: What the images show, if their data module says so: ``digits``.

    Returns:
        Networks by name, or none, with a sentence on the terminal, if there is none for these images. Of digits,
        ``digits`` and ``digits_twin`` are classifiers of different architecture and training.

    Raises:
        ValueError: If the extractor that the user asked for cannot be had.
    """
    if wanted == "digits" or (wanted == "auto" and content == "digits" and weights is None):
        if shape != (1, 28, 28):
            raise ValueError(f"features digits: the classifier takes images of (1, 28, 28), these are {shape}")
        return {"digits": DigitFeatures(), "digits_twin": DigitFeatures(twin=True)}
    try:
        return {"inception": InceptionFeatures(weights)}
    except ValueError as error:
        if wanted == "inception" or weights is not None:
            raise
        print(f"{error}. FID, KID, precision and recall are left out.")
        return {}


@torch.no_grad()
def extract_features(batches: Iterable[Tensor], extractor: nn.Module) -> Tensor:
    """Features of images, (n, d), in float64 on the CPU, where they are compared."""
    return torch.cat([extractor(images).cpu().double() for images in batches])


def compare(real: Tensor, samples: Tensor) -> dict[str, float]:
    """Compares two sets of features in float64."""
    count = min(1000, len(real), len(samples))
    kid = KernelInceptionDistance(feature=GivenFeatures(real.shape[1]), subsets=50, subset_size=count)
    pr = PrecisionRecall()
    for metric in (kid, pr):
        metric.update(real, real=True)
        metric.update(samples, real=False)
    return {
        "fid": float(frechet_distance(real, samples)),
        "kid": float(kid.compute()[0]),
        **{name: float(value) for name, value in pr.compute().items()},
    }


class Comparison:
    """Compares sets of images with one real set: in the features of networks, and by their patches.

    Args:
        real: Batches of real images.
        extractors: Networks by name, as of :func:`choose_features`. The first gives all measures, the others the
            Fréchet distance only.
    """

    def __init__(self, real: Iterable[Tensor], extractors: dict[str, nn.Module]) -> None:
        self.extractors = extractors
        self._patches: PatchDistance | None = PatchDistance(reset_real=False)
        self._count: int | None = None
        self._real = self._describe(real)

    @torch.no_grad()
    def _describe(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """Features in float64 on the CPU, where they are compared."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.extractors}
        seen, is_real = 0, self._count is None
        for batch in batches:
            for name, extractor in self.extractors.items():
                found[name].append(extractor(batch).cpu().double())
            if min(batch.shape[2:]) < PatchDistance.smallest:
                self._patches = None
            elif self._patches is not None:
                # never more samples than there are real images: the floor falls with the number
                some = batch if self._count is None else batch[: max(self._count - seen, 0)]
                self._patches.update(some.cpu(), real=is_real)
            seen += len(batch)
        self._count = seen if is_real else self._count
        return {name: torch.cat(parts) for name, parts in found.items()}

    def measure(self, batches: Iterable[Tensor], only_distances: bool = False) -> dict[str, float]:
        """Measures of one set of images, by name: ``fid_digits``, ``patch_distance_mean`` ...

        Args:
            batches: Images (B, C, H, W).
            only_distances: Leave out KID, precision and recall.
        """
        if self._patches is not None:
            self._patches.reset()
        results = {}
        for number, (name, features) in enumerate(self._describe(batches).items()):
            if number or only_distances:
                results[f"fid_{name}"] = float(frechet_distance(self._real[name], features))
            else:
                results |= {f"{key}_{name}": value for key, value in compare(self._real[name], features).items()}
        if self._patches is not None:
            results |= {f"patch_distance_{scale}": float(value) for scale, value in self._patches.compute().items()}
        return results


def compare_pictures(
    real: Callable[[], Iterable[Tensor]],
    samples: Callable[[], Iterable[Tensor]],
    features: str = "auto",
    inception_weights: Path | None = None,
    content: str | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Measures generated pictures of any source against real ones, as :func:`evaluate_images` does a model's samples.

    Args:
        real: Returns the real pictures in batches (B, C, H, W), floats in [0, 1], each time that it is called.
        samples: Returns the generated ones, of the same shape.
        features: See :func:`choose_features`; so are the next two.
        inception_weights: See there.
        content: See there.
        device: Where features are computed.

    Returns:
        The measures by name, at most ``fid``, ``kid``, ``precision`` and ``recall`` with the name of the features and
        the number of samples, ``patch_distance`` with scale and number, ``sharpness_samples`` and ``sharpness_real``.
    """
    shape = tuple(next(iter(samples())).shape[1:])
    extractors = choose_features(features, shape, inception_weights, content)
    for extractor in extractors.values():
        extractor.to(device)
    comparison = Comparison((batch.to(device) for batch in real()), extractors)
    found = comparison.measure(batch.to(device) for batch in samples())
    count = format_count(sum(map(len, samples())))
    results = {f"{key}_{count}": value for key, value in found.items()}
    results["sharpness_samples"] = measure_sharpness(samples())
    results["sharpness_real"] = measure_sharpness(real())
    return results


def shown(model: WAE, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Images of the model's ``input_range`` as what they are measured as: floats in [0, 1]."""
    return (in_unit_range(model, images) for images in batches)


def read_test_images(data: Any, device: torch.device | str = "cpu", key: str | int = "image") -> Iterator[Tensor]:
    """The images of the test set, in float batches; of dictionaries, what stands under ``key``."""
    for batch in batches_of(data, "test"):
        yield input_of(batch, key).to(device)


def read_training_images(
    data: Any, count: int, device: torch.device | str = "cpu", key: str | int = "image"
) -> Iterator[Tensor]:
    """``count`` images of the training set (all of them, if there are fewer), in float batches."""
    for batch in batches_of(data, "train"):
        images = input_of(batch, key)[:count]
        count -= len(images)
        if len(images):
            yield images.to(device)
        if count <= 0:
            return


def format_count(count: int) -> str:
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


def evaluate_images(
    model: WAE,
    data: Any | None,
    num_samples: int = 10_000,
    seed: int = 0,
    features: str = "auto",
    inception_weights: Path | None = None,
    refine_steps: int = 0,
) -> dict[str, float]:
    """Measures a model of images.

    Args:
        model: The model, in evaluation mode; networks run on its device, the measures are computed on the CPU.
        data: Its data module. None: only what needs no data is measured.
        num_samples: How many samples are drawn, at least 2.
        seed: Seed of the samples.
        features: See :func:`choose_features`.
        inception_weights: See :func:`choose_features`.
        refine_steps: Of reconstructions, see :meth:`WAE.encode`.

    Returns:
        The measures by name.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    at_once = codes_at_once(model, BATCH)
    sizes = [at_once] * (num_samples // at_once) + [num_samples % at_once] * (num_samples % at_once > 0)
    if data is None:
        if refine_steps:
            raise ValueError("refine_steps is of reconstructions of test data, and there is no data")
        results = compare_with_prior("training", model.training_codes().cpu(), model)
        if model.input_range is None or model.sample(1).ndim != 4:
            return results
        samples = shown(model, (model.sample(n, generator) for n in sizes))
        return {"sharpness_samples": measure_sharpness(samples)} | results
    batch_size = getattr(data, "batch_size", None)
    data.batch_size = BATCH
    try:
        data.prepare_data()
        for stage in ("fit", "test"):
            data.setup(stage)
        shape = getattr(data, "image_shape", None) or tuple(next(read_test_images(data, key=model.input_key)).shape[1:])
        codes = read_training_codes(model, data, num_samples)
        if model.input_range is None or len(shape) != 3:
            print("Without an input_range, or with inputs that are no images, only costs and codes are measured.")
            return compare_costs(model, data, codes, refine_steps)
        extractors = choose_features(features, shape, inception_weights, getattr(data, "content", None))
        for extractor in extractors.values():
            extractor.to(model.device)
        reconstruct = reconstruction_by(model, refine_steps)
        results = compare_samples(model, data, codes, extractors, sizes, seed, generator, reconstruct)
        return results | compare_with_data(model, data, codes, sizes, generator, reconstruct)
    finally:
        data.batch_size = batch_size


def measure_sharpness(batches: Iterable[Tensor]) -> float:
    """Mean sharpness of images that come in batches."""
    metric = Sharpness()
    for batch in batches:
        metric.to(batch.device).update(batch)
    return float(metric.compute())


@torch.no_grad()
def read_training_codes(model: WAE, data: Any, count: int) -> Tensor:
    """Random codes of ``count`` training images, (n, d)."""
    return torch.cat(
        [model.encode(x, noise=True).cpu() for x in read_training_images(data, count, model.device, model.input_key)]
    )


def compare_costs(model: WAE, data: Any, training_codes: Tensor, refine_steps: int) -> dict[str, float]:
    """The mean reconstruction cost of the test set, and codes against the prior."""
    found = encode_batches(model, batches_of(data, "test"), refine_steps)
    results = {"cost": float(found.cost.double().mean())}
    for part, z in (("training", training_codes), ("test", found.z)):
        results |= compare_with_prior(part, z, model)
    return results


@torch.no_grad()
def compare_samples(
    model: WAE,
    data: Any,
    codes: Tensor,
    extractors: dict[str, nn.Module],
    sizes: list[int],
    seed: int,
    generator: torch.Generator,
    reconstruct: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Compares samples, reconstructions and training images with the test images, by features and by patches."""
    comparison = Comparison(shown(model, read_test_images(data, model.device, model.input_key)), extractors)
    samplers: dict[str, Any] = {"": model.prior}
    for components in sizes_that_fit(MIXTURES, codes):
        # a mixture of one is the Gaussian with the mean and the covariance of the codes
        suffix = "gaussian_fitted_to_codes" if components == 1 else f"mixture_of_{components}_fitted_to_codes"
        samplers[f"_{suffix}"] = MixtureSampler(codes, components, seed=seed)
    results: dict[str, float] = {}
    for suffix, sampler in samplers.items():
        samples = (model.decode(sampler.sample(n, generator)) for n in sizes)
        found = comparison.measure(shown(model, samples))
        results |= {f"{key}_{format_count(sum(sizes))}{suffix}": value for key, value in found.items()}
    reconstructions = (reconstruct(images) for images in read_test_images(data, model.device, model.input_key))
    found = comparison.measure(shown(model, reconstructions), only_distances=True)
    results |= {f"{key}_reconstructions": value for key, value in found.items()}
    torch.manual_seed(seed)  # the floor is that of the same training images for every model
    training = read_training_images(data, sum(sizes), model.device, model.input_key)
    return results | {f"{key}_floor": value for key, value in comparison.measure(shown(model, training)).items()}


@torch.no_grad()
def compare_with_data(
    model: WAE,
    data: Any,
    training_codes: Tensor,
    sizes: list[int],
    generator: torch.Generator,
    reconstruct: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Reconstructions of the test images, sharpness, and codes against the prior."""
    psnr = PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean").to(model.device)
    ssim = StructuralSimilarityIndexMeasure(data_range=1.0).to(model.device)
    codes, pairs = [], []
    for images in read_test_images(data, model.device, model.input_key):
        codes.append(model.encode(images, noise=True).cpu())
        pairs.append(torch.stack([model.draw_codes(images)[:: model.penalty.codes_per_input].cpu() for _ in "ab"]))
        images, reconstructions = shown(model, (images, reconstruct(images)))
        psnr.update(reconstructions, images)
        ssim.update(reconstructions, images)
    decibels: Any = psnr.compute()
    similarity: Any = ssim.compute()
    results = {"noise_share_of_code_variance": noise_share(*torch.cat(pairs, dim=1))}
    results |= {"mse": 10 ** (-float(decibels) / 10), "psnr": float(decibels), "ssim": float(similarity)}
    results["sharpness_samples"] = measure_sharpness(shown(model, (model.sample(n, generator) for n in sizes)))
    results["sharpness_reconstructions"] = measure_sharpness(
        shown(model, (reconstruct(x) for x in read_test_images(data, model.device, model.input_key)))
    )
    results["sharpness_real"] = measure_sharpness(shown(model, read_test_images(data, key=model.input_key)))
    for part, z in (("training", training_codes), ("test", torch.cat(codes))):
        results |= compare_with_prior(part, z, model)
    some = next(read_test_images(data, model.device, model.input_key))[: sum(sizes) + 1]  # a quick look is quick
    digits = getattr(data, "content", None) == "digits" and model.input_range == (0, 1)
    classifier = DigitClassifier.pretrained().to(model.device) if digits else None
    ways: Any = ("codes", "z") if model.flow is not None else ("codes",)
    return results | measure_lines(model, some, classifier, ways) | measure_traversals(model, classifier, ways)

"""Measures trained models: ``python experiments/evaluate.py CKPT``.

Images: Fréchet distance (FID), kernel distance (KID), improved precision and recall of samples from the prior and from
mixtures fitted to the training codes, reconstructions, sharpness, and whether the codes follow the prior. Point clouds:
what point_cloud_results.py measures of one model. Pairs: the completion metrics of the model's own test.

Features of digits are those of the digit classifier that comes with the package, of other images those of the Inception
network; keys say which, and how many samples (``fid_digits_10k``). Values compare only under one key. ``floor`` is what
real training images score against the test images. The data set is the one that the checkpoint was trained on;
``--data.root DIR`` and the like change its arguments. Prints a table and, with --out, writes it as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

import datamodules
import wae_lightning
from datamodules.images import ImageDataModule
from wae_lightning import WAE, ConditionalWAE, PointNetWAE, references
from wae_lightning.checkpoints import check_classes, read_checkpoint
from wae_lightning.kernels import InverseMultiquadric
from wae_lightning.lightning import LightningDataModule, Trainer, instantiate_module
from wae_lightning.metrics import DigitFeatures, PrecisionRecall, Sharpness
from wae_lightning.penalties import mmd_test
from wae_lightning.samplers import MixtureSampler

BATCH = 500
MIXTURES = (1, 10, 50)
TEST_CODES = 1000
IMPORT_HELP = "modules of your own classes; checkpoints can name no other class than the imported ones"


class UsageError(Exception):
    """A mistake in what the user asked for; its text is the whole message."""


def import_modules(names: list[str]) -> None:
    """Imports the user's own modules, whose classes a checkpoint may then name.

    Raises:
        UsageError: If there is no such module.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UsageError(f"--import {name}: {error}") from None


def load_model(path: Path) -> WAE:
    """Loads a model of this package, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint, or names classes that are not imported (see ``--import``).
        UsageError: If the file is not a checkpoint of one of our models.
    """
    checkpoint = read_checkpoint(path)
    stored = checkpoint.get("hyper_parameters")
    name = " ".join(str(stored.get("_class_path")).split()) if isinstance(stored, dict) else "unknown"
    known = [*vars(wae_lightning).values(), *vars(references).values()]
    models = {f"{cls.__module__}.{cls.__name__}": cls for cls in known if isinstance(cls, type)}
    models |= {f"wae_lightning.{cls.__name__}": cls for cls in models.values()}
    if name not in models or not issubclass(models[name], WAE):
        raise UsageError(f"{path}: expected a model of wae_lightning trained by train.py, found class {name}")
    try:
        check_size(models[name], stored, checkpoint["state_dict"], path)
        return models[name].load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()
    except Exception as error:  # jsonargparse, torch and the networks: each has exceptions of its own
        reason = " ".join(str(error).split())
        reason = reason if reason.startswith(f"{path}: ") else f"{path}: no {name} can be made of it ({reason})"
        raise UsageError(reason[:600]) from None


def check_size(cls: type[WAE], stored: dict[str, Any], weights: dict[str, Any], path: Path) -> None:
    """Refuses hyper-parameters that would make a model larger than the weights beside them."""
    check_classes(stored)
    arguments = {name: value for name, value in stored.items() if name != "_instantiator"}
    claimed = held = 0
    with suppress(Exception), torch.device("meta"):  # whatever else is wrong, the real model will say it
        claimed = sum(weight.numel() for weight in instantiate_module(cls, arguments).state_dict().values())
        held = sum(weight.numel() for weight in weights.values())
    if claimed > held:
        raise ValueError(f"{path}: it describes a model of {claimed} weights and holds {held}")


def load_data(path: Path, overrides: dict[str, str]) -> LightningDataModule | None:
    """Builds the data module that a checkpoint was trained with.

    Returns:
        None, with a sentence on the terminal, if the data is not where it was and ``overrides`` names no other place.
        (The digits that come with the package stand in for MNIST, with a sentence, too.)

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint.
        UsageError: If it names no data module of ours, or other classes that are not imported (see ``--import``), or
            an override names no argument of the data module.
    """
    stored = read_checkpoint(path).get("datamodule_hyper_parameters")
    stored = dict(stored) if isinstance(stored, dict) else {}
    stored.pop("_instantiator", None)
    name = str(stored.pop("_class_path", None)).rpartition(".")[2]
    if name not in datamodules.__all__:
        raise UsageError(f"{path}: it does not say which of our data modules it was trained with")
    cls = getattr(datamodules, name)
    unknown = set(overrides) - set(stored)
    if unknown:
        raise UsageError(f"--data.{min(unknown)}: {name} takes {', '.join(sorted(stored))}")
    root = stored.get("root")
    if root is not None and "root" not in overrides and not Path(str(root)).exists():
        if name != "MNISTDataModule" or stored.get("variant") != "mnist":
            print(f"{root}: the data of the training is not here; name its folder with --data.root DIR.")
            return None
        print(f"{root}: the data of the training is not here; taking what MNISTDataModule finds without a root.")
        stored["root"] = None
    try:
        check_classes({argument: value for argument, value in stored.items() if argument not in overrides})
        return instantiate_module(cls, stored | overrides)  # type: ignore[return-value]
    except Exception as error:  # jsonargparse and the data modules: each has exceptions of its own
        raise UsageError(f"{path}: no {name} can be made of it ({' '.join(str(error).split())})"[:600]) from None


# ---- images ---------------------------------------------------------------------------------------------------------


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
        UsageError: If torch-fidelity or its weights are missing.
    """

    def __init__(self, weights: Path | None) -> None:
        super().__init__()
        if weights is not None and not weights.is_file():
            raise UsageError(f"--inception_weights {weights}: no such file")
        try:
            metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=weights and str(weights))
        except Exception as error:  # no package, no network, a damaged file: each has an exception of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(f"no Inception features: {reason}") from None
        self.network = metric.inception

    def forward(self, images: Tensor) -> Tensor:
        colored = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        return self.network((colored.clamp(0, 1) * 255).round().byte())  # type: ignore[no-any-return]


def feature_extractor(
    wanted: str, shape: tuple[int, ...], weights: Path | None
) -> tuple[str, nn.Module] | tuple[None, None]:
    """Chooses the features in which images are compared.

    Args:
        wanted: ``inception``, ``digits``, or ``auto``: the digit classifier for images of its shape, else Inception.
        shape: (channels, height, width).
        weights: File of the Inception network's weights; None: torch-fidelity's cache, or its download.

    Returns:
        Name and network, or None twice, with a sentence on the terminal, if there is none for these images.

    Raises:
        UsageError: If the extractor that the user asked for cannot be had.
    """
    if wanted == "digits" or (wanted == "auto" and shape == (1, 28, 28) and weights is None):
        if shape != (1, 28, 28):
            raise UsageError(f"--features digits: the classifier takes images of (1, 28, 28), these are {shape}")
        return "digits", DigitFeatures()
    try:
        return "inception", InceptionFeatures(weights)
    except UsageError as error:
        if wanted == "inception" or weights is not None:
            raise
        print(f"{error}. FID, KID, precision and recall are left out.")
        return None, None


@torch.no_grad()
def features_of(batches: Iterable[Tensor], extractor: nn.Module) -> Tensor:
    """Features in float64, (n, d)."""
    return torch.cat([extractor(batch).double() for batch in batches])


def compare(real: Tensor, samples: Tensor) -> dict[str, float]:
    """Compares two sets of features in float64."""
    given = GivenFeatures(real.shape[1])
    count = min(1000, len(real), len(samples))
    fid, pr = FrechetInceptionDistance(feature=given), PrecisionRecall()
    kid = KernelInceptionDistance(feature=given, subsets=50, subset_size=count)
    for metric in (fid.set_dtype(torch.float64), kid, pr):
        metric.update(real, real=True)
        metric.update(samples, real=False)
    return {
        "fid": float(fid.compute()),
        "kid": float(kid.compute()[0]),
        **{name: float(value) for name, value in pr.compute().items()},
    }


def test_images(data: ImageDataModule) -> Iterator[Tensor]:
    """The images of the test set, in float batches."""
    for batch in data.test_dataloader():
        yield data.on_after_batch_transfer(batch, 0)[0]


def training_images(data: ImageDataModule, count: int) -> Iterator[Tensor]:
    """``count`` images of the training set (all of them, if there are fewer), in float batches."""
    for batch in data.train_dataloader():
        images = data.on_after_batch_transfer(batch, 0)[0][:count]
        count -= len(images)
        if len(images):
            yield images
        if count <= 0:
            return


def in_thousands(count: int) -> str:
    return f"{count // 1000}k" if count % 1000 == 0 else str(count)


@torch.no_grad()
def evaluate_images(
    model: WAE,
    data: ImageDataModule | None,
    num_samples: int,
    seed: int = 0,
    features: str = "auto",
    inception_weights: Path | None = None,
) -> dict[str, float]:
    """Measures a model of images.

    Args:
        model: The model, in evaluation mode.
        data: Its data module. None: only what needs no data is measured.
        num_samples: How many samples are drawn, at least 2.
        seed: Seed of the samples.
        features: See :func:`feature_extractor`.
        inception_weights: See :func:`feature_extractor`.

    Returns:
        The measures by name.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = [BATCH] * (num_samples // BATCH) + [num_samples % BATCH] * (num_samples % BATCH > 0)
    results: dict[str, float] = {}

    def sharpness(name: str, batches: Iterable[Tensor]) -> None:
        metric = Sharpness()
        for batch in batches:
            metric.update(batch)
        results[f"sharpness_{name}"] = float(metric.compute())

    if data is None:
        sharpness("samples", (model.sample(n, generator) for n in sizes))
        return results | codes_against_prior("training", model.training_codes(), model)
    data.batch_size = BATCH
    data.prepare_data()
    data.setup("fit")
    training_codes = torch.cat([model.encode(images, noise=True) for images in training_images(data, num_samples)])
    name, extractor = feature_extractor(features, data.image_shape, inception_weights)
    if extractor is not None:
        real = features_of(test_images(data), extractor)
        samplers: dict[str, Any] = {"": model.prior}
        for components in MIXTURES:
            # a mixture of one is the Gaussian with the mean and the covariance of the codes
            suffix = "gaussian_fitted_to_codes" if components == 1 else f"mixture_of_{components}_fitted_to_codes"
            samplers[f"_{suffix}"] = MixtureSampler(training_codes, components, seed=seed)
        count = in_thousands(num_samples)
        for suffix, sampler in samplers.items():
            drawn = features_of((model.decode(sampler.sample(n, generator)) for n in sizes), extractor)
            for measure, value in compare(real, drawn).items():
                results[f"{measure}_{name}_{count}{suffix}"] = value
        of_reconstructions = compare(real, features_of((model(images) for images in test_images(data)), extractor))
        results[f"fid_{name}_reconstructions"] = of_reconstructions["fid"]
        torch.manual_seed(seed)  # the floor is that of the same training images for every model
        for measure, value in compare(real, features_of(training_images(data, num_samples), extractor)).items():
            results[f"{measure}_{name}_floor"] = value
    psnr = PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean")
    ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
    codes = []
    for images in test_images(data):
        codes.append(model.encode(images, noise=True))
        reconstructions = model(images)
        psnr.update(reconstructions, images)
        ssim.update(reconstructions, images)
    results |= {
        "mse": 10 ** (-float(psnr.compute()) / 10),
        "psnr": float(psnr.compute()),
        "ssim": float(ssim.compute()),
    }
    sharpness("samples", (model.sample(n, generator) for n in sizes))
    sharpness("reconstructions", (model(images) for images in test_images(data)))
    sharpness("real", test_images(data))
    for part, z in (("training", training_codes), ("test", torch.cat(codes))):
        results |= codes_against_prior(part, z, model)
    return results


def codes_against_prior(part: str, z: Tensor, model: WAE) -> dict[str, float]:
    """Moments of codes against the prior's, and the MMD between both with its p-value."""
    kernel = InverseMultiquadric()
    kernel.set_expected_squared_distance(model.prior.expected_squared_distance)
    some = z[torch.randperm(len(z))[:TEST_CODES]]
    squared, p_value = mmd_test(some, model.prior.sample(len(some)), kernel, permutations=500)
    found = moments(z, model.prior.sample) | {"mmd": squared, "mmd_p_value": p_value}
    return {f"{part}_codes_{name}": value for name, value in found.items()}


def moments(z: Tensor, sample: Callable[[int], Tensor]) -> dict[str, float]:
    """Compares mean, standard deviation and covariance of codes with those of the prior."""
    z, z_prior = z.double(), sample(1_000_000).double()
    covariance = z.T.cov()
    scale = z_prior.std(0)
    off_diagonal = covariance[~torch.eye(len(covariance), dtype=torch.bool)]
    return {
        "largest_mean_error": float((z.mean(0) - z_prior.mean(0)).abs().max()),
        "smallest_std_ratio": float((z.std(0) / scale).min()),
        "largest_std_ratio": float((z.std(0) / scale).max()),
        "mean_absolute_covariance": float(off_diagonal.abs().mean()) if len(off_diagonal) else 0.0,
    }


# ---- point clouds and pairs ----------------------------------------------------------------------------------------


def flattened(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """One dictionary of numbers, the names of inner ones put before theirs."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= flattened(value, f"{prefix}{name}: ")
        else:
            flat[prefix + name] = value
    return flat


def evaluate_clouds(model: PointNetWAE, data: Any, classifier: Path | None, seed: int) -> dict[str, float]:
    """Measures a model of point clouds; without the data nothing can be said of it."""
    from point_cloud_results import load_classifier, model_row

    if data is None:
        raise UsageError("a model of point clouds is measured against clouds: name their folder with --data.root DIR")
    torch.manual_seed(seed)
    data.prepare_data()
    data.setup("fit")
    return flattened(model_row(model, data, load_classifier(classifier, data), fitted=[32]))


def evaluate_pairs(model: ConditionalWAE, data: Any, seed: int) -> dict[str, float]:
    """Measures completions, on MNIST beside those that a classifier of the given parts would choose."""
    from completion_results import LabelNet

    if data is None:
        raise UsageError("completions are measured against images: name their folder with --data.root DIR")
    torch.manual_seed(seed)
    data.prepare_data()
    data.setup("fit")
    if model.parts.image_shape == (1, 28, 28):
        model.label_net = LabelNet(data.observed_shape).fit(data, epochs=8)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (measured,) = trainer.test(model, data, verbose=False)
    return {name.removeprefix("test/"): float(value) for name, value in measured.items()}


# ---- the command line -----------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path, help="checkpoint written by train.py")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="more checkpoints, a column of the table each"
    )
    parser.add_argument("--data.NAME", metavar="VALUE", help="another value for an argument of the data module")
    parser.add_argument("--num_samples", type=int, default=10_000, help="samples drawn from each sampler (10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (0)")
    parser.add_argument("--features", choices=("auto", "digits", "inception"), default="auto", help="see above (auto)")
    parser.add_argument("--inception_weights", type=Path, help="file of torch-fidelity's Inception weights")
    parser.add_argument("--classifier", type=Path, help="file of the judge of point clouds; trained if left out")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--import", nargs="+", default=[], metavar="MODULE", dest="modules", help=IMPORT_HELP)
    known, rest = parser.parse_known_args(arguments)
    overrides: dict[str, str] = {}
    remaining = iter(rest)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--data."):
            parser.error(f"unknown argument {flag}")
        overrides[flag.removeprefix("--data.")] = value if equals else next(remaining, "")

    def measured(path: Path) -> dict[str, float]:
        model, data = load_model(path), load_data(path, overrides)
        if isinstance(model, ConditionalWAE):
            return evaluate_pairs(model, data, known.seed)
        if isinstance(model, PointNetWAE):
            return evaluate_clouds(model, data, known.classifier, known.seed)
        arguments = known.num_samples, known.seed, known.features, known.inception_weights
        return evaluate_images(model, data, *arguments)  # type: ignore[arg-type]

    # torchmetrics says that it keeps features in memory: a few megabytes
    warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
    try:
        if known.num_samples < 2:
            raise UsageError(f"--num_samples must be at least 2, got {known.num_samples}")
        import_modules(known.modules)
        results = measured(known.ckpt)
        beside = {str(path): measured(path) for path in known.beside}
    except (UsageError, FileNotFoundError, ValueError) as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    names = [known.ckpt, *known.beside]
    if len(names) > 1:
        for number, path in enumerate(names, 1):
            print(f"column {number}: {path}")
    width = max(map(len, results))
    for name in results:
        values = [row.get(name) for row in (results, *beside.values())]
        print(f"{name:{width}}", *("         -" if value is None else f"{value:10.4f}" for value in values))
    if known.out:
        written = {"checkpoint": known.ckpt.name, **results} | ({"beside": beside} if beside else {})
        known.out.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()

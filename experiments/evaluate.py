"""Measures a trained model: ``python experiments/evaluate.py CKPT``.

Prints a table and, with --out, writes it as JSON. Digits are measured by the Fréchet distance on the features of the
digit classifier that comes with the package ("digits-FID"): it compares only with itself, never with an Inception FID.
The data set is the one that the checkpoint was trained on; ``--data.root DIR`` and the like change its arguments.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.cli import instantiate_module
from torch import Tensor
from torchmetrics.image import PeakSignalNoiseRatio
from torchmetrics.image.fid import FrechetInceptionDistance

import datamodules
import wae_lightning
from datamodules.images import ImageDataModule
from wae_lightning import WAE
from wae_lightning.metrics import DigitFeatures

BATCH = 500


class UsageError(Exception):
    """A mistake in what the user asked for; its text is the whole message."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint as plain data.

    Raises:
        UsageError: If there is no such file or it is not a checkpoint of Lightning.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common exception for damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"{path}: not a checkpoint, or a damaged one ({reason})") from None
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UsageError(f"{path}: not a checkpoint of Lightning: it holds no state_dict")
    return checkpoint


def load_model(path: Path) -> WAE:
    """Loads a model of this package, in evaluation mode.

    Raises:
        UsageError: If the file is not a checkpoint of one of our models.
    """
    name = str(read_checkpoint(path).get("hyper_parameters", {}).get("_class_path"))
    models = {f"{cls.__module__}.{cls.__name__}": cls for cls in vars(wae_lightning).values() if isinstance(cls, type)}
    models |= {f"wae_lightning.{cls.__name__}": cls for cls in models.values()}
    if name not in models or not issubclass(models[name], WAE):
        raise UsageError(f"{path}: expected a model of wae_lightning trained by train.py, found class {name}")
    return models[name].load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()


def load_data(path: Path, overrides: dict[str, str]) -> ImageDataModule:
    """Builds the data module that a checkpoint was trained with.

    Raises:
        UsageError: If the checkpoint names no data module of ours, or an override no argument of it.
    """
    stored = dict(read_checkpoint(path).get("datamodule_hyper_parameters", {}))
    stored.pop("_instantiator", None)
    name = str(stored.pop("_class_path", None)).rpartition(".")[2]
    if name not in datamodules.__all__:
        raise UsageError(f"{path}: it does not say which of our data modules it was trained with")
    cls = getattr(datamodules, name)
    unknown = set(overrides) - set(stored)
    if unknown:
        raise UsageError(f"--data.{min(unknown)}: {name} takes {', '.join(sorted(stored))}")
    return instantiate_module(cls, stored | overrides)  # type: ignore[return-value]


def test_images(data: ImageDataModule) -> Iterator[Tensor]:
    """The images of the test set, in float batches."""
    for batch in data.test_dataloader():
        yield data.on_after_batch_transfer(batch, 0)[0]


@torch.no_grad()
def evaluate(model: WAE, data: ImageDataModule, num_samples: int, seed: int = 0) -> dict[str, float]:
    """Measures a model of images.

    Args:
        model: The model, in evaluation mode.
        data: Its data module.
        num_samples: How many samples are drawn for the Fréchet distance, at least 2.
        seed: Seed of the samples.

    Returns:
        The measures by name.
    """
    data.batch_size = BATCH
    data.prepare_data()
    data.setup("fit")
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    psnr = PeakSignalNoiseRatio(data_range=1.0, reduction="elementwise_mean")
    codes = []
    results: dict[str, float] = {}
    digits = data.image_shape == (1, 28, 28)
    distance = FrechetInceptionDistance(feature=DigitFeatures(), reset_real_features=False) if digits else None
    for images in test_images(data):
        codes.append(model.encode(images, noise=True))
        psnr.update(model(images), images)
        if distance:
            distance.update(images, real=True)
    training_codes = torch.cat([model.encode(images, noise=True) for images in training_images(data, num_samples)])
    if distance:

        def fid(batches: Iterator[Tensor]) -> float:
            distance.reset()
            for batch in batches:
                distance.update(batch, real=False)
            return float(distance.compute())

        count = f"{num_samples // 1000}k" if num_samples % 1000 == 0 else str(num_samples)
        sizes = [BATCH] * (num_samples // BATCH) + [num_samples % BATCH] * (num_samples % BATCH > 0)
        results[f"fid_digits_{count}"] = fid(model.sample(n, generator) for n in sizes)
        fitted = gaussian_fitted_to(training_codes)
        results[f"fid_digits_{count}_gaussian_fitted_to_codes"] = fid(model.decode(fitted(n)) for n in sizes)
        results["fid_digits_reconstructions"] = fid(model(images) for images in test_images(data))
        results["fid_digits_floor"] = fid(training_images(data, num_samples))
    mean_squared_error = 10 ** (-float(psnr.compute()) / 10)
    results |= {"mse": mean_squared_error, "psnr": float(psnr.compute())}
    for part, z in (("training", training_codes), ("test", torch.cat(codes))):
        results |= {f"{part}_codes_{name}": value for name, value in moments(z, model.prior.sample).items()}
    return results


def training_images(data: ImageDataModule, count: int) -> Iterator[Tensor]:
    """``count`` images of the training set (all of them, if there are fewer), in float batches."""
    for batch in data.train_dataloader():
        images = data.on_after_batch_transfer(batch, 0)[0][:count]
        count -= len(images)
        if len(images):
            yield images


def gaussian_fitted_to(z: Tensor) -> Callable[[int], Tensor]:
    """A sampler of the normal distribution with the mean and the covariance of codes (n, d)."""
    distribution = torch.distributions.MultivariateNormal(z.mean(0), z.T.cov())
    return lambda n: distribution.sample((n,))


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


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path, help="checkpoint written by train.py")
    parser.add_argument("--data.NAME", metavar="VALUE", help="another value for an argument of the data module")
    parser.add_argument("--num_samples", type=int, default=10_000, help="samples drawn from the prior (10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (0)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    known, rest = parser.parse_known_args(arguments)
    overrides: dict[str, str] = {}
    remaining = iter(rest)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--data."):
            parser.error(f"unknown argument {flag}")
        overrides[flag.removeprefix("--data.")] = value if equals else next(remaining, "")
    try:
        if known.num_samples < 2:
            raise UsageError(f"--num_samples must be at least 2, got {known.num_samples}")
        results = evaluate(load_model(known.ckpt), load_data(known.ckpt, overrides), known.num_samples, known.seed)
    except (UsageError, FileNotFoundError, ValueError) as error:
        print(f"evaluate.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    for name, value in results.items():
        print(f"{name:44} {value:10.4f}")
    if known.out:
        known.out.write_text(json.dumps({"checkpoint": known.ckpt.name, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

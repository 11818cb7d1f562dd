"""Measures whether the yardsticks see blur: ``python experiments/reproduce/yardstick_results.py DIR``.

Real training images, as they are (the floor) and blurred by a Gaussian, against as many other real images: digits (DIR
holds MNIST/raw) against test digits; with --celeba_root DIR, pictures in CelebA's layout, one random half of the
training set against the other. Writes ``yardsticks.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from records import EXPERIMENTS, commit, hardware, write_json
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from datamodules import CelebADataModule, MNISTDataModule
from wae_lightning.evaluation.images import Comparison, choose_features, read_test_images, read_training_images

SIGMAS = (0.4, 0.7, 1.0)


def measure(images: Tensor, real: Tensor, extractors: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Distances of images to real ones, as they are and blurred, by the blur's standard deviation in pixels."""
    comparison = Comparison(real.split(500), extractors)
    sets = {"floor": images} | {f"blurred by {sigma:g}": gaussian_blur(images, 9, sigma) for sigma in SIGMAS}
    return {name: comparison.measure(x.split(500), only_distances=True) for name, x in sets.items()}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path("data"), help="folder that holds MNIST/raw (data)")
    parser.add_argument("--celeba_root", type=Path, help="folder of pictures in CelebA's layout")
    out = EXPERIMENTS / "results" / "yardsticks.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON file to write")
    arguments = parser.parse_args(given)
    results: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    torch.manual_seed(0)
    data: Any = MNISTDataModule(arguments.root, batch_size=500)
    for stage in ("fit", "test"):
        data.setup(stage)
    real = torch.cat(list(read_test_images(data)))
    images = torch.cat(list(read_training_images(data, len(real))))
    sets = {"digits": (images, real, choose_features("digits", (1, 28, 28), None))}
    if arguments.celeba_root is not None:
        data = CelebADataModule(arguments.celeba_root, batch_size=100)
        data.prepare_data()
        data.setup("fit")
        first, second = torch.cat(list(read_training_images(data, len(data.train_set.rows) // 2 * 2))).chunk(2)
        sets["pictures"] = (first, second, {})
    for name, (images, real, extractors) in sets.items():
        known = {"commit": commit(), "hardware": hardware(), "images": len(images)}
        results[name] = known | {"rows": measure(images, real, extractors)}
        print(name, results[name], flush=True)
    write_json(arguments.out, results)


if __name__ == "__main__":
    main()

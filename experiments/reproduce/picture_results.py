"""Measures a trained model of pictures: ``python experiments/reproduce/picture_results.py CKPT --out FILE``.

Beside what evaluate.py measures: how near samples and test pictures are to their nearest training pictures (root mean
squared difference of a pixel), how far samples are from training pictures by their patches, and one PNG with 64
unselected samples beside 32 test pictures, each followed by its reconstruction.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from records import EXPERIMENTS, commit, hardware, write_json
from torch import Tensor
from torchvision.utils import make_grid, save_image

from wae_lightning.cli.load import load_data, load_model
from wae_lightning.evaluation import evaluate
from wae_lightning.evaluation.images import read_test_images, read_training_images
from wae_lightning.metrics import PatchDistance
from wae_lightning.refinement import reconstruction_by


def nearest(pictures: Tensor, training: Tensor) -> Tensor:
    """Root mean squared difference of a pixel from the nearest training picture or its mirror image, (n,)."""
    both = torch.cat([training, training.flip(3)]).flatten(1)
    return torch.cdist(pictures.flatten(1), both).min(1).values / pictures[0].numel() ** 0.5


def patches_among_training(
    reconstruct: Callable[[Tensor], Tensor], training: Tensor, samples: Tensor
) -> dict[str, float]:
    """Patch distances of samples, of reconstructions and of real pictures from other training pictures.

    Where test pictures are of another kind, these tell how well samples are drawn from what the model has seen. No
    picture is compared with its own reconstruction, and all sets are of one size.
    """
    n = min(len(training) // 2, len(samples))
    real, others = training[:n], training[n : 2 * n]
    sets = {"samples": samples[:n], "reconstructions": torch.cat([reconstruct(x) for x in others.split(100)])}
    distance, found = PatchDistance(reset_real=False), {}
    distance.update(real, real=True)
    for name, pictures in (sets | {"floor": others}).items():
        distance.reset()
        distance.update(pictures, real=False)
        found[f"patch_distance_among_training_{name}"] = float(distance.compute()["mean"])
    return found


@torch.no_grad()
def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="checkpoints/last.ckpt of a run")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of its data (data)")
    parser.add_argument("--cache_dir", type=Path, help="folder of its cache (beside the pictures)")
    parser.add_argument("--num_samples", type=int, default=1000, help="samples to measure by (1000)")
    parser.add_argument("--refine_steps", type=int, default=0, help="of reconstructions, as of evaluate.py (0)")
    parser.add_argument("--command", default="", help="how it was trained, kept in the file")
    default = EXPERIMENTS / "results" / "emoji_wae_mmd.json"
    parser.add_argument("--out", type=Path, default=default, help="JSON file (results/emoji_wae_mmd.json)")
    parser.add_argument("--picture", type=Path, help="PNG file")
    arguments = parser.parse_args(given)
    model: Any = load_model(arguments.checkpoint)
    places = {"root": arguments.root, "cache_dir": arguments.cache_dir}
    data: Any = load_data(arguments.checkpoint, {name: str(place) for name, place in places.items() if place})
    found = evaluate(model, data, arguments.num_samples, refine_steps=arguments.refine_steps)
    test = torch.cat(list(read_test_images(data)))
    training = torch.cat(list(read_training_images(data, 10_000)))
    samples = model.sample(min(500, arguments.num_samples), torch.Generator().manual_seed(1))
    for name, pictures in (("samples", samples), ("test", test[:500])):
        found[f"nearest_training_{name}"] = float(nearest(pictures, training).median())
    reconstruct = reconstruction_by(model, arguments.refine_steps)
    found |= patches_among_training(reconstruct, training, samples)
    trained = json.loads((arguments.checkpoint.parents[1] / "metrics.json").read_text())
    about = {"commit": commit(), "hardware": hardware(), "command": arguments.command}
    write_json(arguments.out, about | trained | found)
    if arguments.picture is not None:
        pairs = torch.stack([test[:32], reconstruct(test[:32])], 1).flatten(0, 1)
        save_image([make_grid(x, nrow=8, pad_value=1) for x in (samples[:64], pairs)], arguments.picture, padding=6)


if __name__ == "__main__":
    main()

"""Fits each flow to the codes of a trained model: ``python experiments/reproduce/flow_results.py --root DIR``.

The flow that was trained with the model is one row; the others are fitted afterwards to the codes of the training set,
a tenth of which is held out to choose by. Writes digits-FID (of digits), log-density of test codes, evenness of lines
through z, and CPU seconds into ``flow_results.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from records import EXPERIMENTS, commit, hardware, write_json
from torch import Tensor

import wae_lightning
from datamodules import MNISTDataModule
from wae_lightning.cli.load import load_data, load_model
from wae_lightning.evaluation.images import read_test_images, read_training_images
from wae_lightning.evaluation.lines import measure_lines
from wae_lightning.metrics import DigitFeatures
from wae_lightning.metrics.completion import frechet_distance
from wae_lightning.metrics.digit_classifier import DigitClassifier
from wae_lightning.networks import CouplingFlow, Flow, FlowMatching, MixtureFlow
from wae_lightning.training import distance_from_normal


def train(flow: Flow, codes: Tensor, steps: int, noise: float) -> None:
    """Adam steps on batches of 500 codes with a learning rate that rises, then falls to nothing."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    for _ in range(steps):
        batch = codes[torch.randint(len(codes), (500,))]
        loss = flow.loss(batch + noise * torch.randn_like(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def flows(dim: int, steps: int, components: int) -> dict[str, tuple[Any, Callable[[Any, Tensor, Tensor], None]]]:
    """Each flow, and what fits it to codes and codes to validate on."""

    def by_steps(flow: Flow, codes: Tensor, validation: Tensor) -> None:
        # as in training: without noise, the likelihood of a finite set has no bound
        train(flow, codes, steps, 0.1 if isinstance(flow, CouplingFlow) else 0.0)

    return {
        "MixtureFlow, fitted": (MixtureFlow(dim, components), MixtureFlow.fit),
        "CouplingFlow": (CouplingFlow(dim), by_steps),
        "FlowMatching": (FlowMatching(dim), by_steps),
        "FlowMatching, transport": (FlowMatching(dim, transport=True), by_steps),
    }


@torch.no_grad()
def measure(model: Any, data: Any, test: Tensor, num_samples: int) -> dict[str, float]:
    """Measures a model with the flow that it has."""
    digits = data.content == "digits"
    images = torch.cat(list(read_test_images(data)))
    found = {"log_density": float(model.flow.log_prob(test[:500]).mean())}
    found["distance"] = distance_from_normal(model.flow.to_normal(test))
    lines = measure_lines(model, images, DigitClassifier.pretrained() if digits else None, ("codes", "z"))
    found |= {name.removeprefix("lines_through_"): value for name, value in lines.items()}
    if digits:
        extractor, generator = DigitFeatures(), torch.Generator().manual_seed(0)
        samples = [extractor(model.sample(500, generator)).double() for _ in range(num_samples // 500)]
        found["fid_digits"] = float(frechet_distance(extractor(images), torch.cat(samples)))
    return found


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="model of images with a flow (the bundled mnist_wae_mmd)")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of its data (data)")
    parser.add_argument("--steps", type=int, default=2000, help="Adam steps of flows that need them (2000)")
    parser.add_argument("--components", type=int, default=100, help="Gaussians at most (100)")
    parser.add_argument("--num_samples", type=int, default=10_000, help="samples to measure by (10000)")
    parser.add_argument("--name", default="digits", help="what the rows are kept under (digits)")
    parser.add_argument("--out", type=Path, default=EXPERIMENTS / "results" / "flow_results.json", help="JSON file")
    arguments = parser.parse_args(given)
    model: Any
    data: Any
    if arguments.checkpoint is None:
        model, data = wae_lightning.from_pretrained("mnist_wae_mmd"), MNISTDataModule(arguments.root)
    else:
        model = load_model(arguments.checkpoint)
        data = load_data(arguments.checkpoint, {"root": str(arguments.root)})
    for stage in ("fit", "test"):
        data.setup(stage)
    torch.manual_seed(0)
    flow, model.flow = model.flow, None  # codes are then the encoder's own
    with torch.no_grad():
        codes, test = (
            torch.cat([model.encode(x, noise=True) for x in images])
            for images in (read_training_images(data, 20_000), read_test_images(data))
        )
    held_out = torch.arange(len(codes)) % 10 == 9
    rows: dict[str, Any] = {}
    makers = flows(model.latent_dim, arguments.steps, arguments.components)
    for name, (made, fit) in {"trained with the model": (flow, None), **makers}.items():
        start = time.process_time()
        if fit is not None:
            fit(made, codes[~held_out], codes[held_out])
        seconds = {} if fit is None else {"cpu_seconds": time.process_time() - start}
        model.flow = made.eval()
        rows[name] = measure(model, data, test, arguments.num_samples) | seconds
        print(name, rows[name], flush=True)
        known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        about = {"commit": commit(), "hardware": hardware(), "dim": model.latent_dim, "steps": arguments.steps}
        write_json(arguments.out, known | {arguments.name: about | {"rows": rows}})


if __name__ == "__main__":
    main()

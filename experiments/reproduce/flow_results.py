"""Fits each flow to the codes of a trained model: ``python experiments/reproduce/flow_results.py --root DIR``.

The flow that was trained with the model is one row; the others are fitted afterwards to the codes of the training set,
a tenth of which is held out to choose by. Writes distances of samples from test data, log-density of test codes,
evenness of lines and traversals, and CPU seconds into ``flow_results.json``.

--weights trains ``mnist_wae_mmd`` without its flow instead, once for each weight of the penalty, and fits the flows to
the codes of each, into ``evenness.json``; --plot FILE draws digits-FID against evenness from there, and stops.
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
from wae_lightning.evaluation.clouds import choose_points
from wae_lightning.evaluation.images import Comparison, choose_features, read_test_images, read_training_images
from wae_lightning.evaluation.lines import measure_lines, measure_traversals
from wae_lightning.lightning import Trainer
from wae_lightning.metrics import PointSetDistances
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


def compare(real: Tensor, digits: bool, draw: Callable[[int], Tensor], num_samples: int) -> dict[str, float]:
    """Distances of as many samples from images, or 1-NNA and coverage of 200 clouds of 256 points."""
    if real.ndim == 4:
        comparison = Comparison(real.split(500), choose_features("digits", (1, 28, 28), None) if digits else {})
        sizes = [len(part) for part in torch.arange(num_samples).split(500)]
        return comparison.measure((draw(size) for size in sizes), only_distances=True)
    generator = torch.Generator().manual_seed(0)
    real = real[torch.linspace(0, len(real) - 1, min(200, len(real))).long()]
    metric = PointSetDistances()
    for side, clouds in ((True, real), (False, draw(len(real)))):
        metric.update(choose_points(clouds, 256, generator), real=side)
    return {name: float(value) for name, value in metric.compute().items()}


@torch.no_grad()
def measure(model: Any, data: Any, test: Tensor, num_samples: int) -> dict[str, float]:
    """Measures a model with the flow that it has."""
    digits = getattr(data, "content", None) == "digits"
    real = torch.cat(list(read_test_images(data)))
    # the determinant of a continuous flow takes time that grows with the square of the dimensions
    found = {"log_density": float(model.flow.log_prob(test[: min(500, 16_000 // model.latent_dim)]).mean())}
    found["distance"] = distance_from_normal(model.flow.to_normal(test))
    classifier = DigitClassifier.pretrained() if digits else None
    # test digits come in no order, others by class
    mixed = real if digits else real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))]
    lines = measure_lines(model, mixed, classifier, ("codes", "z"))
    found |= {name.removeprefix("lines_through_"): value for name, value in lines.items()}
    found |= measure_traversals(model, classifier, ("codes", "z"))
    generator = torch.Generator().manual_seed(0)
    return found | compare(real, digits, lambda n: model.sample(n, generator), num_samples)


def fit_and_measure(model: Any, data: Any, arguments: argparse.Namespace, name: str, about: dict[str, Any]) -> None:
    """Measures the flow that a model has, if any, and each other one, fitted to its codes; keeps the rows by name."""
    for stage in ("fit", "test"):
        data.setup(stage)
    torch.manual_seed(0)
    flow, model.flow = model.flow, None  # codes are then the encoder's own
    with torch.no_grad():
        codes, test = (
            torch.cat([model.encode(x, noise=True) for x in batches])
            for batches in (read_training_images(data, 20_000), read_test_images(data))
        )
    held_out = torch.arange(len(codes)) % 10 == 9
    makers: dict[str, Any] = {} if flow is None else {"trained with the model": (flow, None)}
    makers |= flows(model.latent_dim, arguments.steps, arguments.components)
    about = {"commit": commit(), "hardware": hardware(), "dim": model.latent_dim, "steps": arguments.steps} | about
    for row, (made, fit) in makers.items():
        if arguments.rows and row not in arguments.rows:
            continue
        start = time.process_time()
        if fit is not None:
            fit(made, codes[~held_out], codes[held_out])
        seconds = {} if fit is None else {"cpu_seconds": time.process_time() - start}
        model.flow = made.eval()
        found = measure(model, data, test, arguments.num_samples) | seconds
        print(name, row, found, flush=True)
        known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        rows = known.get(name, {}).get("rows", {}) | {row: found}
        write_json(arguments.out, known | {name: about | {"rows": rows}})


def sweep(arguments: argparse.Namespace) -> None:
    """Trains the model without a flow for each weight of the penalty, and fits the flows to the codes of each."""
    for weight in arguments.weights:
        where = {} if arguments.root is None else {"root": str(arguments.root)}
        model, data = wae_lightning.from_config(
            "mnist_wae_mmd", data=where, seed=0, flow=None, fit_flow=None, penalty_weight=float(weight)
        )
        trainer = Trainer(
            max_epochs=arguments.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(model, data)
        data.batch_size = 500
        about = {"penalty_weight": weight, "epochs": arguments.epochs, "num_samples": arguments.num_samples, "seed": 0}
        fit_and_measure(model.eval(), data, arguments, f"λ = {weight:g}", about)


def plot(found: dict[str, Any], file: Path) -> None:
    """Draws digits-FID of samples against the largest step on lines through z, a line for each flow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="largest step on a line through z, % of its length", ylabel="digits-FID of samples", yscale="log")
    for row in next(iter(found.values()))["rows"]:
        models = [model for model in found.values() if row in model["rows"]]
        points = [(100 * model["rows"][row]["z_largest_step"], model["rows"][row]["fid_digits"]) for model in models]
        axes.plot(*zip(*points, strict=True), "o-", label=row)
        for point, model in zip(points, models, strict=True):
            axes.annotate(f"{model['penalty_weight']:g}", point, textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.legend(fontsize="small", title="λ stands beside each point", title_fontsize="small")
    figure.savefig(file, dpi=150)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="model with a flow (the bundled mnist_wae_mmd)")
    parser.add_argument("--root", type=Path, help="folder of its data (data; with --weights the bundled digits)")
    parser.add_argument("--cache_dir", type=Path, help="folder of its cache (beside the pictures)")
    parser.add_argument("--steps", type=int, default=2000, help="Adam steps of flows that need them (2000)")
    parser.add_argument("--components", type=int, default=100, help="Gaussians at most (100)")
    parser.add_argument("--num_samples", type=int, default=10_000, help="samples to measure by (10000)")
    parser.add_argument("--name", default="digits", help="what the rows are kept under (digits)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these, such as FlowMatching (all)")
    parser.add_argument("--weights", nargs="+", type=float, help="train a model for each of these weights instead")
    parser.add_argument("--epochs", type=int, default=4, help="of these trainings (4)")
    parser.add_argument("--out", type=Path, help="JSON file (results/flow_results.json, evenness.json)")
    parser.add_argument("--plot", type=Path, help="draw the figure of evenness.json, and stop")
    arguments = parser.parse_args(given)
    swept = arguments.weights or arguments.plot
    arguments.out = arguments.out or EXPERIMENTS / "results" / f"{'evenness' if swept else 'flow_results'}.json"
    torch.set_num_threads(1)
    if arguments.plot is not None:
        plot(json.loads(arguments.out.read_text()), arguments.plot)
        return
    if arguments.weights:
        sweep(arguments)
        return
    model: Any
    data: Any
    places = {"root": arguments.root or Path("data"), "cache_dir": arguments.cache_dir}
    if arguments.checkpoint is None:
        model, data = wae_lightning.from_pretrained("mnist_wae_mmd"), MNISTDataModule(places["root"])
    else:
        model = load_model(arguments.checkpoint)
        data = load_data(arguments.checkpoint, {name: str(place) for name, place in places.items() if place})
    fit_and_measure(model, data, arguments, arguments.name, {"num_samples": arguments.num_samples})


if __name__ == "__main__":
    main()

"""Measures models of other conditions than halves: ``python experiments/reproduce/condition_results.py labels``.

Trains one model of digits on one condition for a given CPU time, measures it on the test set, and adds the row to the
JSON file under condition, model and seed; beside it lies a picture. Each (condition, model, seed) is a command of its
own, and commands may run at the same time.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
import warnings
from pathlib import Path
from typing import Any

import completion_results
import torch
from completion_results import CVAE, Regression, draw, train
from records import EXPERIMENTS, commit, write_json

from wae_lightning import ConditionalWAE, from_config
from wae_lightning.callbacks import LabelPictures, MeasureCompletions
from wae_lightning.callbacks.pictures import write_png
from wae_lightning.captions import Caption
from wae_lightning.evaluation import evaluate_labels
from wae_lightning.lightning import seed_everything
from wae_lightning.networks import CouplingFlow
from wae_lightning.networks.conditional import number_of_features
from wae_lightning.noise import EncoderNoise, GaussianNoise
from wae_lightning.penalties import MMD

TEST_BATCHES = 5  # of 200 images: of each ten completions, which convolutional networks take half a minute for
CONDITIONS = {"labels": "mnist_labels", "inpainting": "mnist_inpainting", "superresolution": "mnist_superresolution"}


def make(condition: str, name: str, root: Path | None, seed: int) -> tuple[ConditionalWAE, Any]:
    """Makes a model of the table and its data; all models of a condition have the same networks."""
    changes = {"data": {"root": None if root is None else str(root)}, "seed": seed}
    if name in ("CVAE", "regression"):
        noise = GaussianNoise() if name == "CVAE" else EncoderNoise()
        like, data = from_config(CONDITIONS[condition], noise=noise, encoder={"standardize": False}, **changes)
        cls = CVAE if name == "CVAE" else Regression
        shapes = {key: getattr(like, key) for key in ("condition_shape", "target_shape", "num_classes", "latent_dim")}
        makers = {"optimizer": like.make_optimizer, "lr_scheduler": like.make_lr_scheduler}
        return cls(encoder=like.encoder, decoder=like.decoder, cost=like.cost, **shapes, **makers), data
    arguments: dict[str, Any] = {
        "WAE": {},
        "WAE, 16 units": {"latent_dim": 16},
        "WAE with a flow": {"flow": CouplingFlow(), "fit_flow": None},
        "WAE without a flow": {"flow": None, "fit_flow": None},
        "WAE, joint MMD": {"penalty": MMD(), "penalty_weight": 40.0},
        "WAE, codes matched alone": {"match": "marginal", "penalty": MMD(), "penalty_weight": 10.0},
    }[name]
    if arguments.get("flow") is not None:
        like, _ = from_config(CONDITIONS[condition], **changes)
        arguments["flow"] = CouplingFlow(
            like.latent_dim, condition_features=number_of_features(like.features, like.condition_shape)
        )
    return from_config(CONDITIONS[condition], **changes, **arguments)


MODELS = (
    "WAE",
    "WAE, 16 units",
    "WAE with a flow",
    "WAE without a flow",
    "WAE, joint MMD",
    "WAE, codes matched alone",
    "CVAE",
    "regression",
)


def measure(model: ConditionalWAE, data: Any, seed: int) -> tuple[dict[str, float], torch.Tensor, Caption]:
    """Measures a model, and draws what it makes of the first test images; the last is what stands above it."""
    model.eval()
    if model.num_classes:
        found = evaluate_labels(model, data, 10_000, seed, "auto", None)
    else:
        torch.manual_seed(seed)
        measures = MeasureCompletions(likelihood_images=0)
        found = completion_results.measure(model, data, measures, limit_test_batches=TEST_BATCHES)
    x, y, _ = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    if model.num_classes:
        pictures = LabelPictures().draw(model, x[:10], y[:10], data.pairs.examples())
        title = "samples, a row for each class; and digits, followed by their styles in all classes"
        return found, torch.cat([pictures["class_samples"], pictures["styles"]], dim=2), Caption(title)
    with torch.no_grad():
        return found, *draw(model, x, y, data.pairs)


def add(path: Path, keys: tuple[str, str, str], row: dict[str, Any]) -> None:
    """Adds a row to a file that other commands may be adding to.

    Raises:
        SystemExit: If the file holds rows of this condition for other ``digits`` or ``seconds``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        table: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        condition, name, seed = keys
        rows = table.setdefault(condition, {})
        settings = {key: row[key] for key in ("digits", "seconds")}
        if any(other | settings != other for seeds in rows.values() for other in seeds.values()):
            raise SystemExit(f"{path} holds {condition} for other settings than {settings}: name another file")
        rows.setdefault(name, {})[seed] = row
        write_json(path, table)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("condition", choices=CONDITIONS)
    parser.add_argument("--model", choices=MODELS, default="WAE", help="row of the table (WAE)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, help="folder of MNIST; the bundled digits if left out")
    parser.add_argument("--seconds", type=float, default=300.0, help="CPU time of training (300)")
    default = EXPERIMENTS / "results" / "conditions.json"
    parser.add_argument(
        "--out", type=Path, default=default, help="file to add to (experiments/results/conditions.json)"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    torch.set_num_threads(1)  # process time is then the time of one core

    model, data = make(arguments.condition, arguments.model, arguments.root, arguments.seed)
    data.prepare_data()
    data.setup("fit")
    seed_everything(arguments.seed)
    start = time.process_time()
    steps = train(model, data, arguments.seconds)
    cost = {"digits": len(data.train_set), "seconds": arguments.seconds, "steps": steps}
    cost |= {"cpu_seconds": round(time.process_time() - start, 1), "commit": commit()}
    found, picture, caption = measure(model, data, arguments.seed)
    keys = (arguments.condition, arguments.model, str(arguments.seed))
    add(arguments.out, keys, cost | found)
    print(" ".join(keys), {key: round(value, 4) for key, value in found.items()}, flush=True)
    write_png(arguments.out.with_name(f"{arguments.out.stem}_{'_'.join(keys)}.png"), picture, caption)


if __name__ == "__main__":
    main()

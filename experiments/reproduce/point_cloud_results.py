"""Measures point-cloud auto-encoders beside the baselines that need no training, and keeps the rows in one JSON file.

point_cloud_results.py DIR                  rows without a model: floors, retrieval, constant cloud
point_cloud_results.py DIR CKPT --row NAME  one row for a checkpoint written by train.py
point_cloud_results.py DIR CKPT --row NAME --draws 6    1-NNA and coverage of six draws from the prior, added to a row
point_cloud_results.py DIR CKPT --beside OTHER_CKPT --picture FILE    a figure of two models

DIR holds ModelNet40, or a set in its format. Reconstructions are compared at ``num_points`` points; samples with the
whole test set, as many of them as there are test clouds, 512 points each, drawn at random from each cloud and sample.
All distances between sets are squared Chamfer distances, both directions added ("CD"), or mean matched distances
("EMD"). Keys say the factor that a value has been multiplied by.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from figures import draw_clouds
from records import write_json

from datamodules import ModelNet40DataModule
from wae_lightning import PointNetWAE
from wae_lightning.cli import load
from wae_lightning.cli.errors import UsageError
from wae_lightning.costs import chamfer_distance
from wae_lightning.evaluation.clouds import (
    SET_POINTS,
    apply_in_batches,
    choose_points,
    compare_reconstructions,
    compare_sets,
    load_classifier,
    measure_model,
)
from wae_lightning.metrics import PointSetDistances
from wae_lightning.metrics.point_clouds import pairwise_distances
from wae_lightning.networks import PointNetClassifier
from wae_lightning.refinement import reconstruction_by

REFINE_STEPS = 10


def baselines(data: Any, classifier: PointNetClassifier) -> dict[str, dict[str, float]]:
    """The rows that need no auto-encoder."""
    generator = torch.Generator().manual_seed(0)
    n = data.num_points
    train, test = data.train_set.points, data.test_set.points
    target, labels = test[:, :n], data.test_set.labels
    rows: dict[str, dict[str, float]] = {}
    if test.shape[1] >= 2 * n:
        halves = choose_points(test, 2 * n, generator)
        rows["noise floor: two random subsets of one cloud"] = {
            "CD x1e3": 1e3 * float(chamfer_distance(halves[:, :n], halves[:, n:]).mean())
        }
    # the search for the nearest training cloud uses fewer points than the comparison
    coarse = pairwise_distances(target[:, :SET_POINTS], train[:, :SET_POINTS])
    candidates = coarse.topk(8, largest=False).indices
    exact = torch.stack([chamfer_distance(target, train[candidates[:, k]][:, :n]) for k in range(8)])
    best = candidates.gather(1, exact.argmin(0).unsqueeze(1)).squeeze(1)
    rows["retrieval of the nearest training cloud"] = compare_reconstructions(
        target, train[best][:, :n], labels, classifier
    )
    torch.manual_seed(0)
    constant = (0.1 * torch.randn(1, n, 3)).requires_grad_()
    optimizer = torch.optim.Adam([constant], lr=0.02)
    for _ in range(200):
        batch = choose_points(train[torch.randint(len(train), (32,))], n, generator)
        optimizer.zero_grad()
        chamfer_distance(batch, constant.expand(32, -1, -1)).mean().backward()
        optimizer.step()
    cloud = constant.detach().expand(len(target), -1, -1)
    rows["one constant cloud, learnt"] = compare_reconstructions(target, cloud, labels, classifier)
    picked = torch.randperm(len(train), generator=generator)[: len(test)]
    rows["real training clouds"] = compare_sets(train[picked], test, train)
    return rows


def load_model(ckpt: Path) -> PointNetWAE:
    model = load.load_model(ckpt)
    if not isinstance(model, PointNetWAE):
        raise UsageError(f"{ckpt}: expected a model of point clouds, found a {type(model).__name__}")
    return model


def measure_refined(model: PointNetWAE, data: Any, classifier: PointNetClassifier) -> dict[str, float]:
    """Reconstructions of refined codes, compared also with other points of the clouds than they were refined with."""
    n, test = data.num_points, data.test_set
    found = apply_in_batches(reconstruction_by(model, REFINE_STEPS), test.points[:, :n], model.device)
    row = compare_reconstructions(test.points[:, :n], found, test.labels, classifier) | {"steps": REFINE_STEPS}
    if test.points.shape[1] >= 2 * n:
        row["CD x1e3 to other points"] = 1e3 * float(chamfer_distance(test.points[:, n : 2 * n], found).mean())
    return row


def measure_draws(model: PointNetWAE, data: Any, count: int) -> dict[str, list[float]]:
    """1-NNA and coverage of several draws from the prior; the first is the one that a row tells more about."""
    test, found = data.test_set.points, {"1-NNA": [], "COV": []}
    for seed in range(count):
        z = model.prior.sample(len(test), torch.Generator().manual_seed(seed))
        samples = apply_in_batches(model.decode, z, model.device)
        generator, metric = torch.Generator().manual_seed(0), PointSetDistances()
        metric.update(choose_points(test, SET_POINTS, generator), real=True)
        metric.update(choose_points(samples, SET_POINTS, generator), real=False)
        computed = metric.compute()
        for name, values in found.items():
            values.append(float(computed[name]))
    return found


def round_numbers(value: Any) -> Any:
    """Rounds numbers to four significant digits, also inside dictionaries and lists."""
    if isinstance(value, dict):
        return {name: round_numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [round_numbers(item) for item in value]
    if isinstance(value, float) and value and math.isfinite(value):
        return round(value, 3 - math.floor(math.log10(abs(value))))
    return value


def show(row: dict[str, Any], indent: str = "  ") -> None:
    for name, value in row.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        else:
            print(f"{indent}{name:52} {value}")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder of the point clouds")
    parser.add_argument("ckpt", type=Path, nargs="?", help="checkpoint written by train.py")
    parser.add_argument("--row", help="name of the checkpoint's row")
    parser.add_argument("--num_points", type=int, default=1024)
    parser.add_argument("--fitted", type=int, nargs="*", default=[32], help="sizes of mixtures to fit to the codes")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/point_clouds.json"))
    parser.add_argument("--classifier", type=Path, default=Path("runs/point_cloud_classifier.pt"))
    parser.add_argument("--draws", type=int, default=0, metavar="N", help="draw from the prior N times, instead")
    parser.add_argument("--picture", type=Path, help="PNG file to draw inputs, outputs and samples into, instead")
    parser.add_argument("--beside", type=Path, help="checkpoint of the row-by-row model, to be drawn above")
    # intermixed: CKPT may stand after flags
    known = parser.parse_intermixed_args(arguments)
    warnings.filterwarnings("ignore", message=".*covariance is not symmetric")
    try:
        measure(known)
    except (FileNotFoundError, ValueError) as error:
        print(f"point_cloud_results.py: error: {error}", file=sys.stderr)
        sys.exit(2)


def measure(arguments: argparse.Namespace) -> None:
    """Measures what the command line asks for and adds it to the file of rows."""
    # one set of test clouds and of training clouds for all rows: no share is set aside for validation
    data = ModelNet40DataModule(arguments.root, num_points=arguments.num_points)
    data.setup("fit")
    classifier = load_classifier(arguments.classifier, data)
    if arguments.ckpt is None:
        new: dict[str, Any] = baselines(data, classifier)
    else:
        model = load_model(arguments.ckpt)
        if arguments.picture:
            beside = arguments.beside and load_model(arguments.beside)
            draw_clouds(model, data, beside).savefig(arguments.picture, dpi=80)
            return
        name = arguments.row or arguments.ckpt.parents[2].name
        if arguments.draws:
            new = {name: {"draws": measure_draws(model, data, arguments.draws)}}
        else:
            row = measure_model(model, data, classifier, arguments.fitted)
            new = {name: row | {"refined": measure_refined(model, data, classifier)}}
    new = round_numbers(new)
    # read only now: another row may have been measured at the same time
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for name, row in new.items():
        rows[name] = (rows.get(name, {}) if arguments.draws else {}) | row
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, rows)
    for name, row in new.items():
        print(name)
        show(row)


if __name__ == "__main__":
    main()

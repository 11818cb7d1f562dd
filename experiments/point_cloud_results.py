"""Measures point-cloud auto-encoders beside the baselines that need no training, and keeps the rows in one JSON file.

python experiments/point_cloud_results.py DIR                  rows without a model: floors, retrieval, constant cloud
python experiments/point_cloud_results.py DIR CKPT --row NAME  one row for a checkpoint written by train.py
python experiments/point_cloud_results.py DIR CKPT --beside OTHER_CKPT --picture FILE    a figure of two models

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

import evaluate
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules import ModelNet40DataModule
from wae_lightning import PointNetWAE
from wae_lightning.callbacks import draw_point_sets
from wae_lightning.checkpoints import read_plain
from wae_lightning.costs import chamfer_distance, earth_movers_distance
from wae_lightning.metrics import (
    ClassifierAgreement,
    LinearSVMAccuracy,
    OccupancyDivergence,
    PointSetDistances,
    PointSetReconstruction,
)
from wae_lightning.metrics.point_clouds import pairwise_distances
from wae_lightning.networks import PointNetClassifier, PointNetEncoder
from wae_lightning.samplers import MixtureSampler

SET_POINTS = 512
EMD_CLOUDS, EMD_POINTS = 40, 256


def random_points(clouds: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draws n points of each cloud (B, N, 3) without replacement: (B, n, 3)."""
    order = torch.rand(clouds.shape[:2], generator=generator).argsort(1)[:, :n]
    return clouds.gather(1, order.unsqueeze(2).expand(-1, -1, 3))


def train_classifier(data: ModelNet40DataModule, epochs: int = 40) -> PointNetClassifier:
    """Trains the judge on real clouds; clouds are scaled by up to 10 % and jittered."""
    torch.manual_seed(0)
    clouds, labels = data.train_set.points, data.train_set.labels
    classifier = PointNetClassifier(len(data.class_names))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.01)
    steps = len(clouds) // 32
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps * epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(clouds)).split(32)[:steps]:
            points = clouds[rows][:, torch.randperm(clouds.shape[1])[:SET_POINTS]]
            points = points * torch.empty(len(rows), 1, 3).uniform_(0.9, 1.1) + 0.01 * torch.randn_like(points)
            loss = F.cross_entropy(classifier(points), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return classifier.eval()


def load_classifier(path: Path | None, data: ModelNet40DataModule) -> PointNetClassifier:
    """Reads the judge from a file, or trains it and writes it there."""
    if path is None or not path.exists():
        print("Training a PointNet classifier of the real clouds as judge.")
        classifier = train_classifier(data)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(classifier.state_dict(), path)
        return classifier
    classifier = PointNetClassifier(len(data.class_names)).eval()
    try:
        classifier.load_state_dict(read_plain(path))
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: no judge of {len(data.class_names)} classes ({reason})") from None
    return classifier


def set_row(samples: Tensor, real: Tensor, train: Tensor) -> dict[str, float]:
    """Compares samples with the test clouds, both (n, P, 3)."""
    generator = torch.Generator().manual_seed(0)
    real, samples = (random_points(clouds, SET_POINTS, generator) for clouds in (real, samples))
    metric, jsd = PointSetDistances(), OccupancyDivergence(radius=1.0)
    for side, clouds in ((True, real), (False, samples)):
        metric.update(clouds, real=side)
        jsd.update(clouds, real=side)
    found = metric.compute()
    emd = PointSetDistances("emd")
    for side, clouds in ((True, real), (False, samples)):
        chosen = torch.linspace(0, len(clouds) - 1, EMD_CLOUDS).long()
        emd.update(clouds[chosen][:, :EMD_POINTS], real=side)
    found_emd = emd.compute()
    some = samples[torch.linspace(0, len(samples) - 1, 64).long()]
    to_train = pairwise_distances(some, random_points(train, SET_POINTS, generator)).amin(1).mean()
    row = {
        "1-NNA-CD": found["1-NNA"],
        "1-NNA-CD, samples' half": found["1-NNA samples"],
        "1-NNA-CD, real half": found["1-NNA real"],
        "COV-CD": found["COV"],
        "MMD-CD x1e3": 1e3 * found["MMD"],
        "CD to the nearest training cloud x1e3": 1e3 * to_train,
        f"1-NNA-EMD ({EMD_CLOUDS} clouds, {EMD_POINTS} points)": found_emd["1-NNA"],
        f"COV-EMD ({EMD_CLOUDS} clouds, {EMD_POINTS} points)": found_emd["COV"],
        f"MMD-EMD x1e2 ({EMD_CLOUDS} clouds, {EMD_POINTS} points)": 1e2 * found_emd["MMD"],
        "JSD": jsd.compute(),
    }
    return {name: float(value) for name, value in row.items()}


def baselines(data: ModelNet40DataModule, classifier: PointNetClassifier) -> dict[str, dict[str, float]]:
    """The rows that need no auto-encoder."""
    generator = torch.Generator().manual_seed(0)
    n = data.num_points
    train, test = data.train_set.points, data.test_set.points
    target, labels = test[:, :n], data.test_set.labels
    rows: dict[str, dict[str, float]] = {}
    if test.shape[1] >= 2 * n:
        halves = random_points(test, 2 * n, generator)
        rows["noise floor: two random subsets of one cloud"] = {
            "CD x1e3": 1e3 * float(chamfer_distance(halves[:, :n], halves[:, n:]).mean())
        }
    # the search for the nearest training cloud uses fewer points than the comparison
    coarse = pairwise_distances(target[:, :SET_POINTS], train[:, :SET_POINTS])
    candidates = coarse.topk(8, largest=False).indices
    exact = torch.stack([chamfer_distance(target, train[candidates[:, k]][:, :n]) for k in range(8)])
    best = candidates.gather(1, exact.argmin(0).unsqueeze(1)).squeeze(1)
    rows["retrieval of the nearest training cloud"] = reconstruction_row(target, train[best][:, :n], labels, classifier)
    torch.manual_seed(0)
    constant = (0.1 * torch.randn(1, n, 3)).requires_grad_()
    optimizer = torch.optim.Adam([constant], lr=0.02)
    for _ in range(200):
        batch = random_points(train[torch.randint(len(train), (32,))], n, generator)
        optimizer.zero_grad()
        chamfer_distance(batch, constant.expand(32, -1, -1)).mean().backward()
        optimizer.step()
    cloud = constant.detach().expand(len(target), -1, -1)
    rows["one constant cloud, learnt"] = reconstruction_row(target, cloud, labels, classifier)
    picked = torch.randperm(len(train), generator=generator)[: len(test)]
    rows["real training clouds"] = set_row(train[picked], test, train)
    return rows


def reconstruction_row(
    target: Tensor, reconstruction: Tensor, labels: Tensor, classifier: PointNetClassifier
) -> dict[str, float]:
    """Compares inputs with reconstructions, both (n, P, 3)."""
    cd, agreement = PointSetReconstruction(), ClassifierAgreement(classifier)
    for part in torch.arange(len(target)).split(64):
        cd.update(target[part], reconstruction[part])
        agreement.update(target[part], reconstruction[part], labels[part])
    some = torch.linspace(0, len(target) - 1, EMD_CLOUDS).long()
    generator = torch.Generator().manual_seed(0)
    points = min(SET_POINTS, target.shape[1], reconstruction.shape[1])
    emd = earth_movers_distance(*(random_points(x[some], points, generator) for x in (target, reconstruction))).mean()
    judged = agreement.compute()
    return {
        "CD x1e3": 1e3 * float(cd.compute()),
        f"EMD x1e2 ({EMD_CLOUDS} clouds, {points} points)": 1e2 * float(emd),
        "RMS radius": float((reconstruction - reconstruction.mean(1, keepdim=True)).square().sum(2).mean().sqrt()),
        "classifier on inputs": float(judged["inputs"]),
        "classifier on reconstructions": float(judged["reconstructions"]),
        "classifier share": float(judged["share"]),
    }


@torch.no_grad()
def codes_of(model: Any, clouds: Tensor) -> Tensor:
    return torch.cat([model(part) for part in clouds.split(64)])


def turned(clouds: Tensor) -> Tensor:
    """Turns each cloud (B, N, 3) by a random angle about the y axis."""
    angle = 2 * math.pi * torch.rand(len(clouds), generator=torch.Generator().manual_seed(0))
    turn = torch.zeros(len(clouds), 3, 3)
    turn[:, 1, 1] = 1
    turn[:, 0, 0] = turn[:, 2, 2] = angle.cos()
    turn[:, 0, 2], turn[:, 2, 0] = angle.sin(), -angle.sin()
    return clouds @ turn


def svm_accuracy(encode: Any, data: ModelNet40DataModule, turn: bool = False) -> float:
    """Linear SVM on the codes of the first ``num_points`` points of each cloud, C = 1, standardised features.

    With ``turn`` the test clouds are turned at random, and the training clouds are not.
    """
    metric = LinearSVMAccuracy()
    for part, train in ((data.train_set, True), (data.test_set, False)):
        clouds = part.points[:, : data.num_points]
        metric.update(codes_of(encode, turned(clouds) if turn and not train else clouds), part.labels, train=train)
    return float(metric.compute())


def model_row(
    model: PointNetWAE, data: ModelNet40DataModule, classifier: PointNetClassifier, fitted: list[int]
) -> dict[str, Any]:
    """Measures a model: reconstructions, codes, and samples from the prior and from mixtures fitted to the codes."""
    generator = torch.Generator().manual_seed(0)
    train, test = data.train_set.points, data.test_set.points
    target, labels = test[:, : data.num_points], data.test_set.labels
    n = len(test)
    row: dict[str, Any] = reconstruction_row(target, codes_of(model, target), labels, classifier)
    # the encoder's own codes: what a flow does to them afterwards serves the samples
    flow, model.flow = model.flow, None
    row["linear SVM on codes"] = svm_accuracy(model.encode, data)
    if isinstance(model.encoder, PointNetEncoder):
        torch.manual_seed(0)
        layers = [layer for layer in model.encoder.points.mlp if isinstance(layer, torch.nn.Linear)]
        hidden = [layer.out_features for layer in model.encoder.output if isinstance(layer, torch.nn.Linear)][:-1]
        untrained = PointNetEncoder(model.latent_dim, [layer.out_features for layer in layers], hidden).eval()
        row["linear SVM on codes, encoder untrained"] = svm_accuracy(untrained, data)
    row["linear SVM on codes of turned test clouds"] = svm_accuracy(model.encode, data, turn=True)
    trained_with, model.invariance = model.invariance, ("rotation",)
    row["the same, invariance=[rotation] switched on"] = svm_accuracy(model.encode, data, turn=True)
    model.invariance = trained_with
    model.flow = flow
    if flow is not None:
        row["linear SVM on z, behind the flow"] = svm_accuracy(model.encode, data)
    with torch.no_grad():
        samples = model.decode(model.prior.sample(n, generator))
        row["prior"] = set_row(samples, test, train)
        codes = codes_of(model.encode, train[:, : data.num_points])
        row["codes: mean square per dimension"] = float(codes.square().mean())
        for components in fitted:
            z = MixtureSampler(codes, components, reg_covar=1e-3).sample(n, generator)
            name = "Gaussian fitted to the codes" if components == 1 else f"mixture of {components} fitted to the codes"
            row[name] = set_row(model.decode(z), test, train)
    return row


def draw(model: PointNetWAE, other: PointNetWAE | None, data: ModelNet40DataModule, path: Path) -> None:
    """Draws test clouds, their reconstructions by one or two models, and samples from the prior."""
    chosen = torch.linspace(0, len(data.test_set.points) - 1, 10).long()
    inputs = data.test_set.points[chosen, : data.num_points]
    rows = {"input": inputs}
    with torch.no_grad():
        if other is not None:
            rows["row by row"] = other(inputs)
        rows["Chamfer"] = model(inputs)
        rows["sample"] = model.sample(len(chosen), torch.Generator().manual_seed(0))
    draw_point_sets(list(rows.values()), list(rows)).savefig(path, dpi=80)


def load_model(ckpt: Path) -> PointNetWAE:
    model = evaluate.load_model(ckpt)
    if not isinstance(model, PointNetWAE):
        raise evaluate.UsageError(f"{ckpt}: expected a model of point clouds, found a {type(model).__name__}")
    return model


def rounded(value: Any) -> Any:
    """Rounds numbers to four significant digits, also inside dictionaries."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
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
    parser.add_argument("--picture", type=Path, help="PNG file to draw inputs, outputs and samples into, instead")
    parser.add_argument("--beside", type=Path, help="checkpoint of the row-by-row model, to be drawn above")
    # intermixed: CKPT may stand after flags
    known = parser.parse_intermixed_args(arguments)
    warnings.filterwarnings("ignore", message=".*covariance is not symmetric")
    try:
        measure(known)
    except (evaluate.UsageError, FileNotFoundError, ValueError) as error:
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
            draw(model, arguments.beside and load_model(arguments.beside), data, arguments.picture)
            return
        new = {arguments.row or arguments.ckpt.parents[2].name: model_row(model, data, classifier, arguments.fitted)}
    new = rounded(new)
    # read only now: another row may have been measured at the same time
    rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    rows.update(new)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n")
    for name, row in new.items():
        print(name)
        show(row)


if __name__ == "__main__":
    main()

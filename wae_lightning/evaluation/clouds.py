"""Measures a model of point clouds: reconstructions, samples and codes.

Reconstructions are compared at the data module's ``num_points`` points; samples with the whole test set, as many of
them as there are test clouds, 512 points each, drawn at random from each cloud and sample. All distances between sets
are squared Chamfer distances, both directions added ("CD"), or mean matched distances ("EMD"). Keys say the factor that
a value has been multiplied by.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wae_lightning.checkpoints import read_plain
from wae_lightning.costs import earth_movers_distance
from wae_lightning.evaluation.codes import sizes_that_fit
from wae_lightning.metrics import (
    ClassifierAgreement,
    LinearSVMAccuracy,
    OccupancyDivergence,
    PointSetDistances,
    PointSetReconstruction,
)
from wae_lightning.metrics.point_clouds import pairwise_distances
from wae_lightning.networks import PointNetClassifier, PointNetEncoder
from wae_lightning.pointnet import PointNetWAE
from wae_lightning.refinement import reconstruction_by
from wae_lightning.samplers import MixtureSampler

__all__ = [
    "choose_points",
    "compare_reconstructions",
    "compare_sets",
    "evaluate_clouds",
    "load_classifier",
    "measure_model",
    "train_classifier",
]

SET_POINTS = 512
EMD_CLOUDS, EMD_POINTS = 40, 256


def choose_points(clouds: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draws n points of each cloud (B, N, 3) without replacement: (B, n, 3)."""
    order = torch.rand(clouds.shape[:2], generator=generator).argsort(1)[:, :n]
    return clouds.gather(1, order.unsqueeze(2).expand(-1, -1, 3))


def spread_over(clouds: Tensor, n: int) -> Tensor:
    """Takes n of the clouds, evenly over the set, or all if there are fewer."""
    return clouds[torch.linspace(0, len(clouds) - 1, min(n, len(clouds))).long()]


def train_classifier(data: Any, epochs: int = 40) -> PointNetClassifier:
    """Trains the judge on real clouds, at least 400 steps; clouds are scaled by up to 10 % and jittered."""
    torch.manual_seed(0)
    clouds, labels = data.train_set.points, data.train_set.labels
    classifier = PointNetClassifier(len(data.class_names))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.01)
    size = min(32, len(clouds))
    steps = len(clouds) // size
    epochs = max(epochs, 400 // steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps * epochs)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(clouds)), size)[:steps]:
            points = clouds[rows][:, torch.randperm(clouds.shape[1])[:SET_POINTS]]
            points = points * torch.empty(len(rows), 1, 3).uniform_(0.9, 1.1) + 0.01 * torch.randn_like(points)
            loss = F.cross_entropy(classifier(points), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return classifier.eval()


def load_classifier(path: Path | None, data: Any) -> PointNetClassifier:
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


def compare_sets(samples: Tensor, real: Tensor, train: Tensor) -> dict[str, float]:
    """Compares samples with the test clouds, both (n, P, 3)."""
    generator = torch.Generator().manual_seed(0)
    real, samples = (choose_points(clouds, SET_POINTS, generator) for clouds in (real, samples))
    metric, jsd = PointSetDistances(), OccupancyDivergence(radius=1.0)
    for side, clouds in ((True, real), (False, samples)):
        metric.update(clouds, real=side)
        jsd.update(clouds, real=side)
    found = metric.compute()
    emd = PointSetDistances("emd")
    count = min(EMD_CLOUDS, len(real), len(samples))
    points = min(EMD_POINTS, real.shape[1], samples.shape[1])
    for side, clouds in ((True, real), (False, samples)):
        emd.update(spread_over(clouds, count)[:, :points], real=side)
    found_emd = emd.compute()
    to_train = pairwise_distances(spread_over(samples, 64), choose_points(train, SET_POINTS, generator)).amin(1).mean()
    row = {
        "1-NNA-CD": found["1-NNA"],
        "1-NNA-CD, samples' half": found["1-NNA samples"],
        "1-NNA-CD, real half": found["1-NNA real"],
        "COV-CD": found["COV"],
        "MMD-CD x1e3": 1e3 * found["MMD"],
        "CD to the nearest training cloud x1e3": 1e3 * to_train,
        f"1-NNA-EMD ({count} clouds, {points} points)": found_emd["1-NNA"],
        f"COV-EMD ({count} clouds, {points} points)": found_emd["COV"],
        f"MMD-EMD x1e2 ({count} clouds, {points} points)": 1e2 * found_emd["MMD"],
        "JSD": jsd.compute(),
    }
    return {name: float(value) for name, value in row.items()}


def compare_reconstructions(
    target: Tensor, reconstruction: Tensor, labels: Tensor, classifier: PointNetClassifier
) -> dict[str, float]:
    """Compares inputs with reconstructions, both (n, P, 3)."""
    cd, agreement = PointSetReconstruction(), ClassifierAgreement(classifier)
    for part in torch.split(torch.arange(len(target)), 64):
        cd.update(target[part], reconstruction[part])
        agreement.update(target[part], reconstruction[part], labels[part])
    some = [spread_over(clouds, EMD_CLOUDS) for clouds in (target, reconstruction)]
    generator = torch.Generator().manual_seed(0)
    points = min(SET_POINTS, target.shape[1], reconstruction.shape[1])
    emd = earth_movers_distance(*(choose_points(clouds, points, generator) for clouds in some)).mean()
    judged = agreement.compute()
    return {
        "CD x1e3": 1e3 * float(cd.compute()),
        f"EMD x1e2 ({len(some[0])} clouds, {points} points)": 1e2 * float(emd),
        "RMS radius": float((reconstruction - reconstruction.mean(1, keepdim=True)).square().sum(2).mean().sqrt()),
        "classifier on inputs": float(judged["inputs"]),
        "classifier on reconstructions": float(judged["reconstructions"]),
        "classifier share": float(judged["share"]),
    }


@torch.no_grad()
def apply_in_batches(function: Callable[[Tensor], Tensor], clouds: Tensor, device: torch.device | str) -> Tensor:
    """Applies what runs on a device; arguments and results lie on the CPU."""
    return torch.cat([function(part.to(device)).cpu() for part in torch.split(clouds, 64)])


def turn_randomly(clouds: Tensor) -> Tensor:
    """Turns each cloud (B, N, 3) by a random angle about the y axis."""
    angle = 2 * math.pi * torch.rand(len(clouds), generator=torch.Generator().manual_seed(0))
    turn = torch.zeros(len(clouds), 3, 3)
    turn[:, 1, 1] = 1
    turn[:, 0, 0] = turn[:, 2, 2] = angle.cos()
    turn[:, 0, 2], turn[:, 2, 0] = angle.sin(), -angle.sin()
    return clouds @ turn


def measure_svm_accuracy(encode: Any, data: Any, turn: bool = False, device: torch.device | str = "cpu") -> float:
    """Linear SVM on the codes of the first ``num_points`` points of each cloud, C = 1, standardised features.

    With ``turn`` the test clouds are turned at random, and the training clouds are not.
    """
    metric = LinearSVMAccuracy()
    for part, train in ((data.train_set, True), (data.test_set, False)):
        clouds = part.points[:, : data.num_points]
        clouds = turn_randomly(clouds) if turn and not train else clouds
        metric.update(apply_in_batches(encode, clouds, device), part.labels, train=train)
    return float(metric.compute())


def measure_model(
    model: PointNetWAE, data: Any, classifier: PointNetClassifier, fitted: list[int], refine_steps: int = 0
) -> dict[str, Any]:
    """Measures a model: reconstructions, codes, and samples from the prior and from mixtures fitted to the codes."""
    generator = torch.Generator().manual_seed(0)
    train, test = data.train_set.points, data.test_set.points
    n, device = len(test), model.device
    target, labels = test[:, : data.num_points], data.test_set.labels
    found = apply_in_batches(reconstruction_by(model, refine_steps), target, device)
    row: dict[str, Any] = compare_reconstructions(target, found, labels, classifier)
    # the encoder's own codes: what a flow does to them afterwards serves the samples
    flow, model.flow = model.flow, None
    row["linear SVM on codes"] = measure_svm_accuracy(model.encode, data, device=device)
    if isinstance(model.encoder, PointNetEncoder):
        torch.manual_seed(0)
        layers = [layer for layer in model.encoder.points.mlp if isinstance(layer, torch.nn.Linear)]
        hidden = [layer.out_features for layer in model.encoder.output if isinstance(layer, torch.nn.Linear)][:-1]
        box = model.encoder.box is not None
        features = model.latent_dim * model.noise.features_per_dimension
        channels = [layer.out_features for layer in layers]
        untrained = PointNetEncoder(features, channels, hidden, box=box).eval().to(device)
        row["linear SVM on codes, encoder untrained"] = measure_svm_accuracy(
            lambda x: model.noise.mean(untrained(x)), data, device=device
        )
    row["linear SVM on codes of turned test clouds"] = measure_svm_accuracy(
        model.encode, data, turn=True, device=device
    )
    trained_with, model.invariance = model.invariance, ("rotation",)
    row["the same, invariance=[rotation] switched on"] = measure_svm_accuracy(
        model.encode, data, turn=True, device=device
    )
    model.invariance = trained_with
    model.flow = flow
    if flow is not None:
        row["linear SVM on z, behind the flow"] = measure_svm_accuracy(model.encode, data, device=device)
    with torch.no_grad():
        samples = apply_in_batches(model.decode, model.prior.sample(n, generator), device)
        row["prior"] = compare_sets(samples, test, train)
        codes = apply_in_batches(model.encode, train[:, : data.num_points], device)
        row["codes: mean square per dimension"] = float(codes.square().mean())
        for components in sizes_that_fit(fitted, codes):
            z = MixtureSampler(codes, components, reg_covar=1e-3).sample(n, generator)
            name = "Gaussian fitted to the codes" if components == 1 else f"mixture of {components} fitted to the codes"
            row[name] = compare_sets(apply_in_batches(model.decode, z, device), test, train)
    return row


def flatten(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """One dictionary of numbers, the names of inner ones put before theirs."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}: ")
        else:
            flat[prefix + name] = value
    return flat


def evaluate_clouds(
    model: PointNetWAE, data: Any, classifier: Path | None, seed: int, refine_steps: int = 0
) -> dict[str, float]:
    """Measures a model of point clouds; without the data nothing can be said of it."""
    if data is None:
        raise ValueError("a model of point clouds is measured against clouds: name their folder with --data.root DIR")
    torch.manual_seed(seed)
    data.prepare_data()
    data.setup("fit")
    return flatten(measure_model(model, data, load_classifier(classifier, data), [32], refine_steps))

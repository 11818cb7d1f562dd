"""Measures a model that draws images of labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.conditional import ConditionalWAE
from wae_lightning.evaluation.codes import batches_of, compare_with_prior
from wae_lightning.evaluation.images import choose_features, extract_features
from wae_lightning.metrics import DigitClassifier, Sharpness
from wae_lightning.metrics.completion import CodeDependence, frechet_distance
from wae_lightning.training.inputs import one_hot

__all__ = ["evaluate_labels", "read_out_accuracy"]

STEPS = 1500  # of Adam, for each network that shall read the label from the code
BATCH = 500


@torch.no_grad()
def evaluate_labels(
    model: ConditionalWAE, data: Any, num_samples: int, seed: int, features: str, inception_weights: Any
) -> dict[str, float]:
    """Measures samples of each class, and whether the codes tell the class.

    - ``accuracy``: share of samples, one for each test label, in which the digit classifier sees their class; digits.
    - ``fid_FEATURES_of_class``: mean over the classes of the Fréchet distance of a class's samples, as many as it has
      test images (two or more), from its test images; ``..._floor``: the same of training images. ``fid_FEATURES``: of
      all samples.
    - ``label_from_code_linear``, ``label_from_code_mlp``: accuracy of two networks that read the label from the code,
      trained on half of the test codes, on the other half; ``chance``: share of the most frequent label there.
      Of attributes: the mean over those that vary. ``..._validation``: the same of the validation images. These are
      of the kind that the model was trained on; test images may differ, as MNIST's do, which others have written.
    - ``hsic_over_null``, ``r_squared``: see :class:`~wae_lightning.metrics.CodeDependence`.

    Args:
        model: A model of labels, in evaluation mode.
        data: Its data module, see :class:`datamodules.LabelDataModule`.
        num_samples: Most training images of the floor.
        seed: Seed of all that is random.
        features: See :func:`~wae_lightning.evaluation.images.choose_features`.
        inception_weights: See there.

    Returns:
        The measures by name.
    """
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    torch.manual_seed(seed)
    x, y, z = _encode(model, data, "test")
    results = {"mse": _squared_error(model, x, y)} | _read_out(z, x)
    of_validation, _, z_validation = _encode(model, data, "val")
    results |= {f"{name}_validation": value for name, value in _read_out(z_validation, of_validation).items()}
    dependence = CodeDependence()
    dependence.update(x.float() if x.ndim > 1 else one_hot(x, len(data.pairs.names), x.device), z)
    results |= {key: float(value) for key, value in dependence.compute().items()}
    results |= compare_with_prior("test", z, model)
    drawn = _samples_of(model, x)
    sharpness = {}
    for which, images in (("samples", drawn), ("real", y)):
        metric = Sharpness()
        metric.update(images)
        sharpness[f"sharpness_{which}"] = float(metric.compute())
    results |= sharpness
    content = getattr(data, "content", None)
    if content == "digits" and model.num_classes == 10:
        seen = torch.cat([DigitClassifier.pretrained()(part).argmax(1) for part in torch.split(drawn, BATCH)])
        results["accuracy"] = float((seen == x).float().mean())
    for name, extractor in choose_features(features, tuple(y.shape[1:]), inception_weights, content).items():
        real, samples = (extract_features(torch.split(images, BATCH), extractor) for images in (y, drawn))
        results[f"fid_{name}"] = float(frechet_distance(real, samples))
        if model.num_classes:
            trained = _training_features(data, extractor, num_samples)
            of_class = [_fids(real[x == label], samples[x == label], trained, int(label)) for label in torch.unique(x)]
            if found := [pair for pair in of_class if pair is not None]:
                means = torch.tensor(found).mean(0)
                results |= {f"fid_{name}_of_class": float(means[0]), f"fid_{name}_of_class_floor": float(means[1])}
    return results


def _encode(model: ConditionalWAE, data: Any, part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, images and random codes of a whole set, on the CPU."""
    found: list[tuple[Tensor, ...]] = []
    for batch in batches_of(data, part):
        x, y = (tensor.to(model.device) for tensor in batch[:2])
        found.append((x.cpu(), y.cpu(), model.encode(x, y, noise=True).cpu()))
    x, y, z = (torch.cat(parts) for parts in zip(*found, strict=True))
    return x, y, z


def _squared_error(model: ConditionalWAE, x: Tensor, y: Tensor) -> float:
    """The mean squared error of reconstructions."""
    pairs = zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True)
    return sum(float((model(labels, images).cpu() - images).square().sum()) for labels, images in pairs) / y.numel()


def _samples_of(model: ConditionalWAE, x: Tensor) -> Tensor:
    """One sample for each label."""
    return torch.cat([model.complete(part.to(model.device), 1)[:, 0].cpu() for part in torch.split(x, BATCH)])


def _training_features(data: Any, extractor: nn.Module, count: int) -> tuple[Tensor, Tensor]:
    features, labels, seen = [], [], 0
    for batch in batches_of(data, "train"):
        x, y = batch[:2]
        features.append(extract_features([y.cpu()], extractor))
        labels.append(x.cpu())
        seen += len(x)
        if seen >= count:
            break
    return torch.cat(features), torch.cat(labels)


def _fids(real: Tensor, samples: Tensor, trained: tuple[Tensor, Tensor], label: int) -> tuple[float, float] | None:
    of_training = trained[0][trained[1] == label][: len(real)]
    if min(len(real), len(of_training)) < 2:
        return None
    return float(frechet_distance(real, samples)), float(frechet_distance(real, of_training))


def _read_out(z: Tensor, x: Tensor) -> dict[str, float]:
    columns = [x] if x.ndim == 1 else [column.long() for column in x.T if len(torch.unique(column)) > 1]
    if not columns or len(z) < 4:
        return {}
    rows = [read_out_accuracy(z, column, STEPS) for column in columns]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def read_out_accuracy(z: Tensor, labels: Tensor, steps: int = STEPS) -> dict[str, float]:
    """How well a linear and a small network read labels from codes, on codes that they have not seen.

    Args:
        z: Codes (n, d), n at least 4.
        labels: int64 (n,).
        steps: Steps of Adam on batches of 500.

    Returns:
        ``label_from_code_linear``, ``label_from_code_mlp`` and ``chance``.
    """
    classes, half = int(labels.max()) + 1, len(z) // 2
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    z, labels = z[order].float(), labels[order]
    z = (z - z[:half].mean(0)) / z[:half].std(0).clamp(min=1e-6)
    counts = torch.bincount(labels[half:], minlength=classes)
    results = {"chance": float(counts.max() / counts.sum())}
    d = z.shape[1]
    for name, network in (
        ("linear", nn.Linear(d, classes)),
        ("mlp", nn.Sequential(nn.Linear(d, 128), nn.ReLU(), nn.Linear(128, classes))),
    ):
        optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(half, (min(500, half),))
                loss = F.cross_entropy(network(z[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
            found = network(z[half:]).argmax(1)
        results[f"label_from_code_{name}"] = float((found == labels[half:]).float().mean())
    return results

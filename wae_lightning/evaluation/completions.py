"""Measures completions of a conditional model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.callbacks import MeasureCompletions
from wae_lightning.callbacks.pictures import in_unit_range
from wae_lightning.conditional import ConditionalWAE
from wae_lightning.evaluation.codes import batches_of
from wae_lightning.evaluation.images import choose_features, extract_features
from wae_lightning.lightning import Trainer
from wae_lightning.metrics.completion import frechet_distance
from wae_lightning.networks import ConditionalMLPEncoder

__all__ = ["LabelNet", "evaluate_completions"]


class LabelNet(nn.Module):
    """Classifier of conditions: the label that a perfect completion would get is a draw from its output."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = ConditionalMLPEncoder([shape], 10, hidden=(512, 512))

    def forward(self, x: Tensor) -> Tensor:
        """Maps conditions (B, ...) to logits of the labels (B, classes)."""
        return self.layers(F.dropout(x, 0.2, self.training))  # type: ignore[no-any-return]

    def fit(self, data: Any, epochs: int) -> LabelNet:
        """Trains with cross-entropy, then calibrates by a temperature found on the validation set."""
        loader = data.train_dataloader()
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(loader))
        for _ in range(epochs):
            for batch in loader:
                x, _, labels = data.on_after_batch_transfer(batch, 0)
                loss = F.cross_entropy(self(x), labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        self.eval().requires_grad_(False)
        pairs = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
        logits, labels = torch.cat([self(x) for x, _, _ in pairs]), torch.cat([labels for _, _, labels in pairs])
        scales = torch.linspace(0.5, 1.5, 101)
        self.scale = min(scales, key=lambda scale: F.cross_entropy(scale * logits, labels).item())
        last = self.layers.layers[-1]
        last.weight *= self.scale
        last.bias *= self.scale
        return self


def evaluate_completions(
    model: ConditionalWAE,
    data: Any,
    seed: int,
    features: str = "auto",
    inception_weights: Path | None = None,
) -> dict[str, float]:
    """Measures completions, on MNIST beside those that a classifier of the given parts would choose."""
    if data is None:
        raise ValueError("a conditional model is measured against images: name their folder with --data.root DIR")
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    next(batches_of(data, "test"))  # says it, if there is none
    torch.manual_seed(seed)
    digits = getattr(data, "content", None) == "digits"
    label_net = LabelNet(data.condition_shape).fit(data, epochs=8).to(model.device) if digits else None
    trainer = Trainer(
        accelerator=model.device.type, devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[MeasureCompletions(label_net=label_net)],
    )  # fmt: skip
    (measured,) = trainer.test(model, data, verbose=False)
    results = {name.removeprefix("test/"): float(value) for name, value in measured.items()}
    if not digits and hasattr(data, "pairs"):
        for name, extractor in choose_features(features, tuple(data.image_shape), inception_weights).items():
            results[f"fid_{name}"] = measure_fid(model, data, extractor.to(model.device))
    return results


@torch.no_grad()
def measure_fid(model: ConditionalWAE, data: Any, extractor: nn.Module) -> float:
    """Fréchet distance of one completion of each test image from the test images."""
    features: list[list[Tensor]] = [[], []]
    for batch in batches_of(data, "test"):
        x, y = (part.to(model.device) for part in batch[:2])
        for kept, target in zip(features, (y, model.complete(x, 1)[:, 0]), strict=True):
            kept.append(extract_features([in_unit_range(model, data.join(x, target))], extractor))
    real, completed = map(torch.cat, features)
    return float(frechet_distance(real, completed))

"""A picture of the codes against the prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CodePictures", "most_deviating_directions"]


def most_deviating_directions(z: Tensor, z_prior: Tensor) -> Tensor:
    """The two orthogonal directions in which second moments of codes and prior differ most.

    They are the eigenvectors of E zzᵀ - E z'z'ᵀ, both about the prior's mean, with the largest absolute eigenvalues.

    Args:
        z: Codes (n, d), d at least 2.
        z_prior: Draws from the prior (m, d).

    Returns:
        Orthonormal columns, (d, 2).
    """
    center = z_prior.mean(0)
    z, z_prior = z - center, z_prior - center
    values, vectors = torch.linalg.eigh(z.T @ z / len(z) - z_prior.T @ z_prior / len(z_prior))
    largest = values.abs().argsort(descending=True)[:2]
    return torch.index_select(vectors, 1, largest)


class CodePictures(Callback):
    """Shows codes in TensorBoard: over draws from the prior after each validation, in its projector after a test.

    Validation codes are drawn as ``codes`` in the plane of the two directions where they deviate most from the prior:
    if even there the two clouds look alike, the codes are right. Codes take the color of their label, where batches
    have one. The projector shows test codes with their labels and, where inputs are images, small pictures of them.

    Args:
        count: How many codes and how many draws from the prior are shown, at least 2.

    Raises:
        ValueError: If ``count`` is less than 2.
    """

    def __init__(self, count: int = 1000) -> None:
        if count < 2:
            raise ValueError(f"count must be at least 2, got {count}")
        self.count = count
        self._codes: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._inputs: list[Tensor] = []

    def draw(self, z: Tensor, z_prior: Tensor, labels: Tensor | None = None) -> Any:
        """Draws codes (n, d) over draws from the prior (m, d): a matplotlib ``Figure``."""
        from matplotlib.figure import Figure

        directions = most_deviating_directions(z, z_prior)
        figure = Figure(figsize=(5, 5))
        axes = figure.add_axes((0.09, 0.07, 0.88, 0.87))  # fixed: fitting it takes as long as all the drawing
        colors: dict[str, Any] = {"color": "tab:blue"} if labels is None else {"c": labels.numpy(), "cmap": "tab10"}
        for points, name, style in ((z_prior, "prior", {"color": "lightgray"}), (z, "codes", colors)):
            horizontal, vertical = (points @ directions).T.numpy()
            axes.scatter(horizontal, vertical, s=4, label=name, **style)
        axes.set(aspect="equal", title="codes where they deviate most from the prior")
        axes.legend(loc="upper right")
        return figure

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._keep(trainer, pl_module, outputs, batch, batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._keep(trainer, pl_module, outputs, batch, batch_idx)

    def _keep(self, trainer: Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._codes, self._labels, self._inputs = [], [], []
        missing = self.count - sum(map(len, self._codes))
        if missing > 0 and model.latent_dim > 1 and not trainer.sanity_checking:
            x = batch[0] if isinstance(batch, list | tuple) else batch
            given = outputs.get("codes") if isinstance(outputs, dict) else None
            codes = model.encode(x[:missing], noise=True) if given is None else given[:missing]
            self._codes.append(codes.float().cpu())
            if trainer.testing and x.ndim == 4:
                self._inputs.append(x[:missing].float().cpu())
            if isinstance(batch, list | tuple) and batch[-1].ndim == 1:
                self._labels.append(batch[-1][:missing].cpu())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not self._codes or not writers:
            return
        model: Any = pl_module
        z_prior = model.prior.sample(self.count, torch.Generator().manual_seed(0))
        labels = torch.cat(self._labels) if self._labels else None
        for writer in writers:
            writer.add_figure("codes", self.draw(torch.cat(self._codes), z_prior, labels), trainer.current_epoch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._codes or not trainer.is_global_zero:
            return
        labels = torch.cat(self._labels).tolist() if self._labels else None
        sprites = _sprites(torch.cat(self._inputs)) if self._inputs else None
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_embedding(torch.cat(self._codes), labels, sprites, trainer.global_step, "codes")
        self._inputs = []


def _sprites(images: Tensor) -> Tensor:
    """Small pictures of images (n, C, H, W) for the projector, which takes one sheet of at most 8192 x 8192 pixels."""
    side = min(images.shape[-1], images.shape[-2], 8192 // math.ceil(len(images) ** 0.5), 64)
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True).clamp(0, 1)

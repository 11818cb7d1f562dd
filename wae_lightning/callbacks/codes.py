"""A picture of the codes against the prior."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wae_lightning.callbacks.png import add_png
from wae_lightning.lightning import Callback, LightningModule, TensorBoardLogger, Trainer

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


@functools.lru_cache(maxsize=4)
def _plot(limit: float) -> tuple[Any, Any, Any]:
    """A square plot with all but its points, drawn once: axes, text and legend take five times as long as the points.

    Returns:
        The canvas, what is on it, and the clouds of the prior and of the codes, which are not.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas: Any = FigureCanvasAgg(Figure(figsize=(5, 5)))
    axes = canvas.figure.add_axes((0.09, 0.07, 0.88, 0.87), xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_title("codes where they deviate most from the prior")
    clouds = (
        axes.scatter(0, 0, s=4, color="lightgray", label="prior", animated=True),
        axes.scatter(0, 0, s=4, c=0, vmin=0, vmax=9, cmap="tab10", label="codes", animated=True),
    )
    axes.legend(loc="upper right")
    canvas.draw()
    return canvas, canvas.copy_from_bbox(canvas.figure.bbox), clouds


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

    def draw(self, z: Tensor, z_prior: Tensor, labels: Tensor | None = None) -> Tensor:
        """Draws codes over draws from the prior.

        Args:
            z: Codes (n, d).
            z_prior: Draws from the prior (m, d). They set the scale, which grows by steps where codes lie outside.
            labels: Integers (n,), colors of the codes.

        Returns:
            A uint8 image (3, height, width).
        """
        directions = most_deviating_directions(z, z_prior)
        points, prior_points = z @ directions, z_prior @ directions
        limit = 1.1 * float(z_prior.abs().max())
        outside = float(points.abs().max()) / limit
        if outside > 1:
            limit *= 2 ** (math.ceil(2 * math.log2(outside)) / 2)
        canvas, empty, (of_prior, of_codes) = _plot(limit)
        canvas.restore_region(empty)
        of_prior.set_offsets(prior_points.numpy())
        of_codes.set_offsets(points.numpy())
        of_codes.set_array(torch.zeros(len(z)).numpy() if labels is None else (labels % 10).numpy())
        for cloud in (of_prior, of_codes):
            cloud.axes.draw_artist(cloud)
        pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
        return pixels.view(*canvas.get_width_height()[::-1], 4)[:, :, :3].permute(2, 0, 1)

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
        if not self._codes or not writers or not trainer.is_global_zero:
            return
        model: Any = pl_module
        z_prior = model.prior.sample(self.count, torch.Generator().manual_seed(0))
        labels = torch.cat(self._labels) if self._labels else None
        picture = self.draw(torch.cat(self._codes), z_prior, labels)
        for writer in writers:
            add_png(writer, "codes", picture, trainer.current_epoch, colors=64)

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

"""A picture of the codes against the prior."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wae_lightning.callbacks.pictures import Pictures, in_unit_range, inputs_of, tensorboard_writers
from wae_lightning.lightning import LightningModule, Trainer

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
    given, z, z_prior = z, (z - center).double(), (z_prior - center).double()  # squares of codes that training lost
    values, vectors = torch.linalg.eigh(z.T @ z / len(z) - z_prior.T @ z_prior / len(z_prior))
    largest = values.abs().argsort(descending=True)[:2]
    return torch.index_select(vectors, 1, largest).to(given)


@functools.lru_cache(maxsize=4)
def _plot(limit: float) -> tuple[Any, Any, Any]:
    """A square plot with all but its points, drawn once: axes, text and legend take five times as long as the points.

    Returns:
        The canvas, what is on it, and the clouds of the prior and of the codes, which are not.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas: Any = FigureCanvasAgg(Figure(figsize=(5, 5), dpi=180))
    axes = canvas.figure.add_axes((0.09, 0.07, 0.88, 0.87), xlim=(-limit, limit), ylim=(-limit, limit))
    axes.set_title("codes where they deviate most from the prior")
    clouds = (
        axes.scatter(0, 0, s=4, color="lightgray", label="prior", animated=True),
        axes.scatter(0, 0, s=4, c=0, vmin=0, vmax=9, cmap="tab10", label="codes", animated=True),
    )
    axes.legend(loc="upper right")
    canvas.draw()
    return canvas, canvas.copy_from_bbox(canvas.figure.bbox), clouds


class CodePictures(Pictures):
    """Shows codes over draws from the prior after each validation and after a test, then also in the projector.

    Codes are drawn as ``codes`` in the plane of the two directions where they deviate most from the prior: if even
    there the two clouds look alike, the codes are right. Codes take the color of their label, where batches have one.
    TensorBoard's projector shows test codes with their labels and, where inputs are images, small pictures of them.
    Codes of one dimension have no such picture.

    Args:
        count: How many codes and how many draws from the prior are shown, at least 2.

    Raises:
        ValueError: If ``count`` is less than 2.
    """

    def __init__(self, count: int = 1000) -> None:
        if count < 2:
            raise ValueError(f"count must be at least 2, got {count}")
        super().__init__(count)

    def examples(self, model: Any, batch: Any, outputs: Any, count: int) -> dict[str, Tensor]:
        """Takes the codes of a batch, which the model's step may hand over as ``codes``, its inputs and its labels."""
        if model.latent_dim < 2:
            return {}
        x = inputs_of(model, batch)[:count]
        given = outputs.get("codes") if isinstance(outputs, Mapping) else None
        codes = model.encode(x, noise=True) if given is None else given[:count]
        # a copy: with CUDA graphs the next step overwrites what it gave
        found = {"codes": codes.to(torch.float32, copy=True)}
        labels = labels_of(batch)
        if labels is not None:
            found["labels"] = labels[:count]
        if model.trainer.testing and x.ndim == 4:
            found["inputs"] = x
        return found

    def pictures(self, model: Any, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws the finite codes that were kept over as many draws from the prior as there may be codes."""
        z_prior = model.prior.sample(self.count, torch.Generator().manual_seed(0)).float()
        codes, labels = examples["codes"], examples.get("labels")
        finite = codes.isfinite().all(1)
        if not finite.any():
            return {}
        return {"codes": self.draw(codes[finite].cpu(), z_prior, None if labels is None else labels[finite].cpu())}

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

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_epoch_end(trainer, pl_module)
        writers = tensorboard_writers(trainer)
        if writers and self.due(trainer):
            kept = {name: rows.float().cpu() for name, rows in self.kept().items()}
            labels = kept["labels"].int().tolist() if "labels" in kept else None
            sprites = _sprites(in_unit_range(pl_module, kept["inputs"])) if "inputs" in kept else None
            for writer in writers:
                writer.add_embedding(kept["codes"], labels, sprites, trainer.global_step, "codes")


def labels_of(batch: Any) -> Tensor | None:
    """Labels (B,) of a batch: its last element, or its ``label`` or ``labels``, if it has one number for each input."""
    if isinstance(batch, Mapping):
        labels = batch.get("label", batch.get("labels"))
    else:
        labels = batch[-1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    return labels if isinstance(labels, Tensor) and labels.ndim == 1 else None


def _sprites(images: Tensor) -> Tensor:
    """Small pictures of images (n, C, H, W) for the projector, which takes one sheet of at most 8192 x 8192 pixels."""
    side = min(images.shape[-1], images.shape[-2], 8192 // math.ceil(len(images) ** 0.5), 64)
    return F.interpolate(images, (side, side), mode="bilinear", antialias=True)

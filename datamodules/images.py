"""What every data module of images shares: whole batches by index, and floats made on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torchvision.utils import make_grid

from datamodules.base import BatchDataModule, TensorRows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ImageDataModule", "Images"]

Batch = tuple[Tensor, Tensor]


class Images(TensorRows):
    """Images and labels in memory.

    Args:
        images: uint8 of shape (N, C, H, W).
        labels: Integers of shape (N, ...), of any width: batches have them as int64.
        rows: Which rows of the two this data set consists of, as in :class:`~datamodules.base.TensorRows`.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        super().__init__(images, labels, rows)

    @property
    def images(self) -> Tensor:
        """All images, also those of other rows."""
        return self.examples

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Batch:
        images, labels = super().__getitems__(indices)
        return images, labels.long()


class ImageDataModule(BatchDataModule):
    """Base of the data modules of images: subclasses fill ``train_set``, ``val_set`` and ``test_set`` in ``setup``.

    Batches are ``(images, labels)``. On the host the images are uint8; ``on_after_batch_transfer`` makes them float32
    in [0, 1] on the device, so that a quarter of the bytes crosses the bus and the host does no arithmetic.

    Arguments are those of :class:`~datamodules.base.BatchDataModule`.
    """

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        raise NotImplementedError(f"{type(self).__name__} does not say its image_shape")

    @property
    def content(self) -> str | None:
        """What the images show, if features exist that were made for it: ``digits``; None for anything else."""
        return None

    def names(self, part: Literal["train", "val", "test"]) -> list[str] | None:
        """File names of the pictures of a set, in the order of its loader without shuffling; None if they have none."""
        return None

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, *rest = batch
        return (as_float(images), *rest)

    def plot(self, batch: Any, count: int = 64) -> Figure:
        """Draws the first images of a batch as one grid.

        Args:
            batch: A batch as a loader or ``on_after_batch_transfer`` gives it; only its first element is drawn.
            count: How many images at most.

        Returns:
            A figure of its own, unknown to pyplot: save it with ``figure.savefig(path)``.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 6), layout="constrained")
        draw_grid(figure.subplots(), batch[0][:count])
        return figure


def as_float(images: Tensor) -> Tensor:
    """Makes uint8 images float32 in [0, 1] as torchvision's ``ToTensor`` does; float images stay as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def draw_grid(axes: Axes, images: Tensor, title: str = "") -> None:
    """Draws images (N, C, H, W), uint8 or float in [0, 1], as a nearly square grid, without enlarging pixels."""
    grid = make_grid(as_float(images).cpu(), nrow=max(1, round(len(images) ** 0.5)), padding=1, pad_value=0.5)
    axes.imshow(grid.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()

"""What every data module of images shares: whole batches by index, and floats made on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.utils import make_grid

from datamodules.base import BatchDataModule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ImageDataModule", "Images"]

Batch = tuple[Tensor, Tensor]


class Images(Dataset[Batch]):
    """Images and labels in memory; a whole batch is one index operation.

    Args:
        images: uint8 of shape (N, C, H, W).
        labels: Integers of shape (N, ...), of any width: batches have them as int64.
        rows: Which rows of the two this data set consists of; None means all of them. Nothing is copied, so the
            training and the validation part of one set share its memory.
    """

    in_memory = True

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        self.rows = torch.arange(len(labels), device=labels.device) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        # index_select copies row by row, ten times faster than indexing does for rows of bytes
        rows = self.rows.index_select(0, torch.as_tensor(indices, device=self.rows.device))
        return self.images.index_select(0, rows), self.labels.index_select(0, rows).long()

    @property
    def bytes(self) -> int:
        """Size of the images of this data set."""
        return len(self) * self.images[:1].nbytes

    def to(self, device: torch.device) -> Images:
        """The same data set on a device: a copy of its own rows only."""
        return Images(self.images[self.rows].to(device), self.labels[self.rows].to(device))


class ImageDataModule(BatchDataModule):
    """Base of the data modules of images: subclasses fill ``train_set``, ``val_set`` and ``test_set`` in ``setup``.

    Batches are ``(images, labels)``. On the host the images are uint8; ``on_after_batch_transfer`` makes them float32
    in [0, 1] on the device, so that a quarter of the bytes crosses the bus and the host does no arithmetic.

    Args:
        batch_size: Images per batch.
        num_workers: Worker processes of the DataLoader.
        on_device: Whether the images lie on the trainer's device for the whole run: then batches are drawn there, and
            no copy is left on the host. The order of the images is the same either way. None: on a CUDA GPU, if a set
            in memory fills at most a third of what is free there.

    Raises:
        ValueError: If an argument is out of its range, or ``on_device`` is asked for along with worker processes, which
            cannot reach a device, or with images that stay on disk.
    """

    def __init__(self, batch_size: int, num_workers: int, on_device: bool | None = None) -> None:
        super().__init__(batch_size, num_workers)
        if on_device and num_workers:
            raise ValueError(f"on_device needs num_workers 0, got {num_workers}: workers do not reach the device")
        self.on_device = on_device

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

    def train_dataloader(self) -> DataLoader[Any]:
        self._place("train_set")
        return super().train_dataloader()

    def val_dataloader(self) -> DataLoader[Any]:
        self._place("val_set")
        return super().val_dataloader()

    def test_dataloader(self) -> DataLoader[Any]:
        self._place("test_set")
        return super().test_dataloader()

    def _place(self, name: str) -> None:
        """Moves one of the three data sets to the trainer's device, if it is to lie there."""
        dataset = getattr(self, name)
        if self.on_device is False or self.num_workers or self.trainer is None or not isinstance(dataset, Images):
            return
        device = self.trainer.strategy.root_device
        fits = device.type == "cuda" and dataset.in_memory and 3 * dataset.bytes <= torch.cuda.mem_get_info(device)[0]
        if (self.on_device or fits) and dataset.rows.device != device:
            setattr(self, name, dataset.to(device))

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

"""What the data modules of picture files share: one cache, kept in memory if it fits, else read from disk."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from datamodules.cache import Cache, Sources
from datamodules.images import Batch, ImageDataModule, Images
from datamodules.pictures import Crop, read_picture

__all__ = ["CachedImageDataModule", "ImagesOnDisk", "Pictures"]


class Pictures(Sources):
    """Picture files, each read by :func:`~datamodules.pictures.read_picture`, whose arguments these are."""

    def __init__(
        self,
        files: list[Path],
        shape: tuple[int, int, int],
        crop: Crop | int,
        background: str | None = None,
        exact: bool = False,
    ) -> None:
        super().__init__(files, shape, "uint8")
        self.image_shape = shape
        self.crop = crop
        self.background = background
        self.exact = exact

    def read(self, index: int) -> np.ndarray:
        return read_picture(self.files[index], self.image_shape, self.crop, self.background, self.exact)


class ImagesOnDisk(Images):
    """Like ``Images``, but a batch is read from the cache file, in the order of its rows there."""

    in_memory = False

    def __init__(self, cache: Cache, labels: Tensor, rows: Tensor) -> None:
        super().__init__(torch.empty(0, *cache.shape[1:], dtype=torch.uint8), labels, rows)
        self.cache = cache

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Batch:
        rows = self.rows_of(indices)
        return self.cache.read(rows), self.labels[rows].long()

    def to(self, device: torch.device) -> NoReturn:
        raise ValueError("on_device needs the images in memory, but they are read from disk: raise memory_budget")


class CachedImageDataModule(ImageDataModule):
    """Base of the data modules of picture files: subclasses say where the cache is and what each row of it is.

    Args:
        batch_size: Images per batch.
        num_workers: Worker processes of the DataLoader; 0 is fastest because a batch is one index operation.
        on_device: Whether all images lie on the trainer's device, as in :class:`~datamodules.images.ImageDataModule`.
        image_size: Side of the images, in pixels.
        flip: Mirror each training image with probability 1/2, on the device.
        memory_budget: Up to this size, in GB, the cache is kept mapped into memory, which the processes of a machine
            share; a larger one is read from disk batch by batch.
        on_error: ``raise`` stops at the first missing or damaged picture; ``skip`` leaves such pictures out and
            reports how many and which.
        shift: Move each training image along each axis by up to this many pixels at random, on the device.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        on_device: bool | None,
        image_size: int,
        flip: bool,
        memory_budget: float,
        on_error: Literal["raise", "skip"],
        shift: int,
    ) -> None:
        super().__init__(batch_size, num_workers, on_device)
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be one of raise, skip, got {on_error!r}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
        if shift < 0:
            raise ValueError(f"shift must be at least 0 pixels, got {shift}")
        self.image_size = image_size
        self.flip = flip
        self.shift = shift
        self.memory_budget = memory_budget
        self.on_error = on_error

    @functools.cached_property
    def _cache(self) -> Cache:
        """The cache; opening builds it."""
        raise NotImplementedError

    def _rows_of_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows of the cache are for training, validation and test."""
        raise NotImplementedError

    def _labels_of_rows(self) -> Tensor:
        raise NotImplementedError

    def _names_of_rows(self) -> Sequence[str]:
        raise NotImplementedError

    def prepare_data(self) -> None:
        _ = self._cache

    def setup(self, stage: str = "fit") -> None:
        if hasattr(self, "test_set"):
            return
        cache = self._cache
        labels = self._labels_of_rows()
        images = cache.map() if cache.bytes <= self.memory_budget * 1e9 else None
        parts = {"train": "training", "val": "validation", "test": "test"}
        self._rows = {}
        for (part, name), rows in zip(parts.items(), self._rows_of_parts(), strict=True):
            rows = rows[torch.isin(rows, cache.good_rows)]
            if not len(rows):
                raise ValueError(f"{cache.path}: not one readable picture is left for the {name} set")
            self._rows[part] = rows
            one_set = ImagesOnDisk(cache, labels, rows) if images is None else Images(images, labels, rows)
            setattr(self, f"{part}_set", one_set)

    def names(self, part: Literal["train", "val", "test"]) -> list[str]:
        every = self._names_of_rows()
        return [every[row] for row in self._rows[part].tolist()]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            if self.flip:
                mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
                images = torch.where(mirrored, images.flip(-1), images)
            if self.shift:
                images = move(images, self.shift)
        return super().on_after_batch_transfer((images, labels), dataloader_idx)

    def _counts(self) -> str:
        """What a line on the terminal says of the three sets."""
        train, val, test = (len(self._rows[part]) for part in ("train", "val", "test"))
        where = "in memory" if self.train_set.in_memory else "read from disk"  # type: ignore[attr-defined]
        return f"Using {train:,} training, {val:,} validation and {test:,} test images, {where},"


def move(images: Tensor, most: int) -> Tensor:
    """Moves each of the images (B, C, H, W) by whole pixels, up to ``most`` along each axis; their edges go on.

    Whole pixels, because between them images would be blurred.
    """
    b, c, h, w = (torch.arange(size, device=images.device) for size in images.shape)
    down, right = torch.randint(-most, most + 1, (2, len(b), 1), device=images.device)
    rows, columns = (h - down).clamp(0, len(h) - 1), (w - right).clamp(0, len(w) - 1)
    return images[b[:, None, None, None], c[:, None, None], rows[:, None, :, None], columns[:, None, None, :]]

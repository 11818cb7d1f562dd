"""What every data module of images shares: whole batches by index, and floats made on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

__all__ = ["ImageDataModule", "Images"]

Batch = tuple[Tensor, Tensor]


class Images(Dataset[Batch]):
    """Images and labels in memory; a whole batch is one index operation.

    Args:
        images: uint8 of shape (N, C, H, W).
        labels: integers of shape (N, ...).
        rows: Which rows of the two this data set consists of; None means all of them. Nothing is copied, so the
            training and the validation part of one set share its memory.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        self.rows = torch.arange(len(images)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        row = self.rows[index]
        return self.images[row], self.labels[row]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = self.rows[torch.as_tensor(indices)]
        return self.images[rows], self.labels[rows]


def _as_is(batch: Any) -> Any:
    """The collate function of data sets whose ``__getitems__`` already returns a batch."""
    return batch


class ImageDataModule(LightningDataModule):
    """Base of the data modules of images: subclasses fill ``train_set``, ``val_set`` and ``test_set`` in ``setup``.

    Batches are ``(images, labels)``. On the host the images are uint8; ``on_after_batch_transfer`` makes them float32
    in [0, 1] on the device, so that a quarter of the bytes crosses the bus and the host does no arithmetic.

    Args:
        batch_size: Images per batch.
        num_workers: Worker processes of the DataLoader. In-memory sets need none: 0 is fastest.

    Raises:
        ValueError: If ``batch_size`` is not positive or ``num_workers`` is negative.
    """

    train_set: Dataset[Any]
    val_set: Dataset[Any]
    test_set: Dataset[Any]

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        # A last batch of another size would change the scale of the penalty and, with one image, break batch norm.
        return self._loader(self.train_set, shuffle=True, drop_last=len(self.train_set) >= self.batch_size)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def _loader(self, dataset: Dataset[Any], shuffle: bool = False, drop_last: bool = False) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_as_is,
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, *rest = batch
        if images.dtype == torch.uint8:
            images = images.float().div_(255)
        return (images, *rest)


def training_and_validation_rows(count: int, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits ``range(count)`` at random, but the same way for the same ``seed``.

    Args:
        count: Number of examples in the official training set.
        val_fraction: Share of them that goes to validation, in (0, 1).
        seed: Seed of the permutation; it is independent of the seed of the training run.

    Returns:
        Sorted row numbers of the training part and of the validation part.

    Raises:
        ValueError: If ``val_fraction`` leaves one of the two empty.
    """
    validation = round(count * val_fraction)
    if not 0 < validation < count:
        raise ValueError(f"val_fraction must leave both parts some of the {count} examples, got {val_fraction}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[validation:].sort().values, order[:validation].sort().values

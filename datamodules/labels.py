"""Pairs of a label and an image, for models that draw images of a class."""

from __future__ import annotations

import functools
from pathlib import Path

from torch import Tensor

from datamodules.celeba import CelebADataModule
from datamodules.folder import ImageFolderDataModule
from datamodules.images import ImageDataModule
from datamodules.mnist import MNISTDataModule
from datamodules.pairs import PairDataModule
from wae_lightning.pairs import Labels

__all__ = ["LabelDataModule"]

_MNIST_CLASSES = {"emnist-balanced": 47, "emnist-bymerge": 47, "emnist-byclass": 62, "emnist-letters": 27}


class LabelDataModule(PairDataModule):
    """Labels and the images that have them: the condition is the label, the target the image.

    Batches are ``(label, image, label)``: int64 (B,) for classes, float32 (B, number) of 0 and 1 for attributes, and
    float32 images (B, C, H, W) in [0, 1].

    Args:
        images: The data module of labelled images: MNIST and its kind, a folder with a folder for each class, or
            CelebA with a list of ``attributes``. None is ``MNISTDataModule()``.
        class_names: A name for each label. None: those of the folders, CelebA's attributes, or the numbers from 0.
        root: Root of the default MNIST; give it to ``images`` otherwise. The same holds for the next three.
        batch_size: Images per batch, 100 if None.
        num_workers: Worker processes of the DataLoader, 0 if None.
        on_device: Whether all images lie on the trainer's device, as in :class:`~datamodules.images.ImageDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or it is not known which labels there are.

    Example:
        >>> digits = LabelDataModule(batch_size=32)
        >>> digits.setup("test")
        >>> label, image, _ = digits.on_after_batch_transfer(next(iter(digits.test_dataloader())), 0)
        >>> label.shape, image.shape, digits.num_classes
        (torch.Size([32]), torch.Size([32, 1, 28, 28]), 10)
    """

    def __init__(
        self,
        images: ImageDataModule | None = None,
        class_names: list[str] | list[int] | None = None,
        root: str | Path | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        on_device: bool | None = None,
    ) -> None:
        super().__init__(images, root, batch_size, num_workers, on_device)
        self.class_names = class_names
        if isinstance(self.images, CelebADataModule) and self.images.attributes is None:
            raise ValueError("labels of CelebA: name the attributes that shall be conditions, attributes=[...]")

    @functools.cached_property
    def pairs(self) -> Labels:
        """The labels; of a folder they are known once it is looked through."""
        images, names, attributes = self.images, list(map(str, self.class_names or ())), False
        if isinstance(images, CelebADataModule):
            attributes = isinstance(images.attributes, list)
            names = names or (images.attributes if isinstance(images.attributes, list) else ["no", "yes"])
        elif isinstance(images, ImageFolderDataModule):
            names = names or images.class_names
            if len(names) < 2:
                raise ValueError(f"{images.root}: expected a folder for each of at least 2 labels, found {len(names)}")
        elif isinstance(images, MNISTDataModule):
            names = names or [str(number) for number in range(_MNIST_CLASSES.get(images.variant, 10))]
        if not names:
            raise ValueError(f"class_names: {type(images).__name__} does not tell its labels, so they must be named")
        return Labels(images.image_shape, names, attributes)

    def pair(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Puts the labels before the images."""
        return (labels.to(images.dtype) if labels.ndim > 1 else labels), images, labels

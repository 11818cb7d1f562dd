"""Pairs of an observed and a hidden part of an image, for conditional models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.images import ImageDataModule, draw_grid
from datamodules.mnist import MNISTDataModule
from wae_lightning.image_parts import ImageParts, Observed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["HalfImageDataModule"]


class HalfImageDataModule(ImageDataModule):
    """Images cut in two: a model sees the observed part and completes the target.

    Batches are ``(observed, target, label)``, float32 in [0, 1] of shapes (B, *observed_shape) and (B, *target_shape).
    The images stay where the wrapped data module has them; only a batch is cut.

    The quadrants are those of Pyro's CVAE example, after K. Sohn et al., "Learning Structured Output Representation
    using Deep Conditional Generative Models" (2015): the first is bottom left, the second top left, the third top
    right, and the bottom right one is never observed. So ``2_quadrants`` is the same as ``left``. Of 1 : 3 quadrants
    one part has the shape of an L: it is a whole image with zeros where the other part is, and ``mask`` tells which
    pixels count.

    Args:
        images: The data module to wrap, for example ``CelebADataModule()``; None is ``MNISTDataModule()``.
        observed: ``top``, ``bottom``, ``left``, ``right``, ``1_quadrant``, ``2_quadrants`` or ``3_quadrants``.
        fraction: Share of the height (or width) that is observed, in (0, 1), rounded to pixels. With quadrants it is
            the height and the width of the bottom left one, and so places both cuts.
        root: Root of the default MNIST; give it to ``images`` otherwise. The same holds for the next three.
        batch_size: Images per batch, 100 if None.
        num_workers: Worker processes of the DataLoader, 0 if None.
        on_device: Whether all images lie on the trainer's device, as in :class:`~datamodules.images.ImageDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or given here although ``images`` has its own.

    Example:
        >>> halves = HalfImageDataModule(batch_size=32)
        >>> halves.setup("test")
        >>> observed, target, label = next(iter(halves.test_dataloader()))
        >>> observed.shape, target.shape, halves.join(observed, target).shape
        (torch.Size([32, 1, 14, 28]), torch.Size([32, 1, 14, 28]), torch.Size([32, 1, 28, 28]))
    """

    def __init__(
        self,
        images: ImageDataModule | None = None,
        observed: Observed = "top",
        fraction: float = 0.5,
        root: str | Path | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        on_device: bool | None = None,
    ) -> None:
        own = {"root": root, "batch_size": batch_size, "num_workers": num_workers, "on_device": on_device}
        given = {name: value for name, value in own.items() if value is not None}
        if images is None:
            images = MNISTDataModule(**given)  # type: ignore[arg-type]
        elif given:
            raise ValueError(f"{' and '.join(given)}: give this to {type(images).__name__}, which images is, instead")
        if not isinstance(images, ImageDataModule) or isinstance(images, HalfImageDataModule):
            raise ValueError(f"images must be a data module of whole images, got a {type(images).__name__}")
        super().__init__(images.batch_size, images.num_workers)
        self.images = images
        self.observed = observed
        self.fraction = fraction
        self.parts = ImageParts(images.image_shape, observed, fraction)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one whole image: (channels, height, width)."""
        return self.images.image_shape

    @property
    def content(self) -> str | None:
        """What the whole images show, as their data module says."""
        return self.images.content

    def names(self, part: Literal["train", "val", "test"]) -> list[str] | None:
        """File names of the whole images of a set."""
        return self.images.names(part)

    @property
    def observed_shape(self) -> tuple[int, int, int]:
        """Shape of one observed part: (channels, height, width)."""
        return self.parts.observed_shape

    @property
    def target_shape(self) -> tuple[int, int, int]:
        """Shape of one target: (channels, height, width)."""
        return self.parts.target_shape

    @property
    def mask(self) -> Tensor:
        """Boolean (1, height, width): True where an image is observed, False where it is the target."""
        return self.parts.mask

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Cuts images (..., C, H, W) into (observed, target)."""
        return self.parts.split(images)

    def join(self, observed: Tensor, target: Tensor) -> Tensor:
        """Puts the two parts together again.

        Args:
            observed: (..., *observed_shape).
            target: (..., *target_shape); the leading dimensions are broadcast, so (B, 1, *observed_shape) goes with
                n completions (B, n, *target_shape). What an L-shaped part holds outside of it is ignored.

        Returns:
            Whole images (..., C, H, W).
        """
        return self.parts.join(observed, target)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says about the data."""
        halves = {"observed": self.observed, "fraction": self.fraction}
        return self.images.state_dict() | super().state_dict() | halves

    def prepare_data(self) -> None:
        self.images.prepare_data()

    def setup(self, stage: str = "fit") -> None:
        self.images.trainer = self.trainer
        self.images.setup(stage)
        for name in ("train_set", "val_set", "test_set"):
            self._halve(name)

    def _halve(self, name: str) -> None:
        setattr(self, name, _HalfImages(getattr(self.images, name), self.parts))

    def _placed(self, name: str) -> Dataset[Any]:
        self.images._placed(name)
        self._halve(name)
        return super()._placed(name)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        observed, target, label = batch
        # Whole again for a moment, so that both parts get the same flip.
        images, label = self.images.on_after_batch_transfer((self.join(observed, target), label), dataloader_idx)
        return (*self.split(images), label)

    def plot(self, batch: Any, count: int = 16) -> Figure:
        """Draws the observed parts, the targets and the whole images of a batch, side by side.

        Args:
            batch: ``(observed, target, label)`` as a loader or ``on_after_batch_transfer`` gives it.
            count: How many images at most.

        Returns:
            A figure of its own, unknown to pyplot: save it with ``figure.savefig(path)``.
        """
        from matplotlib.figure import Figure

        observed, target = batch[0][:count], batch[1][:count]
        figure = Figure(figsize=(12, 4.5), layout="constrained")
        parts = {"observed": observed, "target": target, "whole": self.join(observed, target)}
        for axes, (title, images) in zip(figure.subplots(1, 3), parts.items(), strict=True):
            draw_grid(axes, images, title)
        return figure


class _HalfImages(Dataset[Any]):
    def __init__(self, images: Dataset[Any], parts: ImageParts) -> None:
        self.images = images
        self.parts = parts

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return getattr(self.images, "device", torch.device("cpu"))

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        images, labels = self.images.__getitems__(indices)  # type: ignore[attr-defined]
        return (*self.parts.split(images), labels)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(part[0] for part in self.__getitems__([index]))

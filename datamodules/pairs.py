"""Pairs (condition, target) of any image data module, for conditional models."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from datamodules.images import ImageDataModule, draw_grid
from datamodules.mnist import MNISTDataModule
from wae_lightning.pairs import Downscaled, Grey, Masked, Pairs
from wae_lightning.parts import describe, recorded_arguments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DownscaledDataModule", "GreyDataModule", "MaskedDataModule", "PairDataModule"]


def _of_images(name: str) -> Any:
    """A set that lies with the wrapped data module: one that is moved to a device leaves no copy behind."""

    def find(self: PairDataModule) -> Any:
        return getattr(self.images, name)

    def put(self: PairDataModule, found: Any) -> None:
        setattr(self.images, name, found)

    return property(find, put, doc=f"The ``{name}`` of the wrapped data module.")


class PairDataModule(ImageDataModule):
    """Base of the data modules that make pairs of the images of another one, which keeps them as they are.

    Loaders give ``(images, labels)`` as the wrapped data module does; ``on_after_batch_transfer`` makes batches
    ``(condition, target, label)`` of them on the device, after the wrapped one's augmentation. A subclass says by
    ``pairs`` which; checkpoints record it, so that pictures can be made of what a model puts out.

    Args:
        images: The data module to wrap, for example ``CelebADataModule()``; None is ``MNISTDataModule()``.
        root: Root of the default MNIST; give it to ``images`` otherwise. The same holds for the next three.
        batch_size: Images per batch, 100 if None.
        num_workers: Worker processes of the DataLoader, 0 if None.
        on_device: Whether all images lie on the trainer's device, as in :class:`~datamodules.images.ImageDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or given here although ``images`` has its own.
    """

    train_set, val_set, test_set = map(_of_images, ("train_set", "val_set", "test_set"))

    def __init__(
        self,
        images: ImageDataModule | None = None,
        root: str | Path | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        on_device: bool | None = None,
    ) -> None:
        if images is not None and (not isinstance(images, ImageDataModule) or isinstance(images, PairDataModule)):
            hint = f"; a folder of MNIST is root={str(images)!r}" if isinstance(images, str | Path) else ""
            raise ValueError(f"images must be a data module of whole images, got a {type(images).__name__}{hint}")
        own = {"root": root, "batch_size": batch_size, "num_workers": num_workers, "on_device": on_device}
        given = {name: value for name, value in own.items() if value is not None}
        if images is None:
            images = MNISTDataModule(**given)  # type: ignore[arg-type]
        elif given:
            raise ValueError(f"{' and '.join(given)}: give this to {type(images).__name__}, which images is, instead")
        super().__init__(images.batch_size, images.num_workers, images.on_device)
        self.images = images

    @property
    def pairs(self) -> Pairs:
        """What makes pairs of images, and images of pairs."""
        raise NotImplementedError(f"{type(self).__name__} does not say which pairs it makes")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one whole image: (channels, height, width)."""
        return self.images.image_shape

    @property
    def content(self) -> str | None:
        """What the whole images show, as their data module says."""
        return self.images.content

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Shape of one condition."""
        return self.pairs.condition_shape

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one target."""
        return self.pairs.target_shape

    @property
    def num_classes(self) -> int | None:
        """Number of labels, if the conditions are labels."""
        return self.pairs.num_classes

    def names(self, part: Literal["train", "val", "test"]) -> list[str] | None:
        return self.images.names(part)

    def split(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Makes (condition, target) of images (B, C, H, W); what is random in it is a function of the image."""
        return self.pairs.split(images)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Makes whole images of conditions and targets, see :meth:`wae_lightning.pairs.Pairs.join`."""
        return self.pairs.join(x, y)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says about the data."""
        return self.images.state_dict() | super().state_dict() | self._how()

    def _how(self) -> dict[str, Any]:
        return {name: value for name, value in recorded_arguments(self.pairs).items() if name != "image_shape"}

    def prepare_data(self) -> None:
        self.images.prepare_data()

    def setup(self, stage: str = "fit") -> None:
        self.images.trainer = self.trainer
        self.images.setup(stage)
        self.save_hyperparameters({"_pairs": describe(self.pairs)}, frame=inspect.currentframe(), logger=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = self.images.on_after_batch_transfer(batch, dataloader_idx)
        return self.pair(images, labels)

    def pair(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Makes (condition, target, label) of images in [0, 1], in training with new random numbers."""
        return (*self.pairs.split(images, self.trainer is not None and self.trainer.training), labels)

    def plot(self, batch: Any, count: int = 16) -> Figure:
        """Draws what the conditions of a batch show, the targets, and the whole images, side by side.

        Args:
            batch: ``(condition, target, label)`` as ``on_after_batch_transfer`` gives it.
            count: How many images at most.

        Returns:
            A figure of its own, unknown to pyplot: save it with ``figure.savefig(path)``.
        """
        from matplotlib.figure import Figure

        x, y = batch[0][:count], batch[1][:count]
        parts = {"condition": self.pairs.show(x), "target": y, "whole": self.join(x, y)}
        shown = {title: images for title, images in parts.items() if images is not None}
        figure = Figure(figsize=(4 * len(shown), 4.5), layout="constrained")
        for axes, (title, images) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
            draw_grid(axes, images, title)
        return figure


class MaskedDataModule(PairDataModule):
    """Inpainting: pictures with random holes, new ones in each training batch, fixed ones in validation and test.

    Args:
        images: The data module to wrap; None is ``MNISTDataModule()``.
        smallest: Least side of a hole, as a share of the picture's.
        largest: Largest side of a hole.
        own: ``root``, ``batch_size``, ``num_workers``, ``on_device``, as in :class:`PairDataModule`.
    """

    def __init__(
        self, images: ImageDataModule | None = None, smallest: float = 0.3, largest: float = 0.5, **own: Any
    ) -> None:
        super().__init__(images, **own)
        self._pairs = Masked(self.image_shape, smallest, largest)

    @property
    def pairs(self) -> Masked:
        return self._pairs


class DownscaledDataModule(PairDataModule):
    """Super-resolution: pictures at a fraction of their size.

    Args:
        images: The data module to wrap; None is ``MNISTDataModule()``.
        factor: How many times smaller, at least 2.
        own: ``root``, ``batch_size``, ``num_workers``, ``on_device``, as in :class:`PairDataModule`.
    """

    def __init__(self, images: ImageDataModule | None = None, factor: int = 4, **own: Any) -> None:
        super().__init__(images, **own)
        self._pairs = Downscaled(self.image_shape, factor)

    @property
    def pairs(self) -> Downscaled:
        return self._pairs


class GreyDataModule(PairDataModule):
    """Colourisation: grey pictures and coloured ones.

    Args:
        images: The data module to wrap, of colours.
        own: ``root``, ``batch_size``, ``num_workers``, ``on_device``, as in :class:`PairDataModule`.
    """

    def __init__(self, images: ImageDataModule, **own: Any) -> None:
        super().__init__(images, **own)
        self._pairs = Grey(self.image_shape)

    @property
    def pairs(self) -> Grey:
        return self._pairs

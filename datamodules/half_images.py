"""Pairs of an observed and a hidden part of an image, for conditional models."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from datamodules.images import ImageDataModule
from datamodules.pairs import PairDataModule
from wae_lightning.image_parts import ImageParts, Observed

__all__ = ["HalfImageDataModule"]


class HalfImageDataModule(PairDataModule):
    """Images cut in two: a model sees the observed part and completes the target.

    Batches are ``(observed, target, label)``, float32 in [0, 1] of shapes (B, *condition_shape) and (B, *target_shape).
    The images stay where the wrapped data module has them; only a batch is cut, by ``on_after_batch_transfer``.

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
        >>> batch = next(iter(halves.test_dataloader()))
        >>> observed, target, label = halves.on_after_batch_transfer(batch, 0)
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
        super().__init__(images, root, batch_size, num_workers, on_device)
        self._pairs = ImageParts(self.image_shape, observed, fraction)

    @property
    def pairs(self) -> ImageParts:
        return self._pairs

    @property
    def mask(self) -> Tensor:
        """Boolean (1, height, width): True where an image is observed, False where it is the target."""
        return self.pairs.mask

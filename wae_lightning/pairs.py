"""Pairs (condition, target) made of images, and how they are shown: what a model of pairs need not know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from wae_lightning.parts import Part

__all__ = ["Downscaled", "Grey", "Labels", "Masked", "Pairs"]

Shape = tuple[int, ...]


class Pairs(Part, ABC):
    """Makes conditions and targets of images, and images of conditions and targets.

    Args:
        image_shape: (channels, height, width) of whole images.

    Raises:
        ValueError: If that is no shape of images.
    """

    num_classes: int | None = None
    """Number of labels, if the conditions are labels."""

    def __init__(self, image_shape: Sequence[int]) -> None:
        if len(image_shape) != 3 or min(image_shape) < 1:
            raise ValueError(f"image_shape must be (channels, height, width), got {tuple(image_shape)}")
        channels, height, width = image_shape
        self.image_shape = channels, height, width

    @property
    @abstractmethod
    def condition_shape(self) -> Shape:
        """Shape of one condition."""

    @property
    def target_shape(self) -> Shape:
        """Shape of one target."""
        return self.image_shape

    @abstractmethod
    def split(self, images: Tensor, anew: bool = False) -> tuple[Tensor, Tensor]:
        """Makes (conditions, targets) of images (B, C, H, W) in [0, 1].

        Args:
            images: The images.
            anew: Draw what is random in the conditions; else it is a function of the image.
        """

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Makes whole images (..., C, H, W) of conditions and targets, whose leading dimensions are broadcast.

        Pixels that the condition holds are the same bits as there.
        """
        return y

    def show(self, x: Tensor) -> Tensor | None:
        """Shows what conditions tell, as images (B, C, H, W), unknown pixels grey; None: they tell nothing visible."""
        return None

    def hidden(self, x: Tensor) -> Tensor:
        """Boolean (1, 1, H, W), or (B, 1, H, W): True where the conditions do not tell the pixel."""
        return torch.ones(1, 1, *self.image_shape[1:], dtype=torch.bool, device=x.device)


class Masked(Pairs):
    """Inpainting: the condition is a picture with a hole, and one channel more that is 1 where the picture is known.

    Args:
        image_shape: (channels, height, width) of whole images.
        smallest: Least side of the hole, as a share of the picture's, more than 0.
        largest: Largest side of the hole, less than 1. Sides and place are uniform.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> x, y = Masked((3, 32, 32)).split(torch.rand(2, 3, 32, 32))
        >>> x.shape, y.shape
        (torch.Size([2, 4, 32, 32]), torch.Size([2, 3, 32, 32]))
    """

    def __init__(self, image_shape: Sequence[int], smallest: float = 0.3, largest: float = 0.5) -> None:
        super().__init__(image_shape)
        if not 0 < smallest <= largest < 1:
            raise ValueError(f"holes need 0 < smallest <= largest < 1, got {smallest} and {largest}")
        self.smallest = smallest
        self.largest = largest

    @property
    def condition_shape(self) -> Shape:
        channels, height, width = self.image_shape
        return channels + 1, height, width

    def split(self, images: Tensor, anew: bool = False) -> tuple[Tensor, Tensor]:
        numbers = torch.rand(len(images), 4, device=images.device) if anew else _numbers_of(images)
        inside = [
            self._inside(numbers[:, axis], numbers[:, axis + 2], size, images.device)
            for axis, size in enumerate(self.image_shape[1:])
        ]
        return self.with_hole(images, inside[0][:, None, :, None] & inside[1][:, None, None, :]), images

    def _inside(self, length: Tensor, place: Tensor, size: int, device: torch.device) -> Tensor:
        """Which of ``size`` pixels, (B, size), lie in an interval of a random length at a random place."""
        sides = (size * (self.smallest + (self.largest - self.smallest) * length)).round().clamp(1, size)
        first = (place * (size - sides + 1)).floor()
        pixels = torch.arange(size, device=device)
        return (pixels >= first.unsqueeze(1)) & (pixels < (first + sides).unsqueeze(1))

    @staticmethod
    def with_hole(images: Tensor, hole: Tensor) -> Tensor:
        """The condition of images (B, C, H, W) with a hole, True in (B, 1, H, W)."""
        known = (~hole).to(images.dtype).expand(len(images), -1, -1, -1)
        return torch.cat([images * known, known], dim=1)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(x[..., -1:, :, :] > 0.5, x[..., :-1, :, :], y)

    def show(self, x: Tensor) -> Tensor:
        return torch.where(x[..., -1:, :, :] > 0.5, x[..., :-1, :, :], 0.5)

    def hidden(self, x: Tensor) -> Tensor:
        return x[:, -1:] <= 0.5


def _numbers_of(images: Tensor) -> Tensor:
    """Four numbers in [0, 1), (B, 4), that look random but are functions of each image, the same on all devices."""
    bytes_ = (255 * images.detach().float()).round().long().flatten(1)
    # multiplications modulo 2^31 by odd numbers without pattern
    places = (torch.arange(bytes_.shape[1], device=images.device) * 2_654_435_761 + 40_503) % 2**31
    mixed = (bytes_ * places).sum(1, keepdim=True) % 2**31
    factors = torch.arange(1, 5, device=images.device) * 1_103_515_246 % 2**31 + 1
    mixed = (mixed ^ (mixed >> 15)) * factors % 2**31
    return ((mixed ^ (mixed >> 13)) * 1_274_126_177 % 2**31).float().div(2**31).clamp(max=1 - 1e-6)


class Downscaled(Pairs):
    """Super-resolution: the condition is the picture at a fraction of its size, means of squares of pixels.

    Args:
        image_shape: (channels, height, width) of whole images.
        factor: Side of the squares, at least 2; height and width must be multiples of it.

    Raises:
        ValueError: If the factor does not fit.

    Example:
        >>> Downscaled((3, 32, 32), 4).condition_shape
        (3, 8, 8)
    """

    def __init__(self, image_shape: Sequence[int], factor: int = 4) -> None:
        super().__init__(image_shape)
        if factor < 2 or any(size % factor for size in self.image_shape[1:]):
            raise ValueError(
                f"factor must be at least 2 and divide the height and the width of {self.image_shape[1]} x "
                f"{self.image_shape[2]} images, got {factor}"
            )
        self.factor = factor

    @property
    def condition_shape(self) -> Shape:
        channels, height, width = self.image_shape
        return channels, height // self.factor, width // self.factor

    def split(self, images: Tensor, anew: bool = False) -> tuple[Tensor, Tensor]:
        return F.avg_pool2d(images, self.factor), images

    def show(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)


class Grey(Pairs):
    """Colourisation: the condition is the luma of the picture (ITU-R BT.601).

    Args:
        image_shape: (3, height, width) of whole images.

    Raises:
        ValueError: If the images have no colours.

    Example:
        >>> Grey((3, 32, 32)).condition_shape
        (1, 32, 32)
    """

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__(image_shape)
        if self.image_shape[0] != 3:
            raise ValueError(f"Grey makes grey pictures of coloured ones, with 3 channels; these have {image_shape[0]}")

    @property
    def condition_shape(self) -> Shape:
        return 1, *self.image_shape[1:]

    def split(self, images: Tensor, anew: bool = False) -> tuple[Tensor, Tensor]:
        red, green, blue = images.unbind(1)
        return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1), images

    def show(self, x: Tensor) -> Tensor:
        return x.expand(*x.shape[:-3], *self.image_shape)


class Labels(Pairs):
    """The condition is what is known of the picture in words: its class, or which attributes it has.

    Args:
        image_shape: (channels, height, width) of the images.
        names: Name of each class, in the order of the labels 0, 1, ..., or of each attribute.
        attributes: Whether an image has any number of them: conditions are then 0 or 1 for each, else its number.

    Raises:
        ValueError: If there are fewer than two classes, no attributes, or two of one name.

    Example:
        >>> Labels((1, 28, 28), list("0123456789")).read("0-2,7")
        tensor([0, 1, 2, 7])
        >>> Labels((3, 64, 64), ["Male", "Smiling"], attributes=True).read("Smiling,Male+Smiling,none")
        tensor([[0., 1.],
                [1., 1.],
                [0., 0.]])
    """

    def __init__(self, image_shape: Sequence[int], names: Sequence[str], attributes: bool = False) -> None:
        super().__init__(image_shape)
        self.names = [str(name) for name in names]
        self.attributes = attributes
        if len(self.names) < 2 - attributes or len(set(self.names)) < len(self.names):
            kind = "1 attribute" if attributes else "2 classes"
            raise ValueError(f"labels need at least {kind}, each with a name of its own, got {self.names[:20]}")
        self.num_classes = None if attributes else len(self.names)

    @property
    def condition_shape(self) -> Shape:
        return (len(self.names),)

    def split(self, images: Tensor, anew: bool = False) -> tuple[Tensor, Tensor]:
        raise ValueError("an image does not tell its label: take both from the data")

    def examples(self, most: int = 20) -> Tensor:
        """The conditions that pictures show: each class, or no attribute and each one alone."""
        if not self.attributes:
            return torch.arange(len(self.names))[:most]
        return torch.cat([torch.zeros(1, len(self.names)), torch.eye(len(self.names))])[:most]

    def name(self, x: Tensor) -> str:
        """What one condition says."""
        if not self.attributes:
            return self.names[int(x)]
        return "+".join(name for name, has in zip(self.names, x.tolist(), strict=True) if has > 0.5) or "none"

    def read(self, text: str) -> Tensor:
        """Reads conditions that a user has typed.

        Args:
            text: Names, or of classes numbers and ranges, with commas between them: ``0-9``, ``3,5``, ``cat,dog``. Of
                attributes, ``Male+Smiling`` has both and ``none`` has no attribute.

        Returns:
            int64 (n,), or of attributes float32 (n, number of attributes).

        Raises:
            ValueError: If something else is named.
        """
        if self.attributes:
            rows = [[] if item.strip() == "none" else item.split("+") for item in text.split(",")]
            return torch.stack([self._attributes([name.strip() for name in row]) for row in rows])
        return torch.tensor([label for item in text.split(",") for label in self._labels(item.strip())])

    def _attributes(self, wanted: list[str]) -> Tensor:
        for name in wanted:
            if name not in self.names:
                raise ValueError(f"expected attributes of {', '.join(self.names)}, or none, got {name!r}")
        return torch.tensor([float(name in wanted) for name in self.names])

    def _labels(self, item: str) -> list[int]:
        """The numbers of a label, by its name or its number, or of a range of either."""
        if item in self.names:
            return [self.names.index(item)]
        first, dash, last = item.partition("-")
        ends = [first, last if dash else first]
        if all(end.isascii() and end.isdigit() and len(end) < 7 for end in ends) and int(ends[0]) <= int(ends[1]):
            numbers = range(int(ends[0]), int(ends[1]) + 1)
            if all(str(number) in self.names for number in numbers):
                return [self.names.index(str(number)) for number in numbers]
            if numbers[-1] < len(self.names) and not set(ends) & set(self.names):
                return list(numbers)
        names = "" if self.names == [str(i) for i in range(len(self.names))] else f", or {', '.join(self.names[:20])}"
        raise ValueError(f"expected labels from 0 to {len(self.names) - 1}{names}, got {item!r}")

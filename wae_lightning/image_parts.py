"""The observed and the hidden part of an image: their shapes, and how they are put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wae_lightning.pairs import Pairs

__all__ = ["ImageParts", "Observed"]

Observed = Literal["top", "bottom", "left", "right", "1_quadrant", "2_quadrants", "3_quadrants"]
Box = tuple[int, int, int, int]
"""Top, bottom, left and right; bottom and right are excluded."""
_OBSERVED = ("top", "bottom", "left", "right", "1_quadrant", "2_quadrants", "3_quadrants")


class ImageParts(Pairs):
    """Where the observed part of an image lies; the rest is the target.

    The quadrants are those of the CVAE literature (K. Sohn et al., 2015): the first is bottom left, the second top
    left, the third top right. A part that is no rectangle is a whole image with zeros where the other part is.

    Args:
        image_shape: (channels, height, width) of whole images.
        observed: ``top``, ``bottom``, ``left``, ``right``, ``1_quadrant``, ``2_quadrants`` or ``3_quadrants``.
        fraction: Share of the height (or width) that is observed, in (0, 1), rounded to pixels; with quadrants the
            height and the width of the bottom left one.

    Raises:
        ValueError: If an argument is out of its range or one of the parts would be empty.

    Example:
        >>> ImageParts((1, 28, 28), "left", fraction=0.25).target_shape
        (1, 28, 21)
    """

    def __init__(self, image_shape: Sequence[int], observed: Observed = "top", fraction: float = 0.5) -> None:
        super().__init__(image_shape)
        if observed not in _OBSERVED:
            raise ValueError(f"observed must be one of {', '.join(_OBSERVED)}, got {observed!r}")
        _, height, width = self.image_shape
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
        high, wide = round(height * fraction), round(width * fraction)
        if not (0 < high < height and 0 < wide < width):
            raise ValueError(
                f"fraction must leave both parts of a {height} x {width} image at least one pixel wide, got {fraction}"
            )
        whole = 0, height, 0, width
        top, bottom, left, right = (0, high), (height - high, height), (0, wide), (width - wide, width)
        all_rows, all_columns = whole[:2], whole[2:]
        # the box that the observed part fills, or else the target
        self._rectangle: Box = {
            "top": (*top, *all_columns),
            "bottom": (*bottom, *all_columns),
            "left": (*all_rows, *left),
            "right": (*all_rows, *right),
            "1_quadrant": (*bottom, *left),
            "2_quadrants": (*all_rows, *left),
            "3_quadrants": (*bottom, wide, width),
        }[observed]
        self._rectangle_is_observed = observed != "3_quadrants"
        rest = {
            "top": (high, height, *all_columns),
            "bottom": (0, height - high, *all_columns),
            "left": (*all_rows, wide, width),
            "right": (*all_rows, 0, width - wide),
            "2_quadrants": (*all_rows, wide, width),
        }.get(observed, whole)
        boxes = self._rectangle, rest
        self._observed_box, self._target_box = boxes if self._rectangle_is_observed else boxes[::-1]
        self._masks: dict[torch.device, Tensor] = {}

    @property
    def mask(self) -> Tensor:
        """Boolean (1, height, width): True where an image is observed, False where it is the target."""
        return self.mask_on(torch.device("cpu"))

    def mask_on(self, device: torch.device) -> Tensor:
        """The mask on a device, where it is kept: a copy for each batch would make the device wait."""
        if device not in self._masks:
            top, bottom, left, right = self._rectangle
            observed = self._rectangle_is_observed
            mask = torch.full((1, *self.image_shape[1:]), not observed, device=device)
            mask[:, top:bottom, left:right] = observed
            self._masks = {device: mask}
        return self._masks[device]

    @property
    def condition_shape(self) -> tuple[int, int, int]:
        """Shape of an observed part: (channels, height, width)."""
        return self._shape(self._observed_box)

    @property
    def target_shape(self) -> tuple[int, int, int]:
        """Shape of a target: (channels, height, width)."""
        return self._shape(self._target_box)

    def split(self, images: Tensor, anew: bool = False) -> tuple[Tensor, Tensor]:
        """Cuts images (..., C, H, W) into (observed, target)."""
        mask = self.mask_on(images.device)
        return self._cut(images, mask, self._observed_box), self._cut(images, ~mask, self._target_box)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Puts the two parts together again: (..., *condition_shape), (..., *target_shape) -> (..., C, H, W).

        The leading dimensions are broadcast. Pixels of the observed part are the same bits as before.
        """
        placed = self._placed(x, self._observed_box), self._placed(y, self._target_box)
        return torch.where(self.mask_on(x.device), *placed)

    def show(self, x: Tensor) -> Tensor:
        return self.join(x, x.new_full((*x.shape[:-3], *self.target_shape), 0.5))

    def hidden(self, x: Tensor) -> Tensor:
        return ~self.mask_on(x.device).unsqueeze(0)

    def _shape(self, box: Box) -> tuple[int, int, int]:
        top, bottom, left, right = box
        return self.image_shape[0], bottom - top, right - left

    def _cut(self, images: Tensor, mask: Tensor, box: Box) -> Tensor:
        top, bottom, left, right = box
        return torch.where(mask[:, top:bottom, left:right], images[..., top:bottom, left:right], 0)

    def _placed(self, part: Tensor, box: Box) -> Tensor:
        top, bottom, left, right = box
        _, height, width = self.image_shape
        return F.pad(part, (left, width - right, top, height - bottom))

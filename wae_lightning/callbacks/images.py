"""Pictures of what an auto-encoder of images does."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor

from wae_lightning.callbacks.pictures import Pictures, in_unit_range
from wae_lightning.captions import Caption

__all__ = ["ImagePictures"]


class ImagePictures(Pictures):
    """Draws samples, reconstructions and interpolations after each validation and after a test.

    They go to the loggers, and after a test to ``samples.png``, ``reconstructions.png`` and ``interpolations.png`` in
    the run's folder. The codes of the samples and the images that are reconstructed stay the same from epoch to epoch.
    In ``reconstructions`` each image stands above its reconstruction; in ``interpolations`` each row leads from one
    image to another.

    Args:
        columns: Pictures in one row, at least 2; there are ``columns`` x ``columns`` samples.

    Raises:
        ValueError: If ``columns`` is less than 2.
    """

    def __init__(self, columns: int = 10) -> None:
        if columns < 2:
            raise ValueError(f"columns must be at least 2, got {columns}")
        super().__init__(2 * columns)
        self.columns = columns

    def pictures(self, model: Any, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws the three pictures of images that were kept."""
        return self.draw(model, examples["inputs"])

    def caption(self, name: str, examples: dict[str, Tensor]) -> Caption | None:
        bands = -(-min(len(examples["inputs"]), 2 * self.columns) // self.columns)
        return {
            "samples": Caption("Samples: draws from the prior, decoded"),
            "reconstructions": Caption("Images, and what the model makes of them", ["image", "model"] * bands),
            "interpolations": Caption("Interpolations: each row leads from one image to another"),
        }.get(name)

    @torch.no_grad()
    def draw(self, model: Any, inputs: Tensor) -> dict[str, Tensor]:
        """Draws the three pictures.

        Args:
            model: A WAE of images, in evaluation mode.
            inputs: Images (B, C, H, W).

        Returns:
            ``samples``, ``reconstructions`` and ``interpolations`` as float images (3, height, width) in [0, 1]; the
            last one only if there are two inputs.
        """
        n = self.columns
        inputs = inputs[: 2 * n]
        shown = {"samples": in_unit_range(model, model.sample(n * n, torch.Generator().manual_seed(0)))}
        # rows alternate between images and their reconstructions; white fills up the last ones
        both = (in_unit_range(model, x) for x in (inputs, model(inputs)))
        rows = [torch.split(torch.cat([x, x.new_ones(-len(x) % n, *x.shape[1:])]), n) for x in both]
        shown["reconstructions"] = torch.cat([row for pair in zip(*rows, strict=True) for row in pair])
        half = len(inputs) // 2
        if half:
            lines = model.interpolate(inputs[:half], inputs[half : 2 * half], n)
            shown["interpolations"] = in_unit_range(model, lines.transpose(0, 1).flatten(0, 1))
        return {name: torchvision.utils.make_grid(images, nrow=n, pad_value=1) for name, images in shown.items()}

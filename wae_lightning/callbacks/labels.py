"""Pictures of what a model does that draws images of a class."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor

from wae_lightning.callbacks.pictures import Pictures, in_unit_range, pairs_of
from wae_lightning.captions import Caption
from wae_lightning.lightning import LightningModule, Trainer

__all__ = ["LabelPictures"]


class LabelPictures(Pictures):
    """Draws samples of each class, and the style of images in each class, after each validation and after a test.

    They go to the loggers, and after a test to ``class_samples.png`` and ``styles.png``. In ``class_samples`` each row
    are samples of one class, and each column has one code. In ``styles`` each row begins with an image, and goes on
    with what the model makes of its code under each label. Of attributes, the first is none, then each one alone.

    Args:
        columns: Samples of each class, at least 1.
        rows: Images whose style is shown, at least 1.

    Raises:
        ValueError: If there would be nothing to draw.
    """

    def __init__(self, columns: int = 10, rows: int = 10) -> None:
        if rows < 1 or columns < 1:
            raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")
        super().__init__(rows)
        self.columns = columns
        self._labels: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._labels = pairs_of(trainer)

    def examples(self, model: Any, batch: Any, outputs: Any, count: int) -> dict[str, Tensor]:
        """Takes the conditions and the images of a batch."""
        return {name: part[:count] for name, part in zip(("x", "y"), model.inputs_of(batch), strict=True)}

    def pictures(self, model: Any, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws the two pictures; none, if the data module does not say which labels there are."""
        if not hasattr(self._labels, "examples"):
            return {}
        return self.draw(model, examples["x"], examples["y"], self._labels.examples())

    def caption(self, name: str, examples: dict[str, Tensor]) -> Caption | None:
        labels = self._labels.examples()
        names = [str(int(label)) for label in labels] if labels.ndim == 1 else [""] * len(labels)
        return {
            "class_samples": Caption("Samples of each class, one code in each column", rows=names),
            "styles": Caption("The style of an image under each label", columns=["image", *names]),
        }.get(name)

    @torch.no_grad()
    def draw(self, model: Any, x: Tensor, y: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Draws the two pictures.

        Args:
            model: A conditional WAE of images, in evaluation mode.
            x: Conditions (B, *condition_shape), or labels (B,).
            y: Their images (B, C, H, W).
            labels: The conditions that are shown, (n, ...).

        Returns:
            ``class_samples`` and ``styles``, float images (3, height, width) in [0, 1].
        """
        labels = labels.to(model.device)
        z = model.prior.sample(self.columns, torch.Generator().manual_seed(0)).to(model.device)
        drawn = model.complete(labels, self.columns, z=z)
        styles = styles_of(model, x, y, labels)
        shown = {"class_samples": drawn, "styles": torch.cat([y.unsqueeze(1), styles], dim=1)}
        return {
            name: torchvision.utils.make_grid(in_unit_range(model, grid.flatten(0, 1)), grid.shape[1], pad_value=1)
            for name, grid in shown.items()
        }


def styles_of(model: Any, x: Tensor, y: Tensor, labels: Tensor) -> Tensor:
    """The style of each of B images under each of n labels, (B, n, C, H, W): their codes, decoded with that label."""
    codes = model.encode(x, y, noise=False)
    return model.complete(labels, len(codes), z=codes).transpose(0, 1)  # type: ignore[no-any-return]

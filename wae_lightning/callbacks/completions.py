"""Pictures of what a conditional model makes of a part of an image."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor

from wae_lightning.callbacks.pictures import Pictures, in_unit_range, pairs_of
from wae_lightning.captions import Caption
from wae_lightning.kernels import squared_distances
from wae_lightning.lightning import LightningModule, Trainer

__all__ = ["CompletionPictures", "most_ambiguous"]


def most_ambiguous(x: Tensor, y: Tensor, count: int, neighbors: int = 8) -> Tensor:
    """Finds the observed parts that tell the least of what is hidden.

    The score is the variance of the hidden parts of the ``neighbors`` nearest observed parts, over the squared norm of
    the observed part itself: much may follow, and little was shown.

    Args:
        x: Observed parts (B, *condition_shape).
        y: Hidden parts (B, *target_shape).
        count: How many to find.
        neighbors: How many of the others are looked at.

    Returns:
        Indices of at most ``count`` of them, the most ambiguous first.
    """
    distances = squared_distances(x.flatten(1), x.flatten(1)).fill_diagonal_(torch.inf)
    near = distances.topk(min(neighbors, len(x) - 1), largest=False).indices
    variance = y.flatten(1)[near].var(1, correction=0).sum(1)
    # one pixel's worth more, for an observed part that is all black
    return (variance / (x.flatten(1).square().sum(1) + 1)).topk(min(count, len(x))).indices


class CompletionPictures(Pictures):
    """Draws completions for the loggers after each validation, and to ``completions.png`` after a test.

    Each row shows what is given, the rest grey, the true image, and the image with ``columns`` completions. The rows
    are the most ambiguous images among the first 500 (see :func:`most_ambiguous`), chosen by the data alone, so that
    the pictures of two models show the same ones. The codes are the same from epoch to epoch. How images are made of
    pairs is for the data module to say, by its ``pairs``; without, targets are shown as they are.

    Args:
        rows: Number of rows, at least 1.
        columns: Number of completions in each, at least 1.

    Raises:
        ValueError: If there would be nothing to draw.
    """

    def __init__(self, rows: int = 10, columns: int = 8) -> None:
        if rows < 1 or columns < 1:
            raise ValueError(f"rows and columns must be at least 1, got {rows} and {columns}")
        super().__init__(500)
        self.rows = rows
        self.columns = columns

        self._pairs: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._pairs = pairs_of(trainer)

    def examples(self, model: Any, batch: Any, outputs: Any, count: int) -> dict[str, Tensor]:
        """Takes the conditions and the targets of a batch."""
        pair = model.inputs_of(batch) if hasattr(model, "inputs_of") else batch
        return {name: part[:count].to(model.dtype) for name, part in zip(("x", "y"), pair, strict=False)}

    def pictures(self, model: Any, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws the grid of the pairs that were kept."""
        return {"completions": self.draw(model, examples["x"], examples["y"], self._pairs)}

    def caption(self, name: str, examples: dict[str, Tensor]) -> Caption | None:
        given = self._pairs is not None and self._pairs.show(examples["x"][:1]) is not None
        answers = [str(number) for number in range(1, self.columns + 1)]
        return Caption("Completions", columns=[*(["given"] if given else []), "true", *answers])

    def draw(self, model: Any, x: Tensor, y: Tensor, pairs: Any = None) -> Tensor:
        """Draws the grid.

        Args:
            model: A conditional WAE of images, in evaluation mode.
            x: Conditions (B, *condition_shape).
            y: Targets (B, *target_shape).
            pairs: Makes images of pairs, see :class:`wae_lightning.pairs.Pairs`. None: the images are the targets.

        Returns:
            A float image (3, height, width) in [0, 1].
        """
        chosen = most_ambiguous(x.float(), y.float(), self.rows)
        x, y = x[chosen], y[chosen]
        answers = model.complete(x, self.columns, generator=torch.Generator().manual_seed(0))
        given = None
        if pairs is not None:
            given, y, answers = pairs.show(x), pairs.join(x, y), pairs.join(x.unsqueeze(1), answers)
        shown = torch.cat([part.unsqueeze(1) for part in (given, y) if part is not None] + [answers], dim=1)
        images = in_unit_range(model, shown.flatten(0, 1))
        grid: Tensor = torchvision.utils.make_grid(images, nrow=shown.shape[1], pad_value=1)
        return grid

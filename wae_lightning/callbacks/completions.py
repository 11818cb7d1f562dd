"""Pictures of what a conditional model makes of a part of an image."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor

from wae_lightning.callbacks.pictures import Pictures, in_unit_range
from wae_lightning.kernels import squared_distances

__all__ = ["CompletionPictures", "most_ambiguous"]


def most_ambiguous(x: Tensor, y: Tensor, count: int, neighbors: int = 8) -> Tensor:
    """Finds the observed parts that tell the least of what is hidden.

    The score is the variance of the hidden parts of the ``neighbors`` nearest observed parts, over the squared norm of
    the observed part itself: much may follow, and little was shown.

    Args:
        x: Observed parts (B, *observed_shape).
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

    Each row shows an observed part with the rest grey, the true image, and the image with ``columns`` completions of
    the hidden part. The rows are the most ambiguous images among the first 500 (see :func:`most_ambiguous`), chosen by
    the data alone, so that the pictures of two models show the same ones. The codes are the same from epoch to epoch.

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

    def examples(self, model: Any, batch: Any, outputs: Any, count: int) -> dict[str, Tensor]:
        """Takes the observed and the hidden parts of a batch."""
        pair = model.inputs_of(batch) if hasattr(model, "inputs_of") else batch
        return {name: part[:count].to(model.dtype) for name, part in zip(("observed", "hidden"), pair, strict=False)}

    def pictures(self, model: Any, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws the grid of the pairs that were kept."""
        return {"completions": self.draw(model, examples["observed"], examples["hidden"])}

    def draw(self, model: Any, x: Tensor, y: Tensor) -> Tensor:
        """Draws the grid.

        Args:
            model: A conditional WAE of images, in evaluation mode.
            x: Observed parts (B, *observed_shape).
            y: Hidden parts (B, *target_shape).

        Returns:
            A float image (3, height, width) in [0, 1].
        """
        chosen = most_ambiguous(x.float(), y.float(), self.rows)
        x, y = x[chosen], y[chosen]
        completions = model.complete(x, self.columns, generator=torch.Generator().manual_seed(0))
        given = model.join(x, torch.full_like(y, 0.5))
        truth = model.join(x, y)
        completed = model.join(x.unsqueeze(1), completions)
        shown = torch.cat([given.unsqueeze(1), truth.unsqueeze(1), completed], dim=1)
        images = in_unit_range(model, shown.flatten(0, 1))
        grid: Tensor = torchvision.utils.make_grid(images, nrow=self.columns + 2, pad_value=1)
        return grid

"""Reconstruction costs c(target, reconstruction): (B, *shape), (B, *shape) -> (B,)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["AbsoluteError", "Cost", "Euclidean", "SquaredError"]


class Cost(nn.Module, ABC):
    """A cost of each sample, summed over its dimensions and multiplied by ``scale``.

    Args:
        scale: Positive factor of the whole cost. The authors' code (github.com/tolstikhin/wae) uses 0.05 with squared,
            0.2 with Euclidean and 0.02 with absolute error.

    Raises:
        ValueError: If ``scale`` is not positive and finite, or, when called, if the two shapes differ.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale of the cost must be positive and finite, got {scale}")
        self.scale = scale

    @abstractmethod
    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor: ...

    def forward(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        """Returns the cost of each sample, shape (B,)."""
        if target.shape != reconstruction.shape:
            raise ValueError(
                f"target and reconstruction must have one shape, "
                f"got {tuple(target.shape)} and {tuple(reconstruction.shape)}"
            )
        return self.scale * self._unscaled(target, reconstruction)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class SquaredError(Cost):
    """scale · Σ (x - y)²."""

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return (target - reconstruction).square().flatten(1).sum(1)


class Euclidean(Cost):
    """scale · √(10⁻⁸ + Σ (x - y)²); the small constant keeps the gradient finite at 0, as in the authors' code."""

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return ((target - reconstruction).square().flatten(1).sum(1) + 1e-8).sqrt()


class AbsoluteError(Cost):
    """scale · Σ |x - y|."""

    def _unscaled(self, target: Tensor, reconstruction: Tensor) -> Tensor:
        return (target - reconstruction).abs().flatten(1).sum(1)

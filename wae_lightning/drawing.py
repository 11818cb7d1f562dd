"""What drawing from a model needs: evaluation mode for a while, and the lines between codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wae_lightning.priors import Prior, Sphere

__all__ = ["evaluation_mode", "lines_between"]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model, and what it is made of, into evaluation mode for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def lines_between(start: Tensor, end: Tensor, steps: int, prior: Prior) -> Tensor:
    """Points on the lines between codes, each (B, d): (steps, B, d), on a sphere projected onto it.

    Raises:
        ValueError: If ``steps`` is less than 2, or the two differ in shape.
    """
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    if start.shape != end.shape:
        raise ValueError(f"a and b must have one shape, got {tuple(start.shape)} and {tuple(end.shape)}")
    weights = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype).view(-1, 1, 1)
    lines = torch.lerp(start.expand(steps, -1, -1), end.to(start).expand(steps, -1, -1), weights)
    return prior.project(lines.flatten(0, 1)).view_as(lines) if isinstance(prior, Sphere) else lines

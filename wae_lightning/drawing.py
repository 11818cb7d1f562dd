"""What drawing from a model needs: evaluation mode for a while, and the lines between codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wae_lightning.priors import Prior, Sphere

__all__ = ["evaluation_mode", "lines_between", "through_codes_or_z"]


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


def through_codes_or_z(
    model: Any, start: Tensor, end: Tensor, through: str
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Codes z (B, d) as what lines shall be straight in, the encoder's own codes or z, and what decodes that.

    Raises:
        ValueError: If ``through`` is neither ``codes`` nor ``z``.
    """
    if through not in ("codes", "z"):
        raise ValueError(f"through must be codes or z, got {through!r}")
    if through == "z" or model.flow is None:
        return start, end, model.decode
    start, end = (model.flow.inverse(model.at_home(z) / model.prior.scale) for z in (start, end))
    return start, end, model._decode


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

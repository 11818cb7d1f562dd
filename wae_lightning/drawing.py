"""What drawing from a model needs: evaluation mode for a while, and the lines between and through codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wae_lightning.priors import Prior, Sphere

__all__ = ["evaluation_mode", "lines_between", "through_codes_or_z", "traversal_codes"]


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


@torch.no_grad()
def traversal_codes(model: Any, start: Tensor, steps: int, through: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Lines through codes, each in another direction, from one tail of all codes to the other; all else stays.

    With a flow and through its ``codes``, line i follows their i-th principal direction, of largest variance first,
    from the quantile that a normal distribution has at -2 standard deviations to that at 2. Otherwise it follows axis i
    of z, from -2 to 2 times the prior's scale.

    Args:
        model: The model, in evaluation mode.
        start: A code z for each line to lead through, (n, d), n at most d.
        steps: Number of points on each line.
        through: ``codes`` or ``z``.

    Returns:
        The points, (n, steps, d), and what decodes them.
    """
    n, draws = len(start), model.prior.sample(2000, torch.Generator().manual_seed(0), start.device)
    start, draws, decode = through_codes_or_z(model, start, draws, through)
    if through == "z" or model.flow is None:
        directions = torch.eye(model.latent_dim, device=start.device)[:n]
        ends = 2 * model.prior.scale * torch.tensor([[-1.0], [1.0]], device=start.device).expand(2, n)
    else:
        directions = torch.linalg.svd(draws - draws.mean(0), full_matrices=False).Vh[:n]
        tails = torch.special.ndtr(torch.tensor([-2.0, 2.0], device=start.device))
        ends = (draws @ directions.T).quantile(tails.to(draws), dim=0)
    low, high = (start + (end - (start * directions).sum(1)).unsqueeze(1) * directions for end in ends)
    return lines_between(low, high, steps, model.prior).transpose(0, 1), decode

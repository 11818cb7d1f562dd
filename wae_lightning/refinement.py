"""Codes moved from where the encoder puts them to where the decoder reconstructs best."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wae_lightning.precision import in_full_precision
from wae_lightning.priors import Prior

__all__ = ["check_refine_steps", "reconstruction_by", "refine_codes"]

FIRST_STEP = 0.1  # of Adam, in units of the prior's scale; it falls to nothing


def check_refine_steps(steps: Any) -> None:
    """Refuses what is no number of steps.

    Raises:
        ValueError: If it is no whole number, or negative.
    """
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ValueError(f"refine_steps must be a whole number, 0 or more, got {steps!r:.100}")


def reconstruction_by(model: nn.Module, refine_steps: int) -> Callable[[Any], Tensor]:
    """What reconstructs inputs: the model, or with so many ``refine_steps``.

    Raises:
        ValueError: If the model's ``forward`` takes none.
    """
    check_refine_steps(refine_steps)
    if refine_steps == 0:
        return model
    if "refine_steps" not in inspect.signature(model.forward).parameters:
        raise ValueError(f"refine_steps must be 0 for {type(model).__name__}: its forward does not take them")
    return partial(model, refine_steps=refine_steps)


def refine_codes(code: Tensor, costs_of: Callable[[Tensor], Tensor], steps: int, prior: Prior) -> Tensor:
    """Moves each code by gradient descent to where it costs least, or leaves it where no step made that less.

    An encoder answers for all inputs at once, and is a little wrong for each; the rest is the amortisation gap (Y. Kim
    et al., "Semi-amortized variational autoencoders", ICML 2018). Neither code nor result carries a gradient.

    Args:
        code: Codes (B, d) to start from.
        costs_of: Maps codes to the cost of each, (B,); a row's cost depends on that row only.
        steps: Number of steps of Adam, at least 1, each about as long as a decoding and its backward pass.
        prior: Its scale is that of the steps, and codes stay in its support.

    Returns:
        The best codes found, (B, d).

    Raises:
        ValueError: If there are no steps, or the costs are not one for each code, or have no gradient.
    """
    check_refine_steps(steps)
    if steps == 0:
        raise ValueError("refine_codes takes at least 1 step, got 0")
    with torch.inference_mode(False), torch.enable_grad():
        start = code.detach().clone()
        moved = (in_full_precision(start) / prior.scale).requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=FIRST_STEP, eps=1e-16)  # also where costs are tiny
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, total_iters=steps)
        best = start
        for step in range(steps + 1):
            at = prior.into_support(prior.scale * moved).to(start.dtype)
            costs = costs_of(at)
            if costs.shape != start.shape[:1] or not costs.requires_grad:
                raise ValueError(
                    f"codes are refined by one cost for each, with a gradient: expected shape ({len(start)},), got "
                    f"{tuple(costs.shape)}{'' if costs.requires_grad else ' without a gradient'}"
                )
            if step == 0:
                least = costs.detach()
            better = costs < least
            best = torch.where(better.unsqueeze(1), at, best).detach()
            least = torch.where(better, costs, least).detach()
            if step < steps:
                (moved.grad,) = torch.autograd.grad(costs.sum(), moved, allow_unused=True, materialize_grads=True)
                optimizer.step()
                schedule.step()
        return best

"""Codes moved from where the encoder puts them to where the decoder reconstructs best."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wae_lightning.precision import in_full_precision
from wae_lightning.priors import Prior

__all__ = ["refine_codes"]

FIRST_STEP = 0.1  # of Adam, in units of the prior's scale; it falls to nothing


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
    """
    with torch.inference_mode(False), torch.enable_grad():
        start = code.detach().clone()
        moved = in_full_precision(start).clone().requires_grad_()
        optimizer = torch.optim.Adam([moved], lr=FIRST_STEP * prior.scale)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1.0 / steps, total_iters=steps)
        best, least = start, torch.full_like(moved[:, 0], torch.inf)
        for step in range(steps + 1):
            at = prior.into_support(moved).to(start.dtype)
            costs = costs_of(at)
            better = costs < least
            least = torch.where(better, costs, least).detach()
            best = torch.where(better.unsqueeze(1), at, best).detach()
            if step < steps:
                (moved.grad,) = torch.autograd.grad(costs.sum(), moved)
                optimizer.step()
                schedule.step()
        return best

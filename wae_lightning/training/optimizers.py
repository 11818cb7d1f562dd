"""Optimizers and schedulers, from functions that make them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from wae_lightning.lightning import Trainer, rank_zero_info
from wae_lightning.schedules import OneCycle
from wae_lightning.training.schedulers import watched_by

__all__ = ["LRSchedulerCallable", "OptimizerCallable", "configure"]

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]
NEVER = 2**31
"""A frequency that no run reaches: see :class:`~wae_lightning.training.StepSchedulers`."""


def configure(
    parameters: Iterable[nn.Parameter],
    make_optimizer: OptimizerCallable | None,
    make_lr_scheduler: LRSchedulerCallable | None,
    lr_interval: str,
    trainer: Trainer,
    lr: float | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Makes an optimizer and its scheduler, in the form that ``configure_optimizers`` returns.

    Args:
        parameters: What is optimized.
        make_optimizer: Makes the optimizer; None: Adam with learning rate 1e-3.
        make_lr_scheduler: Makes its scheduler; None: none. ``OneCycleLR`` without its length gets that of the run.
        lr_interval: ``epoch`` or ``step``; ``OneCycleLR`` always steps after each step, ``ReduceLROnPlateau`` after
            each epoch.
        trainer: The trainer, which knows the length of the run.
        lr: Learning rate to take instead of the optimizer's own.
        name: Name of the scheduler in the logs; None: Lightning's.

    Raises:
        ValueError: If ``OneCycleLR`` needs the length of a run that has none.
    """
    make_optimizer = make_optimizer or functools.partial(torch.optim.Adam, lr=1e-3)
    clips_scaled = trainer.gradient_clip_val and str(trainer.precision) in ("16-mixed", "bf16-mixed")
    if clips_scaled and isinstance(make_optimizer, functools.partial) and make_optimizer.keywords.get("fused"):
        rank_zero_info(f"fused=False: Lightning does not clip a fused optimizer's gradients under {trainer.precision}.")
        make_optimizer = functools.partial(make_optimizer, fused=False)
    optimizer = make_optimizer(parameters)
    if "fused" in optimizer.defaults:
        optimizer.register_load_state_dict_pre_hook(_as_made)
    if lr is not None:
        for group in optimizer.param_groups:
            group["lr"] = lr
    if make_lr_scheduler is None:
        return {"optimizer": optimizer}
    if _needs_its_length(make_lr_scheduler):
        make_lr_scheduler = _with_length(make_lr_scheduler, trainer.estimated_stepping_batches)
    scheduler = make_lr_scheduler(optimizer)
    config: dict[str, Any] = {"scheduler": scheduler, "interval": lr_interval}
    if isinstance(scheduler, OneCycleLR):
        config["interval"] = "step"
    elif isinstance(scheduler, ReduceLROnPlateau):
        config |= {"interval": "epoch", "monitor": watched_by(scheduler), "frequency": NEVER}
    if name is not None:
        config["name"] = name
    return {"optimizer": optimizer, "lr_scheduler": config}


def _as_made(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's state for an optimizer that is fused, or not, as it was made: one resumed without clipping is."""
    groups = [{**group, "fused": optimizer.defaults["fused"]} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def _needs_its_length(make_lr_scheduler: LRSchedulerCallable) -> bool:
    """Whether this is OneCycleLR, alone or in a partial (as LightningCLI makes them), without its length."""
    made: Any = make_lr_scheduler
    if not isinstance(made, functools.partial):
        return made in (OneCycleLR, OneCycle)
    length = ("total_steps", "epochs", "steps_per_epoch")
    known = all(made.keywords.get(name) is None for name in length)
    return known and not {OneCycleLR, OneCycle}.isdisjoint((made.func, *made.args))


def _with_length(make_lr_scheduler: LRSchedulerCallable, steps: float) -> LRSchedulerCallable:
    """The same with :class:`~wae_lightning.schedules.OneCycle`, whose length a resumed run may change."""
    if not 0 < steps < math.inf:
        raise ValueError(
            "OneCycleLR needs the length of the run: set max_steps, or max_epochs with a loader whose length is known, "
            "or its total_steps"
        )
    made: Any = make_lr_scheduler
    made = made if isinstance(made, functools.partial) else functools.partial(made)
    parts: list[Any] = [OneCycle if part is OneCycleLR else part for part in (made.func, *made.args)]
    return functools.partial(parts[0], *parts[1:], **made.keywords | {"total_steps": int(steps)})

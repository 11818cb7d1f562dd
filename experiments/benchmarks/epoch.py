"""What training spends on anything but arithmetic: in a step, and in an epoch of the full set."""

from __future__ import annotations

import functools
import statistics
from collections import defaultdict
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ProgressBar

from benchmarks.training import epochs_of, quietly, run_of
from benchmarks.turns import WARM_UP, Options, stopwatch
from wae_lightning.penalties.adversarial import Adversarial

__all__ = ["epoch", "outside"]


class Spent:
    """Sums the seconds that functions take, by name; of nested ones the outermost counts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.busy = False

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Replaces a method of an object by one that is timed."""
        original = getattr(owner, attribute)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.busy:
                return original(*args, **kwargs)
            self.busy = True
            elapsed = stopwatch(self.device)
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += elapsed().wall
                self.busy = False

        object.__setattr__(owner, attribute, watched)

    def watch_optimizer(self, optimizer: Any) -> None:
        """Times update and zero_grad alone: Lightning gives the step a closure, which trains and counts by itself."""
        self.watch(optimizer, "zero_grad", "optimizer")
        step = optimizer.step

        @functools.wraps(step)
        def watched(closure: Any = None, **kwargs: Any) -> Any:
            result = None if closure is None else closure()
            elapsed = stopwatch(self.device)
            step(None if closure is None else lambda: result, **kwargs)
            self.seconds["optimizer"] += elapsed().wall
            return result

        optimizer.step = watched


class _ShareOfSteps(Callback):
    def __init__(self, spent: Spent) -> None:
        self.spent = spent
        self.shares: list[float] = []

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        for optimizer in trainer.optimizers:
            self.spent.watch_optimizer(optimizer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.batch_idx + 1 == WARM_UP:
            self.spent.seconds.clear()
            self.elapsed = stopwatch(self.spent.device)
        elif trainer.is_last_batch and trainer.current_epoch > 0:
            self.shares.append(1 - sum(self.spent.seconds.values()) / self.elapsed().wall)


def outside(options: Options) -> dict[str, Any]:
    """Share of a training step that is not forward pass, loss, backward pass or optimizer."""
    if options.device.type != "cpu":
        return {"share of a step": "not measured: a GPU would have to wait after each part"}
    rows = {}
    steps, rounds = (15, 3) if options.quick else (40, 6)
    for config in ("mnist_wae_mmd", "mnist_wae_gan"):
        run = run_of(options, config, *epochs_of(steps, rounds))
        model: Any = run.model
        spent = Spent(options.device)
        for attribute in ("_codes_and_cost", "_penalty", "_prior_like", "backward"):
            spent.watch(model, attribute, attribute)
        if isinstance(model.penalty, Adversarial):
            spent.watch(model.penalty, "forward", "penalty")
            spent.watch(model.penalty, "critic_loss", "critic")
        share = _ShareOfSteps(spent)
        run.trainer.callbacks.insert(0, share)
        with quietly():
            run.trainer.fit(model, run.datamodule)
        rows[config] = {"share of a step": statistics.median(share.shares)}
    return rows


class _Epochs(Callback):
    """Notes what the second epoch took: its training batches, and all of it up to the next one."""

    def __init__(self, parts: list[Spent]) -> None:
        self.parts = parts

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 2:
            self.whole = self.elapsed().wall
            self.seconds = [dict(part.seconds) for part in self.parts]
            trainer.should_stop = True
        for part in self.parts:
            part.seconds.clear()
        self.elapsed = stopwatch(self.parts[0].device)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1 and trainer.is_last_batch:
            self.training = self.elapsed().wall
            self.logging = self.parts[0].seconds["logging"]


def epoch(options: Options) -> dict[str, Any]:
    """What validation, pictures, checkpoints and logging add to an epoch, as share of its steps without them."""
    rows = {}
    flags = ("--limit_train_batches=60", "--limit_val_batches=6") if options.quick else ()
    for config in ("mnist_wae_mmd",) if options.quick else ("mnist_wae_mmd", "mnist_wae_gan"):
        run = run_of(options, config, "--max_epochs=3", *flags)
        trainer, model = run.trainer, run.model
        outer, inner = Spent(options.device), Spent(options.device)
        outer.watch(model, "log", "logging")
        outer.watch(trainer._logger_connector, "update_train_step_metrics", "logging")
        outer.watch(trainer.fit_loop.epoch_loop.val_loop, "run", "validation")
        outer.watch(trainer, "save_checkpoint", "checkpoints")
        for callback in trainer.callbacks:
            if isinstance(callback, ProgressBar):
                outer.watch(callback, "on_train_batch_end", "logging")
            if "Pictures" in type(callback).__name__:
                inner.watch(callback, "on_validation_batch_end", "pictures")
                inner.watch(callback, "on_validation_epoch_end", "pictures")
        marks = _Epochs([outer, inner])
        trainer.callbacks.insert(0, marks)
        with quietly():
            trainer.fit(model, run.datamodule)
        first, second = marks.seconds
        steps = marks.training - marks.logging
        pictures = second.get("pictures", 0.0)
        rows[config] = {
            "steps s": steps,
            "added, share of the steps": (marks.whole - steps) / steps,
            "validation": (first.get("validation", 0.0) - pictures) / steps,
            "pictures": pictures / steps,
            "checkpoints": first.get("checkpoints", 0.0) / steps,
            "logging": marks.logging / steps,
        }
    return rows

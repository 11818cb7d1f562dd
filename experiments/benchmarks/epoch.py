"""What training spends on anything but arithmetic: in a step, and in an epoch of the full set."""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.callbacks import ProgressBar

from benchmarks.training import epochs_of, quietly, run_of
from benchmarks.turns import WARM_UP, Options, stopwatch
from wae_lightning.lightning import Callback, Trainer
from wae_lightning.penalties.adversarial import Adversarial

__all__ = ["epoch", "outside"]


class Spent:
    """Sums the seconds that functions take, by name; of nested ones the outermost counts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # not stopwatch: what it takes to ask for the CPU's time, too, would count as a part of the step
        self.now = time.perf_counter if device.type == "cpu" else self._after_gpu
        self.seconds: dict[str, float] = defaultdict(float)
        self.busy = False

    def _after_gpu(self) -> float:
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Replaces a method of an object by one that is timed."""
        original = getattr(owner, attribute)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.busy:
                return original(*args, **kwargs)
            self.busy = True
            start = self.now()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += self.now() - start
                self.busy = False

        object.__setattr__(owner, attribute, watched)

    def watch_optimizer(self, optimizer: Any) -> None:
        """Times update and zero_grad alone: Lightning gives the step a closure, which trains and counts by itself."""
        self.watch(optimizer, "zero_grad", "optimizer")
        step = optimizer.step

        @functools.wraps(step)
        def watched(closure: Any = None, **kwargs: Any) -> Any:
            result = None if closure is None else closure()
            start = self.now()
            step(None if closure is None else lambda: result, **kwargs)
            self.seconds["optimizer"] += self.now() - start
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
    """Notes the seconds of each epoch but the first: of its steps, of all of it up to the next one, and of parts."""

    def __init__(self, outer: Spent, pictures: Spent) -> None:
        self.outer = outer
        self.pictures = pictures
        self.found: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch > 1:
            parts = {**self.outer.seconds, **self.pictures.seconds}
            self.found.append(parts | {"steps": self.steps, "whole": self.elapsed().wall, "logging": self.logging})
            trainer.should_stop = trainer.current_epoch + 1 == trainer.max_epochs
        self.outer.seconds.clear()
        self.pictures.seconds.clear()
        self.elapsed = stopwatch(self.outer.device)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_last_batch:
            self.logging = self.outer.seconds["logging"]
            self.steps = self.elapsed().wall - self.logging


def epoch(options: Options) -> dict[str, Any]:
    """What validation, pictures, checkpoints and logging add to an epoch, as share of its steps without them."""
    rows = {}
    flags = ("--max_epochs=3", "--limit_train_batches=60", "--limit_val_batches=6") if options.quick else ()
    for config in ("mnist_wae_mmd",) if options.quick else ("mnist_wae_mmd", "mnist_wae_gan"):
        run = run_of(options, config, *(flags or ("--max_epochs=5",)))
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
        epochs = _Epochs(outer, inner)
        trainer.callbacks.insert(0, epochs)
        with quietly():
            trainer.fit(model, run.datamodule)

        def share(seconds: Callable[[dict[str, float]], float], found: list[dict[str, float]] = epochs.found) -> float:
            return statistics.median(seconds(epoch) / epoch["steps"] for epoch in found)

        rows[config] = {
            "steps s": statistics.median(epoch["steps"] for epoch in epochs.found),
            "added, share of the steps": share(lambda epoch: epoch["whole"] - epoch["steps"]),
            "validation": share(lambda epoch: epoch["validation"] - epoch["pictures"]),
            "pictures": share(lambda epoch: epoch["pictures"]),
            "checkpoints": share(lambda epoch: epoch["checkpoints"]),
            "logging": share(lambda epoch: epoch["logging"]),
        }
    return rows

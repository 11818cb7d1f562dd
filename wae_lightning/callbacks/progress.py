"""A progress bar that does not slow training down, nor fill a log file."""

from __future__ import annotations

import sys
import time
from typing import Any

from wae_lightning.lightning import LightningModule, TQDMProgressBar, Trainer

__all__ = ["ProgressBar"]

SHOWN = ("train/cost", "train/penalty")


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, drawn every 20 steps, with cost and penalty; where there is no terminal, a line for each epoch.

    Values that a model logs with ``prog_bar=True`` are fetched from the device at each step, drawn or not, which makes
    a GPU wait. This bar takes logged values itself, and only when it draws.

    Args:
        refresh_rate: Draw after so many steps, at least 1.

    Raises:
        ValueError: If ``refresh_rate`` is less than 1.
    """

    def __init__(self, refresh_rate: int = 20) -> None:
        if refresh_rate < 1:
            raise ValueError(f"refresh_rate must be at least 1, got {refresh_rate}")
        super().__init__(refresh_rate=refresh_rate)
        self._since = time.monotonic()
        # a notebook is no terminal, but can draw a bar
        self.lines = not sys.stdout.isatty() and "ipykernel" not in sys.modules

    @property
    def is_enabled(self) -> bool:
        """Whether a bar is drawn."""
        return super().is_enabled and not self.lines

    @property
    def is_disabled(self) -> bool:
        """Whether no bar is drawn."""
        return not self.is_enabled

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        logged = trainer.callback_metrics
        values = {name: f"{float(logged[name]):.4g}" for name in SHOWN if name in logged}
        return {**super().get_metrics(trainer, pl_module), **values}

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer, *_)
        self._since = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.lines and super().is_enabled:
            names = [*SHOWN, "val/loss"]
            logged = trainer.callback_metrics
            values = [f"{name} {float(logged[name]):.4g}" for name in names if name in logged]
            seconds = f"{time.monotonic() - self._since:.0f} s"
            print(f"epoch {trainer.current_epoch}: {', '.join([*values, seconds])}", flush=True)

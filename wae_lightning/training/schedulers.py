"""When learning-rate schedulers step, where Lightning does not do it."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from wae_lightning.lightning import Callback, LightningModule, Trainer

__all__ = ["StepSchedulers", "watched_by"]


def watched_by(scheduler: ReduceLROnPlateau) -> str:
    """The metric that a plateau scheduler watches: Lightning's own subclass, for the command line, carries a name."""
    return str(getattr(scheduler, "monitor", "val/loss"))


class StepSchedulers(Callback):
    """Steps a model's schedulers where Lightning does not: all of them with manual optimization, and plateau ones.

    A scheduler with the interval ``step`` steps after each update that ``global_step`` counts, one with the interval
    ``epoch`` after each epoch, ``ReduceLROnPlateau`` then with the metric that it watches. With automatic optimization
    Lightning steps plateau schedulers too, but not in the epoch in which a run is resumed; so
    :func:`wae_lightning.training.optimizers.configure` keeps it from that, and they step here.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._epochs = 0

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self._epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epochs = state_dict["epochs"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = trainer.global_step
        self._epochs = min(self._epochs, trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.automatic_optimization and trainer.global_step > self._steps:
            self._steps = trainer.global_step
            for config in trainer.lr_scheduler_configs:
                on_plateau = isinstance(config.scheduler, ReduceLROnPlateau)
                if config.interval == "step" and not on_plateau and self._steps % config.frequency == 0:
                    pl_module.lr_scheduler_step(config.scheduler, None)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch < self._epochs:
            return  # a resumed run ends the epoch once more
        self._epochs = trainer.current_epoch + 1
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                monitor = watched_by(config.scheduler)
                if monitor not in trainer.callback_metrics:
                    known = ", ".join(trainer.callback_metrics)
                    raise ValueError(f"ReduceLROnPlateau watches {monitor!r}, but only {known} are logged")
                pl_module.lr_scheduler_step(config.scheduler, trainer.callback_metrics[monitor])
            elif (
                not pl_module.automatic_optimization
                and config.interval == "epoch"
                and self._epochs % config.frequency == 0
            ):
                pl_module.lr_scheduler_step(config.scheduler, None)

"""The checkpoint at which a metric was lowest or highest, the same in a resumed run as in an uninterrupted one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from wae_lightning.lightning import ModelCheckpoint

__all__ = ["MonitoredCheckpoint"]


class MonitoredCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, which looks at its metric where that is new: at the end of each validation.

    The lowest validation loss need not go with the best samples: the file is called what it is, for example
    ``lowest-val-loss-epoch=003.ckpt``. This is the one that Lightning means by ``ckpt_path="best"``.

    Args:
        monitor: The metric; None: the latest checkpoint is kept.
        filename: Name of the file; None: ``lowest-`` or ``highest-``, the metric, and the epoch.
        mode: Whether the lowest (``min``) or the highest (``max``) value is kept.
        every_n_train_steps: Number of steps between two writings of ``last.ckpt`` within an epoch: see
            :class:`~wae_lightning.training.interruption.LastCheckpoint`. Between two validations the metric is old.
        train_time_interval: Time between two such writings.
        save_on_train_epoch_end: Whether to look at the end of the epoch, rather than of the validation.
        enable_version_counter: Whether a file that is there is kept beside a new one of its name; a resumed run writes
            some files again.
        **arguments: The other arguments of ``ModelCheckpoint``.
    """

    def __init__(
        self,
        monitor: str | None = "val/loss",
        filename: str | None = None,
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        save_on_train_epoch_end: bool | None = False,
        enable_version_counter: bool = False,
        **arguments: Any,
    ) -> None:
        if filename is None and monitor is not None:
            filename = f"{'lowest' if mode == 'min' else 'highest'}-{monitor.replace('/', '-')}-{{epoch:03d}}"
        super().__init__(
            monitor=monitor,
            filename=filename,
            mode=mode,
            save_on_train_epoch_end=save_on_train_epoch_end,
            enable_version_counter=enable_version_counter,
            **arguments,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the checkpoints that the run has kept, also where its folder has moved meanwhile."""
        before = state_dict.get("dirpath")
        if before is not None and self.dirpath is not None and Path(before).resolve() != Path(self.dirpath).resolve():
            moved = {path: str(Path(self.dirpath, Path(path).name)) for path in state_dict["best_k_models"]}
            if not all(Path(path).is_file() for path in moved.values()):
                return super().load_state_dict(state_dict)  # another run's folder: it says so
            here = {**moved, "": ""}
            state_dict = state_dict | {
                "dirpath": self.dirpath,
                "best_k_models": {here[path]: score for path, score in state_dict["best_k_models"].items()},
            }
            for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                path = state_dict[name]
                state_dict[name] = here.get(path, str(Path(self.dirpath, Path(path).name)))
        super().load_state_dict(state_dict)

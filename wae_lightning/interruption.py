"""Checkpoints that survive: written whole or not at all, and always between two steps of training."""

from __future__ import annotations

import io
import math
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from wae_lightning.lightning import (
    LightningModule,
    ModelCheckpoint,
    SIGTERMException,
    TorchCheckpointIO,
    Trainer,
    rank_zero_info,
)

__all__ = ["AtomicCheckpointIO", "LastCheckpoint"]

UNFINISHED = "unfinished.tmp"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, flushes it to the disk and renames it, so that none is ever half-written.

    Lightning's own writes it to the system's temporary folder and moves it. Where that folder is on another disk, the
    move is a copy over the previous checkpoint, and a process killed meanwhile leaves neither of the two.
    Paths with a protocol, such as ``s3://...``, are left to Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes ``path``.

        Raises:
            OSError: If that is not possible, with the reason; what ``path`` held before is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        # one name for all: what a killed process left behind is overwritten by the next checkpoint
        unfinished = path.parent / UNFINISHED
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            kept = "; the previous one is kept" if path.is_file() else ""
            raise OSError(
                f"{path}: the checkpoint cannot be written ({error.strerror or error}){kept}; make room or leave to "
                "write there, or give another folder"
            ) from error


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, from which training goes on as if it had never stopped.

    It is written at the end of each epoch, after every ``every_n_steps`` steps, and when the process gets SIGINT
    (Ctrl-C) or SIGTERM (a cluster takes the machine back): that one first finishes its step, or the validation under
    way, because a checkpoint from within would not go on exactly. A second signal stops at once and writes nothing.
    Neither does any other exception: in the middle of a step the weights are half updated, and ``last.ckpt`` is worth
    more as it is. With several processes, signals are left to Lightning.

    Args:
        every_n_steps: Number of optimizer steps between two checkpoints within an epoch; None: none there. The step
            before a validation is left out, as the one at its end does instead.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        super().__init__(
            filename="last", enable_version_counter=False, save_on_train_epoch_end=True, save_on_exception=True
        )
        self.every_n_steps = every_n_steps
        self.signal: signal.Signals | None = None
        """The signal that asked training to stop."""
        self._process = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.signal = None
        trainer._signal_connector.received_sigterm = False
        self._process = os.getpid()
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker process: the one that it works for will end it
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        rank_zero_info(f"{self.signal.name}: stopping after this step; once more stops at once.")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.signal is None and not self.every_n_steps:
            return
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        trainer._signal_connector.received_sigterm = self.signal is not None
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            count = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
            # A checkpoint from before a validation would go on after it, without its draws of random numbers.
            if not trainer.is_last_batch and (count + 1) % (trainer.val_check_batch or math.inf):
                self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    # Lightning would leave a validation in the middle, and not come back to it
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            trainer._signal_connector.received_sigterm = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        trainer._signal_connector.received_sigterm = self.signal is not None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._give_back_signals()
        if self.signal is not None:  # it came after the last step
            signal.raise_signal(self.signal)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back_signals()
        # Lightning raises it between two steps
        if isinstance(exception, SIGTERMException) and self._should_save_on_exception(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _give_back_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

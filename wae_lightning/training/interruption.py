"""Checkpoints that survive: written whole or not at all, and always between two steps of training."""

from __future__ import annotations

import io
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed

from wae_lightning.lightning import (
    Checkpoint,
    LightningModule,
    SIGTERMException,
    TorchCheckpointIO,
    Trainer,
    rank_zero_info,
)

__all__ = ["AtomicCheckpointIO", "BackgroundCheckpointIO", "LastCheckpoint"]

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
        content = io.BytesIO()
        torch.save(checkpoint, content)
        self._finish(lambda: write_whole(content, Path(path)))

    def _finish(self, rest: Callable[[], None]) -> None:
        rest()


def write_whole(content: io.BytesIO, path: Path) -> None:
    """Writes a file beside its place and renames it."""
    # one name for all: what a killed process left behind is overwritten by the next checkpoint
    unfinished = path.parent / UNFINISHED
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


class BackgroundCheckpointIO(AtomicCheckpointIO):
    """Copies a checkpoint in memory, and writes it while training goes on.

    Files are written and removed one after the other, in the order in which that was asked for, so that a killed
    process leaves what it would have left a moment before. At most two wait in memory. What goes wrong is raised by the
    next call, or at the end of training, which waits for the last file. With several processes, which might read what
    the first one has not written yet, nothing is left for later.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def _in_order(self, rest: Callable[[], None]) -> None:
        if self._failed:  # what follows a file that was not written may be the removal of the one it should replace
            return
        try:
            rest()
        except BaseException:
            self._failed = True
            raise

    def _finish(self, rest: Callable[[], None]) -> None:
        if distributed.is_available() and distributed.is_initialized():
            rest()
            return
        self.wait(but=1)
        self._thread = self._thread or ThreadPoolExecutor(1, "checkpoints")
        self._waiting.append(self._thread.submit(self._in_order, rest))

    def wait(self, but: int = 0) -> None:
        """Waits until all files but so many are written.

        Raises:
            OSError: If one could not be.
        """
        while len(self._waiting) > but or (self._waiting and self._waiting[0].done()):
            try:
                self._waiting.popleft().result()
            except BaseException:  # once it is said, a later call is tried anew
                while self._waiting:
                    self._waiting.popleft().exception()
                self._failed = False
                raise

    def remove_checkpoint(self, path: str | Path) -> None:
        self._finish(lambda: super(BackgroundCheckpointIO, self).remove_checkpoint(path))

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> Any:
        self.wait()
        return super().load_checkpoint(path, *arguments, **options)

    def teardown(self) -> None:
        """Waits for all files."""
        try:
            self.wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, from which training goes on as if it had never stopped.

    It is written at the end of each epoch, after every ``every_n_steps`` steps or so much time, and when the process
    gets SIGINT (Ctrl-C) or SIGTERM (a cluster takes the machine back): that one first finishes its step, or the
    validation under way, because a checkpoint from within would not go on exactly. A second signal stops at once and
    writes nothing.
    Neither does any other exception: in the middle of a step the weights are half updated, and ``last.ckpt`` is worth
    more as it is. With several processes, signals are left to Lightning.

    Args:
        every_n_steps: Number of optimizer steps between two checkpoints within an epoch; None: none there. The step
            before a validation is left out, as the one at its end does instead.
        folder: Where ``last.ckpt`` is written; None: ``checkpoints`` in the run's folder.
        interval: Time between two checkpoints within an epoch; None: none by time.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        folder: str | Path | None = None,
        interval: timedelta | None = None,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.interval = interval
        self.folder = folder
        self.signal: signal.Signals | None = None
        """The signal that asked training to stop."""
        self.best_model_path = ""
        """The file that was written last, under the name that Lightning's own callback has for it."""
        self._saved_at: int | None = None  # the step whose state is on the disk; None: training has not begun
        self._saved_time = 0.0
        self._process = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
        path = str(Path(trainer.strategy.broadcast(folder)) / "last.ckpt")
        trainer.save_checkpoint(path, weights_only=False)  # what a callback of the user adds may be any object
        self.best_model_path = path
        self._saved_at = trainer.global_step
        self._saved_time = time.monotonic()

    def _ask_to_stop(self, trainer: Trainer) -> None:
        """Makes Lightning stop after this step, if a signal came. Nothing public does it without ending the epoch."""
        trainer._signal_connector.received_sigterm = self.signal is not None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.signal = None
        self._saved_at = trainer.global_step
        self._saved_time = time.monotonic()
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
        if self.signal is None and not self.every_n_steps and self.interval is None:
            return
        if _accumulates(trainer, batch_idx):
            return
        if self.signal is not None:
            self._ask_to_stop(trainer)
        if self._is_due(trainer):
            count = trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
            # A checkpoint from before a validation would go on after it, without its draws of random numbers.
            if not trainer.is_last_batch and (count + 1) % (trainer.val_check_batch or math.inf):
                self._save(trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        due = bool(self.every_n_steps) and trainer.global_step % (self.every_n_steps or 1) == 0
        if self.interval is not None:
            late = time.monotonic() - self._saved_time >= self.interval.total_seconds()
            due |= bool(trainer.strategy.broadcast(late))
        return due

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    # Lightning would leave a validation in the middle, and not come back to it
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.signal is not None and not trainer.sanity_checking:
            trainer._signal_connector.received_sigterm = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.signal is not None and not _accumulates(trainer, trainer.fit_loop.batch_idx):
            self._ask_to_stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back_signals()
        if self.signal is not None:  # it came after the last step
            signal.raise_signal(self.signal)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back_signals()
        # Lightning raises it between two steps, or after an epoch's end, when this step has been saved
        if isinstance(exception, SIGTERMException) and self._saved_at not in (None, trainer.global_step):
            self._save(trainer)

    def _give_back_signals(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def _accumulates(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the weights still lack the step of this batch: checkpoints hold no gradients."""
    return bool((batch_idx + 1) % trainer.accumulate_grad_batches) and not trainer.is_last_batch

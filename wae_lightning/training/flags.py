"""The trainer's flags that Lightning refuses with manual optimization."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from wae_lightning.lightning import Callback, LightningModule, Trainer

__all__ = ["BorrowedFlags"]


class BorrowedFlags(Callback):
    """Makes ``gradient_clip_val`` and ``accumulate_grad_batches`` work with a model that optimizes by hand.

    Lightning refuses both with manual optimization, although a model can well do what they say. A model returns this
    callback from ``configure_callbacks``, the last hook before Lightning looks: the flags are borrowed then and given
    back right after. Gradients are clipped before each optimizer's step, when they are unscaled; accumulation is left
    to the model's ``training_step``, which reads ``trainer.accumulate_grad_batches``.

    Args:
        trainer: The trainer whose flags are borrowed.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._borrowed: tuple[Any, int] | None = trainer.gradient_clip_val, trainer.accumulate_grad_batches
        trainer.gradient_clip_val, trainer.accumulate_grad_batches = None, 1

    def _give_back(self, trainer: Trainer) -> None:
        if self._borrowed is not None:
            trainer.gradient_clip_val, trainer.accumulate_grad_batches = self._borrowed
            self._borrowed = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._give_back(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.gradient_clip_val:
            pl_module.clip_gradients(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)

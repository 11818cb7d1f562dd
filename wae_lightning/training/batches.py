"""Batches that are read outside of Lightning's own loops."""

from __future__ import annotations

from typing import Any

from wae_lightning.lightning import LightningModule, Trainer, is_overridden

__all__ = ["on_device"]


def on_device(trainer: Trainer, model: LightningModule, batch: Any) -> Any:
    """A batch of a loader as a step gets it: in the trainer's precision, through the transfer hooks, on the device."""
    data: Any = getattr(trainer, "datamodule", None)
    prepared_by_data = data is not None and is_overridden("on_before_batch_transfer", data)
    batch = trainer.precision_plugin.convert_input(batch)
    batch = (data if prepared_by_data else model).on_before_batch_transfer(batch, 0)
    return trainer.strategy.batch_to_device(batch, model.device)

"""Features of the data that are computed once, before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wae_lightning.lightning import Callback, LightningModule, Trainer
from wae_lightning.networks.conditional import WhitenedPCA
from wae_lightning.training.batches import on_device

__all__ = ["FitFeatures"]


class FitFeatures(Callback):
    """Fits principal components to the first examples of the training set, unless they are fitted already.

    The pass over the data leaves no trace in the random number generator.

    Args:
        features: The components, a part of the model.
        inputs: Maps a batch on the device to what they are components of.
        count: How many examples are enough.
    """

    def __init__(self, features: WhitenedPCA, inputs: Callable[[Any], Tensor], count: int = 10_000) -> None:
        self.features = features
        self.inputs = inputs
        self.count = count

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.features.fitted:
            return
        trainer.fit_loop.setup_data()
        found: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            for batch in trainer.train_dataloader or []:
                found.append(self.inputs(on_device(trainer, pl_module, batch)))
                if sum(map(len, found)) >= self.count:
                    break
        self.features.fit(torch.cat(found))
        for buffer in self.features.buffers():
            # the processes have seen different examples
            buffer.copy_(trainer.strategy.broadcast(buffer))

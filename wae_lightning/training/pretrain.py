"""Encoder pre-training: codes that have the prior's moments before the first step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wae_lightning.lightning import Callback, LightningModule, Trainer
from wae_lightning.training.batches import on_device

__all__ = ["MatchMoments", "moment_mismatch"]


def moment_mismatch(z: Tensor, z_prior: Tensor) -> Tensor:
    """Mean squared error of the mean plus that of the covariance of two samples of codes, (n, d) and (m, d)."""
    mean_error = (z.mean(0) - z_prior.mean(0)).square().mean()
    return mean_error + (z.T.cov() - z_prior.T.cov()).square().mean()


class MatchMoments(Callback):
    """Before training, matches mean and covariance of the codes to the prior's, as the authors of the WAE do.

    It takes Adam steps (learning rate 1e-3) on batches of the training set, and stops earlier once the two mean squared
    errors add up to less than 0.1. A resumed run does not repeat it.

    Args:
        network: What is trained, a part of the model: the encoder.
        codes: Maps a batch on the device to its codes (n, d) and as many draws from the prior.
        steps: At most so many steps; the authors' code (github.com/tolstikhin/wae): 200.
    """

    def __init__(self, network: nn.Module, codes: Callable[[Any], tuple[Tensor, Tensor]], steps: int) -> None:
        self.network = network
        self.codes = codes
        self.steps = steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            return
        parameters = list(self.network.parameters())
        optimizer = torch.optim.Adam(parameters, lr=1e-3)
        loader: Any = trainer.train_dataloader
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for batch in itertools.islice(batches, self.steps):
            mismatch = moment_mismatch(*self.codes(on_device(trainer, pl_module, batch)))
            gradients = torch.autograd.grad(mismatch, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                # each process has batches of its own
                parameter.grad = trainer.strategy.reduce(gradient, reduce_op="mean")
            optimizer.step()
            if trainer.strategy.reduce(mismatch.detach(), reduce_op="mean") < 0.1:
                break
        optimizer.zero_grad()

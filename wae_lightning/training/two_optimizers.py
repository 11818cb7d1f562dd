"""The two-optimizer loop of WAE-GAN: Algorithm 1 of the paper, with all of the trainer's flags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wae_lightning.lightning import LightningModule

if TYPE_CHECKING:
    from wae_lightning.steps import Steps

__all__ = ["CriticFirst", "update"]


class CriticFirst:
    r"""One step after the other of Algorithm 1 of I. Tolstikhin et al., "Wasserstein auto-encoders", ICLR 2018.

    The critic is updated first, then the auto-encoder against the updated critic. With ``accumulate_grad_batches`` k
    both are updated once for k batches, as on one batch k times as long: the inputs of k - 1 batches are held back, and
    encoded a second time, rather than the graphs of all k.
    """

    def __init__(self) -> None:
        self._held_back: list[Any] = []

    def step(self, model: Steps, batch: Any, batch_idx: int) -> Tensor | None:
        """Takes one batch; returns the auto-encoder's loss if there was an update.

        Args:
            model: A model with an ``Adversarial`` penalty and its two optimizers.
            batch: The batch.
            batch_idx: Its number in the epoch.
        """
        trainer = model.trainer
        if batch_idx == 0:
            self._held_back = []
        self._held_back.append(model.inputs_of(batch))
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return None
        inputs, self._held_back = self._held_back, []
        penalty: Any = model.penalty
        autoencoder, critic = model.optimizers()  # type: ignore[attr-defined]

        if len(inputs) == 1:
            codes = [model.draw_codes(inputs[0])]
        else:
            with torch.no_grad():
                codes = [model.draw_codes(x) for x in inputs]
        compared = torch.cat([model.compared(x, code).detach() for x, code in zip(inputs, codes, strict=True)])

        # 1. the critic ascends: it learns to tell codes from draws from the prior
        for _ in range(penalty.steps):
            with torch.autocast(compared.device.type, enabled=False):
                loss, accuracies = penalty.critic_loss(compared, model.prior_like(compared))
            update(model, critic, model.penalty_weight * loss)

        model.log_dict(accuracies)

        # 2. the auto-encoder descends, its penalty judged by the updated critic
        total = compared.new_zeros(())
        for x, code in zip(inputs, codes, strict=True):
            code = model.draw_codes(x) if len(inputs) > 1 else code
            terms = model.terms(x, code) | {"penalty": model.penalty_of(model.compared(x, code))}
            model.log_terms("train", terms | {"critic_loss": loss})
            loss_of_batch = model.objective(terms) / len(inputs)
            if trainer.world_size > 1:
                # DistributedDataParallel waits for a gradient of every parameter, the critic's too
                loss_of_batch = loss_of_batch + sum(0.0 * parameter.sum() for parameter in penalty.parameters())
            model.manual_backward(loss_of_batch)
            total = total + loss_of_batch.detach()
        autoencoder.step()
        model.memory.remember(compared)
        autoencoder.zero_grad()
        critic.zero_grad()
        return total


def update(module: LightningModule, optimizer: Any, loss: Tensor) -> None:
    """Updates the parameters of one optimizer, beside the one whose steps ``trainer.global_step`` counts.

    Gradients are averaged over processes, scaled and unscaled as the precision asks for, and clipped by
    :class:`~wae_lightning.training.BorrowedFlags`. Only this optimizer's parameters get any.

    Args:
        module: The model that is trained, with manual optimization.
        optimizer: One of ``module.optimizers()``.
        loss: What its parameters descend.
    """
    trainer = module.trainer
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # not backward: DistributedDataParallel would wait for the gradients of the whole model
    scaled = trainer.precision_plugin.pre_backward(loss, module)
    gradients = torch.autograd.grad(scaled, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = trainer.strategy.reduce(gradient, reduce_op="mean")
    # a gradient scaler changes its scale once a step, by the gradients of the counted optimizer; its state_dict, the
    # public way to keep the scale, would wait for the device
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    kept = [] if scaler is None else [scaler._scale, scaler._growth_tracker]
    before = [x.clone() for x in kept]
    trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
    for x, value in zip(kept, before, strict=True):
        x.copy_(value)
    optimizer.zero_grad()

"""What training is compared with: a bare loop, a plain Lightning module, and pythae's trainer, on the same networks.

Each is a function that trains for a number of steps, and goes on where it was when it is called again.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.turns import stopwatch
from wae_lightning import WAE
from wae_lightning.lightning import Callback, LightningModule, TensorBoardLogger, Trainer
from wae_lightning.penalties.adversarial import Adversarial

__all__ = ["WARM_UP", "StepTimer", "Steps", "bare_loop", "bare_step", "plain_lightning"]

Steps = Callable[[int], float | None]
"""Trains so many steps; returns the seconds per step if it timed them itself."""
WARM_UP = 5
"""Steps at the beginning of each epoch of Lightning's that do not count."""


class StepTimer(Callback):
    """Takes each epoch's seconds per training step, from the end of the ``WARM_UP``-th to the end of the last."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == WARM_UP:
            self.elapsed = stopwatch(self.device)
        elif trainer.is_last_batch:
            self.times.append(self.elapsed() / (batch_idx + 1 - WARM_UP))


def _codes(model: WAE, x: Tensor) -> Tensor:
    z = model.noise(model.encoder(model.noise.on_input(x)))
    return model.prior.project(z if model.standardize is None else model.prior.scale * model.standardize(z))


def _networks_and_critic(model: WAE) -> tuple[list[Tensor], list[Tensor]]:
    critic = list(model.penalty.parameters())
    known = set(critic)
    return [parameter for parameter in model.parameters() if parameter not in known], critic


def _flow_loss(model: WAE, z: Tensor, past: Tensor) -> Tensor | float:
    """What the model's flow, if it has one, learns from the codes of this batch and of the one before."""
    if model.flow is None:
        return 0.0
    codes = torch.cat([z, past]).detach()
    loss: Tensor = -model.flow.log_prob(codes + model.flow_noise * torch.randn_like(codes)).mean()
    return loss / model.latent_dim


def bare_loop(model: WAE, images: Tensor, batch_size: int, bf16: bool = False, compiled: bool = False) -> Steps:
    """The same training in plain PyTorch: networks, loss, optimizers and schedules of the model, floats in one tensor.

    A critic is updated first, and the auto-encoder against the updated one.
    """
    model = copy.deepcopy(model).train().to(images.device)
    if compiled:
        model.encoder.compile()
        model.decoder.compile()
    penalty, weight = model.penalty, model.penalty_weight
    networks, of_critic = _networks_and_critic(model)
    optimizer = (model.make_optimizer or functools.partial(torch.optim.Adam, lr=1e-3))(networks)
    critic_optimizer = penalty.make_optimizer(of_critic) if isinstance(penalty, Adversarial) else None
    scheduler: Any = None
    if model.make_lr_scheduler is not None:
        try:  # schedules that need a length get one that is never reached
            scheduler = model.make_lr_scheduler(optimizer, total_steps=10_000)  # type: ignore[call-arg]
        except TypeError:
            scheduler = model.make_lr_scheduler(optimizer)
    batches: Iterator[Tensor] = itertools.chain.from_iterable(
        torch.randperm(len(images), device=images.device).split(batch_size)[:-1] for _ in itertools.count()
    )
    mixed = torch.autocast(images.device.type, torch.bfloat16) if bf16 else nullcontext()
    past = torch.empty(0, model.latent_dim, device=images.device)

    def steps(count: int) -> None:
        nonlocal past
        for rows in itertools.islice(batches, count):
            x = images[rows]
            with mixed:
                z = _codes(model, x)
                reconstruction = model.decoder(z)
            z = z.float()
            if critic_optimizer is not None:
                assert isinstance(penalty, Adversarial)
                critic_loss, _ = penalty.critic_loss(z.detach(), model.prior.sample(len(z), device=z.device))
                critic_optimizer.zero_grad()
                (weight * critic_loss).backward()
                critic_optimizer.step()
            cost = model.cost(x, reconstruction.float()).mean()
            loss = cost + weight * penalty(z, model.prior.sample(len(z), device=z.device)) + _flow_loss(model, z, past)
            past = z.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()

    return steps


def bare_step(
    model: WAE, x: Tensor, bf16: bool, encoder: nn.Module | None = None, decoder: nn.Module | None = None
) -> Callable[[], None]:
    """A training step of a WAE-MMD on one batch, without schedule and without a call that a CUDA graph cannot hold."""
    encoder, decoder = encoder or model.encoder, decoder or model.decoder
    past = torch.randn(len(x), model.latent_dim, device=x.device)
    optimizer = torch.optim.Adam(
        [*encoder.parameters(), *decoder.parameters(), *(model.flow.parameters() if model.flow is not None else ())],
        fused=True, capturable=x.device.type == "cuda",
    )  # fmt: skip

    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            z = model.noise(encoder(model.noise.on_input(x)))
            z = z if model.standardize is None else model.standardize(z)
            reconstruction = decoder(z)
        z = z.float()
        penalty = model.penalty(z, model.prior.sample(len(z), device=z.device))
        cost = model.cost(x, reconstruction.float()).mean()
        loss = cost + model.penalty_weight * penalty + _flow_loss(model, z, past)
        past.copy_(z.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class PlainModule(LightningModule):
    """The module that one writes first: PyTorch's default Adam, every value logged at every step and shown."""

    def __init__(self, model: WAE) -> None:
        super().__init__()
        self.model = model
        self.automatic_optimization = not isinstance(model.penalty, Adversarial)
        self.past = torch.empty(0, model.latent_dim)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        x, _ = batch
        model, penalty = self.model, self.model.penalty
        z = _codes(model, x)
        cost = model.cost(x, model.decoder(z)).mean()
        if isinstance(penalty, Adversarial):
            networks, critic = self.optimizers()  # type: ignore[misc]
            critic_loss, _ = penalty.critic_loss(z.detach(), model.prior.sample(len(z), device=z.device))
            self.log("critic_loss", critic_loss, prog_bar=True)
            critic.zero_grad()
            self.manual_backward(model.penalty_weight * critic_loss)
            critic.step()
        distance = penalty(z, model.prior.sample(len(z), device=z.device))
        loss = cost + model.penalty_weight * distance + _flow_loss(model, z, self.past.to(z))
        self.past = z.detach()
        self.log_dict({"cost": cost, "penalty": distance, "loss": loss}, prog_bar=True)
        if self.automatic_optimization:
            return loss
        networks.zero_grad()
        self.manual_backward(loss)
        networks.step()
        return None

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(group, lr=1e-3) for group in _networks_and_critic(self.model) if group]


def plain_lightning(model: WAE, images: Tensor, root: str | None, batch_size: int, device: torch.device) -> Steps:
    """torchvision's data set in a DataLoader without workers, and the plain module in a trainer as it comes.

    Without ``root`` the data are ``images``, one at a time.
    """
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    labels = torch.zeros(len(images), dtype=torch.int64)
    data: Any = TensorDataset(images.cpu(), labels) if root is None else MNIST(root, transform=ToTensor())
    plain = PlainModule(copy.deepcopy(model))

    def steps(count: int) -> float:
        timer = StepTimer(device)
        trainer = Trainer(
            accelerator=device.type,
            devices=1,
            max_epochs=1,
            limit_train_batches=WARM_UP + count,
            log_every_n_steps=1,
            logger=TensorBoardLogger("plain"),
            callbacks=[timer],
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.fit(plain, DataLoader(data, batch_size, shuffle=True))
        return timer.times[0]

    return steps

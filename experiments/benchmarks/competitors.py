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
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.turns import WARM_UP, Seconds, StepTimer
from datamodules import MNISTDataModule
from datamodules.images import ImageDataModule, Images
from wae_lightning import WAE
from wae_lightning.lightning import LightningModule, TensorBoardLogger, Trainer
from wae_lightning.penalties.adversarial import Adversarial

__all__ = ["Steps", "bare_loop", "plain_lightning", "pythae_trainer", "training_images"]

Steps = Callable[[int], Any]


def training_images(data: ImageDataModule, device: torch.device) -> Tensor:
    data.prepare_data()
    data.setup("fit")
    images = data.train_set
    assert isinstance(images, Images)
    return (images.images[images.rows].float() / 255).to(device)


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


def bare_loop(
    model: WAE, images: Tensor, batch_size: int, total_steps: int = 10_000, bf16: bool = False, compiled: bool = False
) -> Steps:
    """The same training in plain PyTorch: networks, loss, optimizers and schedules of the model, floats in one tensor.

    ``total_steps`` is for schedules that need a length.
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
        try:
            scheduler = model.make_lr_scheduler(optimizer, total_steps=total_steps)  # type: ignore[call-arg]
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
                z = model._encode(x, noise=True)
                reconstruction = model.decoder(z)
            z = z.float()
            cost = model.cost(x, reconstruction.float()).mean()
            loss = cost + weight * penalty(z, model.prior.sample(len(z), device=z.device)) + _flow_loss(model, z, past)
            past = z.detach()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if critic_optimizer is not None:
                assert isinstance(penalty, Adversarial)
                critic_loss, _ = penalty.critic_loss(z.detach(), model.prior.sample(len(z), device=z.device))
                critic_optimizer.zero_grad()
                (weight * critic_loss).backward()
                critic_optimizer.step()
            if scheduler is not None:
                scheduler.step()

    return steps


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
        z = model._encode(x, noise=True)
        cost = model.cost(x, model.decoder(z)).mean()
        distance = penalty(z, model.prior.sample(len(z), device=z.device))
        loss = cost + model.penalty_weight * distance + _flow_loss(model, z, self.past.to(z))
        self.past = z.detach()
        self.log("cost", cost, prog_bar=True)
        self.log("penalty", distance, prog_bar=True)
        self.log("loss", loss, prog_bar=True)
        if not isinstance(penalty, Adversarial):
            return loss
        networks, critic = self.optimizers()  # type: ignore[misc]
        networks.zero_grad()
        self.manual_backward(loss)
        networks.step()
        critic_loss, _ = penalty.critic_loss(z.detach(), model.prior.sample(len(z), device=z.device))
        self.log("critic_loss", critic_loss, prog_bar=True)
        critic.zero_grad()
        self.manual_backward(model.penalty_weight * critic_loss)
        critic.step()
        return None

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(group, lr=1e-3) for group in _networks_and_critic(self.model) if group]


def plain_lightning(model: WAE, root: str | None, batch_size: int, device: torch.device) -> Callable[[int], Seconds]:
    """torchvision's data set in a DataLoader without workers, and the plain module in a trainer as it comes."""
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    if root is None:
        # the bundled digits, one at a time
        bundled = MNISTDataModule()
        bundled.setup("fit")
        data: Any = TensorDataset(bundled.train_set.images.float() / 255, bundled.train_set.labels)
    else:
        data = MNIST(root, transform=ToTensor())
    plain = PlainModule(copy.deepcopy(model))

    def steps(count: int) -> Seconds:
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


def pythae_trainer(model: WAE, images: Tensor, batch_size: int) -> Steps:
    """pythae's WAE_MMD and its trainer on the networks of the model; its encoder is without noise."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import WAE_MMD, WAE_MMD_Config
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae_results import Decoder, Encoder

    class Mean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = copy.deepcopy(model.encoder)

        def forward(self, x: Tensor) -> Tensor:
            return model.noise.mean(self.encoder(x))

    d = model.latent_dim
    settings = WAE_MMD_Config(input_dim=tuple(images.shape[1:]), latent_dim=d, kernel_choice="imq", reg_weight=10.0)
    wae = WAE_MMD(settings, Encoder(Mean()), Decoder(copy.deepcopy(model.decoder)))
    flags = BaseTrainerConfig(
        output_dir="pythae",
        per_device_train_batch_size=batch_size,
        no_cuda=images.device.type == "cpu",
        learning_rate=1e-3,
    )
    trainers: dict[int, Any] = {}

    def steps(count: int) -> None:
        if count not in trainers:
            few = BaseDataset(images[: count * batch_size].cpu(), torch.zeros(count * batch_size))
            trainers[count] = BaseTrainer(wae, few, None, flags)
            trainers[count].prepare_training()
        trainers[count].train_step(1)

    return steps

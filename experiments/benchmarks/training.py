"""Training steps through Lightning against those of the competitors, which take turns between Lightning's epochs."""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from reproduce.pythae_trainer import pythae_trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.competitors import WARM_UP, Steps, StepTimer, bare_loop, plain_lightning
from benchmarks.turns import Options, median, ratio, seconds_of, stopwatch
from datamodules.images import ImageDataModule, Images
from wae_lightning import WAE
from wae_lightning.cli.flags import complete_flags
from wae_lightning.cli.train import Train
from wae_lightning.lightning import LightningModule, Trainer

__all__ = ["precision", "run_of", "training"]


@contextmanager
def quietly() -> Iterator[None]:
    """Progress bars draw as always, but nobody sees them."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def run_of(options: Options, config: str, *flags: str) -> Train:
    """What train.py makes of a config and flags, ready to fit."""
    flags = (f"--config={config}", f"--accelerator={options.device.type}", "--enable_model_summary=false", *flags)
    if options.root is not None and config.startswith("mnist"):
        flags += (f"--data.root={options.root}",)
    with quietly():
        return Train(*complete_flags(list(flags)))


def training_images(data: ImageDataModule, device: torch.device) -> Tensor:
    data.prepare_data()
    data.setup("fit")
    batches = [data.on_after_batch_transfer(batch, 0)[0] for batch in data.train_dataloader()]
    return torch.cat(batches).to(device)


class Turns(StepTimer):
    """Lets the competitors take a turn before each epoch, and notes the seconds per step of all but the first turns."""

    def __init__(self, competitors: dict[str, Steps], steps: int, device: torch.device) -> None:
        super().__init__(device)
        self.competitors = competitors
        self.steps = steps
        self.of_competitors: dict[str, list[float]] = {name: [] for name in competitors}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, competitor in self.competitors.items():
            elapsed = stopwatch(self.device)
            timed_itself = competitor(self.steps)
            if trainer.current_epoch > 0:
                self.of_competitors[name].append(timed_itself or elapsed() / self.steps)


def in_turns_with(
    competitors: dict[str, Steps], run: Train, steps: int, device: torch.device, data: ImageDataModule
) -> dict[str, list[float]]:
    """Seconds per step of Lightning and of each competitor, a number for each epoch but the first."""
    turns = Turns(competitors, steps, device)
    # first, so that the other callbacks' work lies between its marks
    run.trainer.callbacks.insert(0, turns)
    with quietly():
        run.trainer.fit(run.model, data)
    return {"lightning": turns.times[1:], **turns.of_competitors}


def _limits(steps: int, rounds: int) -> tuple[str, ...]:
    return f"--max_epochs={rounds + 1}", f"--limit_train_batches={WARM_UP + steps}", "--limit_val_batches=0"


def _pythae(model: WAE, images: Tensor, batch_size: int) -> Steps:
    """pythae's trainer on the networks of the model; its encoder is without noise."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.noise = copy.deepcopy(model.encoder), copy.deepcopy(model.noise)

        def forward(self, x: Tensor) -> Tensor:
            mean: Tensor = self.noise.mean(self.encoder(x))
            return mean

    networks, dim = (Mean(), copy.deepcopy(model.decoder)), model.latent_dim

    @functools.cache
    def trainer_of(count: int) -> Any:
        few = images[torch.arange(count * batch_size, device=images.device) % len(images)]
        return pythae_trainer(*networks, dim, few, batch_size)

    def steps(count: int) -> None:
        trainer_of(count).train_step(1)

    return steps


def training(options: Options) -> dict[str, Any]:
    """Images per second of the configs and of their competitors, and the ratios of the two."""
    rows: dict[str, Any] = {}
    steps, rounds = (4, 2) if options.quick else (40, 10)
    # the last is what pythae trains: it has no flow
    variants = {
        "mnist_wae_mmd": ("mnist_wae_mmd",),
        "mnist_wae_gan": ("mnist_wae_gan",),
        "mnist_wae_mmd without its flow": ("mnist_wae_mmd", "--model.flow=null"),
    }
    for variant, flags in list(variants.items())[: 2 if options.quick else None]:
        run = run_of(options, *flags, *_limits(steps, rounds))
        data: Any = run.datamodule
        images, size = training_images(data, options.device), data.batch_size
        competitors: dict[str, Steps] = {
            "bare loop": bare_loop(run.model, images, size),
            "plain Lightning": plain_lightning(run.model, images, options.root, size, options.device),
        }
        if importlib.util.find_spec("pythae"):
            competitors["pythae WAE_MMD"] = _pythae(run.model, images, size)
        times = in_turns_with(competitors, run, steps, options.device, data)
        rows[f"{variant}, lightning"] = {"images/s": size / median(times["lightning"])}
        for name in competitors:
            faster = ratio(times[name], times["lightning"])
            rows[f"{variant}, {name}"] = {"images/s": size / median(times[name]), "lightning/this": faster}
    return rows


class RandomImages(ImageDataModule):
    """Noise in the place of a data set: it takes as long, and an epoch has as many batches as are asked for."""

    def __init__(self, shape: tuple[int, ...], batch_size: int, batches: int) -> None:
        super().__init__(batch_size, 0)
        self.shape = shape
        self.count = batch_size * batches

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.shape
        return channels, height, width

    def setup(self, stage: str = "fit") -> None:
        images = torch.randint(256, (self.count, *self.shape), dtype=torch.uint8)
        self.train_set = self.val_set = self.test_set = Images(images, torch.zeros(self.count))


MODES = {
    "float32": (),
    "TF32": (),
    "bf16-mixed": ("--precision=bf16-mixed",),
    "bf16-mixed, compiled": ("--precision=bf16-mixed", "--model.compile=true"),
}


def _use_tf32(yes: bool) -> None:
    torch.set_float32_matmul_precision("high" if yes else "highest")
    torch.backends.cudnn.allow_tf32 = yes


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product: what the device can do at best."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=dtype)
    product = functools.partial(torch.mm, a, a)
    product()
    return float(2 * n**3 / min(seconds_of(product, device) for _ in range(5)))


def _operations_per_step(step: Steps) -> int:
    with FlopCounterMode(display=False) as counter:
        step(1)
    return int(counter.get_total_flops())


def precision(options: Options) -> dict[str, Any]:
    """Lightning against a bare loop in the same precision, compiled as it is, also at the paper's size.

    ``share of matmul rate`` is the arithmetic of matrix products and convolutions, forward and backward, in relation
    to the rate that a large matrix product reaches on this device in the same precision.
    """
    configs = {"mnist_wae_mmd": (1, 28, 28), "mnist_wae_mmd_paper": (1, 28, 28), "celeba_wae_gan_paper": (3, 64, 64)}
    steps, rounds = (3, 1) if options.quick else (100, 2)
    rows: dict[str, Any] = {}
    for mode, flags in list(MODES.items())[: 3 if options.quick else None]:
        _use_tf32(mode == "TF32")
        bf16 = "bf16" in mode
        rate = _matmul_rate(options.device, torch.bfloat16 if bf16 else torch.float32)
        rows[f"matrix product, {mode.partition(',')[0]}"] = {"TFLOP/s": rate / 1e12}
        for config, shape in list(configs.items())[: 1 if options.quick else None]:
            if time.perf_counter() > options.deadline:
                rows[f"{config}, {mode}"] = {"not measured": "time was up"}
                continue
            run = run_of(options, config, *_limits(steps, rounds), *flags)
            data = RandomImages(shape, run.datamodule.batch_size, WARM_UP + steps)
            images = training_images(data, options.device)
            bare = bare_loop(run.model, images, data.batch_size, bf16, "compiled" in mode)
            operations = _operations_per_step(bare_loop(run.model, images, data.batch_size))
            times = in_turns_with({"bare": bare}, run, steps, options.device, data)
            per_step = median(times["lightning"])
            rows[f"{config}, {mode}"] = {
                "images/s": data.batch_size / per_step,
                "lightning/bare loop": ratio(times["bare"], times["lightning"]),
                "share of matmul rate": operations / per_step / rate,
            }
    _use_tf32(False)
    return rows

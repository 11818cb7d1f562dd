"""Training steps against those of the competitors, on one and more threads, in lower precision, and compiled.

The competitors take turns between the epochs of one Lightning run, a few dozen steps each. Of Lightning's epochs the
steps after the first ``WARM_UP`` are timed. In this process the memory allocator is set as ``train.py`` sets it; the
competitors have processes of their own, where it is as it comes, and the bare loop runs in both.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch
import train
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.competitors import Steps, bare_loop, plain_lightning, pythae_trainer, training_images
from benchmarks.turns import WARM_UP, Options, Seconds, StepTimer, median, ratio, seconds_of
from datamodules.images import ImageDataModule, Images
from wae_lightning.lightning import LightningModule, Trainer

__all__ = ["epochs_of", "precision", "quietly", "run_of", "threads", "training"]


@contextmanager
def quietly() -> Iterator[None]:
    """Progress bars draw as always, but nobody sees them."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def run_of(options: Options, config: str, *flags: str) -> train.Train:
    """What train.py makes of a config and flags, ready to fit."""
    flags = (f"--config={config}", f"--accelerator={options.device.type}", "--enable_model_summary=false", *flags)
    if options.root is not None and config.startswith("mnist"):
        flags += (f"--data.root={options.root}",)
    with quietly():
        return train.Train(*train.with_full_names(list(flags)))


def epochs_of(steps: int, rounds: int) -> tuple[str, ...]:
    return f"--max_epochs={rounds + 1}", f"--limit_train_batches={WARM_UP + steps}", "--limit_val_batches=0"


class RandomImages(ImageDataModule):
    """Noise in the place of a data set that is not at hand: it takes as long."""

    def __init__(self, shape: tuple[int, int, int], batch_size: int, count: int, on_device: bool | None = None) -> None:
        super().__init__(batch_size, 0, on_device)
        self.shape = shape
        self.count = count

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.shape

    def setup(self, stage: str = "fit") -> None:
        images = torch.randint(256, (self.count, *self.shape), dtype=torch.uint8)
        self.train_set = self.val_set = self.test_set = Images(images, torch.zeros(self.count))


class Turns(StepTimer):
    """Lets the competitors take a turn before each epoch, and notes the times of all but the first turns."""

    def __init__(self, competitors: dict[str, Steps], steps: int, device: torch.device) -> None:
        super().__init__(device)
        self.competitors = competitors
        self.steps = steps
        self.of_competitors: dict[str, list[Seconds]] = defaultdict(list)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, competitor in self.competitors.items():
            taken = seconds_of(functools.partial(competitor, self.steps), self.device)
            if trainer.current_epoch > 0:
                self.of_competitors[name].append(taken)


def in_turns_with(
    competitors: dict[str, Steps], options: Options, run: train.Train, steps: int, data: ImageDataModule | None = None
) -> dict[str, list[Seconds]]:
    turns = Turns(competitors, steps, options.device)
    # first, so that the other callbacks' work lies between its marks
    run.trainer.callbacks.insert(0, turns)
    with quietly():
        run.trainer.fit(run.model, data or run.datamodule)
    return {"lightning": turns.times[1:], **turns.of_competitors}


def _serve(turns: Connection, name: str, flags: tuple[str, ...], options: Options, count: int) -> None:
    torch.set_num_threads(count)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    run = run_of(options, *flags)
    images, size = training_images(run.datamodule, options.device), run.datamodule.batch_size
    if name == "plain Lightning":
        steps: Steps = plain_lightning(run.model, options.root, size, options.device)
    else:
        steps = {"bare loop": bare_loop, "pythae WAE_MMD": pythae_trainer}[name](run.model, images, size)
    with suppress(EOFError), quietly():
        while True:
            turns.send(seconds_of(functools.partial(steps, turns.recv()), options.device))


@contextmanager
def in_processes_of_their_own(names: list[str], flags: tuple[str, ...], options: Options) -> Iterator[dict[str, Steps]]:
    """Competitors that wait in processes of their own for their turns."""
    context = get_context("spawn")
    turns = {}
    for name in names:
        turns[name], others_end = context.Pipe()
        context.Process(
            target=_serve, args=(others_end, name, flags, options, torch.get_num_threads()), daemon=True
        ).start()
        others_end.close()

    def turn(connection: Connection, count: int) -> Seconds:
        connection.send(count)
        return connection.recv()  # type: ignore[no-any-return]

    try:
        yield {name: functools.partial(turn, connection) for name, connection in turns.items()}
    finally:
        for connection in turns.values():
            connection.close()


def training(options: Options) -> dict[str, Any]:
    """Images per second of the configs and of their competitors, by the clock, and the ratios of the two."""
    rows: dict[str, Any] = {}
    steps, rounds = (15, 2) if options.quick else (40, 10)
    others = ["bare loop", "plain Lightning"] + ["pythae WAE_MMD"] * bool(importlib.util.find_spec("pythae"))
    # the last is what pythae trains: it has no flow
    variants = {
        "mnist_wae_mmd": ("mnist_wae_mmd",),
        "mnist_wae_gan": ("mnist_wae_gan",),
        "mnist_wae_mmd without its flow": ("mnist_wae_mmd", "--model.flow=null"),
    }
    for variant, flags in list(variants.items())[: 1 if options.quick else None]:
        run = run_of(options, *flags, *epochs_of(steps, rounds))
        images, size = training_images(run.datamodule, options.device), run.datamodule.batch_size
        with in_processes_of_their_own(others, flags, options) as competitors:
            competitors["bare loop, allocator as it comes"] = competitors.pop("bare loop")
            competitors["bare loop"] = bare_loop(run.model, images, size)
            times = in_turns_with(competitors, options, run, steps)
        rows[variant] = {"lightning": {"images/s": steps * size / median(times["lightning"])}}
        for name in competitors:
            faster = ratio(times[name], times["lightning"])
            rows[variant][name] = {
                "images/s": steps * size / median(times[name]),
                "lightning/this": faster["wall"],
                "lightning/this, CPU time": faster["cpu"],
            }
    return rows


def threads(options: Options) -> dict[str, Any]:
    """Images per second of the bare loop of the default networks with one and more threads of PyTorch."""
    if options.device.type != "cpu":
        return {}
    run = run_of(options, "mnist_wae_mmd")
    size = run.datamodule.batch_size
    loop = bare_loop(run.model, training_images(run.datamodule, options.device), size)
    before = torch.get_num_threads()
    counts = [count for count in (1, 2, 4, 8) if count <= (os.cpu_count() or 1)]
    steps, times = 15 if options.quick else 40, defaultdict(list)
    for _ in range(2 if options.quick else 6):
        for count in counts:
            torch.set_num_threads(count)
            loop(2)
            times[count].append(seconds_of(lambda: loop(steps), options.device))
    torch.set_num_threads(before)
    return {f"{count} threads": {"images/s": steps * size / median(times[count])} for count in counts}


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product: what the machine can do at best."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=dtype)
    product = functools.partial(torch.mm, a, a)
    product()
    return float(2 * n**3 / min(seconds_of(product, device).wall for _ in range(5)))


def _operations_per_step(step: Steps) -> int:
    with FlopCounterMode(display=False) as counter:
        step(1)
    return int(counter.get_total_flops())


def precision(options: Options) -> dict[str, Any]:
    """Lightning and the bare loop in float32, mixed precision and compiled; on a GPU also larger networks.

    ``share of matmul rate`` is the arithmetic of matrix products and convolutions, forward and backward, in relation
    to the largest rate that a matrix product reaches on this device in this precision.
    """
    gpu = options.device.type == "cuda"
    variants = {"float32": (), "bf16-mixed": ("--precision=bf16-mixed",)}
    if not options.quick:
        variants["compiled"] = ("--model.compile=true",)
    if gpu:
        variants["bf16-mixed, compiled"] = ("--precision=bf16-mixed", "--model.compile=true")
        variants["bf16-mixed, CUDA graphs"] = ("--precision=bf16-mixed", "--model.compile=reduce-overhead")
    configs = ["mnist_wae_mmd"]
    if gpu:
        configs += ["mnist_wae_mmd_paper", "celeba_wae_mmd", "celeba_wae_mmd_paper"]
    steps, rounds = (8, 2) if options.quick else (20, 4)
    if gpu:
        steps, rounds = (50, 2) if options.quick else (200, 3)
    rates = {bf16: _matmul_rate(options.device, torch.bfloat16 if bf16 else torch.float32) for bf16 in (False, True)}
    rows: dict[str, Any] = {"matmul TFLOP/s": {"float32": rates[False] / 1e12, "bfloat16": rates[True] / 1e12}}
    for config in configs:
        for name, flags in variants.items():
            bf16, compiled = "bf16" in name, "--model.compile" in " ".join(flags)
            run = run_of(options, config, *epochs_of(steps, rounds), *flags)
            size, data = run.datamodule.batch_size, None
            if config.startswith("celeba"):
                data = RandomImages((3, 64, 64), size, (WARM_UP + steps) * size)
            images = training_images(data or run.datamodule, options.device)
            plain = bare_loop(run.model, images, size)
            competitors = {"float32": plain}
            if flags:
                competitors["bare"] = bare_loop(run.model, images, size, bf16=bf16, compiled=compiled)
            operations = _operations_per_step(plain)
            times = in_turns_with(competitors, options, run, steps, data)
            per_step = median(times["lightning"]) / steps
            rows[f"{config}, {name}"] = {
                "images/s": size / per_step,
                "lightning/bare loop": ratio(times["bare" if flags else "float32"], times["lightning"])["wall"],
                "lightning/bare loop in float32": ratio(times["float32"], times["lightning"])["wall"],
                "share of matmul rate": operations / per_step / rates[bf16],
            }
    if gpu:
        rows |= _resident_against_host(options)
    else:
        not_measured = ("larger networks, GPU", "CUDA graphs, GPU", "resident against host data, GPU")
        rows |= dict.fromkeys(not_measured, "not measured: no GPU")
    return rows


def _resident_against_host(options: Options) -> dict[str, Any]:
    rows = {}
    for config, shape in (("mnist_wae_mmd", (1, 28, 28)), ("celeba_wae_mmd", (3, 64, 64))):
        steps, rounds = (50, 2) if options.quick else (200, 3)
        for place, on_device in (("resident", True), ("host", False)):
            run = run_of(options, config, *epochs_of(steps, rounds), "--precision=bf16-mixed")
            size = run.datamodule.batch_size
            data = RandomImages(shape, size, (WARM_UP + steps) * size, on_device)
            times = in_turns_with({}, options, run, steps, data)
            rows[f"{config}, bf16-mixed, data {place}"] = {"images/s": steps * size / median(times["lightning"])}
    return rows

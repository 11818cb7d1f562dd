"""How time grows with batch size, latent dimensions, codes of the MMD, points of a cloud, and processes."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.competitors import bare_loop, training_images
from benchmarks.parts import forward_and_backward
from benchmarks.startup import TRAIN
from benchmarks.training import run_of
from benchmarks.turns import WARM_UP, Options, StepTimer, in_turns, median
from wae_lightning.costs import chamfer_distance
from wae_lightning.kernels import InverseMultiquadric
from wae_lightning.lightning import Trainer
from wae_lightning.penalties import mmd

__all__ = ["StepsToFile", "scaling"]


class StepsToFile(StepTimer):
    """Writes the seconds of the last epoch's steps into a file.

    Args:
        file: The file; only the first process writes.
    """

    def __init__(self, file: str) -> None:
        super().__init__(torch.device("cpu"))
        self.file = file

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.is_global_zero:
            Path(self.file).write_text(json.dumps(self.times[-1].wall))


def scaling(options: Options) -> dict[str, Any]:
    """Milliseconds; models are those of the default config, in a bare loop."""
    device, rounds = options.device, 2 if options.quick else 5
    rows: dict[str, Any] = {}

    run = run_of(options, "mnist_wae_mmd")
    images = training_images(run.datamodule, device)
    sizes = (50, 100, 200) if options.quick else (25, 50, 100, 200, 400)
    steps = 5 if options.quick else 10
    loops = {size: functools.partial(bare_loop(run.model, images, size), steps) for size in sizes}
    times = in_turns({str(size): loop for size, loop in loops.items()}, device, rounds)
    rows["step, by batch size"] = {size: median(found) / steps * 1e3 for size, found in times.items()}

    dimensions = (2, 64) if options.quick else (2, 8, 32, 128)
    by_dimension = {}
    for d in dimensions:
        flags = (
            f"--model.latent_dim={d}",
            f"--model.encoder.latent_dim={2 * d}",
            f"--model.decoder.latent_dim={d}",
            f"--model.flow.dim={d}",
        )
        model = run_of(options, "mnist_wae_mmd", *flags).model
        by_dimension[str(d)] = functools.partial(bare_loop(model, images, run.datamodule.batch_size), steps)
    times = in_turns(by_dimension, device, rounds)
    rows["step, by latent_dim"] = {d: median(found) / steps * 1e3 for d, found in times.items()}

    kernel = InverseMultiquadric(c=16.0)
    codes = {n: torch.randn(n, 8, device=device, requires_grad=True) for n in (100, 400, 1600, 6400)}
    penalties = {
        str(n): functools.partial(forward_and_backward, functools.partial(mmd, kernel=kernel), z, torch.randn_like(z))
        for n, z in codes.items()
    }
    times = in_turns(penalties, device, rounds)
    rows["MMD, by codes n"] = {n: median(found) * 1e3 for n, found in times.items()}

    clouds = {
        n: torch.randn(8, n, 3, device=device, requires_grad=True)
        for n in (256, 1024, 4096)[: 2 if options.quick else 3]
    }
    distances = {
        str(n): functools.partial(forward_and_backward, chamfer_distance, a, torch.randn_like(a))
        for n, a in clouds.items()
    }
    times = in_turns(distances, device, rounds)
    rows["Chamfer of 8 clouds, by points"] = {n: median(found) * 1e3 for n, found in times.items()}
    rows["training, by processes"] = processes(options)
    return rows


def processes(options: Options) -> dict[str, Any]:
    """Images per second of one and of two CPU processes with DistributedDataParallel, one thread each."""
    if options.device.type != "cpu":
        return {"2": "not measured: one GPU"}
    if options.quick:
        return {"2": "left out by --quick"}
    steps, rates = 60, {}
    size = run_of(options, "mnist_wae_mmd").datamodule.batch_size
    data = [] if options.root is None else [f"--data.root={options.root}"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        timer = [
            "--trainer.callbacks+=benchmarks.scaling.StepsToFile",
            f"--trainer.callbacks.init_args.file={file}",
        ]
        for devices in (1, 2):
            flags = [f"--limit_train_batches={WARM_UP + steps}", "--limit_val_batches=0", "--limit_test_batches=1"]
            flags += ["--max_epochs=1", "--accelerator=cpu", f"--devices={devices}", "--enable_progress_bar=false"]
            flags += ["--strategy=ddp"] if devices > 1 else []
            command = [sys.executable, TRAIN, *timer, *flags, *data]
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=300,
            )
            if done.returncode:
                return {"error": done.stderr.strip().splitlines()[-1]}
            rates[str(devices)] = {"images/s": devices * steps * size / json.loads(file.read_text())}
    return rates

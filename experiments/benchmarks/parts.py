"""The MMD against the broadcasting form, the Chamfer distance against full matrices, sampling, and starting."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training import run_of
from benchmarks.turns import Options, in_turns, median, peak_megabytes, ratio, seconds_of
from wae_lightning.costs import chamfer_distance
from wae_lightning.kernels import InverseMultiquadric
from wae_lightning.lightning import Callback
from wae_lightning.penalties import mmd

__all__ = ["StopAfterOneStep", "chamfer", "mmd_forms", "sampling", "startup"]

LARGEST_ARRAY = 5e8  # bytes; of a larger one only some rows are made, and what is measured is scaled up


def broadcasting_mmd(z: Tensor, z_prior: Tensor, c: float) -> Tensor:
    """The textbook form: differences of all pairs, and autograd through each of the seven scales."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = (x.unsqueeze(1) - y.unsqueeze(0)).square().sum(2)
        return sum((s * c / (s * c + squared) for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)), torch.zeros(()).to(x))

    def off_diagonal(x: Tensor) -> Tensor:
        values = kernel(x, x)
        return (values.sum() - values.diagonal().sum()) / (len(x) * (len(x) - 1))

    return off_diagonal(z) + off_diagonal(z_prior) - 2 * kernel(z, z_prior).mean()


def _forward_and_backward(loss: Callable[..., Tensor], a: Tensor, b: Tensor, repeats: int = 1) -> Callable[[], None]:
    a = a.clone().requires_grad_()

    def run() -> None:
        for _ in range(repeats):
            a.grad = None
            loss(a, b).mean().backward()

    return run


def _compared(forms: dict[str, Callable[[], None]], scale: float, repeats: int, options: Options) -> dict[str, Any]:
    """Seconds and peak memory of the first form and of the others, whose figures are multiplied by ``scale``."""
    times = in_turns(forms, options.device, 1 if options.quick else 5)
    ours, *others = forms
    rows = {ours: {"ms": median(times[ours]) / repeats * 1e3, "MB": peak_megabytes(forms[ours], options.device)}}
    for name in others:
        rows[name] = {
            "ms": median(times[name]) / repeats * 1e3 * scale,
            "MB": peak_megabytes(forms[name], options.device) * scale,
            "times as long": ratio(times[name], times[ours]) * scale,
        }
    return rows


def mmd_forms(options: Options) -> dict[str, Any]:
    """MMD, forward and backward, at several numbers n and dimensions d of codes, and the largest error of its value.

    Where one of the broadcasting form's arrays (n, n, d) would be larger than ``LARGEST_ARRAY``, a smaller n is
    measured in its place and multiplied by the quotient of n²: all of its arrays have n² rows.
    """
    rows: dict[str, Any] = {}
    for n, d in ((100, 8), (1000, 64), (4000, 64))[: 2 if options.quick else None]:
        kernel, c = InverseMultiquadric(c=2.0 * d), 2.0 * d
        generator = torch.Generator().manual_seed(0)
        z, z_prior = (torch.randn(n, d, generator=generator).to(options.device) for _ in range(2))
        part = min(n, int((LARGEST_ARRAY / (40 if options.quick else 4) / d) ** 0.5))
        few, few_prior, repeats = z[:part], z_prior[:part], 10 if n == 100 else 1
        forms = {
            "ours": _forward_and_backward(functools.partial(mmd, kernel=kernel), z, z_prior, repeats),
            "broadcasting": _forward_and_backward(functools.partial(broadcasting_mmd, c=c), few, few_prior, repeats),
        }
        for name, row in _compared(forms, (n / part) ** 2, repeats, options).items():
            rows[f"n {n}, d {d}, {name}"] = row
        exact = broadcasting_mmd(few.double(), few_prior.double(), c)
        rows[f"n {n}, d {d}, ours"]["absolute error"] = float((mmd(few, few_prior, kernel) - exact).abs())
    return rows


def _chamfer_by_matrix(a: Tensor, b: Tensor) -> Tensor:
    squared = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(3)
    return squared.amin(2).mean(1) + squared.amin(1).mean(1)


def _chamfer_by_cdist(a: Tensor, b: Tensor) -> Tensor:
    squared = torch.cdist(a, b).square()
    return squared.amin(2).mean(1) + squared.amin(1).mean(1)


def chamfer(options: Options) -> dict[str, Any]:
    """Chamfer distance of 32 pairs of 2,048 points, forward and backward; the other forms on 4 pairs, times 8."""
    points = 512 if options.quick else 2048
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(32, points, 3, generator=generator).div(3).to(options.device) for _ in range(2))
    forms = {
        "ours": _forward_and_backward(chamfer_distance, a, b),
        "full matrix": _forward_and_backward(_chamfer_by_matrix, a[:4], b[:4]),
        "torch.cdist": _forward_and_backward(_chamfer_by_cdist, a[:4], b[:4]),
    }
    rows = _compared(forms, 8, 1, options)
    exact = _chamfer_by_matrix(a[:4].double(), b[:4].double())
    rows["ours"]["absolute error"] = float((chamfer_distance(a[:4], b[:4]) - exact).abs().max())
    return rows


def sampling(options: Options) -> dict[str, Any]:
    """Images per second that are decoded from draws of the prior, 500 at a time."""
    rows = {}
    configs = ["mnist_wae_mmd"] if options.quick else ["mnist_wae_mmd", "celeba_wae_mmd"]
    if options.device.type == "cuda":
        configs.append("mnist_wae_mmd_paper")
    for config in configs:
        model: Any = run_of(options, config).model.to(options.device).eval()
        draw = functools.partial(model.sample, 500)
        draw()
        best = min(seconds_of(draw, options.device) for _ in range(3 if options.quick else 10))
        rows[config] = {"images/s": 500 / best}
    return rows


class StopAfterOneStep(Callback):
    """Ends the process, with no further work, once the first training step is done."""

    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)


def startup(options: Options) -> dict[str, Any]:
    """Seconds until something happens: imports, the command line's help, the first step of training."""
    script = [sys.executable, str(Path(__file__).parents[1] / "train.py")]
    data = [] if options.root is None else [f"--data.root={options.root}"]
    first_step = "--trainer.callbacks+=benchmarks.parts.StopAfterOneStep"
    commands = {
        "import pytorch_lightning": [sys.executable, "-c", "import pytorch_lightning"],
        "import wae_lightning": [sys.executable, "-c", "import pytorch_lightning, wae_lightning"],
        "train.py --help": [*script, "--help"],
        "train.py, first step": [*script, first_step, f"--accelerator={options.device.type}", *data],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 if options.quick else 5):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                times[name].append(time.perf_counter() - start)
    lightning, ours, *_ = times.values()
    added = median(b - a for a, b in zip(lightning, ours, strict=True))
    return {name: {"s": median(found)} for name, found in times.items()} | {"wae_lightning adds": {"s": added}}

"""The MMD against the broadcasting form, the Chamfer distance against full matrices, and sampling."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import train
from torch import Tensor

from benchmarks.turns import Options, in_turns, median, peak_megabytes, ratio, seconds_of
from wae_lightning import WAE
from wae_lightning.costs import chamfer_distance
from wae_lightning.kernels import InverseMultiquadric
from wae_lightning.penalties import mmd

__all__ = ["chamfer", "forward_and_backward", "mmd_forms", "sampling"]

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


def forward_and_backward(loss: Callable[..., Tensor], a: Tensor, b: Tensor) -> None:
    a.grad = None
    loss(a, b).mean().backward()


def mmd_forms(options: Options) -> dict[str, Any]:
    """MMD, forward and backward: time and peak memory at several n and d.

    Where one of the broadcasting form's arrays (n, n, d) would be larger than ``LARGEST_ARRAY``, a smaller n is
    measured in its place and multiplied by the quotient of n²: all of its arrays have n² rows. ``measured_at`` says so.
    """
    rows = {}
    device = options.device
    for n in (100, 1000, 4000):
        for d in (8, 64):
            kernel = InverseMultiquadric(c=2.0 * d)
            generator = torch.Generator().manual_seed(0)
            z, z_prior = (torch.randn(n, d, generator=generator).to(device) for _ in range(2))
            largest = LARGEST_ARRAY / 10 if options.quick else LARGEST_ARRAY
            part = min(n, int((largest / 4 / d) ** 0.5))
            few, few_prior = z[:part].clone().requires_grad_(), z_prior[:part]
            z.requires_grad_()
            ours = functools.partial(forward_and_backward, functools.partial(mmd, kernel=kernel), z, z_prior)
            broadcasting = functools.partial(
                forward_and_backward, functools.partial(broadcasting_mmd, c=2.0 * d), few, few_prior
            )
            repeats = 10 if n == 100 else 1
            times = in_turns(
                {
                    "ours": functools.partial(_several, ours, repeats),
                    "broadcasting": functools.partial(_several, broadcasting, repeats),
                },
                device,
                1 if options.quick else 5,
            )
            scale = (n / part) ** 2
            # the result in float64, on as many rows as both can take
            reference = broadcasting_mmd(few.detach().double(), few_prior.double(), 2.0 * d)
            error = float((mmd(few.detach(), few_prior, kernel) - reference).abs())
            memory = peak_megabytes(ours, device)
            memory_broadcasting = peak_megabytes(broadcasting, device) * scale
            faster = ratio(times["broadcasting"], times["ours"])
            rows[f"n {n}, d {d}"] = {
                "ms": median(times["ours"]) / repeats * 1e3,
                "broadcasting_ms": median(times["broadcasting"]) / repeats * 1e3 * scale,
                "times_faster": faster["wall"] * scale,
                "times_faster_cpu": faster["cpu"] * scale,
                "MB": memory,
                "broadcasting_MB": memory_broadcasting,
                "times_less_memory": memory_broadcasting / max(memory, 0.1),
                "measured_at": part,
                "absolute_error": error,
            }
    return rows


def _several(action: Callable[[], None], repeats: int) -> None:
    for _ in range(repeats):
        action()


def _chamfer_by_matrix(a: Tensor, b: Tensor) -> Tensor:
    squared = (a.unsqueeze(2) - b.unsqueeze(1)).square().sum(3)
    return squared.amin(2).mean(1) + squared.amin(1).mean(1)


def _chamfer_by_cdist(a: Tensor, b: Tensor) -> Tensor:
    squared = torch.cdist(a, b).square()
    return squared.amin(2).mean(1) + squared.amin(1).mean(1)


def chamfer(options: Options) -> dict[str, Any]:
    """Chamfer distance of 32 pairs of 2,048 points, forward and backward; the other forms on 4 pairs, times 8."""
    device = options.device
    batch, points = 32, 512 if options.quick else 2048
    part = batch // 8
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(batch, points, 3, generator=generator).div(3).to(device) for _ in range(2))
    a_part, b_part = a[:part].clone().requires_grad_(), b[:part]
    a.requires_grad_()
    forms = {
        "ours": functools.partial(forward_and_backward, chamfer_distance, a, b),
        "full matrix": functools.partial(forward_and_backward, _chamfer_by_matrix, a_part, b_part),
        "torch.cdist": functools.partial(forward_and_backward, _chamfer_by_cdist, a_part, b_part),
    }
    times = in_turns(forms, device, 2 if options.quick else 5)
    reference = _chamfer_by_matrix(a_part.detach().double(), b_part.double())
    error = float((chamfer_distance(a_part.detach(), b_part) - reference).abs().max())
    rows: dict[str, Any] = {}
    for name, form in forms.items():
        scale = 1 if name == "ours" else batch / part
        rows[name] = {"s": median(times[name]) * scale, "MB": peak_megabytes(form, device) * scale}
        if name != "ours":
            longer = ratio(times[name], times["ours"])
            rows[name] |= {"times_as_long": longer["wall"] * scale, "times_as_long_cpu": longer["cpu"] * scale}
    return {"batch": batch, "points": points, "absolute_error": error, **rows}


def sampling(options: Options) -> dict[str, Any]:
    """Images per second that are decoded from draws of the prior, 500 at a time."""
    rows = {}
    for config in ("mnist_wae_mmd", "mnist_wae_mmd_paper", "celeba_wae_mmd"):
        paper = config.endswith("_paper")
        if paper and (options.quick or options.device.type == "cpu"):
            continue
        model = model_of(config).to(options.device).eval()
        draw = functools.partial(model.sample, 500)
        draw()
        best = min(seconds_of(draw, options.device).wall for _ in range(3 if options.quick else 10))
        rows[config] = {"images/s": 500 / best}
    return rows


def model_of(config: str, *flags: str) -> WAE:
    run = train.Train(*train.with_full_names([f"--config={config}", "--accelerator=auto", *flags]))
    assert isinstance(run.model, WAE)
    return run.model

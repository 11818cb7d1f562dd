"""Where rounding matters: float32 in earnest under autocast and TF32, and float64 for devices that have none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["are_integers", "full_float32", "in_float64", "in_full_precision"]


def in_full_precision(x: Tensor) -> Tensor:
    """The tensor in float32 if it is in half precision; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def in_float64(x: Tensor) -> Tensor:
    """The tensor in float64; that of an Apple GPU, which has no float64, comes to the CPU."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def are_integers(x: Tensor) -> bool:
    """Whether the numbers are whole by their type; truth values are none."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside, float32 is computed as float32: no autocast, and no TF32 or bfloat16 in matrix products.

    For differences of large numbers, such as distances by |x|² - 2xy + |y|². The backward pass runs outside, where its
    products are rounded as the user's ``torch.set_float32_matmul_precision`` says: to three digits of a gradient.

    Args:
        device: Where the tensors lie.
    """
    with contextlib.ExitStack() as stack:
        if torch.amp.is_autocast_available(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        # a compiled graph keeps the precision that it was compiled with
        if not torch.compiler.is_compiling():
            stack.enter_context(_no_tf32())
        yield


@contextlib.contextmanager
def _no_tf32() -> Iterator[None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        # the user has set the newer flags of each backend, which do not mix with the older function
        backends = [backend.matmul for backend in (torch.backends.cuda, torch.backends.mkldnn)]
        flags = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, flag in zip(backends, flags, strict=True):
                backend.fp32_precision = flag
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

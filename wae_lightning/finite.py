"""Where numbers stopped being finite: which module of a model is the first to put out, or to hold, inf or nan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["first_bad_module", "first_bad_weights"]


def first_bad_weights(model: nn.Module) -> str | None:
    """Name of the first bad parameter, or bad statistic of a batch norm; None if all are finite. Waits once."""
    named = [(name, x) for name, x in _tensors(model) if x.is_floating_point() and x.numel()]
    if not named:
        return None
    finite = torch.stack([x.detach().isfinite().all() for _, x in named]).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    # other buffers may hold inf by right, such as the mask of an attention
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase):
            yield from module.named_buffers(prefix)


def first_bad_module(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """Runs the model and names the first innermost module, in the order of its run, with inf or nan, and where it is.

    Args:
        model: The model.
        run: Runs it; what it raises is ignored, bad numbers make some modules raise.

    Returns:
        For example ``decoder.layers.2 (its output)``, or None if every number is finite.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if found:
            return
        if first_bad_weights(module):
            found.append(f"{name} (its weights)")
        elif _is_bad(inputs):
            found.append(f"{name} (its input)")
        elif _is_bad(output):
            found.append(f"{name} (its output)")

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, module, inputs, output))
        for name, module in model.named_modules()
        if name and not next(module.children(), None)
    ]
    with torch.no_grad(), suppress(Exception):
        run()
    for hook in hooks:
        hook.remove()
    return found[0] if found else None


def _is_bad(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and not bool(value.isfinite().all())
    return isinstance(value, tuple | list) and any(map(_is_bad, value))

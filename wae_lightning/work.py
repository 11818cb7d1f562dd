"""What it costs to decode one code, found out without doing it: on the meta device, where tensors have only shapes."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# documented as the way to see each operation, in spite of its name: "Extending PyTorch"
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["check_work", "codes_at_once"]

_LARGEST_LAYER, _ALL_LAYERS, _LARGEST_RESULT = 2**25, 2**30, 2**24
_MOST_FLOPS = 2 * 10**10
_AT_ONCE = 2**28


class _TooMuchError(BaseException):
    """Stops a network, whatever it catches."""


class _Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes that the operations of a network put out."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bounded = bounded
        self.largest = self.sum = self.pooled = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, Tensor) and not func.is_view:
                self.largest = max(self.largest, tensor.nbytes)
                self.sum += tensor.nbytes
                if "pool" in func.__name__ and len(args) > 1 and isinstance(args[1], list | tuple):
                    # which is no flop to torch, and takes ten times as long as one of a matrix product
                    self.pooled += 10 * tensor.numel() * math.prod(args[1])
        if self.bounded and (self.largest > _LARGEST_LAYER or self.sum > _ALL_LAYERS):
            raise _TooMuchError(f"puts out {self.largest} bytes in one layer and {self.sum} in all")
        return result


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without memory."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    memo: dict[int, Any] = {id(tensor): tensor.detach().to("meta") for tensor in tensors}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(memo[id(parameter)], requires_grad=False)
    return copy.deepcopy(model, memo)


def _try(model: Any, bounded: bool) -> tuple[_Outputs, int]:
    outputs, counter = _Outputs(bounded), FlopCounterMode(display=False)
    with torch.no_grad(), torch.device("meta"):
        copied: Any = _on_meta(model).eval()
        with counter, outputs:
            result = copied.try_out()
    if bounded and result.nbytes > _LARGEST_RESULT:
        raise _TooMuchError(f"puts out {result.nbytes} bytes")
    work = counter.get_total_flops() + outputs.pooled
    if bounded and work > _MOST_FLOPS:
        raise _TooMuchError(f"takes {work} floating-point operations")
    return outputs, work


def check_work(model: Any, trust: Sequence[str] = ()) -> None:
    """Refuses a model from a stranger whose use would take far more memory or time than one expects of its weights.

    Args:
        model: The model, with a method ``try_out`` that decodes one code, and encodes what comes of it.
        trust: Modules whose networks it may hold; such a network may fail on the meta device.

    Raises:
        ValueError: If one code takes more than 32 MiB in one layer, 1 GiB in all, 16 MiB as the result or 2·10¹⁰
            operations, or if the networks fit neither the codes nor each other.
    """
    if not hasattr(model, "try_out"):
        return
    try:
        _try(model, bounded=True)
    except _TooMuchError as error:
        raise ValueError(f"for a single code the model {error}, more than is done for a file from elsewhere") from None
    except Exception as error:  # networks have exceptions of their own
        if not trust:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(f"its networks do not fit its codes or each other ({reason})") from None


def codes_at_once(model: Any, most: int) -> int:
    """How many codes to decode together, at most ``most``, so that no layer puts out more than 256 MiB."""
    try:
        largest = _try(model, bounded=False)[0].largest
    except Exception:  # a network of the user's that cannot be tried without memory
        return most
    return max(1, min(most, _AT_ONCE // max(1, largest)))

"""A pretended GPU: tensors that say that they lie on ``cuda:0`` (or ``mps:0``), hold CPU data and refuse others.

It finds on any machine what otherwise only a GPU shows: tensors of two devices in one operation, calls for which the
host waits until the device is done, and copies from the host. What runs inside of backward passes is not seen, nor
autocast, nor the speed of anything.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from wae_lightning import neighbors

__all__ = ["Pretended", "pretend_device", "put_there"]

CPU = torch.device("cpu")
OURS = tuple(str(Path(__file__).parents[1] / name) for name in ("wae_lightning", "datamodules", "experiments"))

# the host needs to know a value, or how many there are; linear algebra asks whether it succeeded
WAITS = {
    "item", "__bool__", "__float__", "__int__", "__index__", "__contains__", "tolist", "nonzero", "argwhere", "unique",
    "unique_consecutive", "masked_select", "bincount", "multinomial", "is_nonzero", "equal", "allclose", "cpu",
    "__repr__", "__format__", "linalg_cholesky", "linalg_eigh", "linalg_eigvalsh", "linalg_svd", "linalg_svdvals",
    "linalg_inv", "linalg_solve", "linalg_pinv", "linalg_matrix_rank", "linalg_eig", "trunc_normal_",
}  # fmt: skip
# about a tensor, not about its numbers
PASSED = {
    "__set__", "__delete__", "is_floating_point", "is_complex", "is_contiguous", "is_inference", "is_same_size",
    "is_shared", "size", "dim", "stride", "numel", "element_size", "__len__", "__hash__", "data_ptr", "storage_offset",
    "untyped_storage", "register_hook", "retain_grad", "__reduce_ex__", "as_subclass", "type", "_make_subclass",
    "register_post_accumulate_grad_hook", "__repr__", "__format__",
}  # fmt: skip
TENSOR_VALUED = {"grad", "T", "mT", "H", "data", "real", "imag"}
# operations by element take single numbers from the host, these do not
NOT_BY_ELEMENT = {
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack", "block_diag",
    "index_select", "gather", "take", "take_along_dim", "embedding",
}  # fmt: skip
MIXED = {"copy_", "set_", "_has_compatible_shallow_copy_type"}


class Record:
    """What happened while a device was pretended.

    Attributes:
        device: The device.
        phase: Whatever the test says; the counters are by it.
        waits: (phase, operation, place in our code) -> how many times the host waited.
        copies: The same of copies from the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.phase = ""
        self.waits: Counter[tuple[str, str, str]] = Counter()
        self.copies: Counter[tuple[str, str, str]] = Counter()
        self.backward = False

    def wait(self, what: str) -> None:
        self.waits[self.phase, what, _place()] += 1

    def copy(self, what: str) -> None:
        self.copies[self.phase, what, _place()] += 1

    def of(self, phase: str) -> dict[tuple[str, str], int]:
        """The waits and copies of a phase."""
        found = self.waits + self.copies
        return {(what, place): count for (when, what, place), count in found.items() if when == phase}


RECORD = Record(torch.device("cuda:0"))


def _place() -> str:
    frames = [frame for frame, _ in traceback.walk_stack(sys._getframe()) if frame.f_code.co_filename != __file__]
    frame = next((frame for frame in frames if frame.f_code.co_filename.startswith(OURS)), frames[0])
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"


def _there(device: Any) -> bool:
    return isinstance(device, torch.device | str) and torch.device(device).type == RECORD.device.type


def _move(x: Any) -> Any:
    """A tensor, on the device from now on."""
    if not isinstance(x, Tensor) or isinstance(x, Pretended):
        return x
    if RECORD.device.type == "mps" and x.dtype == torch.float64:
        raise TypeError(f"Cannot convert a MPS Tensor to float64 dtype [pretended] at {_place()}")
    return x.as_subclass(Pretended)


class Pretended(Tensor):
    """A tensor on the pretended device."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with DisableTorchFunctionSubclass():
            copied = self.detach().clone().as_subclass(Pretended).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copied._is_param = True  # type: ignore[attr-defined]
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            return _attribute(func, args)
        if name in PASSED or name == "requires_grad_":
            if name in WAITS:
                RECORD.wait(name)
            with DisableTorchFunctionSubclass():
                passed = func(*args, **kwargs)
            return args[0] if name == "requires_grad_" else passed
        if name == "backward" or func is torch.autograd.grad:
            RECORD.backward = True
            try:
                with DisableTorchFunctionSubclass():
                    return tree_map(_move, func(*args, **kwargs))
            finally:
                RECORD.backward = False
        if name in ("numpy", "__array__"):
            raise TypeError(f"can't convert {RECORD.device} device type tensor to numpy [pretended] at {_place()}")
        if name in ("to", "type_as", "cuda", "cpu"):
            return _moved(func, name, args, kwargs)
        return _computed(func, name, args, kwargs)


def _attribute(func: Any, args: Any) -> Any:
    attribute = getattr(getattr(func, "__self__", None), "__name__", "")
    answers = {"device": RECORD.device, "is_cuda": RECORD.device.type == "cuda", "is_mps": RECORD.device.type == "mps"}
    answers["is_cpu"] = False
    if attribute in answers:
        return answers[attribute]
    with DisableTorchFunctionSubclass():
        value = func(*args)
    return _move(value) if attribute in TENSOR_VALUED else value


def _moved(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """``to``, ``type_as``, ``cuda`` and ``cpu``."""
    x = args[0]
    was_there = isinstance(x, Pretended)
    goes_there = {"cuda": True, "cpu": False}.get(name, was_there)
    for value in [*args[1:], *kwargs.values()]:
        if isinstance(value, torch.device | str):
            goes_there = _there(value)
        elif isinstance(value, Tensor):
            goes_there = isinstance(value, Pretended)
    if was_there and not goes_there and not kwargs.get("non_blocking"):
        RECORD.wait("cpu")
    if goes_there and not was_there:
        RECORD.copy("to")

    def here(value: Any) -> Any:
        return CPU if isinstance(value, torch.device | str) else value

    with DisableTorchFunctionSubclass():
        moved = func(*map(here, args), **{key: here(value) for key, value in kwargs.items()})
        if was_there != goes_there:
            return (moved.clone() if moved is x else moved).as_subclass(Tensor) if was_there else _move(moved.clone())
    return x if moved is x else _move(moved) if was_there else moved


def _computed(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Any operation."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    takes_it = any(isinstance(x, Pretended) for x in tensors)
    device = kwargs.get("device")
    result_there = takes_it if device is None else _there(device)
    generator = kwargs.get("generator")
    if generator is not None and result_there and generator.device.type == "cpu":
        raise RuntimeError(f"Expected a generator on {RECORD.device}, found one on cpu [pretended] at {_place()}")
    if name in WAITS and takes_it:
        RECORD.wait(name)
    if name in ("tensor", "as_tensor") and result_there and not takes_it:
        RECORD.copy(name)
    if takes_it and not RECORD.backward and name not in MIXED:
        _check_one_device(name, args, tensors)
    if name == "copy_" and isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
        (RECORD.copy if isinstance(args[0], Pretended) else RECORD.wait)("copy_")
    if device is not None and _there(device):
        kwargs["device"] = CPU
    with DisableTorchFunctionSubclass():
        out = func(*(CPU if isinstance(x, torch.device) and _there(x) else x for x in args), **kwargs)
    if not result_there:
        return out
    if name.endswith("_") and not name.endswith("__") and args and isinstance(args[0], Pretended):
        return args[0]  # in place
    known = {id(x) for x in tensors}
    return tree_map(lambda x: x if id(x) in known else _move(x), out)


def _check_one_device(name: str, args: Any, tensors: list[Tensor]) -> None:
    strangers = [x for x in tensors if not isinstance(x, Pretended) and (x.dim() > 0 or name in NOT_BY_ELEMENT)]
    if name in ("__getitem__", "__setitem__", "index_put_"):
        index = tree_flatten(args[1])[0]
        there = isinstance(args[0], Pretended)
        for x in index:
            if isinstance(x, Tensor) and not there and isinstance(x, Pretended):
                raise RuntimeError(f"indices should be on the same device [pretended]: {name} at {_place()}")
            if isinstance(x, Tensor) and there and not isinstance(x, Pretended):
                RECORD.copy("index")
            if isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8):
                RECORD.wait("mask as index")
        lists = args[1] if isinstance(args[1], tuple) else (args[1],)
        if there and any(isinstance(x, list) for x in lists):
            RECORD.copy("list as index")
        strangers = [x for x in strangers if there and not any(x is i for i in index)]
    if name == "where" and len(args) == 1:
        RECORD.wait(name)
    if name == "repeat_interleave" and len(args) > 1 and isinstance(args[1], Tensor):
        RECORD.wait(name)
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {RECORD.device} and cpu [pretended]: {name} at "
            f"{_place()}"
        )


class _Mode(TorchFunctionMode):
    """Sends to ``Pretended`` what makes tensors there, or takes them there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        values = [*args[1:], *kwargs.values()]
        moves = name == "cuda" or (
            name in ("to", "type_as") and any(_there(x) or isinstance(x, Pretended) for x in values)
        )
        if moves or _there(kwargs.get("device")) or any(issubclass(t, Pretended) for t in types):
            return Pretended.__torch_function__(func, types, args, kwargs)
        return func(*args, **kwargs)


def _unwrapped(x: Any) -> Any:
    """What a file would hold."""
    if isinstance(x, Pretended):
        with DisableTorchFunctionSubclass():
            return x.detach().clone().as_subclass(Tensor)
    if isinstance(x, dict):
        return type(x)((key, _unwrapped(value)) for key, value in x.items())
    if isinstance(x, list | tuple) and not hasattr(x, "_fields"):
        return type(x)(map(_unwrapped, x))
    return x


@contextlib.contextmanager
def pretend_device(kind: str = "cuda", free_bytes: int = 2**36) -> Iterator[Record]:
    """Inside, there is a device ``cuda:0`` or ``mps:0``. Lightning's CPU accelerator serves it: see :func:`put_there`.

    Args:
        kind: ``cuda`` or ``mps``; the latter has no float64.
        free_bytes: How much of its memory is free.
    """
    global RECORD
    RECORD = Record(torch.device(kind, 0))
    save, overwrite = torch.save, torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    patches = [
        mock.patch.object(torch, "save", lambda content, *a, **k: save(_unwrapped(content), *a, **k)),
        mock.patch.object(neighbors, "_fused", return_value=None),  # nothing can be compiled for it
        mock.patch.object(torch.cuda, "mem_get_info", return_value=(free_bytes, 2**37)),
        mock.patch.object(torch.cuda, "get_rng_state", return_value=torch.get_rng_state()),
        mock.patch.object(torch.cuda, "set_rng_state"),
        mock.patch.object(torch.cuda, "get_device_name", return_value="pretended"),
        mock.patch("pytorch_lightning.accelerators.CPUAccelerator.setup_device"),
    ]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(_Mode())
        try:
            yield RECORD
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def put_there(trainer: Any) -> Any:
    """Lets a trainer of the CPU accelerator, made inside of :func:`pretend_device`, train on the pretended device."""
    trainer.strategy._root_device = RECORD.device
    return trainer

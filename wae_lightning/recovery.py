"""How a network that keeps no record of its making was made: guessed, made again, and compared with it.

``WAEMMD(encoder=Net(16), decoder=nn.Sequential(...))``: neither class is one of ours. The arguments are looked for in
the attributes of the same names; whether that is right is then seen by the network that these arguments make.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import random
import socket
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from threading import get_ident
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from wae_lightning.checkpoints import check_description
from wae_lightning.parts import RECORD, build, class_paths, is_unrecorded, parameters_of, path_of

__all__ = ["guess", "recover", "same"]

LARGEST = 10**7
"""Networks of more weights than this are not made a second time."""
_MISSING = object()
_IDENTICAL = (type, types.BuiltinFunctionType, types.ModuleType, torch.dtype, torch.layout)
_HOOKS = {key for key, value in vars(nn.Module()).items() if "hooks" in key and isinstance(value, dict)}


def recover(network: nn.Module, describe: Callable[[Any], Any]) -> dict[str, Any] | None:
    """Describes a network by arguments that have been seen to make the same one; None: there are none.

    The constructor runs once more, with random numbers that nobody else gets, without network or output.

    Args:
        network: Any network; only one of at most 10⁷ weights is made again.
        describe: Describes an argument that is no network.
    """
    tensors = [*network.parameters(), *network.buffers()]
    try:
        if any(tensor.is_meta for tensor in tensors) or sum(tensor.numel() for tensor in tensors) > LARGEST:
            return None
        description = guess(network, describe)
        if description is None or is_unrecorded(description):
            return None
        trust = sorted({path.partition(".")[0] for path in class_paths(description)} - {"torch"})
        check_description(description, trust=trust)
        with _unnoticed():
            again = build(description, trust).train(network.training)  # which tells when it was used last
        return description if same(network, again) else None
    except (Exception, SystemExit):  # constructors, properties and lazy parameters have exceptions of their own
        return None


def guess(network: nn.Module, describe: Callable[[Any], Any]) -> dict[str, Any] | None:
    """A description of a network by its attributes; None: an argument is not among them."""
    cls: Any = type(network)
    path = path_of(cls)
    if path is None or path.startswith("__main__."):  # which is another module the next time
        return None
    arguments: dict[str, Any] = {}
    for name, parameter in parameters_of(cls).parameters.items():
        value = _argument(network, name, parameter)
        if parameter.kind is parameter.VAR_KEYWORD:
            if isinstance(value, Mapping):
                arguments |= {key: describe(item) for key, item in value.items()}
        elif value is _MISSING:
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
                return None
            # as in records: written down if it can be, left to the class if not
            if parameter.default is not parameter.empty and not is_unrecorded(default := describe(parameter.default)):
                arguments[name] = default
        elif value or parameter.kind is not parameter.VAR_POSITIONAL:
            arguments[name] = describe(value)
    return {"class_path": path, "init_args": arguments}


def _argument(network: nn.Module, name: str, parameter: inspect.Parameter) -> Any:
    if type(network) is nn.Sequential:
        children = dict(network._modules)  # named_children() leaves out what stands there twice
        return list(network) if list(children) == [str(i) for i in range(len(network))] else [children]
    if type(network) is nn.ModuleList:
        return list(network)
    if type(network) is nn.ModuleDict:
        return dict(network.items())
    value = next((getattr(network, key) for key in (name, f"_{name}") if hasattr(network, key)), _MISSING)
    if isinstance(parameter.default, bool) and (value is None or isinstance(value, Tensor)):
        return value is not None  # Linear(bias=True).bias is the bias
    return _MISSING if isinstance(value, types.MethodType) else value


@contextlib.contextmanager
def _unnoticed() -> Iterator[None]:
    me, connect, look_up = get_ident(), socket.socket.connect, socket.getaddrinfo

    def only_others(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if get_ident() == me:
                raise OSError("no network while a constructor is tried")
            return function(*arguments, **options)

        return call

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    states = random.getstate(), np.random.get_state()
    try:
        with (
            torch.random.fork_rng(devices),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
            mock.patch.object(socket.socket, "connect", only_others(connect)),
            mock.patch.object(socket, "getaddrinfo", only_others(look_up)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


# ---- comparing ------------------------------------------------------------------------------------------------------


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two networks are the same but for the values of what their ``state_dict`` holds.

    Compared are classes, attributes at any depth, hooks, the shapes of weights, and what shares weights with what.
    """
    return _Comparison(a, b).of(a, b)


class _Comparison:
    def __init__(self, *networks: nn.Module) -> None:
        self.names: dict[int, set[str]] = {}  # of each tensor, in the state dict
        for network in networks:
            stored = network.state_dict()
            for name, tensor in [*network.named_parameters(remove_duplicate=False),
                                 *network.named_buffers(remove_duplicate=False)]:  # fmt: skip
                if name in stored:
                    self.names.setdefault(id(tensor), set()).add(name)
        self.seen: dict[tuple[int, int], Any] = {}
        self.partners: dict[tuple[str, int], int] = {}

    def of(self, a: Any, b: Any) -> bool:
        a, b = (x.item() if isinstance(x, np.generic) else x for x in (a, b))
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):  # which are one in a description
            return len(a) == len(b) and all(map(self.of, a, b))
        if isinstance(a, nn.Module) and isinstance(b, nn.Module):
            return self._modules(a, b)
        if type(a) is not type(b):
            return False
        if a is None or isinstance(a, bool | int | float | complex | str | bytes):
            return bool(a == b or (a != a and b != b))
        if isinstance(a, _IDENTICAL):
            return a is b
        if (id(a), id(b)) in self.seen or (a is b and not isinstance(a, Tensor)):
            return True
        self.seen[id(a), id(b)] = a, b  # kept alive, so that no other object gets their ids
        if isinstance(a, Tensor):
            return self._tensors(a, b)
        if isinstance(a, np.ndarray) and a.dtype != object:
            return a.dtype == b.dtype and np.array_equal(a, b)
        if isinstance(a, set | frozenset):
            return bool(a == b)
        if isinstance(a, weakref.ref):
            return self.of(a(), b())
        if type(a) is dict:
            return list(a) == list(b) and all(self.of(a[key], b[key]) for key in a)
        if isinstance(a, types.FunctionType):  # one that a constructor defines is another each time
            keys = ("__closure__", "__defaults__", "__kwdefaults__", "__dict__")
            alike = a.__code__ is b.__code__ and a.__globals__ is b.__globals__
            return alike and all(self.of(getattr(a, key), getattr(b, key)) for key in keys)
        if isinstance(a, types.CellType):
            return self.of(a.cell_contents, b.cell_contents)
        if isinstance(a, types.MethodType):
            return a.__func__ is b.__func__ and self.of(a.__self__, b.__self__)
        # any other object: what it holds, and what a copy of it would get
        return self.of(getattr(a, "__dict__", None), getattr(b, "__dict__", None)) and self.of(_copied(a), _copied(b))

    def _coupled(self, kind: str, a: int, b: int) -> bool | None:
        """Whether two belong together; None: neither has been met."""
        met = self.partners.get((f"a {kind}", a)), self.partners.get((f"b {kind}", b))
        if met == (None, None):
            self.partners[f"a {kind}", a], self.partners[f"b {kind}", b] = b, a
            return None
        return met == (b, a)

    def _modules(self, a: nn.Module, b: nn.Module) -> bool:
        # a parametrized module has a class of its own, made of the one that it had
        classes = [type(x).__bases__ if is_parametrized(x) else type(x) for x in (a, b)]
        if classes[0] != classes[1]:
            return False
        if a._parameters or a._buffers or a._modules or not type(a).__module__.startswith("torch.nn."):
            met = self._coupled("module", id(a), id(b))
            if met is not None:
                return met
        # torch's activations and the like hold nothing: one in two places is as good as two
        left, right = ({key: value for key, value in vars(x).items() if key != RECORD} for x in (a, b))
        if left.keys() != right.keys():
            return False
        for key, value in left.items():
            pair = [value, right[key]]
            if key in _HOOKS:  # by numbers that count on
                pair = [list(hooks.values()) for hooks in pair]
            if not self.of(*pair):
                return False
        return True

    def _tensors(self, a: Tensor, b: Tensor) -> bool:
        if a.numel() and self._coupled("storage", *(x.untyped_storage().data_ptr() for x in (a, b))) is False:
            return False
        form = [
            (x.shape, x.dtype, x.stride(), x.storage_offset(), x.requires_grad, x.is_leaf, bool(x._backward_hooks))
            for x in (a, b)
        ]
        if form[0] != form[1] or not self.of(vars(a), vars(b)):
            return False
        stored = self.names.get(id(a), set()) & self.names.get(id(b), set())
        return bool(stored) or (a.device == b.device and torch.equal(a, b))


def _copied(value: Any) -> Any:
    reduced = value.__reduce_ex__(4)
    return reduced if isinstance(reduced, str) else [*reduced[:3], *map(list, filter(None, reduced[3:5]))]

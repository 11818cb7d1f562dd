"""How a part of a model (prior, cost, penalty, kernel, noise, flow, network, the model itself) remembers its making.

One form serves Python, YAML, checkpoints and ``config.json``: plain data, in which a part is
``{"class_path": "wae_lightning.priors.Normal", "init_args": {"latent_dim": 8, "scale": 1.0}}``. :func:`describe` makes
it, :func:`build` makes parts of it. A network that is no part, such as an ``nn.Sequential``, is described if its
arguments can be recovered (:mod:`wae_lightning.recovery`). What cannot be described, such as a lambda, is marked
``{"unrecorded": its class}``, and :func:`build` asks for it by name.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wae_lightning.arguments import check_arguments, with_plain_arguments

__all__ = [
    "LONGEST_LIST",
    "MADE_LATER",
    "Part",
    "build",
    "describe",
    "find_class",
    "is_recorded",
    "make",
    "recorded_arguments",
]

LONGEST_LIST = 1000
MADE_LATER = (Optimizer, LRScheduler)
"""Classes that a model makes itself, of its parameters: an argument holds a ``functools.partial`` of them."""
RECORD = "_made_with"
_PLATEAU = ("pytorch_lightning.cli.ReduceLROnPlateau", "lightning.pytorch.cli.ReduceLROnPlateau")


class Part:
    """Base of everything that remembers the class and the arguments it was made with, subclasses included.

    It works through ``__new__``, which sees the arguments of the outermost class. A subclass with a ``__new__`` of its
    own is not recorded. What is changed in a part after it was made is not noticed. Constructors of ours get their
    arguments checked and plain (:mod:`wae_lightning.arguments`); yours stay as they are.

    Example:
        >>> class Shift(nn.Module, Part):  # your own network takes part in it with this one word
        ...     def __init__(self, by: float = 1.0) -> None:
        ...         super().__init__()
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        with_plain_arguments(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        new: Any = super().__new__
        part = new(cls) if new is object.__new__ else new(cls, *args, **kwargs)
        if cls.__new__ is Part.__new__:
            _record(part, args, kwargs)
        return part

    def __repr__(self) -> str:
        return _text(describe(self))


def make(cls: type, *args: Any, **kwargs: Any) -> Any:
    """Makes an object of any class, which then remembers its arguments as our own parts do.

    Example:
        >>> describe(make(nn.Linear, 4, 2))["class_path"]
        'torch.nn.Linear'
    """
    part = cls(*args, **kwargs)
    if not issubclass(cls, Part):
        _record(part, args, kwargs)
    return part


@functools.lru_cache(maxsize=1000)
def parameters_of(cls: Any) -> inspect.Signature:
    if cls.__init__ is nn.Module.__init__:  # which takes anything, and refuses it later
        return inspect.Signature()
    signature = inspect.signature(cls.__init__)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def _record(part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cls: Any = type(part)
    path = path_of(cls)
    try:
        bound = parameters_of(cls).bind(*args, **kwargs)
    except TypeError:  # the constructor will say so
        return
    given = set(bound.arguments)
    check_arguments(cls, bound)
    bound.apply_defaults()
    tied = _tied(bound.arguments)
    arguments: dict[str, Any] = {}
    for name, parameter in bound.signature.parameters.items():
        value = bound.arguments[name]
        if name in tied:
            arguments[name] = {"unrecorded": f"{_name(value)}, whose weights are also those of {tied[name]}"}
        elif parameter.kind is parameter.VAR_KEYWORD:
            arguments |= {key: describe(item) for key, item in value.items()}
        elif name in given or parameter.kind is not parameter.VAR_POSITIONAL:
            described = describe(value)
            # defaults are written down, too, so that another version with other defaults makes the same part; those
            # that cannot be are still what the class takes by itself
            if name in given or not is_unrecorded(described):
                arguments[name] = described
    vars(part)[RECORD] = {"class_path": path, "init_args": arguments}


def _tied(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Arguments whose networks share weights with another one, and which: each would come back with its own."""
    owners: dict[int, tuple[str, int]] = {}
    tied: dict[str, str] = {}
    for name, value in arguments.items():
        for network in _networks(value):
            for tensor in itertools.chain(network.parameters(), network.buffers()):
                if is_lazy(tensor) or tensor.is_meta or not tensor.numel():
                    continue
                owner = owners.setdefault(tensor.untyped_storage().data_ptr(), (name, id(network)))
                if owner != (name, id(network)):
                    tied |= {name: owner[0], owner[0]: name}
    return tied


def _networks(value: Any) -> list[nn.Module]:
    if isinstance(value, nn.Module):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [network for item in items for network in _networks(item)]


def is_recorded(part: Part) -> bool:
    """Whether a part knows its arguments; a base with a ``__new__`` of its own may have kept them from it."""
    return RECORD in vars(part)


def recorded_arguments(part: Part) -> dict[str, Any]:
    """The arguments that a part was made with, as plain data; also of a class that no path leads to."""
    return copy.deepcopy(vars(part)[RECORD]["init_args"])


def is_unrecorded(described: Any) -> bool:
    if isinstance(described, dict):
        return "unrecorded" in described or any(map(is_unrecorded, described.values()))
    return isinstance(described, list) and any(map(is_unrecorded, described))


def class_paths(description: Any) -> set[str]:
    """All classes that a description names."""
    if not isinstance(description, dict | list):
        return set()
    items = description.values() if isinstance(description, dict) else description
    own = {str(description["class_path"])} if isinstance(description, dict) and "class_path" in description else set()
    return own.union(*map(class_paths, items))


def path_of(cls: Any) -> str | None:
    """The shortest path under which a class can be had, for example without private modules; None: there is none."""
    folders, name = str(cls.__module__).split("."), cls.__qualname__
    for length in range(1, len(folders) + 1):
        module = ".".join(folders[:length])
        if getattr(sys.modules.get(module), name, None) is cls:
            return f"{module}.{name}"
    return None


def describe(value: Any) -> Any:
    """Describes a part, or an argument of one, as plain data: numbers, strings, None, lists and dictionaries.

    NumPy's numbers, paths, tuples and the containers of omegaconf (hydra) become plain. Optimizers and schedulers are
    described as ``functools.partial`` (or as their class). Parts that are completed later, such as a kernel whose
    constant the model fills in, are described as they were made. Other networks are described if what they were made
    with is found in their attributes, see :mod:`wae_lightning.recovery`.

    Example:
        >>> from wae_lightning.priors import Sphere
        >>> describe(Sphere(np.int64(8)))
        {'class_path': 'wae_lightning.priors.Sphere', 'init_args': {'latent_dim': 8, 'scale': 1.0}}
    """
    return _describe(value, _recover)


def _recover(network: nn.Module) -> dict[str, Any] | None:
    from wae_lightning.recovery import guess, recover

    def inside(value: Any) -> Any:  # what is inside is compared with the whole
        return _describe(value, lambda network: guess(network, inside))

    return recover(network, inside)


def _describe(value: Any, describe_network: Callable[[nn.Module], dict[str, Any] | None]) -> Any:
    describe = functools.partial(_describe, describe_network=describe_network)
    if isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, Enum) and isinstance(value, str | int | float):
        value = value.value  # which it equals; other members do not equal their value
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str | PurePath) and not isinstance(value, Enum):
        return str(value)
    record = getattr(value, "__dict__", {}).get(RECORD)
    if record is not None and record["class_path"] is not None:
        return copy.deepcopy(record)
    maker = _maker(value)
    if maker is not None:
        path = path_of(maker)
        if path is not None:
            return {"class_path": path, "init_args": describe(getattr(value, "keywords", {}))}
    elif isinstance(value, nn.Module):
        found = describe_network(value)
        if found is not None:
            return found
    elif isinstance(value, Mapping):
        if all(type(key) is str for key in value) and not {"class_path", "unrecorded"} & set(value):
            return {key: describe(item) for key, item in value.items()}
    elif isinstance(value, Sequence | np.ndarray) and not isinstance(value, bytes) and len(value) <= LONGEST_LIST:
        return [describe(item) for item in value]
    return {"unrecorded": _name(value)}


def _name(value: Any) -> str:
    cls = value if hasattr(value, "__qualname__") else type(value)
    return path_of(cls) or f"{cls.__module__}.{cls.__qualname__}"


def _maker(value: Any) -> type | None:
    """The class of optimizers or schedulers that ``value`` makes, if it is that class or its partial."""
    if isinstance(value, functools.partial):
        if not value.args:
            value = value.func
        elif str(getattr(value.func, "__module__", "")).startswith(
            "jsonargparse"
        ):  # partial(its own functions, the class, **arguments)
            value = value.args[-1]
    return value if isinstance(value, type) and issubclass(value, MADE_LATER) else None


def _text(description: Any) -> str:
    """A description as one would write it in Python."""
    if isinstance(description, list):
        return f"[{', '.join(map(_text, description))}]"
    if not isinstance(description, dict):
        return repr(description)
    if "class_path" not in description:
        return f"{description['unrecorded']}(...)" if "unrecorded" in description else repr(description)
    arguments = ", ".join(f"{name}={_text(value)}" for name, value in description["init_args"].items())
    return f"{description['class_path'].rpartition('.')[2]}({arguments})"


# ---- and back -------------------------------------------------------------------------------------------------------


def build(
    description: Any, trust: Sequence[str] = (), given: Mapping[str, Any] | None = None, name: str = "model"
) -> Any:
    """Makes what a description describes. It may come from a stranger: see :func:`find_class`.

    Sizes are not checked here, but in :func:`wae_lightning.checkpoints.build_bounded`.

    Args:
        description: From :func:`describe`.
        trust: Modules whose classes it may name beside ours and torch's.
        given: Arguments to take instead of those in the description.
        name: What the description is, for messages.

    Raises:
        ValueError: If it names a class that is not trusted, something unrecorded that is not given, or if the class
            refuses the arguments.
    """
    if isinstance(description, list):
        return [build(item, trust, name=f"{name}[{i}]") for i, item in enumerate(description)]
    if not isinstance(description, dict):
        return description
    if "unrecorded" in description:
        root = name.removeprefix("model.").partition(".")[0].partition("[")[0]
        raise ValueError(
            f"{name} was {str(description['unrecorded'])[:200]}, which does not tell how it was made: "
            f"give it yourself ({root}=...)"
        )
    if "class_path" not in description:
        return {key: build(item, trust, name=f"{name}.{key}") for key, item in description.items()}
    path, arguments = description["class_path"], description.get("init_args", {})
    if set(description) - {"class_path", "init_args"} or type(path) is not str or not isinstance(arguments, dict):
        raise ValueError(f"{name}: expected class_path and init_args, got {str(sorted(map(str, description)))[:200]}")
    cls = find_class(path, trust, name)
    taken = arguments | dict(given or {})
    made = {
        key: given[key] if given and key in given else build(item, trust, name=f"{name}.{key}")
        for key, item in taken.items()
    }
    if issubclass(cls, MADE_LATER):
        return functools.partial(cls, **made)
    try:
        args, kwargs = _call(cls, made)
        return make(cls, *args, **kwargs)
    except Exception as error:  # the constructors of torch and of the user have exceptions of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: no {path} can be made of what is recorded ({reason[:400]})") from error


def _call(cls: Any, arguments: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Sorts arguments by name into those that a class takes by position, ``*args``, and the others."""
    signature = parameters_of(cls)
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    named = {name: value for name, value in arguments.items() if kinds.get(name, 4) != inspect.Parameter.VAR_KEYWORD}
    bound = inspect.BoundArguments(signature, OrderedDict((k, v) for k, v in named.items() if k in kinds))
    for name, value in bound.arguments.items():
        if kinds[name] is inspect.Parameter.VAR_POSITIONAL:
            # children of an nn.Sequential have names if they are given as this one argument
            bound.arguments[name] = tuple(
                OrderedDict(item) if issubclass(cls, nn.Sequential) and type(item) is dict else item for item in value
            )
    return bound.args, bound.kwargs | {name: value for name, value in arguments.items() if name not in bound.arguments}


def find_class(path: str, trust: Sequence[str] = (), name: str = "") -> type:
    """Finds the class that a description names.

    Allowed are our parts, data modules, the modules of ``torch.nn``, and optimizers and schedulers of ``torch.optim``;
    beyond them, such classes of the modules that the caller trusts. No other module is imported, and what a module has
    itself imported from elsewhere does not count as its own.

    Args:
        path: For example ``wae_lightning.priors.Normal``.
        trust: Names of modules or packages.
        name: What is of that class, for messages.

    Raises:
        ValueError: If it names anything else.
    """
    if path in _PLATEAU:  # what LightningCLI makes of torch's; one of the two packages is imported, if any
        path = next((known for known in _PLATEAU if known.rpartition(".")[0] in sys.modules), path)
        trust = [*trust, path.rpartition(".")[0]]
    module, _, last = path.rpartition(".")
    kinds = _kinds(module, trust)
    public = module in trust or not any(folder.startswith("_") for folder in path.split("."))
    if kinds and public and all(map(str.isidentifier, path.split("."))):
        try:
            found = getattr(importlib.import_module(module), last, None)
        except ImportError:
            found = None
        if isinstance(found, type) and _kinds(found.__module__, trust):
            bases = [base.__name__ for base in found.__mro__]
            if issubclass(found, kinds) or ("LightningDataModule" in bases and not module.startswith("torch")):
                return found
    place = f"{name[-200:]}: " if name else ""
    raise ValueError(
        f"{place}it names {path[:200]!r}, which is no part of wae_lightning, datamodules, torch.nn or torch.optim: "
        "name its module if you trust it (trust=[...], or --import), or give the argument yourself"
    )


def _kinds(module: str, trust: Sequence[str]) -> tuple[type, ...]:
    kinds: dict[str, tuple[type, ...]] = dict.fromkeys(trust, (nn.Module, Part, *MADE_LATER))
    kinds |= {"wae_lightning": (Part, *MADE_LATER), "datamodules": (Part,), "torch.optim": MADE_LATER}
    kinds["torch.nn"] = (nn.Module,)
    return next((kinds[name] for name in kinds if f"{module}.".startswith(f"{name}.")), ())

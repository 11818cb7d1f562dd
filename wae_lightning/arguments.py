"""Arguments of parts: told before anything is made of them if they are not what their type hints say, and plain."""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

__all__ = ["check_arguments", "with_plain_arguments"]

OURS = ("wae_lightning", "datamodules")
PLAIN = (types.NoneType, bool, int, float, str, list, tuple, dict, type)
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "None"}
LISTS = (list, tuple, Sequence)
ONLY_CALLED = ("Cost",)  # any module whose result is right will do


def with_plain_arguments(cls: type) -> None:
    """Makes the constructor that a class of ours defines check its arguments, and get them plain."""
    init: Any = vars(cls).get("__init__")
    if init is None or not _is_ours(init):
        return
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature.bind(self, *args, **kwargs)
        except TypeError:  # which the constructor will say better
            return init(self, *args, **kwargs)  # type: ignore[no-any-return]
        check_arguments(cls, given)
        init(*given.args, **given.kwargs)

    cls.__init__ = checked  # type: ignore[misc]


def check_arguments(cls: type, given: inspect.BoundArguments) -> None:
    """Refuses values that are not what the hints of our constructors ask for, and makes plain those that are.

    Numbers, texts and arrays of NumPy, and numbers of torch, become Python's; collections become lists, where one is
    asked for, but no set or mapping of numbers, which have no order. Where a hint names a part of a model (a prior, a
    penalty), other objects are refused; where it names another class, any object may do: whoever uses it will see. A
    constructor that is not ours is not judged.

    Args:
        cls: What is to be made.
        given: What it is to be made with, which is changed. What it takes as ``**kwargs`` is for the classes that it
            is made from.

    Raises:
        ValueError: If one is refused.
    """
    if not _is_ours(init := cls.__init__):  # type: ignore[misc]
        return
    for name, value in given.arguments.items():
        kind = given.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            hints = _inherited_hints(cls)
            given.arguments[name] = {key: _judge(key, item, hints.get(key, Any)) for key, item in value.items()}
        elif kind is not inspect.Parameter.VAR_POSITIONAL and name in (hints := _hints(init)):
            given.arguments[name] = _judge(name, value, hints[name])


def _judge(name: str, value: Any, hint: Any) -> Any:
    if not _fits(plain := _plain(value, hint), hint):
        raise ValueError(f"{name} must be {_text(hint)}, got {' '.join(f'{value!r:.100}'.split())}")
    return plain


def _plain(value: Any, hint: Any) -> Any:
    """The value as numbers, texts and lists of Python, where the hint asks for these."""
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = {get_origin(one) or one for one in hints}
    if not kinds & {bool, int, float, str, Literal, *LISTS}:
        return value
    if isinstance(value, tuple(kind for kind in kinds if isinstance(kind, type) and kind not in (Any, *NAMES, *LISTS))):
        return value  # an array, a tensor, a set that is asked for beside these
    if isinstance(value, np.generic | np.ndarray) or (isinstance(value, torch.Tensor) and value.ndim == 0):
        value = value.tolist()
    if isinstance(value, Enum) and isinstance(value, str | int | float):
        return value.value
    if isinstance(value, Real) and not isinstance(value, Integral | float) and float in kinds:
        return float(value)
    if kinds.isdisjoint(LISTS) or not isinstance(value, Collection) or isinstance(value, str | bytes | torch.Tensor):
        return value
    if isinstance(value, Mapping) or (isinstance(value, Set) and not all(isinstance(item, str) for item in value)):
        return value  # without an order
    inner = next((get_args(one)[0] for one in hints if get_origin(one) in LISTS and get_args(one)), Any)
    several = [_plain(item, inner) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return tuple(several) if isinstance(value, tuple) else several


def _is_ours(init: Any) -> bool:
    return (getattr(init, "__module__", None) or "").partition(".")[0] in OURS


@functools.cache
def _hints(init: Any) -> dict[str, Any]:
    """The hints of a constructor of ours; none if they cannot be had."""
    try:
        return get_type_hints(init)
    except NameError:  # of a name that only type checkers import
        return {}


def _inherited_hints(cls: type) -> dict[str, Any]:
    """The hints of what a class passes on to the classes that it is made from; the first that names one counts."""
    hints: dict[str, Any] = {}
    for init in (vars(base)["__init__"] for base in cls.__mro__[1:] if "__init__" in vars(base)):
        if not _is_ours(init):
            break
        hints = _hints(init) | hints
    return hints


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:  # True equals 1
        return any(value == one and isinstance(value, type(one)) and value is not True for one in inner)
    if kind in LISTS:
        if not isinstance(value, list | tuple):
            return False  # iterators, too: the first look would use them up
        several = inner if kind is tuple and Ellipsis not in inner else inner[:1] * len(value)
        return len(value) == len(several) and all(map(_fits, value, several))
    if kind is Callable:
        return callable(value)
    if hint is Path:
        return isinstance(value, os.PathLike)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if hint is bool and type(value) is int:
        return value in (0, 1)
    if isinstance(hint, type) and hint.__module__.startswith("wae_lightning.") and hint.__name__ not in ONLY_CALLED:
        # whether another of its kind does is for the class to say: GaussianNoise is the only noise that some take
        return isinstance(value, hint) or bool(_kinds(type(value)) & _kinds(hint))
    if isinstance(hint, type) and issubclass(hint, nn.Module):
        return isinstance(value, hint) or not isinstance(value, PLAIN)
    return hint not in NAMES or isinstance(value, hint)


def _kinds(cls: type) -> set[type]:
    """What a class of ours is made from: what is ours, or a network, is not yet the same kind of thing."""
    return {base for base in cls.__mro__ if _is_ours(base) and base.__name__ != "Part"}


def _text(hint: Any) -> str:
    """A hint in words."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(map(_text, inner))
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind in LISTS:
        count = f" of {len(inner)}" if kind is tuple and Ellipsis not in inner else ""
        return f"a list{count}, each {_text(inner[0])}"
    if kind is Callable:
        return "something to call, as a class"
    name = getattr(hint, "__name__", str(hint))
    return NAMES.get(hint) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"

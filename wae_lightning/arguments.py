"""Whether the arguments of parts are what their type hints say, told before anything is made of them."""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable, Collection, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

__all__ = ["check_arguments"]

OURS = ("wae_lightning", "datamodules")
PLAIN = (types.NoneType, bool, int, float, str, list, tuple, dict, type)
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "None"}
LISTS = (list, tuple, Sequence)
ONLY_CALLED = ("Cost",)  # any module whose result is right will do


def check_arguments(cls: type, given: inspect.BoundArguments) -> None:
    """Refuses plain values, and classes, where the hints of our constructors ask for something else.

    Numbers of NumPy and torch count as Python's, arrays of NumPy and any collection as a list, 0 and 1 as booleans.
    Where a hint names a part of a model (a prior, a penalty), objects of other libraries are refused; where it names
    another class, any object may do: whoever uses it will see. A constructor that is not ours is not judged.

    Args:
        cls: What is to be made.
        given: What it is to be made with. What it takes as ``**kwargs`` is for the classes that it is made from.

    Raises:
        ValueError: If one is refused.
    """
    if not _is_ours(init := cls.__init__):  # type: ignore[misc]
        return
    for name, value in given.arguments.items():
        kind = given.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            hints, arguments = _inherited_hints(cls), value
        else:
            hints, arguments = _hints(init), {} if kind is inspect.Parameter.VAR_POSITIONAL else {name: value}
        for key, item in arguments.items():
            hint = hints.get(key, Any)
            if not _fits(item, hint):
                raise ValueError(f"{key} must be {_text(hint)}, got {' '.join(f'{item!r:.100}'.split())}")


def _is_ours(init: Any) -> bool:
    return getattr(init, "__module__", "").partition(".")[0] in OURS


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
    if isinstance(value, np.generic | np.ndarray | torch.Tensor) and value.ndim == 0:
        value = value.item()
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:  # True equals 1
        return any(value == one and isinstance(value, type(one)) and value is not True for one in inner)
    if kind in LISTS:
        if isinstance(value, str | bytes | torch.Tensor) or not isinstance(value, Collection):
            return False  # iterators, too: the first look would use them up
        several = inner if kind is tuple and Ellipsis not in inner else inner[:1] * len(value)
        return len(value) == len(several) and all(map(_fits, value, several))
    if kind is Callable:
        return callable(value) or not isinstance(value, str | int | float)
    if hint is Path:
        return isinstance(value, os.PathLike)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if hint is bool and type(value) is int:
        return value in (0, 1)
    if isinstance(hint, type) and hint.__module__.startswith("wae_lightning.") and hint.__name__ not in ONLY_CALLED:
        # whether another part of ours does is for the class to say
        return isinstance(value, hint) or _is_ours(type(value))
    if isinstance(hint, type) and issubclass(hint, nn.Module):
        return isinstance(value, hint) or not isinstance(value, PLAIN)
    return hint not in NAMES or isinstance(value, hint)


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

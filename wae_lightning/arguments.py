"""Whether the arguments of parts are what their type hints say, told before anything is made of them."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

__all__ = ["check_arguments"]

OURS = ("wae_lightning", "datamodules")
PLAIN = (types.NoneType, bool, int, float, str, list, tuple, dict, type)
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "None"}


def check_arguments(cls: type, given: inspect.BoundArguments) -> None:
    """Refuses plain values, and classes, where the hints of our constructors ask for something else.

    Numbers of NumPy and torch count as Python's, lists as tuples. Objects of other classes than the hints name may
    still do: whoever uses them will see.

    Args:
        cls: What is to be made.
        given: What it is to be made with. What it takes as ``**kwargs`` is for the classes that it is made from.

    Raises:
        ValueError: If one is refused.
    """
    for name, value in given.arguments.items():
        kind = given.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments, classes = value, cls.__mro__[1:]
        else:
            arguments, classes = {name: value}, cls.__mro__[:1]
        for key, item in arguments.items():
            hint = Any if kind is inspect.Parameter.VAR_POSITIONAL else _hints(classes).get(key, Any)
            if not _fits(item, hint):
                raise ValueError(f"{key} must be {_text(hint)}, got {item!r:.100}")


@functools.cache
def _hints(classes: tuple[type, ...]) -> dict[str, Any]:
    """The hints of those constructors that are ours; the first class that names an argument counts."""
    hints: dict[str, Any] = {}
    for cls in classes:
        init = getattr(cls, "__init__", None)  # also of a class that has none of its own
        if getattr(init, "__module__", "").partition(".")[0] in OURS:
            hints = get_type_hints(init) | hints
    return hints


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return any(value == one and isinstance(value, type(one)) for one in inner)
    if kind is tuple:
        return _is_list(value) and len(value) == len(inner) and all(map(_fits, value, inner))
    if kind in (list, Sequence):
        return _is_list(value) and all(_fits(item, inner[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, nn.Module):
        return isinstance(value, hint) or not isinstance(value, PLAIN)
    return hint not in NAMES or isinstance(value, hint)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _text(hint: Any) -> str:
    """A hint in words."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(map(_text, inner))
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if kind is tuple:
        return f"a list of {len(inner)}, each {_text(inner[0])}"
    if kind in (list, Sequence):
        return f"a list, each {_text(inner[0])}"
    name = getattr(hint, "__name__", str(hint))
    return NAMES.get(hint) or f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"

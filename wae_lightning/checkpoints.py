"""Checkpoints from strangers: read as plain data, naming trusted classes only, and no larger than their weights."""

from __future__ import annotations

import copy
import itertools
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wae_lightning.parts import LONGEST_LIST, MADE_LATER, build, find_class

__all__ = [
    "build_bounded",
    "check_description",
    "check_layers",
    "layer_classes",
    "read_checkpoint",
    "read_plain",
]

_DEEPEST, _MOST_VALUES, _MOST_CALLS, _LARGEST = 20, 10_000, 100_000, 100_000
_SIZES_NOTHING = ("seed", "dataset_size")


def read_plain(path: Any, name: str | None = None) -> Any:
    """Reads a file of ``torch.save`` as plain data, on the CPU; nothing in it is run.

    It takes no more memory than the file has bytes: one that claims more is refused unread.

    Args:
        path: A path, or an open binary file.
        name: What messages call it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, a damaged one, or holds more than tensors and plain values.
    """
    name = name or str(path)
    if isinstance(path, Path) and not path.is_file():
        raise FileNotFoundError(f"{name}: no such file")
    try:
        size = path.stat().st_size if isinstance(path, Path) else path.seek(0, os.SEEK_END)
        # torch.save writes zip files; older formats claim sizes that cannot be checked before they are allocated
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > size:
            raise ValueError(f"it claims {claimed} bytes and has {size}")
        if not isinstance(path, Path):
            path.seek(0)
        content = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_claims(content)
        return content
    except Exception as error:  # torch.load has no common exception for damaged files
        raise ValueError(f"{name}: not a checkpoint, or a damaged one ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """What torch says of a file that it cannot read, without its advice to run what is in it."""
    if found := re.search(r"GLOBAL (\S+) was not an allowed", str(error)):
        return f"it holds an object of {found[1]}, which is no plain data"
    return str(error).partition("\n")[0].partition(". This file can still be loaded")[0] or type(error).__name__


def _refuse_claims(value: Any, depth: int = 0) -> None:
    """Refuses tensors that claim more numbers than are stored: views whose copy may fill any memory."""
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise ValueError(f"it holds a tensor of another kind: {value.layout}, {value.dtype}, {value.device}")
        if value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"it holds a tensor of {value.nbytes} bytes, and stores less of it")
    elif isinstance(value, Mapping):
        for item in itertools.chain(value.keys(), value.values()):
            _refuse_claims(item, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            _refuse_claims(item, depth + 1)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint as plain data, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint of Lightning, a damaged one, or holds more than plain data.
    """
    checkpoint = read_plain(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise ValueError(f"{path}: not a checkpoint of Lightning: it holds no state_dict")
    return checkpoint


# ---- building what a file describes ---------------------------------------------------------------------------------


class _TooLargeError(BaseException):
    """Stops a constructor, whatever it catches."""


class _Budget(TorchFunctionMode):
    """Stops whoever calls more functions of torch than a model with so many weights needs for its making."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise _TooLargeError("more modules")
        return func(*args, **(kwargs or {}))


def build_bounded(
    description: Any,
    weights: Mapping[str, Any],
    trust: Sequence[str] = (),
    given: Mapping[str, Any] | None = None,
) -> Any:
    """Makes what a description from a stranger describes, if its weights can be those beside it.

    It is made without memory first, on the meta device, and refused if it takes more than the weights can fill.

    Args:
        description: From :func:`wae_lightning.parts.describe`.
        weights: The state dict that shall be loaded, on the CPU; only its sizes are looked at.
        trust: Modules whose classes it may name, see :func:`wae_lightning.parts.find_class`.
        given: Arguments to take instead of those in the description.

    Raises:
        ValueError: If it is no description, too large, or :func:`wae_lightning.parts.build` refuses it.
    """
    given = dict(given or {})
    # a view claims any size: what counts is what is stored
    tensors = [weight for weight in weights.values() if isinstance(weight, Tensor)]
    storages = {weight.untyped_storage().data_ptr(): weight for weight in tensors}
    held = sum(weight.untyped_storage().nbytes() // weight.element_size() for weight in storages.values())
    widest = max((size for weight in tensors for size in weight.shape if size <= held), default=0)
    arguments = description.get("init_args") if isinstance(description, dict) else None
    if isinstance(arguments, dict):
        description = description | {"init_args": {k: v for k, v in arguments.items() if k not in given}}
    check_description(description, max(widest, _LARGEST), trust)
    # the budget may end inside of torch's own no_grad, whose way back is a call as well
    mode = torch.set_grad_enabled(torch.is_grad_enabled())
    try:
        with mode, _Budget(min(1000 + 200 * len(weights), _MOST_CALLS)), torch.device("meta"):
            # constructors complete what is given, and must complete the real one later
            copies = copy.deepcopy(given)
            for value in copies.values():
                if isinstance(value, nn.Module):
                    value.to("meta")
            _measure(description, trust, copies, held + _LARGEST)
    except _TooLargeError as error:
        raise ValueError(f"it describes a model of {error} than the {held} numbers beside it can fill") from None
    return build(description, trust, given)


def _measure(description: Any, trust: Sequence[str], given: dict[str, Any], held: int) -> None:
    try:
        made = build(description, trust, given)
    except ValueError:
        # a class of the user's own may need real memory; each part beside it must still be small enough
        arguments = description.get("init_args") if isinstance(description, dict) else None
        if not trust or not isinstance(arguments, dict):
            raise
        for part in _parts_in(arguments):
            _measure(part, trust, {}, held)
        return
    if isinstance(made, nn.Module):
        claimed = sum(tensor.numel() for tensor in itertools.chain(made.parameters(), made.buffers()))
        if claimed > held:
            raise _TooLargeError(f"{claimed} weights, more")


def _parts_in(value: Any) -> Iterator[dict[str, Any]]:
    """The parts that are arguments of another one, in lists and dictionaries, too; not those inside of them."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(item, dict) and "class_path" in item:
            yield item
        else:
            yield from _parts_in(item)


def check_description(
    value: Any, largest: int = _LARGEST, trust: Sequence[str] = (), name: str = "model", depth: int = 0
) -> int:
    """Checks that a description is plain, small, and names trusted classes only, before anything is made of it.

    Args:
        value: The description.
        largest: The largest whole number that an argument may be, but for seeds and the like.
        trust: Modules whose classes it may name.
        name: What it describes, for messages.
        depth: How deep it lies in another one.

    Returns:
        How many values it holds.

    Raises:
        ValueError: If it is anything else.
    """
    if type(value) is str and len(value) > LONGEST_LIST:
        raise ValueError(f"{name} holds a text of {len(value)} characters, expected at most {LONGEST_LIST}")
    if type(value) is int and abs(value) > (2**64 if name.endswith(_SIZES_NOTHING) else largest):
        raise ValueError(f"{name} holds a whole number of {value.bit_length()} bits, expected at most {largest}")
    if type(value) in (bool, int, float, str, type(None)):
        return 1
    if type(value) not in (dict, list):
        raise ValueError(f"{name} holds a {type(value).__name__}, expected plain data")
    if depth > _DEEPEST or len(value) > LONGEST_LIST:
        raise ValueError(f"{name} is nested more than {_DEEPEST} deep, or holds more than {LONGEST_LIST} values")
    items = value.items() if type(value) is dict else enumerate(value)
    if type(value) is dict:
        if not all(type(key) is str and len(key) <= 100 for key in value):
            raise ValueError(f"{name} holds names that are no short texts")
        if type(value.get("class_path")) is str and issubclass(
            find_class(value["class_path"], trust, name), MADE_LATER
        ):
            largest = 2**64  # nothing is made of it before training
    values = 1
    for key, item in items:
        values += check_description(item, largest, trust, name if key == "init_args" else f"{name}.{key}", depth + 1)
        if values > _MOST_VALUES:
            raise ValueError(f"{name} holds more than {_MOST_VALUES} values")
    return values


def layer_classes(model: nn.Module, every_name: bool = True) -> dict[str, str]:
    """Name of each module in a model -> its class: what its description does not tell if a layer was exchanged.

    A module that stands in two places has two names; without ``every_name`` it counts once.
    """
    modules = model.named_modules(remove_duplicate=not every_name)
    return {name: type(module).__qualname__ for name, module in modules if name}


def check_layers(model: nn.Module, stored: Any, given: Mapping[str, Any]) -> None:
    """Refuses a model whose layers are not of the classes that they were saved with; ``given`` parts may differ.

    Raises:
        ValueError: If a layer is of another class, missing, or one too many.
    """
    if stored is None:
        return  # saved by somebody's own hook, which says nothing of them
    if not isinstance(stored, dict):
        raise ValueError("its layers are no names and classes")
    made, once = layer_classes(model), layer_classes(model, every_name=False)
    for name in sorted(once.keys() | {str(name) for name in stored}, key=lambda name: (-name.count("."), name)):
        now, then = made.get(name, "nothing"), str(stored.get(name, "nothing"))[:100]
        if now != then and not set(name.split(".")) & set(given):
            raise ValueError(
                f"{name[:200]} was a {then}, and what is recorded makes a {now}: it was exchanged after the model was "
                f"made, so give that part yourself ({name.partition('.')[0][:100]}=...)"
            )

"""Models and data modules of configs: for the command line, and for Python."""

from __future__ import annotations

import re
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

import datamodules  # noqa: F401  its classes can be named without their module
from wae_lightning import WAE, WAEGAN, WAEMMD, ConditionalWAE, PointNetWAE
from wae_lightning.cli.errors import UsageError, explain_mistake
from wae_lightning.cli.flags import config_file, walk
from wae_lightning.cli.links import class_of, link, parameters
from wae_lightning.lightning import (
    LightningArgumentParser,
    LightningDataModule,
    LightningModule,
    seed_everything,
)
from wae_lightning.parts import make

__all__ = ["from_config", "link_typed"]

MODELS = (WAE, WAEGAN, WAEMMD, ConditionalWAE, PointNetWAE)  # imported, so that their short names are known


def from_config(
    name: str | PathLike[str], *, data: dict[str, Any] | None = None, seed: int | None = None, **model: Any
) -> tuple[Any, Any]:
    """Builds the model and the data module of a config, as ``train.py --config NAME`` does.

    Sizes that follow from others follow, as on the command line: another ``latent_dim`` or ``image_size`` is all that
    has to be said. Nothing else happens: no random number is drawn but for the weights, and no file is written.

    Args:
        name: One of our configs (``train.py --list`` prints them), or the path of a YAML file.
        data: Arguments of the data module to change, such as ``{"root": "data", "batch_size": 64}``.
        seed: Seed of all random numbers, set before anything is built, as ``train.py`` sets 0; None: untouched.
        **model: Arguments of the model to change: values; objects (``cost=AbsoluteError(0.1)``); dictionaries, which
            change arguments of a part (``encoder={"width": 0.25}``) or, with ``class_path``, the part.

    Returns:
        The model and the data module, for ``Trainer.fit(model, data)``.

    Raises:
        ValueError: If there is no such config or argument, or a value does not fit; one sentence says what would.

    Example:
        >>> from wae_lightning import from_config
        >>> from wae_lightning.lightning import Trainer
        >>> model, digits = from_config("mnist_wae_mmd", latent_dim=8, data={"batch_size": 100})
        >>> trainer = Trainer(
        ...     max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...     enable_model_summary=False, limit_val_batches=1, num_sanity_val_steps=0,
        ... )
        >>> trainer.fit(model, digits)
        >>> model.sample(16).shape
        torch.Size([16, 1, 28, 28])
    """
    if data is not None and not isinstance(data, Mapping):
        raise UsageError(f"from_config: data must be a dictionary of arguments, got {data!r:.100}")
    try:
        content = read_config(config_file(str(name)))
        file = {group: content.get(group) for group in ("model", "data")}
        changes = {"model": {"init_args": _plain(model)}, "data": {"init_args": _plain(data or {})}}
        typed = {found for group, change in changes.items() for found in walk(change, group)}
        with warnings.catch_warnings():
            # jsonargparse has new names for two of the methods, which older versions lack
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=re.escape(__name__))
            parser = LightningArgumentParser(exit_on_error=False)
            parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
            parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
            parser.add_instantiator(make, nn.Module)
            config = parser.parse_object(merge(file, changes))
            link(config, file, typed)
            if seed is not None:
                seed_everything(seed, workers=True, verbose=False)
            made = parser.instantiate_classes(config)
    except (ArgumentError, ValueError) as error:
        sentence = explain_mistake(str(error))
        for flag, argument in ((r"--model\.", ""), (r"--data\.", "data."), ("--config ", ""), ("flag", "argument")):
            sentence = re.sub(flag, argument, sentence)
        unknown = re.match(r"unknown argument (\w+)", sentence)
        if unknown and unknown[1] in parameters(class_of(content.get("data"))):
            sentence = f'{unknown[0]}; it is one of the data module: data={{"{unknown[1]}": ...}}'
        raise UsageError(f"from_config: {sentence}") from None
    return made.model, made.data


def _plain(value: Any) -> Any:
    """Numbers of NumPy and torch, lists and dictionaries of anybody as Python's, which the parser wants."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value


def link_typed(config: Any, arguments: list[str]) -> None:
    """Sets the sizes that follow from others in a config that was parsed from a command line."""
    typed: set[str] = set()
    files: list[Path] = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        value = value if equals else following
        if flag == "--config":
            files.append(Path(value))
        elif flag.startswith("--"):
            name = re.sub(r"\.(init_args|dict_kwargs)\b", "", flag[2:])
            typed |= {name, *walk(read_value(value), name)}
    content: dict[str, Any] = {}
    for file in files:
        content = merge(content, read_config(file))
    link(config, content, typed)


def read_config(path: Path) -> dict[str, Any]:
    """What a file says, as plain data.

    Raises:
        UsageError: If it is no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected model and data, found {type(content).__name__}")
    return content


def read_value(text: str) -> Any:
    """What a value on the command line says if it is a part of a config: itself, or in a file."""
    try:
        if text.endswith((".yaml", ".yml", ".json")) and Path(text).is_file():
            return read_config(Path(text))
        return yaml.safe_load(text) if text.startswith("{") else None
    except (ValueError, yaml.YAMLError):
        return None


def merge(part: Any, change: Any) -> Any:
    """A part of a config with some of it changed; of another class it is another part."""
    if not isinstance(part, dict) or not isinstance(change, dict):
        return change
    if "class_path" in change and change["class_path"] != part.get("class_path"):
        return change
    return part | {key: merge(part.get(key), value) for key, value in as_written(part, change).items()}


def as_written(part: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A change of a part's arguments may leave ``init_args`` out."""
    whole = "class_path" not in part or {"class_path", "init_args", "dict_kwargs"} & set(change)
    return change if whole else {"init_args": change}

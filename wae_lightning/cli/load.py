"""Models and data modules from checkpoints, which may come from strangers."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import datamodules
from datamodules.base import SPLIT
from wae_lightning import WAE, ConditionalWAE
from wae_lightning.checkpoints import check_description, read_checkpoint
from wae_lightning.cli.errors import UsageError
from wae_lightning.lightning import LightningDataModule
from wae_lightning.pairs import Pairs
from wae_lightning.parts import Part, build, find_class
from wae_lightning.work import check_work

__all__ = ["import_modules", "load_data", "load_model", "load_pairs"]

NOT_TAKEN = ("root", "cache_dir", "download", "num_workers", "on_device", "pin_memory")
"""Arguments of data modules that a checkpoint says nothing about: what they open, write, fetch or start."""
PLAIN = {"int": (int,), "float": (float, int), "bool": (bool,), "str": (str,)}
"""Annotations whose types can be looked at before anything is made."""


def import_modules(names: list[str]) -> None:
    """Imports the user's own modules, whose classes a checkpoint may then name.

    Raises:
        UsageError: If there is no such module.
    """
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # a console command does not look there
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UsageError(f"--import {name}: {error}") from None


def load_model(path: Path, trust: Sequence[str] = ()) -> WAE:
    """Loads a model of this package, in evaluation mode.

    Args:
        path: The checkpoint.
        trust: Modules whose classes it may name (``--import``).

    Raises:
        FileNotFoundError: If there is no such file.
        UsageError: If the file is not a checkpoint of one of our models, or names classes that are not trusted.
    """
    try:
        model: WAE = WAE.load_from_checkpoint(path, weights_only=True, trust=trust)
    except ValueError as error:
        raise UsageError(str(error)[:600]) from None
    try:
        check_work(model, trust)
        return model.eval()
    except ValueError as error:
        raise UsageError(f"{path}: {error}"[:600]) from None


def load_data(path: Path, overrides: dict[str, str], trust: Sequence[str] = ()) -> LightningDataModule | None:
    """Builds the data module that a checkpoint was trained with.

    A checkpoint says which data module it is and how the data was prepared; where the data lies, and what may be
    written, fetched or started, is for the user to say.

    Args:
        path: The checkpoint.
        overrides: Arguments of the data module as the user typed them.
        trust: Modules whose classes it may name (``--import``).

    Returns:
        None, with a sentence on the terminal, if ``overrides`` does not say where the data is. (For MNIST, what
        ``MNISTDataModule`` finds without a root stands in, with a sentence, too.)

    Raises:
        FileNotFoundError: If there is no such file.
        UsageError: If it is no checkpoint, names no data module that is trusted, or an override names no argument of
            the data module.
    """
    try:
        stored = read_checkpoint(path).get("datamodule_hyper_parameters")
    except ValueError as error:
        raise UsageError(str(error)[:600]) from None
    stored = dict(stored) if isinstance(stored, dict) else {}
    name = str(stored.pop("_class_path", None))
    stored = {key: value for key, value in stored.items() if key not in ("_instantiator", "_version", "_pairs")}
    try:
        check_description({"class_path": name, "init_args": stored}, trust=trust, name="data")
        cls: Any = find_class(name, trust)
    except ValueError:
        raise UsageError(
            f"{path}: it does not say which of our data modules it was trained with, or of yours, which is imported by "
            f"--import MODULE and calls save_hyperparameters() when it is made; found {name[:80]}"
        ) from None
    parameters = {
        name: parameter
        for base in reversed(cls.__mro__)
        if base is cls or (issubclass(base, Part) and base is not Part)
        for name, parameter in inspect.signature(base.__init__).parameters.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and name != "self"
    }
    for argument, value in stored.items():
        kinds = PLAIN.get(str(parameters[argument].annotation)) if argument in parameters else None
        if kinds and type(value) not in kinds:
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UsageError(f"{path}: its {argument} is a {type(value).__name__}, expected {wanted}")
    takes = {*stored, *parameters}
    if "images" in stored:  # as the folder was called in training
        overrides = {"root" if key == "images.root" else key: value for key, value in overrides.items()}
    if unknown := set(overrides) - takes:
        raise UsageError(f"--data.{min(unknown)}: {cls.__name__} takes {', '.join(sorted(takes))}")
    given = {key: yaml.safe_load(value) for key, value in overrides.items()}
    for argument in SPLIT:
        if argument in given and argument in stored and given[argument] != stored[argument]:
            print(
                f"The model was trained with {argument} {stored[argument]!r:.40}: with {given[argument]!r:.40}, what "
                "is looked at may be what it was trained on."
            )
    root, harmless = _split(stored)
    images = harmless.get("images")
    if isinstance(images, dict) and "root" in given:  # a wrapper hands it on
        images["init_args"]["root"] = given.pop("root")
    elif root is not None and "root" not in given:
        if cls is not datamodules.MNISTDataModule or stored.get("variant", "mnist") != "mnist":
            print(f"The model was trained on data in {root}: name its folder with --data.root DIR.")
            return None
        print(
            f"The model was trained on data in {root}; without --data.root DIR it is what lies in data/, or the digits "
            "that come with the package."
        )
    try:
        data: LightningDataModule = build({"class_path": name, "init_args": harmless | given}, trust, name="data")
        return data
    except ValueError as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}"[:600]) from None


def load_pairs(path: Path, model: ConditionalWAE) -> Pairs:
    """Makes what makes images of the pairs of a model, as the checkpoint records it.

    Raises:
        UsageError: If it records none of ours, or one that does not fit the model.
    """
    stored = read_checkpoint(path).get("datamodule_hyper_parameters")
    described = stored.get("_pairs") if isinstance(stored, dict) else None
    if not isinstance(described, dict):
        raise UsageError(
            f"{path}: it does not say how its data module made pairs of images: use complete(x, n) in Python"
        )
    try:
        check_description(described, name="pairs")
        pairs = build(described, name="pairs")
        shapes = pairs.condition_shape, pairs.target_shape, pairs.num_classes
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}"[:600]) from None
    # so their size is bounded by that of the model
    if not isinstance(pairs, Pairs) or shapes != (model.condition_shape, model.target_shape, model.num_classes):
        raise UsageError(f"{path}: its data module made pairs of other shapes than those of the model")
    return pairs


def _split(arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The folder that arguments of a data module name, also of one inside of it, and the arguments that are taken."""
    root, taken = arguments.get("root"), {}
    for key, value in arguments.items():
        if isinstance(value, dict) and isinstance(value.get("init_args"), dict):
            inner, init_args = _split(value["init_args"])
            root = inner if root is None else root
            value = {**value, "init_args": init_args}
        if key not in NOT_TAKEN:
            taken[key] = value
    return root, taken

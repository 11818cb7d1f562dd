"""Models and data modules from checkpoints, which may come from strangers."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import datamodules
import wae_lightning
from wae_lightning import WAE, references
from wae_lightning.checkpoints import check_classes, read_checkpoint
from wae_lightning.cli.errors import UsageError
from wae_lightning.lightning import LightningDataModule, instantiate_module

__all__ = ["import_modules", "load_data", "load_model"]


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


def load_model(path: Path) -> WAE:
    """Loads a model of this package, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint, or names classes that are not imported (see ``--import``).
        UsageError: If the file is not a checkpoint of one of our models.
    """
    checkpoint = read_checkpoint(path)
    stored = checkpoint.get("hyper_parameters")
    stored = stored if isinstance(stored, dict) else {"_class_path": "unknown"}
    name = " ".join(str(stored.get("_class_path")).split())
    known = [getattr(wae_lightning, name) for name in wae_lightning.__all__] + list(vars(references).values())
    models: dict[str, Any] = {f"{cls.__module__}.{cls.__name__}": cls for cls in known if isinstance(cls, type)}
    models |= {f"wae_lightning.{cls.__name__}": cls for cls in models.values()}
    if name not in models or not issubclass(models[name], WAE):
        raise UsageError(f"{path}: expected a model of wae_lightning trained by train.py, found class {name}")
    try:
        check_size(models[name], stored, checkpoint["state_dict"], path)
        model: WAE = models[name].load_from_checkpoint(path, map_location="cpu", weights_only=True)
        return model.eval()
    except Exception as error:  # jsonargparse, torch and the networks: each has exceptions of its own
        reason = " ".join(str(error).split())
        reason = reason if reason.startswith(f"{path}: ") else f"{path}: no {name} can be made of it ({reason})"
        raise UsageError(reason[:600]) from None


def check_size(cls: type[WAE], stored: dict[str, Any], weights: dict[str, Any], path: Path) -> None:
    """Refuses hyper-parameters that would make a model larger than the weights beside them."""
    check_classes(stored)
    arguments = {name: value for name, value in stored.items() if name != "_instantiator"}
    claimed = held = 0
    with suppress(Exception), torch.device("meta"):  # whatever else is wrong, the real model will say it
        claimed = sum(weight.numel() for weight in instantiate_module(cls, arguments).state_dict().values())
        held = sum(weight.numel() for weight in weights.values())
    if claimed > held:
        raise ValueError(f"{path}: it describes a model of {claimed} weights and holds {held}")


def load_data(path: Path, overrides: dict[str, str]) -> LightningDataModule | None:
    """Builds the data module that a checkpoint was trained with.

    Returns:
        None, with a sentence on the terminal, if the data is not where it was and ``overrides`` names no other place.
        (The digits that come with the package stand in for MNIST, with a sentence, too.)

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint.
        UsageError: If it names no data module that is imported, or other such classes (see ``--import``), or
            an override names no argument of the data module.
    """
    stored = read_checkpoint(path).get("datamodule_hyper_parameters")
    stored = dict(stored) if isinstance(stored, dict) else {}
    stored.pop("_instantiator", None)
    path_of_class = str(stored.pop("_class_path", None))
    module, _, name = path_of_class.rpartition(".")
    cls: Any = getattr(datamodules, name, None) if name in datamodules.__all__ else None
    cls = cls or getattr(sys.modules.get(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, LightningDataModule)):
        raise UsageError(
            f"{path}: it does not say which of our data modules it was trained with, or of yours, which is imported by "
            f"--import MODULE and calls save_hyperparameters() when it is made; found {path_of_class[:80]}"
        )
    takes = {*stored, *inspect.signature(cls.__init__).parameters} - {"self"}
    unknown = set(overrides) - takes
    if unknown:
        raise UsageError(f"--data.{min(unknown)}: {name} takes {', '.join(sorted(takes))}")
    root = stored.get("root")
    if root is not None and "root" not in overrides and not Path(str(root)).exists():
        if name != "MNISTDataModule" or stored.get("variant") != "mnist":
            print(f"{root}: the data of the training is not here; name its folder with --data.root DIR.")
            return None
        print(f"{root}: the data of the training is not here; taking what MNISTDataModule finds without a root.")
        stored["root"] = None
    try:
        check_classes({argument: value for argument, value in stored.items() if argument not in overrides})
        data: LightningDataModule = instantiate_module(cls, stored | overrides)
        return data
    except Exception as error:  # jsonargparse and the data modules: each has exceptions of its own
        raise UsageError(f"{path}: no {name} can be made of it ({' '.join(str(error).split())})"[:600]) from None

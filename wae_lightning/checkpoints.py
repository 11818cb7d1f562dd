"""Checkpoints from strangers: read as plain data, and naming only classes that the reader has chosen to import."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from wae_lightning.lightning import PACKAGE, PACKAGES, LightningDataModule
from wae_lightning.priors import Prior

__all__ = ["check_classes", "read_checkpoint", "read_plain"]

_PARTS = (nn.Module, Prior, Optimizer, LRScheduler, LightningDataModule)
_INSTANTIATORS = tuple(f"{package}.cli.instantiate_module" for package in PACKAGES)


def read_plain(path: Path) -> Any:
    """Reads a file of ``torch.save`` as plain data, on the CPU; nothing in it is run.

    It takes no more memory than the file has bytes: one that claims more is refused unread.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, a damaged one, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        # torch.save writes zip files; older formats claim sizes that cannot be checked before they are allocated
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > path.stat().st_size:
            raise ValueError(f"it claims {claimed} bytes and has {path.stat().st_size}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no common exception for damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a checkpoint, or a damaged one ({reason})") from None


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


def check_classes(hyperparameters: Any) -> None:
    """Refuses hyper-parameters whose class paths could run what the reader never chose.

    jsonargparse builds what a checkpoint's ``class_path`` names, and imports it first. Here is what it may name: a
    class that is already imported and is a network, a prior, an optimizer, a scheduler or a data module. So your own
    classes load if you import their module before; functions, and all other classes, are refused. Strings are looked
    at too, since jsonargparse takes them for class paths, for YAML or for the name of a YAML file.

    Args:
        hyperparameters: The ``hyper_parameters`` of a checkpoint, or ``datamodule_hyper_parameters``.

    Raises:
        ValueError: If they name anything else.
    """
    for module in (f"{PACKAGE}.cli", "wae_lightning.references", "wae_lightning.schedules"):
        import_module(module)  # what train.py offers beside the classes that `import wae_lightning` brings
    if isinstance(hyperparameters, Mapping):
        for name, value in hyperparameters.items():
            if name in ("class_path", "_class_path"):
                _check_class(value)
            elif name != "_instantiator":
                check_classes(value)
            elif value not in _INSTANTIATORS:
                raise ValueError(f"its hyper-parameters are for {value!r}; expected {_INSTANTIATORS[0]}")
    elif isinstance(hyperparameters, list | tuple | set | frozenset):
        for value in hyperparameters:
            check_classes(value)
    elif isinstance(hyperparameters, str):
        _check_string(hyperparameters)


def _check_class(path: Any) -> None:
    module, _, name = str(path).rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    # metrics download networks by name, and no model is made of them
    if not (isinstance(found, type) and issubclass(found, _PARTS)) or issubclass(found, Metric):
        raise ValueError(
            f"its hyper-parameters name {path!r}, which is not an imported class of networks, priors, optimizers, "
            "schedulers or data modules: import its module first if you trust it, or give the argument yourself"
        )


def _check_string(text: str) -> None:
    try:
        # the structure only: a date that does not exist must not hide it
        meant = yaml.load(text, Loader=yaml.BaseLoader)
    except RecursionError:
        meant = []
    except yaml.YAMLError:
        meant = text
    if isinstance(meant, dict | list) or os.path.isfile(text):
        raise ValueError(f"its hyper-parameters hold the text {text[:80]!r}, which could name classes")
    if isinstance(meant, str) and meant != text:
        _check_string(meant)
    parts = text.strip().split(".")
    if len(parts) > 1 and all(map(str.isidentifier, parts)) and find_spec(parts[0]) is not None:
        _check_class(text.strip())

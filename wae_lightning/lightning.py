"""Which of Lightning's two packages this process uses: ``pytorch_lightning`` or ``lightning.pytorch``.

Both hold the same code under two names, and neither accepts the other's modules. Everything here, and in
``datamodules``, takes Lightning's classes from this file, the only one that names either package. The choice is made
once, when it is imported:

1. the environment variable ``WAE_LIGHTNING_PACKAGE``, if it is set to one of the two names;
2. else the package that the process has imported already; if it has imported both, ``lightning.pytorch``;
3. else ``pytorch_lightning``.
"""

from __future__ import annotations

import importlib
import importlib.abc
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

PACKAGES = ("pytorch_lightning", "lightning.pytorch")
SWITCH = "WAE_LIGHTNING_PACKAGE"

if TYPE_CHECKING:
    from pytorch_lightning import Callback as Callback
    from pytorch_lightning import LightningDataModule as LightningDataModule
    from pytorch_lightning import LightningModule as LightningModule
    from pytorch_lightning import Trainer as Trainer
    from pytorch_lightning import seed_everything as seed_everything
    from pytorch_lightning.callbacks import Checkpoint as Checkpoint
    from pytorch_lightning.callbacks import EMAWeightAveraging as EMAWeightAveraging
    from pytorch_lightning.callbacks import LearningRateMonitor as LearningRateMonitor
    from pytorch_lightning.callbacks import ModelCheckpoint as ModelCheckpoint
    from pytorch_lightning.callbacks import TQDMProgressBar as TQDMProgressBar
    from pytorch_lightning.callbacks import WeightAveraging as WeightAveraging
    from pytorch_lightning.cli import LightningArgumentParser as LightningArgumentParser
    from pytorch_lightning.cli import LightningCLI as LightningCLI
    from pytorch_lightning.cli import instantiate_module as instantiate_module
    from pytorch_lightning.loggers import CSVLogger as CSVLogger
    from pytorch_lightning.loggers import Logger as Logger
    from pytorch_lightning.loggers import TensorBoardLogger as TensorBoardLogger
    from pytorch_lightning.plugins.io import TorchCheckpointIO as TorchCheckpointIO
    from pytorch_lightning.utilities import rank_zero_info as rank_zero_info
    from pytorch_lightning.utilities import rank_zero_warn as rank_zero_warn
    from pytorch_lightning.utilities.exceptions import (  # type: ignore[attr-defined]
        MisconfigurationException as MisconfigurationException,
    )
    from pytorch_lightning.utilities.exceptions import SIGTERMException as SIGTERMException
    from pytorch_lightning.utilities.model_helpers import is_overridden as is_overridden
    from pytorch_lightning.utilities.seed import isolate_rng as isolate_rng

# module of the package -> what we take from it; imported when it is first asked for, since `cli` alone takes a second
_NAMES = {
    "": ("Callback", "LightningDataModule", "LightningModule", "Trainer", "seed_everything"),
    ".callbacks": (
        "Checkpoint",
        "EMAWeightAveraging",
        "LearningRateMonitor",
        "ModelCheckpoint",
        "TQDMProgressBar",
        "WeightAveraging",
    ),
    ".cli": ("LightningArgumentParser", "LightningCLI", "instantiate_module"),
    ".loggers": ("CSVLogger", "Logger", "TensorBoardLogger"),
    ".plugins.io": ("TorchCheckpointIO",),
    ".utilities": ("rank_zero_info", "rank_zero_warn"),
    ".utilities.exceptions": ("MisconfigurationException", "SIGTERMException"),
    ".utilities.model_helpers": ("is_overridden",),
    ".utilities.seed": ("isolate_rng",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["PACKAGE", *sorted(_MODULE_OF)]


def _choose() -> str:
    wanted = os.environ.get(SWITCH)
    if wanted:
        if wanted not in PACKAGES:
            raise ImportError(f"the environment variable {SWITCH} must be {' or '.join(PACKAGES)}, got {wanted!r}")
        return wanted
    imported = [name for name in PACKAGES if name in sys.modules]
    if len(imported) > 1:
        warnings.warn(
            "both pytorch_lightning and lightning.pytorch are imported, and neither trains the other's modules: "
            f"wae_lightning uses lightning.pytorch; set the environment variable {SWITCH}=pytorch_lightning for the "
            "other one",
            stacklevel=2,
        )
    return imported[-1] if imported else PACKAGES[0]


PACKAGE = _choose()
"""Name of the package that is used."""


class _RefuseTheOther(importlib.abc.MetaPathFinder):
    """Says why ``lightning`` cannot train our modules, where it is imported after them; else its own Trainer would."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "lightning.pytorch":
            raise ImportError(
                "wae_lightning was imported before lightning and has chosen pytorch_lightning, whose modules "
                "lightning's Trainer does not accept. Import lightning first, or set the environment variable "
                f"{SWITCH}=lightning.pytorch ({SWITCH}=pytorch_lightning, if you want both side by side)"
            )


if PACKAGES[0] == PACKAGE and PACKAGES[1] not in sys.modules and not os.environ.get(SWITCH):
    sys.meta_path.insert(0, _RefuseTheOther())


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(PACKAGE + _MODULE_OF[name]), name)
    globals()[name] = found
    return found

"""Checkpoints that load with their path and nothing else."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import torch

from wae_lightning.checkpoints import check_classes
from wae_lightning.lightning import LightningModule

if TYPE_CHECKING:
    from typing_extensions import Self

_PLAIN = (bool, int, float, str, type(None))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    # neither an enum's member nor NumPy's number, which count as strings and floats but are objects in a checkpoint
    return type(value) in _PLAIN


class LoadsPlainCheckpoints(LightningModule):
    """Keeps a model's plain arguments in its checkpoints, and makes it anew from them."""

    def record_arguments(self) -> None:
        """Records the arguments of the model that is being made; to be called in its ``__init__``."""
        import inspect

        with warnings.catch_warnings():
            # Lightning warns of modules among the hyper-parameters; they are dropped two lines below
            warnings.filterwarnings("ignore", message=".*is an instance of `nn.Module`")
            self.save_hyperparameters(frame=inspect.currentframe().f_back)  # type: ignore[union-attr]
        for stored in (vars(self)["_hparams"], vars(self)["_hparams_initial"]):
            for name in [name for name, value in stored.items() if not _is_plain(value)]:
                del stored[name]

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **arguments: Any,
    ) -> Self:
        """Loads a model that ``train.py``, or any trainer, has saved; it needs no argument but the path.

        A checkpoint is read as plain data. It may name classes that you have imported, your own ones included, and
        nothing else: see :func:`wae_lightning.checkpoints.check_classes`.

        Args:
            checkpoint_path: A path, a URL, or an open binary file.
            map_location: Device, or torch's other ways to name one.
            hparams_file: YAML or CSV file to take instead of the hyper-parameters in the checkpoint.
            strict: Whether the weights must be exactly those of the model; None: the model's own choice.
            weights_only: False also unpickles objects, which can run any code: only for files that you trust.
            **arguments: Arguments of the model, to take instead of what the checkpoint says.

        Raises:
            ValueError: If the checkpoint names a class that is not imported, or not a part of a model.
        """
        name = "the checkpoint"
        if not hasattr(checkpoint_path, "read"):
            name = str(checkpoint_path)
            # what is checked must be what is loaded
            with fsspec.open(name, "rb") as file:
                checkpoint_path = io.BytesIO(file.read())
        start = checkpoint_path.tell()
        checkpoint = torch.load(checkpoint_path, map_location="meta", weights_only=weights_only)
        checkpoint_path.seek(start)
        for part in ("hyper_parameters", "hparams", "module_arguments"):  # the last two: old versions of Lightning
            stored = dict(checkpoint.get(part, {}))
            try:
                check_classes({key: value for key, value in stored.items() if key not in arguments})
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return super().load_from_checkpoint(
            checkpoint_path,
            map_location=map_location,
            hparams_file=hparams_file,
            strict=strict,
            weights_only=weights_only,
            **arguments,
        )

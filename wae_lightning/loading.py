"""Models that load from a checkpoint's path and nothing else."""

from __future__ import annotations

import inspect
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import torch

from wae_lightning import __version__
from wae_lightning.checkpoints import build_bounded, check_description, check_layers, layer_classes, read_plain
from wae_lightning.lightning import LightningModule
from wae_lightning.parts import Part, build, describe, is_recorded, parameters_of, recorded_arguments
from wae_lightning.training.finite import first_bad_weights

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["RecordedModel"]

_CLASS, _VERSION = "_class_path", "_version"
_LAYERS = "layer_classes"
_MORE = "more_hyper_parameters"  # of a subclass; no arguments


class RecordedModel(LightningModule, Part):
    """A model whose checkpoints say how it was made: its class and arguments, as :mod:`wae_lightning.parts` describes.

    The description is the model's ``hparams``, and so stands in its checkpoints, in the loggers and in ``config.json``.
    """

    def record_arguments(self) -> None:
        """Makes the recorded arguments the model's hyper-parameters; to be called in ``__init__``."""
        if not is_recorded(self):
            cls = type(self)
            foreign = (base for base in cls.__bases__ if not issubclass(base, Part))
            base = next(foreign, cls).__name__
            raise TypeError(
                f"{cls.__name__} cannot remember its arguments, since {base}, which has a __new__ of its own, stands "
                f"before the model among its bases: name the model first, class {cls.__name__}(<model>, {base})"
            )
        # in the frames of constructors, where Lightning would look for more, are arrays that it cannot compare, and
        # models that it would keep until a garbage collection
        frame = inspect.currentframe()
        while frame is not None and frame.f_back is not None:
            frame = frame.f_back
        self.save_hyperparameters(_record_of(self), frame=frame)

    def describe(self) -> dict[str, Any]:
        """How the model was made, as plain data: ``{"class_path": ..., "init_args": {...}}``."""
        return describe(self)  # type: ignore[no-any-return]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[_LAYERS] = layer_classes(self)
        # a subclass that calls save_hyperparameters has written there what may not be what it was made with; what was
        # changed since then, as tuners do, counts
        first, now = (
            {name: describe(value) for name, value in hparams.items()}
            for hparams in (self.hparams_initial, self.hparams)
        )
        changed = {name: value for name, value in now.items() if name not in first or value != first[name]}
        record = _record_of(self)
        known = {*record, *(name for base in type(self).__mro__ for name in parameters_of(base).parameters)}
        checkpoint["hyper_parameters"] = record | {name: changed[name] for name in changed if name in known}
        if more := {name: value for name, value in now.items() if name not in known}:
            checkpoint[_MORE] = more

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        _refuse_older(checkpoint.get("hyper_parameters"), "the checkpoint")

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Writes a folder to share, see :func:`wae_lightning.pretrained.save_pretrained`."""
        from wae_lightning.pretrained import save_pretrained

        save_pretrained(self, folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads the model to a hub, see :func:`wae_lightning.pretrained.push_to_hub`."""
        from wae_lightning.pretrained import push_to_hub

        return push_to_hub(self, repo_id, **options)

    @classmethod
    def from_pretrained(cls, source: str | Path, trust: Sequence[str] = (), **given: Any) -> Self:
        """Loads a model of :meth:`save_pretrained`, see :func:`wae_lightning.pretrained.from_pretrained`.

        Raises:
            ValueError: If it is no model of this class.
        """
        from wae_lightning.pretrained import from_pretrained

        model = from_pretrained(source, (*trust, *_own_module(cls)), **given)
        if not isinstance(model, cls):
            raise ValueError(f"{source}: it holds a {type(model).__name__}, no {cls.__name__}")
        return model

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: torch.device | str | None = None,
        strict: bool = True,
        weights_only: bool = True,
        trust: Sequence[str] = (),
        **arguments: Any,
    ) -> Self:
        """Loads a model that ``train.py``, or any trainer, has saved; it needs no argument but the path.

        A checkpoint is read as plain data, and is no code: the classes that it may name are those of this package, of
        ``torch.nn`` and ``torch.optim``, and of the modules that you trust. A network of
        your own whose arguments could not be recovered (:mod:`wae_lightning.recovery`) must be given again.

        Args:
            checkpoint_path: A path, a URL, or an open binary file.
            map_location: Device of the model; None: the CPU.
            strict: Whether the weights must be exactly those of the model.
            weights_only: False also unpickles objects, which can run any code: only for files that you trust.
            trust: Modules of your own whose classes the checkpoint may name; the one of this class is among them.
            **arguments: Arguments of the model, to take instead of what the checkpoint says.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no checkpoint of such a model, a damaged one, or one of an earlier version, or if it
                names a class that is not trusted, or a part that was not recorded and is not given.
        """
        name, checkpoint = _read(checkpoint_path, weights_only)
        stored = checkpoint.get("hyper_parameters")
        weights = checkpoint.get("state_dict")
        if not isinstance(stored, dict) or not isinstance(weights, dict):
            raise ValueError(f"{name}: not a checkpoint of Lightning: it holds no state_dict and hyper_parameters")
        _refuse_older(stored, name)
        made = {key: value for key, value in stored.items() if key not in (_CLASS, _VERSION)}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
                model = _make(cls, str(stored[_CLASS]), made, weights, [*trust, *_own_module(cls)], arguments)
            model.on_load_checkpoint(checkpoint)
            if strict:
                check_layers(model, checkpoint.get(_LAYERS), arguments)
            model.load_state_dict(weights, strict=strict)
        except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            raise ValueError(f"{name}: {reason}") from None
        if bad := first_bad_weights(model):
            raise ValueError(f"{name}: {bad} is not finite, so the model would put out noise")
        return model if map_location is None else model.to(map_location)  # type: ignore[no-any-return]


def _record_of(model: RecordedModel) -> dict[str, Any]:
    """The class and the arguments that a model was made with, as they stand in its checkpoints."""
    path = describe(model).get("class_path", f"{type(model).__module__}.{type(model).__qualname__}")
    return {**recorded_arguments(model), _CLASS: path, _VERSION: __version__}


def _own_module(cls: type) -> list[str]:
    """The module of a user's class, who trusts it: it is in hand."""
    return [] if cls.__module__.startswith("wae_lightning.") else [cls.__module__]


def _read(path: Any, weights_only: bool) -> tuple[str, dict[str, Any]]:
    if hasattr(path, "read"):
        name, content = "the checkpoint", path
    else:
        name = str(path)
        if "://" not in name and not Path(name).is_file():
            raise FileNotFoundError(f"{name}: no such file")
        with fsspec.open(name, "rb") as file:
            content = io.BytesIO(file.read())
    if weights_only:
        checkpoint = read_plain(content, name)
    else:
        checkpoint = torch.load(content, map_location="cpu", weights_only=weights_only)
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{name}: not a checkpoint of Lightning")
    return name, checkpoint


def _refuse_older(stored: Any, name: str) -> None:
    if isinstance(stored, dict) and _VERSION not in stored:
        raise ValueError(f"{name}: it was written by wae-lightning 0.1 or by another package: use version 0.1.0 for it")


def _make(
    cls: type[Any], path: str, made: dict[str, Any], weights: dict[str, Any], trust: list[str], given: dict[str, Any]
) -> Any:
    if path == f"{cls.__module__}.{cls.__qualname__}" and "<locals>" in path:
        # a class that no path leads to, but that the caller has in hand
        kept = {key: value for key, value in made.items() if key not in given}
        for key, value in kept.items():
            check_description(value, trust=trust, name=key)
        return cls(**{key: build(value, trust, name=key) for key, value in kept.items()}, **given)
    model = build_bounded({"class_path": path, "init_args": made}, weights, trust, given)
    if not isinstance(model, cls):
        raise ValueError(f"it holds a {type(model).__name__}, no {cls.__name__}: use the class that it was saved from")
    return model

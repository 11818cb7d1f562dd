"""Sizes that follow from one another: ``--model.latent_dim 8`` or ``--data.image_size 32`` alone says everything.

A size that was typed is never changed; nor is one in a file, unless it is what the rest of the file implies anyway.
``--model.flow null`` or another class alone says everything, too: what fits a mixture goes with it.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Collection
from typing import Any

import datamodules
from datamodules.pairs import PairDataModule
from wae_lightning import WAE, ConditionalWAE, noise, references, report
from wae_lightning.cli.errors import find_class
from wae_lightning.lightning import LightningDataModule
from wae_lightning.networks import MixtureFlow
from wae_lightning.parts import Part

__all__ = ["link"]

OURS = ("wae_lightning", "datamodules")


class Sizes:
    """What a config says of sizes; None, where it does not.

    Args:
        config: ``model`` and ``data``, each with ``class_path`` and ``init_args``.
        typed: Names of what the user typed, which goes before where a size stands in two places.
    """

    def __init__(self, config: dict[str, Any], typed: Collection[str] = ()) -> None:
        self.config = config
        self.typed = typed
        model = class_of(config.get("model"))
        self.is_report = issubclass(model, report.ReportWAE)
        self.is_conditional = issubclass(model, ConditionalWAE)
        self.is_vae = issubclass(model, references.VAE)

    def find(self, name: str) -> Any:
        """A part or a value by its name, without the defaults of classes; KeyError if it is not given."""
        found: Any = self.config
        for key in name.split("."):
            found = arguments(found)[key] if found is not self.config else found[key]
        return found

    def read(self, name: str) -> Any:
        """A value by its name: what is given, or else the default of the class."""
        part, _, argument = name.rpartition(".")
        try:
            return self.find(name)
        except KeyError:
            pass
        try:
            default = parameters(class_of(self.find(part)))[argument]
        except KeyError:
            return None
        return None if default is inspect.Parameter.empty else default

    def first(self, *names: str) -> Any:
        """The value that was typed, else the first that there is."""
        values = [self.read(name) for name in sorted(names, key=lambda name: name not in self.typed)]
        return next((value for value in values if value is not None), None)

    @property
    def d(self) -> int:
        found = self.first("model.latent_dim", "model.prior.latent_dim")
        is_points = "num_points" in parameters(class_of(self.config.get("model")))
        return found or (128 if is_points else 8)

    @property
    def features(self) -> int:
        """What the encoder puts out."""
        part = self.read("model.noise")
        kind = class_of(part) if part is not None else noise.GaussianNoise if self.is_vae else noise.EncoderNoise
        return self.d * int(getattr(kind, "features_per_dimension", 1))

    @property
    def condition_features(self) -> int | None:
        """What a penalty and a flow see beside the codes: features of the condition."""
        shape = self.condition_shape
        if shape is None or self.is_report or self.read("model.match") == "marginal":
            return 0
        if self.read("model.features") is None:
            return shape[0] if len(shape) == 1 else min(16, math.prod(shape))
        return self.read("model.features.num_features")  # type: ignore[no-any-return]

    @property
    def flow_features(self) -> int | None:
        """What a flow sees beside the codes: a mixture only labels."""
        labels_only = issubclass(class_of(self.read("model.flow")), MixtureFlow)
        return 0 if labels_only and not self.num_classes else self.condition_features

    @property
    def compared(self) -> int | None:
        """What a critic sees: codes, and beside them the features of the condition."""
        return None if self.condition_features is None else self.d + int(self.condition_features)

    @property
    def image_shape(self) -> list[int] | None:
        of_data = None if "model.image_shape" in self.typed else shape_of(self, "data")
        found = of_data or self.read("model.image_shape")
        return found and list(found)

    @property
    def num_points(self) -> int | None:
        return self.first("data.num_points", "model.num_points")  # type: ignore[no-any-return]

    def of_pairs(self, name: str) -> Any:
        """A shape of a conditional model that its data module knows."""
        if not self.is_conditional:
            return None
        own = self.read(f"model.{name}")
        if f"model.{name}" in self.typed:
            return own
        return getattr_or_none(self.data, name) if self.data is not None else own

    @functools.cached_property
    def data(self) -> Any:
        """The data module of pairs that the config describes; None: there is none, or it cannot be made."""
        try:
            made = make_part(self.find("data"))
            return made if getattr_or_none(made, "condition_shape") else None
        except Exception:  # whatever is wrong, who makes it next will say so
            return None

    @property
    def num_classes(self) -> int | None:
        return self.of_pairs("num_classes")  # type: ignore[no-any-return]

    @property
    def condition_shape(self) -> list[int] | None:
        shape = [self.num_classes] if self.num_classes else self.of_pairs("condition_shape")
        return shape and list(shape)

    @property
    def target_shape(self) -> list[int] | None:
        shape = self.of_pairs("target_shape")
        return shape and list(shape)

    @property
    def part_shapes(self) -> list[list[int]] | None:
        if self.condition_shape is None or self.target_shape is None:
            return None
        return [self.condition_shape] if self.is_report else [self.condition_shape, self.target_shape]


RULES: dict[str, Callable[[Sizes], Any]] = {
    "model.latent_dim": lambda sizes: sizes.d,
    "model.prior.latent_dim": lambda sizes: sizes.d,
    "model.encoder.latent_dim": lambda sizes: sizes.features,
    "model.decoder.latent_dim": lambda sizes: sizes.d,
    "model.noise.latent_dim": lambda sizes: sizes.d,
    "model.flow.dim": lambda sizes: sizes.d,
    "model.flow.condition_features": lambda sizes: sizes.flow_features,
    "model.critic.latent_dim": lambda sizes: sizes.compared,
    "model.penalty.critic.latent_dim": lambda sizes: sizes.compared,
    "model.image_shape": lambda sizes: None if sizes.is_conditional else sizes.image_shape,
    "model.encoder.image_shape": lambda sizes: sizes.image_shape,
    "model.decoder.image_shape": lambda sizes: sizes.image_shape,
    "model.condition_shape": lambda sizes: sizes.condition_shape,
    "model.target_shape": lambda sizes: sizes.target_shape,
    "model.num_classes": lambda sizes: sizes.num_classes,
    "model.encoder.part_shapes": lambda sizes: sizes.part_shapes,
    "model.decoder.target_shape": lambda sizes: sizes.target_shape,
    "model.decoder.observed_shape": lambda sizes: None if sizes.is_report else sizes.condition_shape,
    "model.features.input_shape": lambda sizes: sizes.condition_shape,
    "data.num_points": lambda sizes: sizes.num_points,
    "model.num_points": lambda sizes: sizes.num_points,
    "model.decoder.num_points": lambda sizes: sizes.num_points,
}
"""Each size, in the parts of our classes that take it, and what it follows from."""


def link(config: Any, file: dict[str, Any], typed: Collection[str]) -> None:
    """Sets the sizes in a parsed config that follow from others.

    Args:
        config: Parsed config (jsonargparse's Namespace), changed in place.
        file: What the files say, unparsed and without defaults.
        typed: Names of what the user typed, such as ``model.encoder.latent_dim``.
    """
    in_file, sizes = Sizes(file), Sizes(config.as_dict(), typed)
    if not issubclass(class_of(sizes.config.get("model")), WAE):
        return
    for name, rule in RULES.items():
        part, _, argument = name.rpartition(".")
        try:
            owner = sizes.find(part)
        except KeyError:
            continue
        wanted = rule(sizes)
        if name in typed or wanted is None or not isinstance(owner, dict) or argument not in own_parameters(owner):
            continue
        try:
            written = in_file.find(name)
        except KeyError:
            written = None
        if written is None or is_same(written, rule(in_file)):
            config[".init_args.".join([*part.split("."), argument])] = wanted
    # a file says to fit its mixture, and what was typed in the mixture's place cannot be fitted
    before, now = (issubclass(class_of(one.read("model.flow")), MixtureFlow) for one in (in_file, sizes))
    if before and not now and sizes.read("model.fit_flow") is not None and "model.fit_flow" not in typed:
        config["model.init_args.fit_flow"] = None


def is_same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal, be they lists or tuples."""
    return json.dumps(a, default=str) == json.dumps(b, default=str)


def arguments(part: Any) -> dict[str, Any]:
    """The arguments of a part of a config, or of an object that stands for it."""
    if isinstance(part, dict):
        return part.get("init_args") or {}
    return {name: getattr(part, name) for name in ("latent_dim", "num_features", "image_shape") if hasattr(part, name)}


def class_of(part: Any) -> Any:
    """The class of a part of a config, which may be named without its module."""
    path = part.get("class_path") if isinstance(part, dict) else part
    if not isinstance(path, str):
        return type(path)
    modules = ("", "networks.", "noise.", "priors.", "penalties.", "references.")
    places = [path, f"datamodules.{path}", *(f"wae_lightning.{module}{path}" for module in modules)]
    return next((found for place in places if (found := find_class(place))), type(None))


def parameters(cls: type) -> dict[str, Any]:
    """The arguments that a class takes, those that it hands on to its bases included, and their defaults."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            own = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            found = {name: parameter.default for name, parameter in own.items()} | found
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
                break
    return found


def own_parameters(part: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a part, if its class is ours or derived from one of ours, and its sizes mean what ours do."""
    cls = class_of(part)
    bases = [base for base in cls.__mro__ if base is not Part and base.__module__.split(".")[0] in OURS]
    return parameters(cls) if bases else {}


def make_part(part: Any) -> Any:
    """Makes what a part of a config describes; only data modules of ours and parts of them are asked for here."""
    if isinstance(part, dict) and "class_path" in part:
        return class_of(part)(**{name: make_part(value) for name, value in (part.get("init_args") or {}).items()})
    return part


def getattr_or_none(owner: Any, name: str) -> Any:
    """An attribute that may be missing, or fail: of a folder that is not there, say."""
    try:
        return getattr(owner, name)
    except Exception:
        return None


def shape_of(sizes: Sizes, name: str) -> list[int] | None:
    """The shape of the images of a data module."""
    try:
        part = sizes.find(name)
    except KeyError:
        return None
    if isinstance(part, LightningDataModule):
        return getattr(part, "image_shape", None)
    cls = class_of(part)
    if issubclass(cls, PairDataModule):
        return [1, 28, 28] if sizes.read(f"{name}.images") is None else shape_of(sizes, f"{name}.images")
    if issubclass(cls, datamodules.MNISTDataModule):
        return [1, 28, 28]
    channels, size = sizes.read(f"{name}.channels"), sizes.read(f"{name}.image_size")
    return [channels, size, size] if isinstance(channels, int) and isinstance(size, int) else None

"""Batches: where the input lies in them, and whether it is what the model was made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wae_lightning.lightning import Callback, LightningModule, Trainer
from wae_lightning.precision import are_integers

__all__ = [
    "CheckInputs",
    "check_counts",
    "check_image_shape",
    "check_positive",
    "check_range",
    "check_shape",
    "input_of",
    "one_hot",
]


def input_of(batch: Any, key: str | int) -> Tensor:
    """The input in a batch: the batch itself, its first element, or what a dictionary has under ``key``.

    Raises:
        ValueError: If there is no tensor.
    """
    if isinstance(batch, Mapping):
        if key not in batch:
            raise ValueError(f"the batch has no {key!r}, only {', '.join(map(repr, batch))}: set the model's input_key")
        x = batch[key]
    else:
        x = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if not isinstance(x, Tensor):
        raise ValueError(
            f"a batch must be a tensor, a tuple that begins with one, or a dictionary, got {type(x).__name__}"
        )
    return x


def check_image_shape(x: Tensor, image_shape: Sequence[int]) -> None:
    """Refuses batches of images that are not (B, *image_shape).

    Raises:
        ValueError: Naming both shapes, and what seems to be wrong.
    """
    channels, height, width = image_shape
    if x.shape[1:] == (channels, height, width):
        return
    hint = ""
    if x.shape[1:] == (height, width) or (x.ndim == 3 and channels == 1):
        hint = ": it lacks the dimension of the channels"
    elif x.shape[1:] == (height, width, channels):
        hint = ": channels must stand before height and width"
    raise ValueError(
        f"a batch of shape {tuple(x.shape)} does not fit image_shape ({channels}, {height}, {width}); expected "
        f"(B, {channels}, {height}, {width}){hint}"
    )


def check_range(x: Tensor, input_range: tuple[float, float] | None, where: str) -> None:
    """Refuses numbers that are not finite, or lie outside of a range.

    Raises:
        FloatingPointError: If one is not finite.
        ValueError: If one lies outside of the range, or they are no floats although there is one.
    """
    _check_type(x, input_range)
    if x.numel():
        low, high = torch.stack(x.detach().aminmax()).tolist()
        _check_ends(low, high, x.dtype, input_range, where)


def _expected(input_range: tuple[float, float] | None) -> str:
    low, high = input_range or (0, 1)
    return f"the input must be floats in [{low:g}, {high:g}], like the decoder's output;"


def _check_type(x: Tensor, input_range: tuple[float, float] | None) -> None:
    if input_range is not None and not x.is_floating_point():
        raise ValueError(f"{_expected(input_range)} got {x.dtype} of shape {tuple(x.shape)}")


def _check_ends(
    low: float, high: float, dtype: torch.dtype, input_range: tuple[float, float] | None, where: str
) -> None:
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise FloatingPointError(f"{where}: the batch itself is bad, it holds NaN or infinity: look at the data")
    if input_range is not None and not input_range[0] <= low <= high <= input_range[1]:
        raise ValueError(
            f"{_expected(input_range)} got {dtype} in [{low:.4g}, {high:.4g}] in {where}: "
            "scale the data, or give the model another input_range"
        )


def check_positive(**shapes: tuple[int, ...]) -> None:
    """Refuses shapes, by their names, that are no positive numbers.

    Raises:
        ValueError: Naming one.
    """
    for name, shape in shapes.items():
        if not shape or min(shape) < 1:
            raise ValueError(f"{name} must be one or more positive numbers, got {shape}")


def check_shape(name: str, x: Any, shape: tuple[int, ...]) -> None:
    """Refuses a batch of what ``name`` says that is not (B, *shape), and images of bytes.

    Raises:
        ValueError: Naming both shapes.
    """
    tensor = isinstance(x, Tensor)
    if not tensor or not x.ndim or tuple(x.shape[1:]) != shape:
        found = tuple(x.shape) if tensor else type(x).__name__
        raise ValueError(f"the {name} must be of shape (B, {', '.join(map(str, shape))}), as in training, got {found}")
    if len(shape) > 1 and not x.is_floating_point():
        raise ValueError(f"the {name} must be floats, as in training, got {x.dtype}: bytes want to be divided by 255")


def check_counts(x: Tensor, others: Tensor, name: str) -> None:
    """Refuses another number of ``others``, which are called ``name``, than of conditions.

    Raises:
        ValueError: Naming both numbers.
    """
    if not torch.compiler.is_compiling() and len(x) != len(others):  # an exported model takes any number
        raise ValueError(f"expected as many conditions as {name}, got {len(x)} and {len(others)}")


def one_hot(labels: Any, num_classes: int, device: torch.device) -> Tensor:
    """Makes vectors (B, num_classes) of labels.

    On the CPU a label that is none is refused. On other devices, where to look would make the host wait, its vector is
    NaN, which stops a training.

    Args:
        labels: Integers (B,), as a tensor or a list.
        num_classes: Labels are 0 to ``num_classes`` - 1.
        device: Where the vectors shall lie.

    Raises:
        ValueError: If they are something else.
    """
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"labels must be integers (B,) from 0 to {num_classes - 1}, got {labels!r:.100}") from None
    if found.ndim != 1 or not are_integers(found):
        raise ValueError(
            f"labels must be integers (B,) from 0 to {num_classes - 1}, got {found.dtype} {tuple(found.shape)}"
        )
    inside = (found >= 0) & (found < num_classes)
    if found.device.type == "cpu" and not torch.compiler.is_compiling() and not inside.all():
        bad = int(found[~inside][0])
        raise ValueError(f"labels must be integers from 0 to {num_classes - 1}, got {bad}")
    found, inside = found.to(device), inside.to(device)
    vectors = (found.unsqueeze(1) == torch.arange(num_classes, device=device)).float()
    return torch.where(inside.unsqueeze(1), vectors, torch.nan)


class CheckInputs(Callback):
    """Refuses inputs outside of the model's range, and inputs that are not finite, wherever the trainer shows them.

    On the CPU each batch is looked at; on other devices, where that would make the host wait, the first batch of each
    epoch, and the others together every ``log_every_n_steps`` batches and at the epoch's end.

    Args:
        inputs: Maps a batch to the tensors that must lie in the range.
        input_range: Least and largest value; None: any finite numbers.
    """

    def __init__(self, inputs: Callable[[Any], Sequence[Tensor]], input_range: tuple[float, float] | None) -> None:
        self.inputs = inputs
        self.input_range = input_range
        self._seen: list[tuple[int, Tensor]] = []

    def _look(self, trainer: Trainer, stage: str, batch: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.total_batch_idx + 1 if stage == "training" else batch_idx + 1
        for x in self.inputs(batch):
            _check_type(x, self.input_range)
            if x.numel():
                self._seen.append((number, torch.stack(x.detach().aminmax())))
        at_once = batch_idx == 0 or trainer.strategy.root_device.type == "cpu"
        if at_once or len(self._seen) >= (getattr(trainer, "log_every_n_steps", None) or 50):
            self._check(stage)

    def _check(self, stage: str) -> None:
        seen, self._seen = self._seen, []
        if not seen:
            return
        numbers = [number for number, _ in seen]
        for number, (low, high) in zip(numbers, torch.stack([found for _, found in seen]).tolist(), strict=True):
            _check_ends(low, high, seen[0][1].dtype, self.input_range, f"{stage} step {number}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._look(trainer, "training", batch, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._look(trainer, "validation", batch, batch_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._look(trainer, "test", batch, batch_idx)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._look(trainer, "prediction", batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check("training")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check("validation")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check("test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check("prediction")

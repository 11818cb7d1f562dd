"""What all callbacks that draw have in common: which examples they keep, when they draw, and where pictures go."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wae_lightning.captions import Caption, present
from wae_lightning.lightning import Callback, LightningModule, TensorBoardLogger, Trainer

__all__ = ["Pictures", "log_picture"]

# Class of a logger -> how it takes a picture, (height, width, 3) uint8. By name: most of them are not installed.
_HOW: dict[str, Callable[[Any, str, Any, int], Any]] = {
    "TensorBoardLogger": lambda logger, name, pixels, step: logger.experiment.add_image(
        name, pixels, step, dataformats="HWC"
    ),
    "WandbLogger": lambda logger, name, pixels, step: logger.log_image(name, [pixels], step),
    "MLFlowLogger": lambda logger, name, pixels, step: logger.experiment.log_image(
        logger.run_id, pixels, key=name, step=step
    ),
    "CometLogger": lambda logger, name, pixels, step: logger.experiment.log_image(pixels, name=name, step=step),
}


def log_picture(trainer: Trainer, name: str, picture: Tensor, step: int, caption: Caption | None = None) -> None:
    """Sends a picture to every logger that takes pictures; if there is none, to ``NAME.png`` in the run's folder.

    Loggers that take pictures are those of TensorBoard, Weights & Biases, MLflow and Comet.

    Args:
        trainer: Its loggers are used.
        name: Tag of the picture.
        picture: Shape (3, height, width), uint8 or floats in [0, 1].
        step: Where it stands on the axis of the scalars.
        caption: What is written beside it in a file.
    """
    pixels = _pixels(picture)
    taken = False
    for logger in trainer.loggers:
        how = next((_HOW[cls.__name__] for cls in type(logger).__mro__ if cls.__name__ in _HOW), None)
        if how is not None:
            how(logger, name, pixels, step)
            taken = True
    if not taken:
        write_png(run_folder(trainer) / f"{name}.png", picture, caption)


def _pixels(picture: Tensor) -> Any:
    """A picture as a NumPy array (height, width, 3), uint8."""
    if picture.dtype != torch.uint8:
        picture = (255 * picture.float().nan_to_num(0)).round().clamp(0, 255).byte()
    return picture.permute(1, 2, 0).cpu().numpy()


def write_png(path: Path, picture: Tensor, caption: Caption | None = None) -> None:
    """Writes a picture (3, height, width), uint8 or floats in [0, 1], large enough to see, and what is on it.

    A file that is there is whole at any time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    present(Image.fromarray(_pixels(picture)), caption).save(unfinished, "PNG")
    os.replace(unfinished, path)


def pairs_of(trainer: Trainer) -> Any:
    """What makes images of the pairs of a conditional model: the ``pairs`` of the data module; None if it has none."""
    return getattr(getattr(trainer, "datamodule", None), "pairs", None)


def run_folder(trainer: Trainer) -> Path:
    """The folder of a run's files: the trainer's ``run_folder``, else where Lightning makes ``checkpoints``."""
    folder = getattr(trainer, "run_folder", None)
    if folder is not None:
        return Path(folder)
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir)
    if logger.log_dir is not None:
        return Path(logger.log_dir)
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def tensorboard_writers(trainer: Trainer) -> list[Any]:
    """The ``SummaryWriter`` of each TensorBoard logger."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def inputs_of(model: Any, batch: Any) -> Tensor:
    """The inputs of a batch, (B, *input), in the model's dtype: the batch, its first element or its ``input_key``."""
    if hasattr(model, "inputs_of"):
        batch = model.inputs_of(batch)
    if isinstance(batch, Mapping):
        batch = batch[getattr(model, "input_key", "image")]
    x: Tensor = batch[0] if isinstance(batch, list | tuple) else batch
    return x.to(model.dtype) if x.is_floating_point() else x


def in_unit_range(model: Any, images: Tensor) -> Tensor:
    """Images of the model's ``input_range`` as float32 in [0, 1]; without a range, of what these images span."""
    images = images.float()
    low, high = getattr(model, "input_range", (0, 1)) or images.aminmax()
    return ((images - low) / (high - low)).clamp(0, 1)


@contextlib.contextmanager
def beside_training(trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """Computes without gradients, makes tensors of a half-precision model's type, and gives the random state back."""
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), trainer.precision_plugin.tensor_init_context(), torch.no_grad():
        yield


class Pictures(Callback, ABC):
    """Draws the first examples: for the loggers after each validation, into PNG files of the run's folder after a test.

    Several validation loaders may be used; the first one's examples are drawn.

    Args:
        count: How many examples are kept.
        every_n_epochs: Draw after every so many epochs of training only, at least 1.

    Raises:
        ValueError: If ``every_n_epochs`` is less than 1.
    """

    def __init__(self, count: int, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"every_n_epochs must be at least 1, got {every_n_epochs}")
        self.count = count
        self.every_n_epochs = every_n_epochs
        self._kept: list[dict[str, Tensor]] = []

    @abstractmethod
    def pictures(self, model: Any, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws pictures (3, height, width), uint8 or floats in [0, 1], by name.

        Args:
            model: The model, in evaluation mode.
            examples: What :meth:`examples` found in the first batches.
        """

    def caption(self, name: str, examples: dict[str, Tensor]) -> Caption | None:
        """What is written beside the picture of a name, in files; None: nothing."""
        return None

    def examples(self, model: Any, batch: Any, outputs: Any, count: int) -> dict[str, Tensor]:
        """Takes out of a batch what is drawn, at most the first ``count`` rows."""
        return {"inputs": inputs_of(model, batch)[:count]}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx > 0 or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if batch_idx == 0:
            self._kept = []
        missing = self.count - sum(len(next(iter(kept.values()))) for kept in self._kept)
        if missing > 0:
            with beside_training(trainer, pl_module):
                found = self.examples(pl_module, batch, outputs, missing)
            # point sets may change their size from batch to batch
            if found and (not self._kept or _shapes(found) == _shapes(self._kept[0])):
                self._kept.append(found)

    on_test_batch_end = on_validation_batch_end

    def kept(self) -> dict[str, Tensor]:
        """The examples that were kept, all batches joined."""
        return {name: torch.cat([kept[name] for kept in self._kept]) for name in (self._kept or [{}])[0]}

    def due(self, trainer: Any) -> bool:
        """Whether this process draws now."""
        this_epoch = trainer.testing or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        return this_epoch and bool(self._kept) and not trainer.sanity_checking and not trainer.fast_dev_run

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.due(trainer):
            for name, picture, caption in self._draw(trainer, pl_module):
                log_picture(trainer, name, picture, step_of_scalars(trainer), caption)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.due(trainer):
            for name, picture, caption in self._draw(trainer, pl_module):
                write_png(run_folder(trainer) / f"{name}.png", picture, caption)

    def _draw(self, trainer: Trainer, model: LightningModule) -> list[tuple[str, Tensor, Caption | None]]:
        with beside_training(trainer, model):
            examples = self.kept()
            pictures = self.pictures(model, examples)
            return [(name, picture, self.caption(name, examples)) for name, picture in pictures.items()]


def _shapes(examples: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: rows.shape[1:] for name, rows in examples.items()}


def step_of_scalars(trainer: Trainer) -> int:
    """The step at which Lightning logs the scalars of a validation: its steps count from 0."""
    return max(trainer.global_step - 1, 0)

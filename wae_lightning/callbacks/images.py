"""Pictures of what an auto-encoder of images does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor

from wae_lightning.callbacks.png import add_png
from wae_lightning.lightning import Callback, LightningModule, TensorBoardLogger, Trainer

__all__ = ["ImagePictures"]


class ImagePictures(Callback):
    """Draws samples, reconstructions and interpolations: to TensorBoard after each validation, to PNG after a test.

    The codes of the samples and the images that are reconstructed stay the same from epoch to epoch. After a test,
    ``samples.png`` and ``reconstructions.png`` are written into the log folder. In ``reconstructions`` each image
    stands above its reconstruction; in ``interpolations`` each row leads from one validation image to another.

    Args:
        columns: Pictures in one row, at least 2; there are ``columns``² samples.

    Raises:
        ValueError: If ``columns`` is less than 2.
    """

    def __init__(self, columns: int = 10) -> None:
        if columns < 2:
            raise ValueError(f"columns must be at least 2, got {columns}")
        self.columns = columns
        self._inputs: Tensor | None = None

    def draw(self, model: Any, inputs: Tensor) -> dict[str, Tensor]:
        """Draws the three pictures.

        Args:
            model: A WAE of images, in evaluation mode.
            inputs: Images (B, C, H, W).

        Returns:
            ``samples``, ``reconstructions`` and ``interpolations`` as float images (3, height, width) in [0, 1].
        """
        n = self.columns
        inputs = inputs[: 2 * n]
        with torch.no_grad():
            samples = model.sample(n * n, torch.Generator().manual_seed(0))
            # rows alternate between images and their reconstructions; white fills up the last ones
            padded = (torch.cat([x, x.new_ones(-len(x) % n, *x.shape[1:])]) for x in (inputs, model(inputs)))
            rows = [torch.split(x, n) for x in padded]
            pairs = torch.cat([row for pair in zip(*rows, strict=True) for row in pair])
            half = len(inputs) // 2
            pictures = {"samples": samples, "reconstructions": pairs}
            if half:
                lines = model.interpolate(inputs[:half], inputs[half : 2 * half], n)
                pictures["interpolations"] = lines.transpose(0, 1).flatten(0, 1)
        return {
            name: torchvision.utils.make_grid(images.float(), nrow=n, pad_value=1) for name, images in pictures.items()
        }

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._keep_first(batch, batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._keep_first(batch, batch_idx)

    def _keep_first(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            x = batch[0] if isinstance(batch, list | tuple) else batch
            self._inputs = x[: 2 * self.columns]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if trainer.sanity_checking or self._inputs is None or not writers or not trainer.is_global_zero:
            return
        for name, picture in self.draw(pl_module, self._inputs).items():
            for writer in writers:
                add_png(writer, name, picture, trainer.current_epoch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # asks the first process: all of them must take part
        if log_dir is None or self._inputs is None or not trainer.is_global_zero:
            return
        pictures = self.draw(pl_module, self._inputs)
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("samples", "reconstructions"):
            torchvision.utils.save_image(pictures[name], folder / f"{name}.png")

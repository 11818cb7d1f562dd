"""A cheap measure of samples while training goes on."""

from __future__ import annotations

import math
from typing import Any

import torch

from wae_lightning.callbacks.pictures import beside_training, in_unit_range, inputs_of
from wae_lightning.lightning import Callback, LightningModule, Trainer, rank_zero_warn
from wae_lightning.metrics.digit_classifier import DigitFeatures

__all__ = ["SampleQuality"]


class SampleQuality(Callback):
    """Logs the digits-FID of few samples after a validation, as ``val/fid_digits_1k``.

    It is the Fréchet distance between Gaussians fitted to :class:`~wae_lightning.metrics.DigitFeatures` of samples and
    of the validation images (M. Heusel et al., NeurIPS 2017), lower is better. Few samples raise it: compare it with
    itself only, for early stopping and to choose a checkpoint, and take ``evaluate.py`` for numbers to report. It is
    measured at the first validation of a fit, so that ``EarlyStopping`` finds it, and after every so many epochs. The
    codes are the same each time, and training goes on as it would without it. With data other than digits of MNIST
    nothing is measured, and a warning says so.

    Args:
        every_n_epochs: Measure after every so many epochs of training, at least 1.
        num_samples: How many samples, over all processes, at least 2.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, every_n_epochs: int = 5, num_samples: int = 1000) -> None:
        if every_n_epochs < 1 or num_samples < 2:
            raise ValueError(
                f"every_n_epochs must be at least 1 and num_samples at least 2, got {every_n_epochs} and {num_samples}"
            )
        self.every_n_epochs = every_n_epochs
        self.num_samples = num_samples
        self._distance: Any = None
        self._has_real = False

    @property
    def name(self) -> str:
        """What the measure is logged as."""
        return f"val/fid_digits_{self.num_samples / 1000:g}k"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._distance, self._has_real = None, False
        content = getattr(getattr(trainer, "datamodule", None), "content", None)
        if content != "digits" or not hasattr(pl_module, "sample"):
            rank_zero_warn(
                "SampleQuality measures samples of MNIST's digits, by a data module whose content is 'digits'; "
                f"this run's content is {content!r}: nothing is measured"
            )
            return
        with torch.random.fork_rng([]):  # layers draw weights before they get theirs
            self._distance = FrechetInceptionDistance(feature=DigitFeatures(), reset_real_features=False)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._distance is None or self._has_real or dataloader_idx > 0 or trainer.sanity_checking:
            return
        self._distance.to(pl_module.device).update(in_unit_range(pl_module, inputs_of(pl_module, batch)), real=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._distance is None or trainer.sanity_checking:
            return
        if not self._has_real or (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._has_real = True
            pl_module.log(self.name, self._measure(trainer, pl_module), rank_zero_only=False)

    def _measure(self, trainer: Trainer, model: Any) -> torch.Tensor:
        self._distance.reset()
        generator = torch.Generator().manual_seed(trainer.global_rank)
        missing = math.ceil(self.num_samples / trainer.world_size)
        while missing > 0:
            with beside_training(trainer, model):
                samples = in_unit_range(model, model.sample(min(missing, 250), generator))
            self._distance.update(samples, real=False)
            missing -= len(samples)
        distance: torch.Tensor = self._distance.compute()  # of all processes
        return distance.float()

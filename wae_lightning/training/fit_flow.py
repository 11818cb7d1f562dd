"""A flow that is fitted to the codes beside being trained, and whether it does what it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from wae_lightning.drawing import evaluation_mode
from wae_lightning.lightning import Callback, LightningModule, Trainer, rank_zero_warn
from wae_lightning.memory import CodeMemory
from wae_lightning.networks import Flow, MixtureFlow

__all__ = ["FitFlow", "distance_from_normal"]

MOST_CODES, CODES_OF_A_LABEL, SEEN_CODES = 10_000, 5000, 5000
FAR = 0.25


def distance_from_normal(z: Tensor) -> float:
    """How far the lengths of codes z (n, d) are from those of draws from N(0, I): 0 to 1.

    The Kolmogorov-Smirnov distance of ‖z‖² from the chi-squared distribution with d degrees of freedom: the largest
    difference between the shares that lie below a value. Unlike a test's p-value it does not grow with n.

    Example:
        >>> z = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
        >>> distance_from_normal(z) < 0.05, distance_from_normal(2 * z) > 0.5
        (True, True)
    """
    expected = torch.from_numpy(chi2(z.shape[1]).cdf(z.detach().cpu().double().square().sum(1).sort().values.numpy()))
    below = torch.arange(len(z) + 1, dtype=torch.float64) / len(z)
    return float(torch.maximum((expected - below[:-1]).abs(), (expected - below[1:]).abs()).max())


@contextmanager
def as_in_validation(trainer: Trainer) -> Iterator[None]:
    """Within training, has data modules give what they give in validation: nothing augmented."""
    trainer.validating = True
    try:
        yield
    finally:
        trainer.training = True


class FitFlow(Callback):
    """Fits a ``MixtureFlow`` to codes of training data by expectation maximisation; warns of a flow that does not fit.

    Gradient steps find a mixture in tens of dimensions slowly; expectation maximisation takes seconds.
    It runs after every so many epochs, before their validation, and after the last one. One mixture is fitted to codes
    of up to 10,000 training examples (with a mixture of each label 5,000 for each), encoded anew, in evaluation mode
    and as the data module gives them in validation, without augmentation; then one to the codes remembered from the
    latest steps, of augmented data, which of few examples tell more. Of the trained and the fitted mixtures the one
    with the best mean log-density on codes of the validation set stays, and is trained on. (Without a validation set,
    on every tenth of the codes, and none is fitted to the remembered ones, which are of these examples, too. Nor is one
    of labels, for which they would be few.) With several processes the first one fits, to its own codes. A run that is
    stopped early keeps what the last fit, and training after it, made.

    At the end of the last validation of a run, or of a ``trainer.validate``, one line warns if the flow's codes of
    validation data are no draws from a normal distribution by :func:`distance_from_normal`: then draws from the prior
    will not look like the data either.

    Args:
        flow: The flow, a part of the model.
        memory: The codes of the latest steps, a part of the model; their first columns are taken, d or d + p.
        codes: Maps a batch on the device to codes as the flow gets them, (n, d), conditions beside them, (n, d + p).
        every_n_epochs: After how many epochs it is fitted; 0: after the last one only; None: never.
        scale: The standard deviation of the prior, which codes z have.
    """

    def __init__(
        self,
        flow: Flow,
        memory: CodeMemory,
        codes: Callable[[Any], Tensor],
        every_n_epochs: int | None = None,
        scale: float = 1.0,
    ) -> None:
        self.flow = flow
        self.memory = memory
        self.codes = codes
        self.every_n_epochs = every_n_epochs
        self.scale = scale
        self._columns = flow.dim + flow.condition_features
        self._seen: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_epochs is None or not isinstance(self.flow, MixtureFlow):
            return
        epochs = trainer.current_epoch + 1
        last = epochs == trainer.max_epochs or bool(self.every_n_epochs and epochs % self.every_n_epochs == 0)
        if (trainer.is_last_batch and last) or trainer.global_step == trainer.max_steps:
            self._fit(trainer, pl_module, self.flow)

    @torch.no_grad()
    def _fit(self, trainer: Trainer, model: LightningModule, flow: MixtureFlow) -> None:
        most = max(MOST_CODES, CODES_OF_A_LABEL * flow.condition_features)
        codes, validation = self._encoded(trainer, model, trainer.train_dataloader, most), None
        if trainer.enable_validation:
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            loaders: Any = trainer.val_dataloaders
            loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
            validation = self._encoded(trainer, model, loader, max(SEEN_CODES, 1000 * flow.condition_features))
        fitted_to = [codes]
        if validation is None or not len(validation):
            held_out = torch.arange(len(codes)) % 10 == 9
            fitted_to, validation = [codes[~held_out]], codes[held_out]
        elif not flow.condition_features:
            fitted_to.append(self.memory.all()[:, : self._columns])
        if len(fitted_to[0]) < 2 or not len(validation):
            rank_zero_warn("the flow is not fitted: the training data, read once more, are fewer than two")
        elif trainer.is_global_zero:
            for some in fitted_to:
                flow.fit(some, validation)
        for parameter in flow.parameters():
            parameter.copy_(trainer.strategy.broadcast(parameter.detach()))

    def _encoded(self, trainer: Trainer, model: LightningModule, loader: Any, most: int) -> Tensor:
        """Codes of a set, at most about so many; no trace is left in the random number generators."""
        found = [torch.empty(0, self._columns, device=model.device)]
        on_gpu = [model.device] if model.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=on_gpu),
            evaluation_mode(model),
            as_in_validation(trainer),
            trainer.precision_plugin.forward_context(),
        ):
            for batch in [] if loader is None else loader:  # streams have no length to ask for
                found.append(self.codes(trainer.strategy.batch_to_device(batch, model.device))[:, : self._columns])
                if sum(map(len, found)) >= most:
                    break
        return torch.cat(found)

    # ---- whether it fits --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        few = not trainer.sanity_checking and sum(map(len, self._seen)) < SEEN_CODES
        if few and isinstance(outputs, dict) and "codes" in outputs:
            self._seen.append(outputs["codes"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._judge()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._judge()

    def _judge(self) -> None:
        z = torch.cat(self._seen) / self.scale if self._seen else torch.empty(0, self.flow.dim)
        self._seen = []
        if len(z) >= 100 and (distance := distance_from_normal(z)) > FAR:
            rank_zero_warn(
                f"the flow does not make validation codes normal: their mean squared length is "
                f"{float(z.square().sum(1).mean()):.3g} where {self.flow.dim} is normal (distance of the lengths' "
                f"distributions {distance:.2f}, at most {FAR} is fair), so samples will look worse than "
                "reconstructions. More data, fewer dimensions, longer training or fit_flow help"
            )

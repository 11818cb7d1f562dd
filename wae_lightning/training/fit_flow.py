"""A flow that is fitted to the codes beside being trained, and whether it does what it is there for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from scipy.stats import chi2
from torch import Tensor

from wae_lightning.drawing import evaluation_mode
from wae_lightning.lightning import Callback, LightningModule, Trainer, WeightAveraging, isolate_rng, rank_zero_warn
from wae_lightning.memory import CodeMemory
from wae_lightning.mixtures import hold_out
from wae_lightning.networks import Flow, MixtureFlow
from wae_lightning.training.batches import on_device

__all__ = ["FitFlow", "distance_from_normal"]

MOST_CODES, CODES_OF_A_LABEL, SEEN_CODES = 10_000, 5000, 5000
AUGMENTED_PASSES = 5
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


@contextmanager
def averaged_weights(trainer: Trainer, model: LightningModule) -> Iterator[None]:
    """Has the model hold averaged weights, as in validation, if a callback keeps some."""
    callbacks: list[Callback] = getattr(trainer, "callbacks", [])
    averaging = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
    for callback in averaging:
        callback.on_validation_epoch_start(trainer, model)
    try:
        yield
    finally:
        for callback in averaging:
            callback.on_validation_epoch_end(trainer, model)


@contextmanager
def isolated(loader: Any) -> Iterator[None]:
    """Leaves no trace in random number generators: the global ones, and those of a loader and of its samplers."""
    of_batches = getattr(loader, "batch_sampler", None)
    owners = loader, of_batches, getattr(loader, "sampler", None), getattr(of_batches, "sampler", None)
    generators = [getattr(owner, "generator", None) for owner in owners]
    states = [(one, one.get_state()) for one in generators if isinstance(one, torch.Generator)]
    with isolate_rng():
        yield
    for generator, state in states:
        generator.set_state(state)


def _first(loaders: Any) -> Any:
    """The first of loaders, which may be in lists and dictionaries."""
    while isinstance(loaders, Mapping | Sequence):
        loaders = next(iter(loaders.values() if isinstance(loaders, Mapping) else loaders), None)
    return loaders


def _comes_once(loader: Any) -> bool:
    """Whether reading it would take data away from training: a stream that goes on where it was left."""
    return isinstance(loader, Iterator) or isinstance(getattr(loader, "dataset", None), Iterator)


def _best_checkpoints(trainer: Trainer) -> set[tuple[str, float]]:
    """The files of checkpoints that are kept for what they monitor, and the values of that."""
    callbacks: list[Any] = [one for one in trainer.checkpoint_callbacks if getattr(one, "monitor", None)]
    return {(one.best_model_path, float(one.best_model_score)) for one in callbacks if one.best_model_path}


def _sums_of(model: LightningModule) -> Tensor:
    return torch.stack([parameter.detach().sum(dtype=torch.float32) for parameter in model.parameters()])


class FitFlow(Callback):
    """Fits a ``MixtureFlow`` to codes of training data by expectation maximisation; warns of a flow that does not fit.

    Gradient steps find a mixture in tens of dimensions slowly; expectation maximisation takes seconds.
    It runs after every so many epochs, before their validation, and after the last one, with averaged weights to the
    codes of these; if the last one was not known to be the last (early stopping), at the end of training. One mixture
    is fitted to codes of up to 10,000 training examples (with a mixture of each label 5,000 for each), encoded anew, in
    evaluation mode and as the data module gives them in validation, without augmentation. Where there are fewer, one
    more is fitted to these and as many codes of the same examples as in training, augmented, up to five of each: of few
    examples they tell more. Of the trained and the fitted mixtures the one with the best mean log-density on codes of
    the (first) validation set stays, and is trained on. (Without a validation set, on every tenth of the codes, and
    none is fitted to augmented ones, which are of these examples, too. Nor is one of labels.) Where there are several
    training loaders, or data that can be read only once, codes remembered from the latest steps serve instead; give
    a validation set then, for there may be several of one example among them. What the trainer leaves out
    (``limit_train_batches``, ``fast_dev_run``) is not read here either. A data set that counts what is read, or draws
    from a generator of its own, notices these passes. With several processes the first one fits, to its own codes.

    At the end of the last validation of a run, or of a ``trainer.validate``, one line warns if the flow's codes of
    validation data are no draws from a normal distribution by :func:`distance_from_normal`: then draws from the prior
    will not look like the data either.

    Args:
        flow: The flow, a part of the model.
        memory: The codes of the latest steps, a part of the model; their first columns are taken, d or d + p.
        codes: Maps a batch on the device to codes as the flow gets them, (n, d), conditions beside them, (n, d + p).
        every_n_epochs: After how many epochs it is fitted; 0: after the last one only; None: never.
        scale: The standard deviation of the prior, which codes z have.

    Raises:
        ValueError: If another flow is to be fitted.
    """

    def __init__(
        self,
        flow: Flow,
        memory: CodeMemory,
        codes: Callable[[Any], Tensor],
        every_n_epochs: int | None = None,
        scale: float = 1.0,
    ) -> None:
        if every_n_epochs is not None and not isinstance(flow, MixtureFlow):
            raise ValueError(f"only a MixtureFlow can be fitted, got {type(flow).__name__}")
        self.flow = flow
        self.memory = memory
        self.codes = codes
        self.every_n_epochs = every_n_epochs
        self.scale = scale
        self._columns = flow.dim + flow.condition_features
        self._seen: list[Tensor] = []
        self._fitted: Tensor | None = None  # what the weights were when the flow was fitted last, in short
        self._fitted_before = False  # by a run that this one goes on from
        self._too_early: set[tuple[str, float]] = set()  # best checkpoints from before the first fit

    def state_dict(self) -> dict[str, Any]:
        return {"fitted": self._fitted_before or self._fitted is not None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._fitted_before = state_dict["fitted"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fitted = None
        self._too_early = _best_checkpoints(trainer) if self._fitted_before else set()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_epochs is None:
            return
        epochs = trainer.current_epoch + 1
        last = epochs == trainer.max_epochs or bool(self.every_n_epochs and epochs % self.every_n_epochs == 0)
        if (trainer.is_last_batch and last) or trainer.global_step == trainer.max_steps:
            self._fit(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.should_stop and self._is_due(trainer, pl_module):
            self._fit(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's early stopping speaks up after all other callbacks, its stochastic weight averaging only now
        if self._is_due(trainer, pl_module):
            self._fit(trainer, pl_module)
            if trainer.checkpoint_callbacks:
                rank_zero_warn(
                    "the flow was fitted at the end of training, after the last checkpoint was written: its flow is "
                    "the one that was trained. Save the model once more, or fit it in each epoch (fit_flow 1)"
                )
        elif self.every_n_epochs is not None and (early := self._too_early & _best_checkpoints(trainer)):
            rank_zero_warn(
                f"{', '.join(path for path, _ in sorted(early))}: written before the flow was fitted, so its flow is "
                f"the one that was trained{'' if self.every_n_epochs == 1 else '; fit_flow 1 fits it in each epoch'}"
            )
        self._judge()

    def _is_due(self, trainer: Trainer, model: LightningModule) -> bool:
        """Whether weights changed since the flow was fitted."""
        if self.every_n_epochs is None:
            return False
        with averaged_weights(trainer, model):
            return self._fitted is None or not torch.equal(_sums_of(model), self._fitted)

    @torch.no_grad()
    def _fit(self, trainer: Trainer, model: LightningModule) -> None:
        if self._fitted is None:
            self._too_early = _best_checkpoints(trainer) - self._too_early
        with averaged_weights(trainer, model):
            self._fit_to_codes(trainer, model)
            self._fitted = _sums_of(model)
            fitted = [parameter.clone() for parameter in self.flow.parameters()]
        for parameter, value in zip(self.flow.parameters(), fitted, strict=True):
            parameter.copy_(value)

    def _fit_to_codes(self, trainer: Trainer, model: LightningModule) -> None:
        flow: Any = self.flow
        remembered = self.memory.all()[:, : self._columns] if len(self.memory) else torch.empty(0, self._columns)
        loader, validation = trainer.train_dataloader, None
        codes = remembered
        if not isinstance(loader, Mapping | Sequence) and not _comes_once(loader):
            most = max(MOST_CODES, CODES_OF_A_LABEL * flow.condition_features)
            batches = trainer.num_training_batches
            codes = self._encoded(trainer, model, loader, batches, most)
        if len(codes) < 2:  # they came only once
            codes = remembered
        if trainer.enable_validation:
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            most = max(SEEN_CODES, 1000 * flow.condition_features)
            if not _comes_once(seen := _first(trainer.val_dataloaders)):
                validation = self._encoded(trainer, model, seen, trainer.num_val_batches[0], most)
        fitted_to = [codes]
        if validation is None or not len(validation):
            fitted, validation = hold_out(codes)
            fitted_to = [fitted]
        elif not flow.condition_features and codes is not remembered and len(codes) < MOST_CODES:
            augmented = self._encoded(trainer, model, loader, batches, 2 * MOST_CODES, AUGMENTED_PASSES)
            if len(augmented):
                as_often = codes.repeat(len(augmented) // len(codes) + 1, 1)[: len(augmented)]
                fitted_to.append(torch.cat([as_often, augmented]))
        if len(fitted_to[0]) < 2 or not len(validation):
            rank_zero_warn("the flow is not fitted: there are fewer than two finite codes for it, or none to judge")
        elif trainer.is_global_zero:
            rare = (codes[:, flow.dim :] > 0.5).sum(0) < 3
            if rare.any():
                labels = ", ".join(map(str, rare.nonzero().flatten().tolist()))
                rank_zero_warn(f"the flow is not fitted for labels of which there are fewer than three codes: {labels}")
            for some in fitted_to:
                flow.fit(some, validation)
        for parameter in flow.parameters():
            parameter.copy_(trainer.strategy.broadcast(parameter.detach()))
        if self._seen:  # they are of the flow that was
            given = (validation[:, flow.dim :],) if flow.condition_features else ()
            self._seen = [self.scale * flow(validation[:, : flow.dim], *given)[0]]

    def _encoded(
        self, trainer: Trainer, model: LightningModule, loader: Any, batches: float, most: int, augmented: int = 0
    ) -> Tensor:
        """Finite codes of a set's first batches, at most about so many, in this many passes over augmented data if any.

        No trace is left in the random number generators.
        """
        found, read = [torch.empty(0, self._columns, device=model.device)], 0
        end = None if batches == float("inf") else int(batches)
        one_pass = () if loader is None else loader  # streams have no length to ask for
        passes = (itertools.islice(one_pass, end) for _ in range(max(augmented, 1)))
        with (
            isolated(loader),
            evaluation_mode(model),
            nullcontext() if augmented else as_in_validation(trainer),
            trainer.precision_plugin.forward_context(),
        ):
            for batch in itertools.chain.from_iterable(passes):
                codes = self.codes(on_device(trainer, model, batch))[:, : self._columns]
                read += len(codes)
                found.append(codes[codes.isfinite().all(1)])  # of others the run's own checks tell
                if read >= most:
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

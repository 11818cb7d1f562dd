"""What a test of a conditional model measures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wae_lightning.callbacks.pictures import in_unit_range, pairs_of
from wae_lightning.lightning import Callback, LightningModule, Trainer
from wae_lightning.metrics.completion import CodeDependence, CompletionMetrics, negative_log_likelihood
from wae_lightning.metrics.digit_classifier import DigitClassifier

__all__ = ["MeasureCompletions"]


class MeasureCompletions(Callback):
    r"""Logs under ``test/`` how good a conditional model's completions of images are.

    These are the measures of :class:`~wae_lightning.metrics.CompletionMetrics` on ten completions, those of
    :class:`~wae_lightning.metrics.CodeDependence`, and in nats ``nll_prior`` (Monte Carlo over 100 codes from the
    prior) and, if q(z | x, y) has a density, ``nll`` (importance-weighted, 100 codes from it) and ``negative_elbo``. A
    third element of a batch that is integers (B,) are labels. Likelihoods are of pixels in [0, 1], so models of another
    ``input_range`` have none. How images are made of pairs is for the data module to say, by its ``pairs``;
    without, the targets are the images.

    Args:
        likelihood_images: So many test images serve for the likelihoods, the slowest measures; there may be fewer.
        label_net: A calibrated classifier of observed parts, (B, \*condition_shape) -> logits: if given, the agreement
            and the label entropy that it would reach stand beside.

    Raises:
        ValueError: If ``likelihood_images`` is negative, or, in a test, if the model completes nothing.
    """

    def __init__(self, likelihood_images: int = 2000, label_net: torch.nn.Module | None = None) -> None:
        if likelihood_images < 0:
            raise ValueError(f"likelihood_images must be 0 or more, got {likelihood_images}")
        self.likelihood_images = likelihood_images
        self.label_net = label_net
        self._left = 0
        self._pairs: Any = None
        self._completions: CompletionMetrics | None = None
        self._dependence: CodeDependence | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module
        if not hasattr(model, "complete"):
            raise ValueError(f"MeasureCompletions measures a ConditionalWAE, got {type(model).__name__}")
        content = getattr(getattr(trainer, "datamodule", None), "content", None)
        classifier = DigitClassifier.pretrained() if content == "digits" else None
        self._pairs = pairs_of(trainer)
        self._completions = CompletionMetrics(classifier=classifier).to(model.device)
        self._dependence = CodeDependence().to(model.device)
        self._left = -(-self.likelihood_images // trainer.world_size)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        model: Any = pl_module
        assert self._completions is not None
        assert self._dependence is not None
        x, y = model.inputs_of(batch)
        third = batch[2] if len(batch) > 2 else None
        labels = third if isinstance(third, Tensor) and third.ndim == 1 and not third.is_floating_point() else None
        images, completed, hidden = y, model.complete(x, 10), None
        if self._pairs is not None:
            hidden = self._pairs.hidden(x)
            images, completed = self._pairs.join(x, images), self._pairs.join(x.unsqueeze(1), completed)
        images, completed = (in_unit_range(model, part) for part in (images, completed))
        probabilities = None if self.label_net is None else self.label_net(x).softmax(1)
        self._completions.update(images, completed, labels, probabilities, hidden)
        if getattr(model.features, "fitted", True):
            self._dependence.update(model.features(x), model.encode(x, y, noise=True))
        x, y = x[: self._left], y[: self._left]
        self._left -= len(x)
        if len(x) and model.input_range == (0, 1):
            likelihoods = {"nll_prior": negative_log_likelihood(model.log_weights(x, y, 100, prior=True))}
            if model.posterior(x, y) is not None:
                weights = model.log_weights(x, y, 100)
                likelihoods |= {"nll": negative_log_likelihood(weights), "negative_elbo": -weights.mean(1)}
            model.log_dict(
                {f"test/{name}": value.mean() for name, value in likelihoods.items()},
                on_step=False,
                on_epoch=True,
                batch_size=len(x),
                sync_dist=True,
            )

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._completions is not None
        assert self._dependence is not None
        results = self._completions.compute()
        if self._dependence.update_count:
            results |= self._dependence.compute()
        pl_module.log_dict({f"test/{name}": value for name, value in results.items()})
        self._completions = self._dependence = None

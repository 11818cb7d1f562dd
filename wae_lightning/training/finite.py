"""Numbers that stop being finite: a run ends there, and says which module was the first to put out, or hold, them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from wae_lightning.lightning import Callback, LightningModule, Trainer

__all__ = ["StopAtBadNumbers", "first_bad_module", "first_bad_weights"]

ADVICE = "Try a lower learning rate, gradient_clip_val 1, or detect_anomaly true to see where it begins"
ADVICE_FLOAT16 = "float16 holds no number beyond 65,504: try precision bf16-mixed, which has the range of float32"


class StopAtBadNumbers(Callback):
    """Stops a run whose loss is NaN or infinite, before its weights are spoilt where that costs no wait.

    On the CPU each loss is looked at before its backward pass. On other devices that would make the host wait in each
    step, so losses are looked at together, every ``log_every_n_steps`` steps and before a checkpoint. Under a gradient
    scaler, which leaves out the steps that overflow, only an interval in which all of them did is an error. The last
    step shows in the validation after it, whose ``codes`` must be finite. A checkpoint of weights that are not finite
    is not written.

    Args:
        run: Runs the model on a batch as training does, to find the module where it begins; None: not searched for.
    """

    def __init__(self, run: Callable[[Any], Any] | None = None) -> None:
        self.run = run
        self._losses: list[tuple[int, Tensor]] = []
        self._batch: Any = None
        self._finite: list[Tensor] = []  # of codes of validation batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append((trainer.fit_loop.total_batch_idx + 1, loss.detach()))
        enough = len(self._losses) >= (getattr(trainer, "log_every_n_steps", None) or 50)
        if enough or (loss.device.type == "cpu" and not _scales(trainer)):
            self._check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            self._check(trainer, pl_module)
        self._batch = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finite = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        codes = outputs.get("codes") if isinstance(outputs, dict) else None
        if isinstance(codes, Tensor) and trainer.state.fn == "fit" and not _scales(trainer):
            self._finite.append(codes.isfinite().all())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bad = bool(self._finite) and not bool(torch.stack(self._finite).all())
        if trainer.strategy.reduce_boolean_decision(bad, all=False):
            found = first_bad_weights(pl_module) or "none, its weights are finite, if large"
            raise FloatingPointError(
                f"validation after step {trainer.global_step}: codes are not finite; first bad module: "
                f"{found}{_kept(trainer)}. {ADVICE}"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit" and not _scales(trainer):
            self._check(trainer, pl_module)
        if bad := first_bad_weights(pl_module):
            raise FloatingPointError(
                f"step {trainer.global_step}: {bad} is not finite, so no checkpoint is written{_kept(trainer)}"
            )

    def _check(self, trainer: Trainer, model: LightningModule) -> None:
        losses, self._losses = self._losses, []
        if not losses:
            return
        bad = (~torch.stack([loss for _, loss in losses]).isfinite()).tolist()
        stop = all(bad) if _scales(trainer) else any(bad)
        if not trainer.strategy.reduce_boolean_decision(stop, all=False):
            return
        step, _ = losses[bad.index(True) if True in bad else -1]
        logged = {name[6:]: float(x) for name, x in trainer.callback_metrics.items() if name.startswith("train/")}
        values = {name: x for name, x in logged.items() if name != "loss" and "accuracy" not in name}
        names = [name for name, value in values.items() if not abs(value) < float("inf")]
        found = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        advice = ADVICE_FLOAT16 if str(trainer.precision).startswith("16") else ADVICE
        raise FloatingPointError(
            f"training step {step}: {' and '.join(names) or 'the loss'} not finite ({found}); first bad module: "
            f"{self._first_bad_module(trainer, model)}{_kept(trainer)}. {advice}"
        )

    def _first_bad_module(self, trainer: Trainer, model: LightningModule) -> str:
        if self._batch is None or self.run is None:
            return first_bad_weights(model) or "unknown, the weights are finite"
        batch, run = self._batch, self.run
        with trainer.precision_plugin.forward_context():
            found = first_bad_module(model, lambda: run(batch))
        return found or "none, with other random numbers this batch gives finite ones"


def _scales(trainer: Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _kept(trainer: Trainer) -> str:
    """Names a checkpoint of this run, or the one from which it went on, if there is one."""
    paths = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
    kept = next((path for path in [*paths, trainer.ckpt_path] if path and os.path.isfile(path)), None)
    return f"; {kept} is kept" if kept else ""


def first_bad_weights(model: nn.Module) -> str | None:
    """Name of the first bad parameter, or bad statistic of a batch norm; None if all are finite. Waits once."""
    named = [(name, x) for name, x in _tensors(model) if x.is_floating_point() and x.numel()]
    if not named:
        return None
    finite = torch.stack([x.detach().isfinite().all() for _, x in named]).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    # other buffers may hold inf by right, such as the mask of an attention
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase):
            yield from module.named_buffers(prefix)


def first_bad_module(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """Runs the model and names the first innermost module, in the order of its run, with inf or nan, and where it is.

    Args:
        model: The model.
        run: Runs it; what it raises is ignored, bad numbers make some modules raise.

    Returns:
        For example ``decoder.layers.2 (its output)``, or None if every number is finite.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if found:
            return
        if first_bad_weights(module):
            found.append(f"{name} (its weights)")
        elif _is_bad(inputs):
            found.append(f"{name} (its input)")
        elif _is_bad(output):
            found.append(f"{name} (its output)")

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, module, inputs, output))
        for name, module in model.named_modules()
        if name and not next(module.children(), None)
    ]
    with torch.no_grad(), suppress(Exception):
        run()
    for hook in hooks:
        hook.remove()
    return found[0] if found else None


def _is_bad(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and not bool(value.isfinite().all())
    return isinstance(value, tuple | list) and any(map(_is_bad, value))

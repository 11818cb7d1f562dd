"""What makes TensorBoard's pages readable: a layout of the scalars, and hyper-parameters beside final results."""

from __future__ import annotations

from typing import Any

from wae_lightning.callbacks.pictures import tensorboard_writers
from wae_lightning.callbacks.sample_quality import SampleQuality
from wae_lightning.lightning import Callback, LearningRateMonitor, LightningModule, TensorBoardLogger, Trainer

__all__ = ["Dashboard"]

_OBJECTIVE = {
    "cost": "reconstruction cost c(x, G(z))",
    "penalty": "penalty D(Q_Z, P_Z)",
    "loss": "cost + penalty_weight · penalty",
}
_TITLES = {
    "critic": "loss",
    "critic_accuracy": "accuracy (0.5: it cannot tell codes from the prior)",
    "flow": "negative log-likelihood of the codes",
}
_PARTS = ("penalty", "prior", "cost", "noise", "flow")


class Dashboard(Callback):
    """Lays out the custom-scalars page, and fills the hparams page with the results of a test.

    On the custom-scalars page each quantity that is logged under ``train/`` is one chart with its curves of training
    and validation. The hparams page has a row for each run that was tested, with what was logged under ``test/``, so
    that runs can be sorted by it. What matters most comes first: model, penalty and its weight, prior, latent
    dimensions, cost, noise, flow and the (largest) learning rate, whether given or left at the default.

    Attributes:
        about: Markdown for the text page, such as the command and the config of the run; empty: there is none.
    """

    def __init__(self) -> None:
        self.about = ""
        self._laid_out = False
        self._lr: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._laid_out = False
        group = trainer.optimizers[0].param_groups[0] if trainer.optimizers else {}
        # OneCycleLR begins at a fraction of its max_lr
        lr = group.get("max_lr", group.get("initial_lr", group.get("lr")))
        self._lr = None if lr is None else float(lr)
        for writer in tensorboard_writers(trainer) if self.about else ():
            writer.add_text("run", self.about, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # only now is known what the model logs
        if not self._laid_out:
            self._laid_out = True
            layout = _layout(trainer)
            for writer in tensorboard_writers(trainer):
                writer.add_custom_scalars(layout)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results: dict[str, Any] = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and results:
                logger.log_hyperparams(self.settings(pl_module), results, step=trainer.global_step)

    def settings(self, model: Any) -> dict[str, Any]:
        """The settings of a run, those that matter most first, then the other hyper-parameters."""
        first: dict[str, Any] = {"model": type(model).__name__}
        for name in ("penalty", "penalty_weight", "prior", "latent_dim", "cost", "noise", "flow"):
            if hasattr(model, name):
                value = getattr(model, name)
                first[name] = (type(value).__name__ if value is not None else "none") if name in _PARTS else value
        if self._lr is not None:
            first["lr"] = self._lr
        others: dict[str, Any] = {}
        for name, value in model.hparams_initial.items():
            if isinstance(value, dict) and name in first:
                # the class stands among the first ones, its arguments beside the others
                others |= {f"{name}/{key}": item for key, item in value.items() if key != "class_path"}
            elif name not in first and not name.startswith("_"):  # LightningCLI's own entries
                others[name] = value
        return first | others


def _layout(trainer: Any) -> dict[str, dict[str, list[Any]]]:
    """The categories of the custom-scalars page and their charts."""
    logged = [name.removeprefix("train/") for name in trainer.callback_metrics if name.startswith("train/")]
    layout: dict[str, dict[str, list[Any]]] = {"objective": {}}
    for name in [*_OBJECTIVE, *sorted(set(logged) - {*_OBJECTIVE})]:
        if name in _OBJECTIVE:
            category, title = "objective", _OBJECTIVE[name]
        else:
            # critic, critic_accuracy_codes and critic_accuracy_prior stand together, the last two in one chart
            category = name.split("_")[0]
            title = next((_TITLES[key] for key in sorted(_TITLES, reverse=True) if name.startswith(key)), name)
        chart = layout.setdefault(category, {}).setdefault(title, ["Multiline", []])
        chart[1] += [f"train/{name}", f"val/{name}"]
    for callback in trainer.callbacks:
        if isinstance(callback, LearningRateMonitor):
            layout["learning rate"] = {"learning rate": ["Multiline", list(callback.lrs)]}
        elif isinstance(callback, SampleQuality):
            layout["samples"] = {"Fréchet distance of digits": ["Multiline", [callback.name]]}
    return layout

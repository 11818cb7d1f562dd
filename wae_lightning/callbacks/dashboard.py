"""What makes TensorBoard's pages readable: a layout of the scalars, and hyper-parameters beside final results."""

from __future__ import annotations

from typing import Any

from wae_lightning.lightning import Callback, LightningModule, TensorBoardLogger, Trainer
from wae_lightning.penalties.adversarial import Adversarial

__all__ = ["Dashboard"]


class Dashboard(Callback):
    """Lays out the custom-scalars page, and fills the hparams page with the results of a test.

    On the custom-scalars page each quantity is one chart with its curves of training and validation. The hparams page
    has a row for each run that was tested, with what was logged under ``test/``, so that runs can be sorted by it.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layout = {
            "objective": {
                "reconstruction cost c(x, G(z))": ["Multiline", ["train/cost", "val/cost"]],
                "penalty D(Q_Z, P_Z)": ["Multiline", ["train/penalty", "val/penalty"]],
                "cost + penalty_weight · penalty": ["Multiline", ["val/loss"]],
            }
        }
        if isinstance(getattr(pl_module, "penalty", None), Adversarial):
            accuracies = ["train/critic_accuracy_codes", "train/critic_accuracy_prior"]
            layout["critic"] = {
                "loss": ["Multiline", ["train/critic_loss"]],
                "accuracy (0.5: it cannot tell codes from the prior)": ["Multiline", accuracies],
            }
        if getattr(pl_module, "flow", None) is not None:
            layout["flow"] = {"negative log-likelihood of the codes": ["Multiline", ["train/flow_loss"]]}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(layout)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results: dict[str, Any] = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")
        }
        # LightningCLI's own entries begin with an underscore
        given = {name: value for name, value in pl_module.hparams_initial.items() if not name.startswith("_")}
        first = {name: given.pop(name) for name in ("penalty_weight", "latent_dim") if name in given}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and results:
                shown = {"model": type(pl_module).__name__, **first, **given}
                logger.log_hyperparams(shown, results, step=trainer.global_step)

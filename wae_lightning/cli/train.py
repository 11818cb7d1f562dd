"""Trains an auto-encoder and tests it: ``train.py`` draws digits, ``--config NAME`` does something else."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import warnings
from argparse import ArgumentError
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import nn

import datamodules  # noqa: F401  its classes can be named on the command line
from wae_lightning import WAE, WAEGAN, WAEMMD, ConditionalWAE, PointNetWAE
from wae_lightning.callbacks import Dashboard, ProgressBar, SampleQuality
from wae_lightning.checkpoints import read_checkpoint
from wae_lightning.cli.errors import UsageError, explain_failure, explain_mistake, suggest
from wae_lightning.cli.flags import complete_flags, find_checkpoint
from wae_lightning.cli.resuming import check_settings, hold_folder
from wae_lightning.lightning import (
    PACKAGE,
    Callback,
    LightningArgumentParser,
    LightningCLI,
    LightningDataModule,
    LightningModule,
    MisconfigurationException,
    SIGTERMException,
    TensorBoardLogger,
    TorchCheckpointIO,
    Trainer,
    seed_everything,
)
from wae_lightning.parts import make, recorded_arguments
from wae_lightning.training.allocator import keep_freed_memory
from wae_lightning.training.interruption import AtomicCheckpointIO, LastCheckpoint
from wae_lightning.training.monitored import MonitoredCheckpoint

__all__ = ["Train", "main"]

MODELS = (WAE, WAEGAN, WAEMMD, ConditionalWAE, PointNetWAE)  # imported, so that their short names are known


class CountingTrainer(Trainer):
    """Lightning's Trainer, for which 1 is one batch, as it is in Python, and 1.0 all of them.

    Typing keeps one order of ``float | int`` for all of Lightning's signatures, and by it jsonargparse reads 1 as 1.0.
    """

    def __init__(
        self,
        *,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0.0,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            overfit_batches=overfit_batches,
            val_check_interval=val_check_interval,
            **kwargs,
        )


class MonitorCheck(Callback):
    """Refuses a monitor that validation does not log, before training and not after the first epoch."""

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        names = set(map(str, trainer.callback_metrics))
        # not logged in this check: a distance of many samples, and the loss of batches that are too small to train on
        names |= {callback.name for callback in callbacks if isinstance(callback, SampleQuality)}
        names |= {"val/loss"} if isinstance(pl_module, WAE) else set()
        logged = sorted(names)
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            if monitor and logged and monitor not in logged and not monitor.startswith("train/"):
                name = "--checkpoint" if isinstance(callback, MonitoredCheckpoint) else type(callback).__name__
                raise UsageError(
                    f"{name} monitors {monitor!r}, and validation logs {', '.join(logged)}"
                    f"{suggest(monitor, logged)} (--num_sanity_val_steps 0 leaves this check out)"
                )


class Stopped(SystemExit):
    """SIGTERM came while there was nothing to save: before, or after, training."""


def checkpoint_to_resume(path: str, runs: Path) -> Path:
    """Resolves ``--ckpt_path``: a file, the folder of a run, or ``last``, the newest ``last.ckpt`` of the config."""
    if path != "last":
        try:
            return find_checkpoint(Path(path))
        except FileNotFoundError as error:
            raise UsageError(f"--ckpt_path {error}") from None
    found = sorted(runs.glob("*/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UsageError(f"--ckpt_path last: there is no {runs}/*/checkpoints/last.ckpt to go on from")
    return found[-1]


def choose_version(runs: Path) -> Path:
    """The folder of the next run, numbered as Lightning's loggers do."""
    taken = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
    return runs / f"version_{max((int(number) + 1 for number in taken if number.isdigit()), default=0)}"


class Train(LightningCLI):
    """LightningCLI without subcommands: it fits, then tests, then says where everything is."""

    def __init__(self, arguments: list[str], config_name: str) -> None:
        self.config_name = config_name
        logger = {
            "class_path": f"{PACKAGE}.loggers.TensorBoardLogger",
            # its own row on the hparams page would have no result; the dashboard writes one after the test
            "init_args": {"save_dir": "runs", "name": config_name, "default_hp_metric": False},
        }
        # beside the callback of the best checkpoint, whose save_last would write only when the best one changes
        self.last = LastCheckpoint()
        super().__init__(
            LightningModule,
            LightningDataModule,
            trainer_class=CountingTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={"logger": logger, "callbacks": [self.last, Dashboard(), MonitorCheck()]},
            # a resumed run goes on in its own folder
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"description": __doc__, "exit_on_error": False},
            auto_configure_optimizers=False,
            args=arguments,
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(MonitoredCheckpoint, "checkpoint")
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="Checkpoint to resume from; 'last': the newest run's."
        )

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        # classes of torch that YAML names remember their arguments, too
        self.parser.add_instantiator(make, nn.Module)

    def before_instantiate_classes(self) -> None:
        flags = self.config.trainer
        chosen = any("ProgressBar" in callback.class_path for callback in flags.callbacks or [])
        if flags.enable_progress_bar is not False and not chosen:
            self.trainer_defaults["callbacks"].append(ProgressBar())
        self.last.every_n_steps = self.config.checkpoint.every_n_train_steps
        logger = flags.logger
        in_runs = isinstance(logger, dict) or hasattr(logger, "init_args")
        if in_runs:
            runs = Path(logger.init_args.save_dir) / logger.init_args.name
        else:
            runs = Path(flags.default_root_dir or "runs") / self.config_name
        self.folder = choose_version(runs)
        if self.config.ckpt_path is None:
            return
        checkpoint = checkpoint_to_resume(self.config.ckpt_path, runs)
        self.config.ckpt_path = str(checkpoint)
        run = checkpoint.resolve().parents[1]
        if checkpoint.parent.name == "checkpoints" and run.parent == runs.resolve():
            self.folder = runs / run.name
            if in_runs:
                logger.init_args.version = run.name

    def check_weights(self, checkpoint: dict[str, Any]) -> None:
        """Refuses weights of another class, or that are not the model's by name and shape."""
        path = f"--ckpt_path {self.config.ckpt_path}"
        hyperparameters = checkpoint.get("hyper_parameters")
        trained = hyperparameters.get("_class_path") if isinstance(hyperparameters, dict) else None
        trained, made = str(trained or "").rpartition(".")[2], type(self.model).__name__
        if trained and trained != made:
            raise UsageError(
                f"{path}: it was trained by another config: it holds a {trained}, and {self.config_name} makes a "
                f"{made}; name its config with --config"
            )
        stored, own = (
            {str(name): tuple(getattr(weight, "shape", ())) for name, weight in weights.items()}
            for weights in (checkpoint["state_dict"], self.model.state_dict())
        )
        for name in sorted(stored.keys() | own.keys()):
            if stored.get(name) != own.get(name):
                found = f"its {name} has the shape {stored.get(name)}, expected {own.get(name)}"
                found = found if name in stored else f"it has no {name}"
                found = found if name in own else f"its {name} is none of the model's weights"
                raise UsageError(f"{path}: it was trained by another config: {found}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        flags = self.config.trainer
        unlogged = flags.logger is False and not flags.fast_dev_run
        if unlogged:  # a run has a folder of its own under any logger
            kwargs["default_root_dir"] = str(self.folder)
        trainer = super().instantiate_trainer(**kwargs)
        if unlogged and trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=self.config.ckpt_path is not None)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def train(self) -> None:
        """Fits and tests the model, and writes and prints the results."""
        if self.config.ckpt_path is not None:
            checkpoint = read_checkpoint(Path(self.config.ckpt_path))
            self.check_weights(checkpoint)
            if isinstance(self.model, WAE):
                check_settings(checkpoint, recorded_arguments(self.model), self.config.ckpt_path)
        if isinstance(self.model, WAE):
            # it logs the first and the last step of each epoch, however short that is
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
        log_dir = self.trainer.log_dir  # asks the first process: all of them must take part
        writes = self.trainer.is_global_zero and not self.config.trainer.fast_dev_run
        folder = Path(log_dir) if writes and log_dir is not None else None
        with hold_folder(folder) if folder else nullcontext():
            start, start_cpu = time.perf_counter(), time.process_time()
            self.trainer.fit(self.model, self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True)
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
            # the same weights have the same results, also after a resume
            seed_everything(self.config.seed_everything or 0, verbose=False)
            metrics = self.trainer.test(self.model, self.datamodule, verbose=False)[0]
        if folder is None:
            return
        results = {
            "config": self.config_name,
            "epochs": self.trainer.current_epoch,
            "steps": self.trainer.global_step,
            "fit_seconds": round(seconds, 1),
            "fit_cpu_seconds": round(cpu_seconds, 1),
            **metrics,
        }
        unfinished = folder / "metrics.json.tmp"
        unfinished.write_text(json.dumps(results, indent=2) + "\n")
        os.replace(unfinished, folder / "metrics.json")
        print("\nResults on the test set")
        for name, value in metrics.items():
            print(f"  {name:24} {value:.4f}")
        print(f"Trained for {seconds:.0f} s. Written to {folder}:")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            print(f"  {path.relative_to(folder)}")
        if any(isinstance(logger, TensorBoardLogger) for logger in self.trainer.loggers):
            print(f"Look at it with: tensorboard --logdir {folder.parent}")


def hide_tips(record: logging.LogRecord) -> bool:
    return "Tip: " not in record.getMessage()


def on_sigterm(number: int, frame: Any) -> None:
    raise Stopped(128 + number)


def main(arguments: list[str] | None = None, program: str = "train.py") -> None:
    """Runs the command line.

    Mistakes of the user end in one line and exit status 2, failures of memory, disk or numbers in one line and status
    1, signals in one line and 128 plus their number.

    Args:
        arguments: The command line; None: that of this process.
        program: What messages call it; ``wae-lightning train`` is the console command.
    """
    given: list[str] = sys.argv[1:] if arguments is None else arguments
    # Lightning hints that in-memory data should get worker processes (it should not), and uses an old name of torch's
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
    # this holds for the model's step before the optimizer's, which nobody needs
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    # "Tip: ... try installing ..."
    logging.getLogger(f"{PACKAGE}.utilities.rank_zero").addFilter(hide_tips)
    keep_freed_memory()
    sys.argv = sys.argv[:1]
    cli = None
    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        full, name = complete_flags(given)
        cli = Train(full, name)
        # with several devices Lightning starts the other processes by this command line
        sys.argv = [*sys.argv, *program.split()[1:], *given]
        cli.train()
    except (UsageError, MisconfigurationException, FileNotFoundError, ValueError, ArgumentError) as error:
        print(f"{program}: error: {explain_mistake(str(error), given)}", file=sys.stderr)
        sys.exit(2)
    except SIGTERMException:
        assert cli is not None
        number = cli.last.signal or signal.SIGTERM
        print(
            f"{program}: stopped by {number.name} after step {cli.trainer.global_step}; "
            f"--ckpt_path last goes on from {cli.last.best_model_path}",
            file=sys.stderr,
        )
        sys.exit(128 + number)
    except Stopped as stop:
        print(f"{program}: stopped by SIGTERM while no training was under way", file=sys.stderr)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        print(f"{program}: stopped by SIGINT while no training was under way", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        # the other processes would wait for this one
        for process in getattr(cli.trainer.strategy.launcher, "procs", []) if cli else []:
            process.kill()
        sentence = explain_failure(error, getattr(getattr(cli, "datamodule", None), "batch_size", None))
        if sentence is None:
            raise
        print(f"{program}: error: {sentence}", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)

"""Trains an auto-encoder and tests it: ``train.py`` draws digits, ``--config NAME`` does something else."""

from __future__ import annotations

import copy
import json
import logging
import os
import shlex
import shutil
import signal
import sys
import time
import warnings
from argparse import ArgumentError
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wae_lightning import WAE
from wae_lightning.callbacks import Dashboard, ProgressBar, SampleQuality
from wae_lightning.checkpoints import read_checkpoint
from wae_lightning.cli.config import link_typed
from wae_lightning.cli.device import allow_tf32
from wae_lightning.cli.errors import UsageError, explain_failure, explain_mistake, suggest
from wae_lightning.cli.flags import complete_flags
from wae_lightning.cli.resuming import check_settings, hold_folder
from wae_lightning.cli.runs import (
    ROOT,
    GoOnLogging,
    checkpoint_to_resume,
    choose_folder,
    dashboards,
    place_loggers,
    remove_folder,
)
from wae_lightning.lightning import (
    PACKAGE,
    Callback,
    LightningArgumentParser,
    LightningCLI,
    LightningDataModule,
    LightningModule,
    MisconfigurationException,
    ModelCheckpoint,
    SIGTERMException,
    TorchCheckpointIO,
    Trainer,
    is_overridden,
    seed_everything,
)
from wae_lightning.parts import make, recorded_arguments
from wae_lightning.training.allocator import keep_freed_memory
from wae_lightning.training.interruption import BackgroundCheckpointIO, LastCheckpoint
from wae_lightning.training.monitored import MonitoredCheckpoint

__all__ = ["Train", "main"]


class RunTrainer(Trainer):
    """Lightning's Trainer, whose files lie in one folder whatever logs, and for which 1 is one batch and 1.0 all.

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
        self.run_folder: Path | None = None
        """The folder of the run; None: Lightning decides."""

    @property
    def log_dir(self) -> str | None:
        """The folder of the run, in each process that of the first one: all of them must ask."""
        if self.run_folder is None:
            return super().log_dir
        return str(self.strategy.broadcast(str(self.run_folder)))


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

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        wanted = any(getattr(callback, "monitor", None) == "val/loss" for callback in callbacks)
        examples = getattr(trainer.datamodule, "val_set", [])  # type: ignore[attr-defined]
        # the check before training sees few batches, but a single example at once
        missing = (not trainer.sanity_checking or len(examples) == 1) and "val/loss" not in trainer.callback_metrics
        if isinstance(pl_module, WAE) and wanted and missing:
            raise UsageError(
                f"{type(pl_module.penalty).__name__} needs at least 2 validation examples in a batch, found 1: give "
                "more data, or a larger --data.val_fraction"
            )


class Stopped(SystemExit):
    """SIGTERM came while there was nothing to save: before, or after, training."""


class Train(LightningCLI):
    """LightningCLI without subcommands: it fits, then tests, then says where everything is."""

    def __init__(self, arguments: list[str], config_name: str) -> None:
        self.config_name = config_name
        self.folder: Path | None = None
        self.checkpoint: dict[str, Any] = {}
        self.finished = False
        """Whether training is over."""
        self.logger: dict[str, Any] = {
            "class_path": f"{PACKAGE}.loggers.TensorBoardLogger",
            # its own row on the hparams page would have no result; the dashboard writes one after the test
            "init_args": {"save_dir": ROOT, "name": config_name, "default_hp_metric": False},
        }
        self.logging = GoOnLogging()
        self.dashboard = Dashboard()
        # beside the callback of the best checkpoint, whose save_last would write only when the best one changes
        self.last = LastCheckpoint()
        super().__init__(
            LightningModule,
            LightningDataModule,
            trainer_class=RunTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={
                "logger": self.logger,
                "callbacks": [self.last, self.logging, self.dashboard, MonitorCheck()],
            },
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        printing = [argument for argument in args if argument.partition("=")[0] == "--print_config"]
        super().parse_arguments(parser, [argument for argument in args if argument not in printing])
        link_typed(self.config, args)
        if printing:  # what jsonargparse prints by itself has no sizes that follow from others
            wanted = printing[-1].partition("=")[2].split(",")
            skipped = {"skip_none": "skip_null" in wanted, "skip_default": "skip_default" in wanted}
            print(parser.dump(self.config, **skipped), end="")
            sys.exit(0)

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        # classes of torch that YAML names remember their arguments, too
        self.parser.add_instantiator(make, nn.Module)

    def before_instantiate_classes(self) -> None:
        flags = self.config.trainer
        callbacks = flags.callbacks if isinstance(flags.callbacks, list) else [flags.callbacks]  # one alone, or None
        chosen = any("ProgressBar" in callback.class_path for callback in callbacks if callback)
        if flags.enable_progress_bar is not False and not chosen:
            self.trainer_defaults["callbacks"].append(ProgressBar())
        if flags.enable_checkpointing is False:
            self.trainer_defaults["callbacks"].remove(self.last)
            self.parser.callback_keys.remove("checkpoint")
        for name in ("check_val_every_n_epoch", "accumulate_grad_batches"):
            if flags[name] == 0:
                raise UsageError(f"--{name} must be at least 1, got 0")
        self.last.every_n_steps = self.config.checkpoint.every_n_train_steps
        self.last.interval = self.config.checkpoint.train_time_interval
        self.choose_folder()

    def choose_folder(self) -> None:
        """Finds the checkpoint to go on from, and the folder of the run, into which the loggers are to write."""
        flags = self.config.trainer
        runs = Path(flags.default_root_dir or ROOT) / self.config_name
        resumed = None
        if self.config.ckpt_path is not None:
            path = checkpoint_to_resume(self.config.ckpt_path, runs)
            self.config.ckpt_path = str(path)
            self.checkpoint = read_checkpoint(path)
            run = path.resolve().parents[1]
            own = path.parent.name == "checkpoints" and run.parent == runs.resolve()
            if own and flags.enable_checkpointing is not False:  # else its files would not be of its checkpoints
                resumed = runs / run.name
        if flags.fast_dev_run:
            flags.logger = False
            return
        self.folder = choose_folder(runs, resumed)
        if flags.logger is None or flags.logger is True:
            flags.logger = self.parser.get_defaults().trainer.logger
        self.given_logger = copy.deepcopy(flags.logger)
        if resumed is not None:
            self.logging.resume(self.checkpoint, self.folder)
        if flags.logger is not False:
            place_loggers(flags.logger, self.folder, self.logging.runs)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Removes the run's folder if it holds no result: training has not begun."""
        if self.folder is not None and not (self.logging.started or self.finished):
            remove_folder(self.folder)

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
            # remembered codes may be any number
            if stored.get(name) != own.get(name) and not name.endswith("_extra_state"):
                found = f"its {name} has the shape {stored.get(name)}, expected {own.get(name)}"
                found = found if name in stored else f"it has no {name}"
                found = found if name in own else f"its {name} is none of the model's weights"
                raise UsageError(f"{path}: it was trained by another config: {found}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return self._make_trainer(**kwargs)
        except TypeError as error:  # what Lightning says of, for example, --devices many
            raise UsageError(str(error)) from error

    def _make_trainer(self, **kwargs: Any) -> Trainer:
        if self.folder is None:  # a trial run writes nothing
            trainer = super().instantiate_trainer(**kwargs)
        else:
            # config.yaml is for new runs as well: it says what was asked for, not where this run lies
            self.config.trainer.logger = self.given_logger
            trainer = super().instantiate_trainer(**kwargs | {"default_root_dir": str(self.folder)})
            trainer.run_folder = self.folder  # type: ignore[attr-defined]
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                    callback.dirpath = str(self.folder / "checkpoints")
        allow_tf32(trainer.strategy.root_device)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = BackgroundCheckpointIO()
        return trainer

    def train(self) -> None:
        """Fits and tests the model, and writes and prints the results."""
        if self.config.ckpt_path is not None:
            self.check_weights(self.checkpoint)
            if isinstance(self.model, WAE):
                check_settings(self.checkpoint, recorded_arguments(self.model), self.config.ckpt_path)
            self.checkpoint = {}  # Lightning reads it again
        if isinstance(self.model, WAE):
            # it logs the first and the last step of each epoch, however short that is
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
        self.dashboard.about = f"```\n{shlex.join(sys.argv)}\n```\n\n```yaml\n{self.parser.dump(self.config)}```"
        folder = self.folder if self.trainer.is_global_zero else None
        with hold_folder(folder) if folder else nullcontext():
            start, start_cpu = time.perf_counter(), time.process_time()
            self.trainer.fit(self.model, self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True)
            self.finished = True
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
            # the same weights have the same results, also after a resume
            seed_everything(self.config.seed_everything or 0, verbose=False)
            metrics = self.test()
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
        print("\nResults on the test set" if metrics else "\nThere is no test set, or nothing of it was asked for.")
        for name, value in metrics.items():
            print(f"  {name:24} {value:.4f}")
        print(f"Trained for {seconds:.0f} s. Written to {folder}:")
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            print(f"  {path.relative_to(folder)}")
        for command in dashboards(self.trainer.loggers, folder):
            print(f"Look at it with: {command}")

    def test(self) -> dict[str, float]:
        """The results on the test set; none, if there is none or nothing of it is to be tested."""
        if not is_overridden("test_dataloader", self.datamodule):
            return {}
        self.datamodule.setup("test")  # so that it can be asked for its loader, which may be None
        if self.datamodule.test_dataloader() is None:
            return {}
        found = self.trainer.test(self.model, self.datamodule, verbose=False)  # a dictionary for each loader
        return {name: value for part in found for name, value in part.items()}


def resume_command(program: str, given: list[str], checkpoint: str) -> str:
    """The command line that goes on from a checkpoint with the flags that were given."""
    flags: list[str] = []
    rest = iter(given)
    for flag in rest:
        if flag == "--ckpt_path":
            next(rest, None)
        elif not flag.startswith("--ckpt_path="):
            flags.append(flag)
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    command = program.split() if " " in program else [python, sys.argv[0]]
    return shlex.join([*command, *flags, "--ckpt_path", checkpoint])


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
    # Lightning's CSV logger deletes what it had written; GoOnLogging puts it back
    warnings.filterwarnings("ignore", message="Experiment logs directory")
    # "Tip: ... try installing ..."
    logging.getLogger(f"{PACKAGE}.utilities.rank_zero").addFilter(hide_tips)
    keep_freed_memory()
    sys.argv = sys.argv[:1]
    cli = None
    before = signal.signal(signal.SIGTERM, on_sigterm)
    flushed = bool(torch.tensor(1e-20, dtype=torch.float32).square() == 0)
    # what an optimizer remembers of weights that have no gradient any more fades to numbers with which CPUs are slow
    torch.set_flush_denormal(True)
    try:
        full, name = complete_flags(given)
        cli = Train(full, name)
        # with several devices Lightning starts the other processes by this command line
        sys.argv = [*sys.argv, *program.split()[1:], *given]
        cli.train()
    except (UsageError, MisconfigurationException, FileNotFoundError, ValueError, ArgumentError) as error:
        print(f"{program}: error: {explain_mistake(str(error), given)}", file=sys.stderr)
        sys.exit(2)
    except (SIGTERMException, SystemExit, KeyboardInterrupt) as stop:
        interrupted = cli is not None and hasattr(cli, "trainer") and cli.trainer.interrupted  # Lightning then exits
        if type(stop) is SystemExit and not interrupted:
            raise
        default = signal.SIGTERM if isinstance(stop, SIGTERMException | Stopped) else signal.SIGINT
        number = (cli and cli.last.signal) or default
        flags = None if cli is None else cli.config.trainer
        saves = flags is None or not (flags.enable_checkpointing is False or flags.fast_dev_run)
        sentence = f"stopped by {number.name} {'while no training was under way' if saves else 'without a checkpoint'}"
        if cli is not None and cli.last.best_model_path and not cli.finished:
            command = resume_command(program, given, cli.last.best_model_path)
            sentence = f"stopped by {number.name} after step {cli.trainer.global_step}; go on with: {command}"
        print(f"{program}: {sentence}", file=sys.stderr)
        sys.exit(128 + number)
    except Exception as error:
        # the other processes would wait for this one
        for process in getattr(cli.trainer.strategy.launcher, "procs", []) if cli else []:
            process.kill()
        failure = explain_failure(error, getattr(getattr(cli, "datamodule", None), "batch_size", None))
        if failure is None:
            raise
        print(f"{program}: error: {failure}", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)
        torch.set_flush_denormal(flushed)
        if cli is not None:
            cli.give_up()

"""Trains an auto-encoder: ``python experiments/train.py`` draws digits, ``--config NAME`` does something else."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
import signal
import sys
import time
import warnings
from argparse import ArgumentError
from pathlib import Path
from typing import Any

import torch

from wae_lightning import WAE
from wae_lightning.callbacks import Dashboard
from wae_lightning.checkpoints import read_checkpoint
from wae_lightning.lightning import (
    PACKAGE,
    LightningArgumentParser,
    LightningCLI,
    LightningDataModule,
    LightningModule,
    MisconfigurationException,
    ModelCheckpoint,
    SIGTERMException,
    TorchCheckpointIO,
    TQDMProgressBar,
    Trainer,
)
from wae_lightning.training.allocator import keep_freed_memory
from wae_lightning.training.interruption import AtomicCheckpointIO, LastCheckpoint

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_CONFIG = "mnist_wae_mmd"
TRAINER_FLAGS = tuple(inspect.signature(Trainer.__init__).parameters)[1:]


class UsageError(Exception):
    """A mistake in what the user asked for; its text is the whole message."""


class Stopped(SystemExit):
    """SIGTERM came while there was nothing to save: before, or after, training."""


def nearest(word: str, known: list[str]) -> str:
    """Returns ``; did you mean ...?`` with the most similar of the known words, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""


def config_file(name: str) -> Path:
    """Finds a config by its name in ``experiments/configs`` or by its path."""
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    if name in names:
        return CONFIGS / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    raise UsageError(f"--config {name}: neither a file nor one of the configs {', '.join(names)}{nearest(name, names)}")


def with_full_names(arguments: list[str]) -> tuple[list[str], str]:
    """Turns the command line into LightningCLI's: ``--max_epochs`` becomes ``--trainer.max_epochs``, a config a path.

    Returns:
        The new command line and the name of the last config on it.
    """
    # Configs go first, wherever they stand: other flags change what they say.
    configs: list[str] = []
    full: list[str] = []
    name = DEFAULT_CONFIG
    position = 0
    while position < len(arguments):
        flag, equals, value = arguments[position].partition("=")
        position += 1
        if flag in ("--config", "-c"):
            if not equals:
                if position == len(arguments):
                    raise UsageError("--config needs the name of a config or a file")
                value = arguments[position]
                position += 1
            path = config_file(value)
            name = path.stem if path.stem != "config" else path.resolve().parents[1].name
            configs.append(f"--config={path}")
        elif flag.removeprefix("--").split(".")[0] in TRAINER_FLAGS and flag.startswith("--"):
            full.append(f"--trainer.{flag[2:]}{equals}{value}")
        else:
            full.append(flag + equals + value)
    return [*(configs or [f"--config={config_file(DEFAULT_CONFIG)}"]), *full], name


def checkpoint_to_resume(path: str, runs: Path) -> Path:
    """Resolves ``--ckpt_path``: ``last`` is the newest ``last.ckpt`` among the runs of the config."""
    if path != "last":
        if not Path(path).is_file():
            raise UsageError(f"--ckpt_path {path}: no such file")
        return Path(path)
    found = sorted(runs.glob("*/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UsageError(f"--ckpt_path last: there is no {runs}/*/checkpoints/last.ckpt to go on from")
    return found[-1]


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
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            trainer_defaults={"logger": logger, "callbacks": [self.last, Dashboard()]},
            # a resumed run goes on in its own folder
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"description": __doc__, "exit_on_error": False},
            auto_configure_optimizers=False,
            args=arguments,
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({"checkpoint.monitor": "val/loss", "checkpoint.filename": "best-{epoch:03d}"})
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="Checkpoint to resume from; 'last': the newest run's."
        )

    def before_instantiate_classes(self) -> None:
        flags = self.config.trainer
        chosen = any("ProgressBar" in callback.class_path for callback in flags.callbacks or [])
        if flags.enable_progress_bar is not False and not chosen:
            # Lightning's own choice draws at every step, which takes time and makes a GPU wait
            self.trainer_defaults["callbacks"].append(TQDMProgressBar(refresh_rate=20))
        self.last.every_n_steps = self.config.checkpoint.every_n_train_steps
        if self.config.ckpt_path is None:
            return
        logger = self.config.trainer.logger
        in_runs = isinstance(logger, dict) or hasattr(logger, "init_args")
        runs = Path(logger.init_args.save_dir) / logger.init_args.name if in_runs else Path("runs") / self.config_name
        checkpoint = checkpoint_to_resume(self.config.ckpt_path, runs)
        self.config.ckpt_path = str(checkpoint)
        run = checkpoint.resolve().parents[1]
        if in_runs and checkpoint.parent.name == "checkpoints" and run.parent == runs.resolve():
            logger.init_args.version = run.name

    def check_weights(self, stored: dict[str, Any]) -> None:
        """Refuses weights that are not the model's by name and shape."""
        stored, own = (
            {str(name): getattr(weight, "shape", None) for name, weight in weights.items()}
            for weights in (stored, self.model.state_dict())
        )
        differing = sorted(name for name in stored.keys() | own.keys() if stored.get(name) != own.get(name))
        if differing:
            raise UsageError(
                f"--ckpt_path {self.config.ckpt_path}: it was trained by another config: its {differing[0]} has the "
                f"shape {stored.get(differing[0])}, expected {own.get(differing[0])}"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def train(self) -> None:
        """Fits and tests the model, and writes and prints the results."""
        if self.config.ckpt_path is not None:
            self.check_weights(read_checkpoint(Path(self.config.ckpt_path))["state_dict"])
        if isinstance(self.model, WAE):
            # it logs the first and the last step of each epoch, however short that is
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
        start, start_cpu = time.perf_counter(), time.process_time()
        self.trainer.fit(self.model, self.datamodule, ckpt_path=self.config.ckpt_path, weights_only=True)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        metrics = self.trainer.test(self.model, self.datamodule, verbose=False)[0]
        log_dir = self.trainer.log_dir  # asks the first process: all of them must take part
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run or log_dir is None:
            return
        folder = Path(log_dir)
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
        print(f"Look at it with: tensorboard --logdir {folder.parent}")


def in_one_sentence(message: str) -> str:
    """Shortens what jsonargparse says of a mistake, and names the nearest right flag for a wrong one."""
    if re.search("No supported gpu backend|can not run on your system", message):
        return (
            f"--accelerator: this machine has no such device that PyTorch {torch.__version__} can use; "
            "--accelerator cpu, or auto, runs without"
        )
    key = re.search(r'Parser key "([^"]+)"', message)
    flag = f"--{key.group(1)}" if key else ""
    unknown = re.search(r"[Uu]nrecognized arguments: (--[^\s=]+)", message)
    option = re.search(r"Option '([\w.]+)' is not accepted", message)
    if unknown:
        return f"unknown flag {unknown.group(1)}{nearest(unknown.group(1), known_flags())}"
    if option:
        part = "--" + ".".join(re.findall(r'Parser key "([^"]+)"', message[: option.start()]))
        wrong = f"{part}.{option.group(1)}"
        if message[: option.start()].rstrip().endswith("class_path 'torch.nn.Module':"):
            return f"{wrong}: the config leaves this part to the model; name its class first, {part}=CLASS"
        known = known_flags() if len(wrong.split(".")) == 2 else []  # only arguments of models and data are listed
        return f"unknown flag {wrong}{nearest(wrong, known)}"
    # The types that were tried are listed one by one; None and the class as a whole tell nothing
    tried = [line.strip()[2:] for line in message.splitlines() if line.strip().startswith("- ")]
    telling = [text for text in tried if "NoneType" not in text and not text.startswith("Problem with given")]
    given = re.search(r"Given value: (\w.*)", message)
    reason = telling[-1] if telling else " ".join(message.split())
    if reason.startswith("Expected a") and given:
        reason = f"{reason[0].lower()}{reason[1:]}, got {given.group(1)}"
    return f"{flag}: {reason}" if flag and flag[2:] not in reason else reason


def known_flags() -> list[str]:
    """All flags that the command line knows, the models' and data modules' own ones included."""
    import datamodules
    import wae_lightning

    flags = ["--config", "--ckpt_path", "--seed_everything", "--print_config", "--help"]
    flags += [f"--{prefix}{name}" for name in TRAINER_FLAGS for prefix in ("", "trainer.")]
    flags += [f"--checkpoint.{name}" for name in inspect.signature(ModelCheckpoint.__init__).parameters]
    for prefix, package in (("model", wae_lightning), ("data", datamodules)):
        for cls in (getattr(package, name) for name in package.__all__):
            if inspect.isclass(cls):
                flags += [f"--{prefix}.{name}" for name in inspect.signature(cls.__init__).parameters if name != "self"]
    return sorted(set(flags))


def look_for_gpus_once() -> None:
    """Where there is none, keeps PyTorch from searching the disk for a driver in each step of an optimizer: 0.4 ms."""
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def on_sigterm(number: int, frame: Any) -> None:
    raise Stopped(128 + number)


def what_went_wrong(error: Exception, cli: Train | None) -> str | None:
    """One sentence on an error that is not the program's fault: of memory, disk or network; None if it may be."""
    message = str(error)
    batch_size = getattr(getattr(cli, "datamodule", None), "batch_size", None)
    out_of_memory = re.search("not enough memory|can't allocate memory", message)
    if out_of_memory or isinstance(error, torch.OutOfMemoryError | MemoryError):
        where = "GPU memory" if isinstance(error, torch.OutOfMemoryError) else "memory"
        return (
            f"out of {where} with batches of {batch_size}: try a smaller --data.batch_size (with "
            "--accumulate_grad_batches to keep the effective one), --precision bf16-mixed or a smaller model "
            f"({message.splitlines()[0] if message else type(error).__name__})"
        )
    if isinstance(error, torch.distributed.DistNetworkError):
        port = os.environ.get("MASTER_PORT", "chosen by Lightning")
        return (
            f"the processes cannot meet at port {port}: another program may listen there; set the environment "
            f"variable MASTER_PORT to a free one ({message.splitlines()[0]})"
        )
    if isinstance(error, OSError):
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror}" if error.strerror else message
    if isinstance(error, FloatingPointError) or "returned nan values" in message:
        return message
    return None


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Mistakes of the user end in one line and exit status 2, failures of memory, disk or numbers in one line and status
    1, signals in one line and 128 plus their number.
    """
    given: Any = sys.argv[1:] if arguments is None else arguments
    # Lightning hints that in-memory data should get worker processes (it should not), and uses an old name of torch's
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
    # this holds for the model's step before the optimizer's, which nobody needs
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    keep_freed_memory()
    look_for_gpus_once()
    sys.argv = sys.argv[:1]
    cli = None
    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        full, name = with_full_names(given)
        cli = Train(full, name)
        # with several devices Lightning starts the other processes by this command line
        sys.argv = [*sys.argv, *given]
        cli.train()
    except (UsageError, MisconfigurationException, FileNotFoundError, ValueError, ArgumentError) as error:
        print(f"train.py: error: {in_one_sentence(str(error))}", file=sys.stderr)
        sys.exit(2)
    except SIGTERMException:
        assert cli is not None
        number = cli.last.signal or signal.SIGTERM
        print(
            f"train.py: stopped by {number.name} after step {cli.trainer.global_step}; "
            f"--ckpt_path last goes on from {cli.last.best_model_path}",
            file=sys.stderr,
        )
        sys.exit(128 + number)
    except Stopped as stop:
        print("train.py: stopped by SIGTERM while no training was under way", file=sys.stderr)
        sys.exit(stop.code)
    except KeyboardInterrupt:
        print("train.py: stopped by SIGINT while no training was under way", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        # the other processes would wait for this one
        for process in getattr(cli.trainer.strategy.launcher, "procs", []) if cli else []:
            process.kill()
        sentence = what_went_wrong(error, cli)
        if sentence is None:
            raise
        print(f"train.py: error: {sentence}", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()

"""Where the files of a run lie: in ``runs/<config>/<version>``, whatever logs it."""

from __future__ import annotations

import csv
import inspect
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from wae_lightning.cli.errors import UsageError, find_class
from wae_lightning.cli.flags import find_checkpoint
from wae_lightning.lightning import Callback, CSVLogger, LightningModule, Logger, TensorBoardLogger, Trainer

__all__ = [
    "ROOT",
    "GoOnLogging",
    "checkpoint_to_resume",
    "choose_folder",
    "dashboards",
    "place_loggers",
    "remove_folder",
]

ROOT = "runs"
FOLDER = "WAE_LIGHTNING_RUN_FOLDER"
"""Environment variable in which the first process tells those that Lightning starts from it the folder of the run."""

# class of a logger -> its argument that makes it go on in an earlier run of its own
_IDS = {"WandbLogger": "version", "MLFlowLogger": "run_id"}


def is_first_process() -> bool:
    """Whether this process decides: of several, those that launchers start are numbered from 0."""
    return not any(
        os.environ.get(name, "0").strip() not in ("", "0")
        for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
    )


def checkpoint_to_resume(path: str, runs: Path) -> Path:
    """Resolves ``--ckpt_path``: a file, the folder of a run, or ``last``, the newest ``last.ckpt`` of the config.

    Raises:
        UsageError: If there is none.
    """
    if path != "last":
        try:
            return find_checkpoint(Path(path))
        except FileNotFoundError as error:
            raise UsageError(f"--ckpt_path {error}") from None
    if not is_first_process() and FOLDER in os.environ:
        return Path(os.environ[FOLDER]) / "checkpoints" / "last.ckpt"
    found = sorted(runs.glob("*/checkpoints/last.ckpt"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise UsageError(f"--ckpt_path last: there is no {runs}/*/checkpoints/last.ckpt to go on from")
    return found[-1]


def choose_folder(runs: Path, resumed: Path | None = None) -> Path:
    """The folder of this run; a new one is made, under a number that no other run has.

    Args:
        runs: The folder of all runs of the config.
        resumed: The folder of the run that goes on.
    """
    if not is_first_process():
        # it writes nothing itself, whatever it would call the folder
        return Path(os.environ.get(FOLDER, runs / "of_the_first_process"))
    folder = resumed or _make_folder(runs)
    os.environ[FOLDER] = str(folder)
    return folder


def _make_folder(runs: Path) -> Path:
    taken = [path.name.removeprefix("version_") for path in runs.glob("version_*")]
    for number in itertools.count(max((int(name) + 1 for name in taken if name.isdigit()), default=0)):
        with suppress(FileExistsError):  # another run was faster
            folder = runs / f"version_{number}"
            runs.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return folder
    raise AssertionError("there is always a next number")


def remove_folder(folder: Path) -> None:
    """Removes the folder that a run has made, with what its loggers have put there; and its parent, if it is empty."""
    if is_first_process():
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()


def place_loggers(loggers: Any, folder: Path, resumed: list[list[str]]) -> None:
    """Makes loggers write into the folder of the run, or beside the runs what they share; what is given stays given.

    Args:
        loggers: The description of one logger or several, as LightningCLI has parsed it; it is changed.
        folder: The folder of the run.
        resumed: Of the run that goes on, class and id of each logger, see :class:`GoOnLogging`.
    """
    for index, logger in enumerate(loggers if isinstance(loggers, list) else [loggers]):
        cls, arguments = find_class(logger.class_path), logger.get("init_args")
        if cls is None or arguments is None:
            continue
        parameters = inspect.signature(cls.__init__).parameters
        names = [base.__name__ for base in cls.__mro__]
        for key, value in _places(names, arguments, folder).items():
            if key in parameters and _is_default(arguments.get(key), parameters[key].default, folder):
                arguments[key] = value
        if index < len(resumed) and resumed[index][0] == cls.__name__ and cls.__name__ in _IDS:
            arguments[_IDS[cls.__name__]] = resumed[index][1]


def _is_default(value: Any, default: Any, folder: Path) -> bool:
    # the last two: jsonargparse hands the arguments of our logger of TensorBoard on to the one in its place
    return value in (None, default, ROOT, folder.parent.name)


def _places(names: list[str], arguments: Any, folder: Path) -> dict[str, str]:
    """Arguments of a logger whose class and base classes have these names."""
    config, runs = folder.parent.name, folder.parents[1]
    if "TensorBoardLogger" in names or "CSVLogger" in names:
        return {"save_dir": str(runs), "name": config, "version": folder.name}
    if "MLFlowLogger" in names:
        places = {"run_name": f"{config}/{folder.name}"}
        if arguments.get("tracking_uri") is None and arguments.get("save_dir") in (None, "./mlruns", ROOT):
            # one database for all runs, since MLflow has given up its folders of files
            places["tracking_uri"] = f"sqlite:///{runs}/mlflow.db"
            places["artifact_location"] = (runs / "mlartifacts").absolute().as_uri()
        return places
    return {"save_dir": str(folder), "name": f"{config}/{folder.name}"}


def _step(row: dict[str, str]) -> int:
    """The training step that a row is about: a test after the third step, which is the step 2, is logged at 3."""
    tested = any(value for name, value in row.items() if name.startswith("test/"))
    return int(row.get("step") or 0) - tested


class GoOnLogging(Callback):
    """Makes the loggers of a resumed run go on: its checkpoint says which run of W&B and MLflow it is.

    Lightning's CSV logger begins a new file; what the run had written until the checkpoint is put in front.
    """

    def __init__(self) -> None:
        self.runs: list[list[str]] = []
        self.rows: list[dict[str, str]] = []
        self.started = False
        """Whether training has begun, now or in the run that goes on."""

    def resume(self, checkpoint: dict[str, Any], folder: Path) -> None:
        """Reads what a run's own checkpoint says of its loggers, and what its CSV logger had written until then."""
        self.started = True
        state = checkpoint.get("callbacks", {}).get(type(self).__name__, {})
        self.runs = [[str(name), str(run)] for name, run in state.get("runs", [])]
        file = folder / "metrics.csv"
        if file.is_file():
            with file.open(newline="") as lines:
                rows = list(csv.DictReader(lines))
            self.rows = [row for row in rows if _step(row) < checkpoint["global_step"]]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = True
        if trainer.is_global_zero:
            self.runs = [[type(logger).__name__, str(logger.version)] for logger in trainer.loggers]
            for logger in trainer.loggers:
                if isinstance(logger, CSVLogger):
                    logger.experiment.metrics[:0] = [dict(row) for row in self.rows]

    def state_dict(self) -> dict[str, Any]:
        return {"runs": self.runs}


def dashboards(loggers: list[Logger], folder: Path) -> Iterator[str]:
    """How to look at a run, by each logger that it used."""
    for logger in loggers:
        names = [base.__name__ for base in type(logger).__mro__]
        experiment: Any = getattr(logger, "experiment", None)
        if isinstance(logger, TensorBoardLogger):
            yield f"tensorboard --logdir {Path(logger.root_dir)}"
        elif isinstance(logger, CSVLogger):
            yield str(Path(logger.log_dir) / "metrics.csv")
        elif "WandbLogger" in names:
            yield experiment.url or f"wandb sync {os.path.relpath(Path(experiment.dir).parent)}"
        elif "MLFlowLogger" in names:
            uri = str(experiment.tracking_uri)
            yield uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
        elif "CometLogger" in names:
            yield str(experiment.url)

"""The table of docs/loggers.md, cell by cell, and the folders of runs."""

import contextlib
import csv
import functools
import io
import json
import os
import re
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from forked import TRAIN, run_forked
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wae_lightning.cli import train
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.runs import FOLDER, checkpoint_to_resume, choose_folder, is_first_process

SHORT = [
    "--limit_train_batches=3", "--limit_val_batches=1", "--limit_test_batches=1", "--enable_progress_bar=false",
    "--enable_model_summary=false", "--model.encoder=ConvEncoder", "--model.encoder.width=0.02",
    "--model.decoder=ConvDecoder", "--model.decoder.width=0.02", "--accelerator=cpu", "--log_every_n_steps=1",
]  # fmt: skip
LOGGERS = {
    "TensorBoard": [],
    "W&B": ["--logger=WandbLogger", "--logger.offline=true"],
    "MLflow": ["--logger=MLFlowLogger"],
    "MLflow, files": ["--logger=MLFlowLogger", "--logger.save_dir=mlruns"],
    "CSV": ["--logger+=CSVLogger"],
    "CSV alone": ["--logger=CSVLogger"],
    "none": ["--logger=false"],
}
PICTURES = {"samples", "reconstructions", "interpolations", "codes"}
RUNS = Path("runs/mnist_wae_mmd")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains one epoch under a logger, goes on for a second one; returns the working directory and what was said."""

    @functools.cache
    def trained(name):
        needed = {"W&B": "wandb", "MLflow": "mlflow", "MLflow, files": "mlflow"}.get(name)
        if needed:
            pytest.importorskip(needed)
        folder = tmp_path_factory.mktemp("run")
        (folder / "thesis.docx").touch()
        # a process of W&B that another test has started is not theirs
        environment = {"MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_SILENT": "true", "WANDB_SERVICE": None}
        printed = []
        for flags in (["--max_epochs=1"], ["--max_epochs=2", "--ckpt_path=last"]):
            command = [*SHORT, *LOGGERS[name], *flags]
            if needed:  # it may leave something in the process
                ran = run_forked(TRAIN, *command, cwd=folder, **environment)
                assert ran.returncode == 0, ran.stderr
                printed.append(ran.stdout)
                continue
            said = io.StringIO()
            with pytest.MonkeyPatch.context() as here, contextlib.redirect_stdout(said):
                here.chdir(folder)
                here.setattr(sys, "argv", ["train.py"])
                train.main(command)
            printed.append(said.getvalue())
        return folder, printed

    return trained


def wandb_records(folder):
    """What W&B has written: blocks of 32 KiB, records of checksum, length, kind and content."""
    from wandb.proto import wandb_internal_pb2

    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime):
        content, place, record = file.read_bytes(), 7, b""
        while place + 7 <= len(content):
            left = 32768 - place % 32768
            if left < 7:
                place += left
                continue
            _, length, kind = struct.unpack("<IHB", content[place : place + 7])
            record += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                yield wandb_internal_pb2.Record.FromString(record)
                record = b""


def mlflow_client(name, folder):
    import mlflow

    uri = f"file:{folder}/mlruns" if "files" in name else f"sqlite:///{folder}/runs/mlflow.db"
    client = mlflow.MlflowClient(uri)
    (one,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return client, one


def logged_steps(name, folder, tag):
    """The steps at which a scalar was logged."""
    if name == "TensorBoard":
        return [event.step for event in EventAccumulator(str(folder / RUNS / "version_0")).Reload().Scalars(tag)]
    if name == "W&B":
        rows = [
            {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            for record in wandb_records(folder / RUNS / "version_0")
            if record.WhichOneof("record_type") == "history"
        ]
        return [int(row["trainer/global_step"]) for row in rows if tag in row]
    if name.startswith("MLflow"):
        client, one = mlflow_client(name, folder)
        return [metric.step for metric in client.get_metric_history(one.info.run_id, tag)]
    with (folder / RUNS / "version_0" / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row[tag]]


@pytest.mark.parametrize("name", [name for name in LOGGERS if name != "none"])
def test_metrics_and_resume_in_one_curve(name, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder, _ = run(name)
    assert logged_steps(name, folder, "train/cost") == [0, 1, 2, 3, 4, 5]
    assert logged_steps(name, folder, "val/cost") == [2, 5]
    # TensorBoard shows results beside the hyper-parameters, too
    assert sorted(set(logged_steps(name, folder, "test/cost"))) == [3, 6]


@pytest.mark.parametrize("name", [name for name in LOGGERS if name != "none"])
def test_hyperparameters(name, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder, _ = run(name)
    if name == "W&B":
        found = {
            update.key: json.loads(update.value_json)
            for record in wandb_records(folder / RUNS / "version_0")
            for update in record.config.update
        }
    elif name.startswith("MLflow"):
        found = {key: yaml.safe_load(value) for key, value in mlflow_client(name, folder)[1].data.params.items()}
    else:
        found = yaml.safe_load((folder / RUNS / "version_0" / "hparams.yaml").read_text())
    assert (found["latent_dim"], found["penalty_weight"]) == (16, 1.0)


@pytest.mark.parametrize("name", LOGGERS)
def test_pictures(name, run, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder, _ = run(name)
    place = folder / RUNS / "version_0"
    assert {path.stem for path in place.glob("*.png")} == PICTURES
    if name == "TensorBoard":
        assert set(EventAccumulator(str(place)).Reload().Tags()["images"]) == PICTURES
    elif name == "W&B":
        assert {path.name.split("_")[0] for path in place.rglob("media/images/*.png")} == PICTURES
    elif name.startswith("MLflow"):
        client, one = mlflow_client(name, folder)
        files = [Path(file.path).name for file in client.list_artifacts(one.info.run_id, "images")]
        assert {file.split("%")[0].split("+")[0] for file in files if file.endswith(".png")} == PICTURES
        # of the last step of each epoch
        assert {re.search("step.(\\d+)", file)[1] for file in files} == {"2", "5"}, files


@pytest.mark.parametrize("name", LOGGERS)
def test_config_and_folder(name, run):
    folder, printed = run(name)
    place = folder / RUNS / "version_0"
    assert [path.name for path in (folder / RUNS).iterdir()] == ["version_0"]
    files = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.json", "checkpoints/last.ckpt"} <= files
    assert any(file.startswith("checkpoints/lowest-val-loss-") for file in files)
    assert json.loads((place / "metrics.json").read_text())["steps"] == 6
    assert torch.load(place / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
    config = yaml.safe_load((place / "config.yaml").read_text())
    assert config["model"]["class_path"] == "wae_lightning.WAEMMD"
    # a new run may be made of it: it holds no place of this one
    assert "version_0" not in json.dumps(config["trainer"]["logger"])
    beside = {"thesis.docx", "runs"} | ({"mlruns"} if name == "MLflow, files" else set())
    assert {path.name for path in folder.iterdir()} == beside
    if name == "none":
        assert {path.name for path in (folder / "runs").iterdir()} == {"mnist_wae_mmd"}
    for text in printed:
        lines = text.partition(f"Written to {RUNS}/version_0:\n")[2].splitlines()
        listed = {line.strip() for line in lines if line.startswith("  ")}
        assert {"config.yaml", "metrics.json", "checkpoints/last.ckpt"} <= listed
        # a lower loss in the second epoch takes the place of the first one's file
        assert listed - files <= ({"checkpoints/lowest-val-loss-epoch=000.ckpt"} if text is printed[0] else set())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TensorBoard", [f"tensorboard --logdir {RUNS}"]),
        ("W&B", [f"wandb sync {RUNS}/version_0/wandb/offline-run-"]),
        ("MLflow", ["mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"]),
        ("MLflow, files", ["mlflow ui --backend-store-uri file:mlruns"]),
        ("CSV", [f"tensorboard --logdir {RUNS}", f"{RUNS}/version_0/metrics.csv"]),
        ("CSV alone", [f"{RUNS}/version_0/metrics.csv"]),
        ("none", []),
    ],
)
def test_the_last_lines_name_the_dashboard(name, expected, run):
    folder, printed = run(name)
    for text in printed:
        lines = [line.removeprefix("Look at it with: ") for line in text.splitlines() if line.startswith("Look at")]
        assert len(lines) == len(expected)
        assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))
        if name == "W&B":
            assert (folder / lines[0].split()[-1]).is_dir()


def test_a_resumed_run_keeps_its_id(run):
    folder, _ = run("W&B")
    records = [record.run.run_id for record in wandb_records(folder / RUNS / "version_0") if record.run.run_id]
    assert len(records) == 2
    assert len(set(records)) == 1


def test_the_table_of_the_docs_names_each_logger():
    table = (Path(train.__file__).parents[2] / "docs" / "loggers.md").read_text()
    rows = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("| ")]
    assert set(rows[2:]) == {"TensorBoard", "W&B", "MLflow", "CSV", "none"}


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_runs_that_start_together_have_folders_of_their_own(tmp_path):
    together = threading.Barrier(8)

    def choose(_):
        together.wait()
        return choose_folder(tmp_path / "new" / "runs")

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(choose, range(8)))
    assert {folder.name for folder in folders} == {f"version_{number}" for number in range(8)}
    (tmp_path / "new/runs/version_3").rmdir()
    assert choose_folder(tmp_path / "new" / "runs").name == "version_8"


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_only_the_first_process_makes_a_folder(environment, first, tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(FOLDER, str(tmp_path / "told"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() == first
    folder = choose_folder(tmp_path / "runs")
    assert (folder.name, folder.is_dir()) == (("version_0", True) if first else ("told", False))
    assert os.environ[FOLDER] == str(folder)
    if first:
        with pytest.raises(UsageError, match=r"--ckpt_path last: there is no .*runs/\*/checkpoints/last.ckpt"):
            checkpoint_to_resume("last", tmp_path / "runs")
    else:  # what the first process goes on from, not what is newest now
        assert checkpoint_to_resume("last", tmp_path / "runs") == tmp_path / "told/checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (["--model.latent_dim=0"], set()),
        (["--data.root=nowhere"], set()),
        (["--fast_dev_run=1"], set()),
        (["--fast_dev_run=1", "--logger=MLFlowLogger"], set()),
        (["--print_config"], set()),
        (["--default_root_dir=elsewhere", "--logger=false", "--max_epochs=1", "--trainer.callbacks=[]"], {"elsewhere"}),
    ],
    ids=str,
)
def test_a_run_without_results_leaves_no_folder(flags, left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    try:
        train.main([*SHORT, *flags])
    except SystemExit as stop:
        assert stop.code in (0, 2)  # noqa: PT017  either ends in it
    found = {path.name for path in tmp_path.iterdir()}
    assert found - {"runs"} == left
    assert not list(tmp_path.glob("runs/*"))
    assert [path.name for path in tmp_path.glob("elsewhere/*/*")] == ["version_0"] * len(left)


def test_what_is_given_for_a_logger_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    train.main([*SHORT, "--max_epochs=1", "--trainer.callbacks=[]", "--trainer.logger.save_dir=events"])
    assert list(tmp_path.glob("events/mnist_wae_mmd/version_0/events.out.*"))
    assert (tmp_path / RUNS / "version_0/metrics.json").is_file()
    # every checkpoint callback writes into the run's folder, whatever logs
    pytest.importorskip("wandb")
    flags = ["--logger=WandbLogger", "--logger.offline=true", "--logger.version=mine"]
    more = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.filename=each"]
    monkeypatch.setenv("WANDB_SILENT", "true")
    train.main([*SHORT, "--max_epochs=1", *flags, *more])
    import wandb

    assert wandb.run.id == "mine"
    wandb.finish()
    names = {path.name for path in (tmp_path / RUNS / "version_1/checkpoints").iterdir()}
    assert {"each.ckpt", "last.ckpt"} <= names

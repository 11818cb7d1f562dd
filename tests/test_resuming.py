"""Going on from a checkpoint: with the same settings, alone in the folder, to the same weights, names and metrics."""

import copy
import errno
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import kill_runs
import pytest
import torch
from helpers import perceptrons, trainer
from kill_runs import Noise
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from wae_lightning import WAEMMD
from wae_lightning.cli import train
from wae_lightning.cli.errors import UsageError, explain_failure
from wae_lightning.cli.resuming import LOCK, check_settings, hold_folder
from wae_lightning.costs import SquaredError
from wae_lightning.kernels import RBF
from wae_lightning.networks import ConvDecoder, ConvEncoder
from wae_lightning.parts import recorded_arguments
from wae_lightning.penalties import MMD
from wae_lightning.training.finite import _kept
from wae_lightning.training.interruption import LastCheckpoint
from wae_lightning.training.monitored import MonitoredCheckpoint

# ---- settings -------------------------------------------------------------------------------------------------------


def settings(**changes):
    arguments = {"latent_dim": 2, "penalty": MMD(RBF(1.0)), "optimizer": functools.partial(Adam, lr=1e-3)} | changes
    return recorded_arguments(WAEMMD(**arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": functools.partial(Adam, lr=1e-5)}, "--model.optimizer.lr is 1e-05, and .* with 0.001: leave "),
        ({"optimizer": functools.partial(Adam, lr=1e-3, eps=1e-4)}, "--model.optimizer.eps is 0.0001, .* 1e-08"),
        ({"optimizer": functools.partial(SGD, lr=1e-3)}, "--model.optimizer is torch.optim.SGD, .* torch.optim.Adam"),
        ({"optimizer": None}, "--model.optimizer is None, .* torch.optim.Adam"),
        ({"lr_scheduler": functools.partial(ReduceLROnPlateau)}, "--model.lr_scheduler is ReduceLROnPlateau, .* None"),
        ({"lr_interval": "step"}, "--model.lr_interval is step, .* epoch"),
        ({"penalty_weight": 3.0}, "--model.penalty_weight is 3.0, .* 10.0"),
        ({"penalty": MMD(RBF(2.0))}, "--model.penalty.kernel.bandwidth is 2.0, .* 1.0"),
    ],
    ids=str,
)
def test_another_setting_of_a_run_that_goes_on_is_refused_by_name(change, message):
    with pytest.raises(UsageError, match=message):
        check_settings({"hyper_parameters": settings()}, settings(**change), "last.ckpt")


def test_the_same_settings_pass_and_so_does_what_changes_no_step():
    before = settings(lr_scheduler=functools.partial(ReduceLROnPlateau, patience=2))
    check_settings({"hyper_parameters": before | {"_version": "0.1"}}, copy.deepcopy(before), "last.ckpt")
    other = json.loads(json.dumps(before).replace("torch.optim.lr_scheduler.", "lightning.pytorch.cli."))
    assert other != before
    check_settings({"hyper_parameters": other}, before | {"compile": True}, "last.ckpt")
    check_settings({}, before, "last.ckpt")


def without(described, key):
    """A description as it was before its class had that argument."""
    return removed(described | {"_class_path": "wae_lightning.WAEMMD"}, key)


def removed(described, key):
    if isinstance(described, dict):
        return {name: removed(value, key) for name, value in described.items() if name != key}
    return described


@pytest.mark.parametrize("key", ["standardize_codes", "hidden", "scale"])
def test_an_argument_newer_than_the_checkpoint_is_the_default_of_its_class(key):
    networks = {"encoder": ConvEncoder(latent_dim=2, width=0.02), "decoder": ConvDecoder(latent_dim=2, width=0.02)}
    now = settings(cost=SquaredError(), **networks)
    before = without(now, key)
    assert before != without(now, "nothing")
    check_settings({"hyper_parameters": before}, now, "last.ckpt")
    check_settings({"hyper_parameters": now | {"_class_path": "wae_lightning.WAEMMD"}}, before, "last.ckpt")


def test_a_default_of_torchs_that_is_written_down_is_no_other_setting():
    written = settings(optimizer=functools.partial(Adam, lr=1e-3, betas=(0.9, 0.999)))
    check_settings({"hyper_parameters": settings()}, written, "last.ckpt")
    check_settings({"hyper_parameters": written}, settings(), "last.ckpt")


def test_an_argument_newer_than_the_checkpoint_that_is_not_its_default_is_refused():
    now = settings(encoder=ConvEncoder(latent_dim=2, width=0.02, hidden=[8]))
    with pytest.raises(
        UsageError, match=r"--model.encoder.hidden is \[8\], and last.ckpt was trained with \[\]: leave"
    ):
        check_settings({"hyper_parameters": without(now, "hidden")}, now, "last.ckpt")


SHORT = [
    "--limit_train_batches=3", "--limit_val_batches=2", "--limit_test_batches=1", "--enable_progress_bar=false",
    "--model.encoder=ConvEncoder", "--model.encoder.width=0.02", "--model.decoder=ConvDecoder",
    "--model.decoder.width=0.02", "--trainer.callbacks=[]",
]  # fmt: skip


def test_the_command_refuses_another_learning_rate_and_leaves_the_run_as_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    train.main([*SHORT, "--max_epochs=1", "--checkpoint.every_n_train_steps=100"])
    (run,) = (tmp_path / "runs/mnist_wae_mmd").iterdir()
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["last.ckpt", "lowest-val-loss-epoch=000.ckpt"]
    assert not (run / LOCK).exists()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train.main([*SHORT, "--max_epochs=2", "--ckpt_path=last", "--model.optimizer.lr=1e-5"])
    assert stop.value.code == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert re.match("train.py: error: --model.optimizer.lr is 1e-05, and .*last.ckpt was trained with 0.02: ", sentence)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


# ---- one process in a folder ----------------------------------------------------------------------------------------

HOLDS = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from wae_lightning.cli.resuming import hold_folder
with hold_folder(Path(sys.argv[1])):
    if os.fork() == 0:  # as the loader's worker processes are
        time.sleep(60)
    print(flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_one_is_dead(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True)
    first.stdout.readline()
    try:
        with (
            pytest.raises(UsageError, match=rf"{tmp_path}: process {first.pid} is training in this folder"),
            hold_folder(tmp_path),
        ):
            pass
        first.kill()
        first.wait()
        with hold_folder(tmp_path):  # its child lives
            assert (tmp_path / LOCK).read_text() == str(os.getpid())
        assert not (tmp_path / LOCK).exists()
    finally:
        os.killpg(first.pid, signal.SIGKILL)


# ---- the checkpoint of the lowest loss ------------------------------------------------------------------------------


class Scripted(WAEMMD):
    """Its validation loss in the n-th epoch is the n-th of these numbers."""

    losses = (3.0, 1.0, 2.0, 0.5, 4.0)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val/score", self.losses[self.current_epoch])


def fit(folder, epochs, resume=None, monitor="val/score", callbacks=(), cls=Scripted, **checkpoint):
    torch.manual_seed(0)
    kept = MonitoredCheckpoint(monitor, dirpath=folder / "checkpoints", **checkpoint)
    trained = trainer(
        folder, enable_checkpointing=True, callbacks=[LastCheckpoint(2), kept, *callbacks], max_epochs=epochs,
        num_sanity_val_steps=0,
    )  # fmt: skip
    model = cls(**perceptrons(), lr_scheduler=functools.partial(ReduceLROnPlateau, patience=0))
    trained.fit(model, Noise(), ckpt_path=resume, weights_only=True)
    return kept, model


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("every_n_train_steps", [None, 2, 1000])
def test_the_lowest_loss_is_kept_under_the_epoch_that_had_it(tmp_path, every_n_train_steps):
    fit(tmp_path, 5, every_n_train_steps=every_n_train_steps)
    assert names(tmp_path) == ["last.ckpt", "lowest-val-score-epoch=003.ckpt"]
    found = torch.load(tmp_path / "checkpoints/lowest-val-score-epoch=003.ckpt", weights_only=True)
    assert (found["epoch"], found["global_step"]) == (3, 12)


def test_the_file_says_what_was_monitored(tmp_path):
    fit(tmp_path, 5, mode="max")
    assert names(tmp_path) == ["highest-val-score-epoch=004.ckpt", "last.ckpt"]
    fit(tmp_path / "loss", 1, monitor="val/loss")
    assert names(tmp_path / "loss") == ["last.ckpt", "lowest-val-loss-epoch=000.ckpt"]


@pytest.mark.parametrize("moved", [False, True])
def test_a_resumed_run_keeps_the_checkpoints_that_the_whole_one_keeps(tmp_path, moved):
    fit(tmp_path / "whole", 5, save_top_k=2)
    assert names(tmp_path / "whole") == ["last.ckpt", *(f"lowest-val-score-epoch=00{n}.ckpt" for n in (1, 3))]
    here = tmp_path / "stopped"
    for epochs in (2, 3, 5):
        resume = here / "checkpoints/last.ckpt" if epochs > 2 else None
        if moved and resume:
            here = here.rename(tmp_path / f"moved {epochs}")
            resume = here / "checkpoints/last.ckpt"
        kept, _ = fit(here, epochs, resume, save_top_k=2)
    assert names(here) == names(tmp_path / "whole")
    assert kept.best_model_path == str(here / "checkpoints/lowest-val-score-epoch=003.ckpt")
    assert {Path(path).name: float(score) for path, score in kept.best_k_models.items()} == {
        "lowest-val-score-epoch=001.ckpt": 1.0,
        "lowest-val-score-epoch=003.ckpt": 0.5,
    }


def test_a_stop_says_that_a_checkpoint_is_kept_only_where_there_is_one(tmp_path):
    def kept(best, resumed=None):
        return _kept(SimpleNamespace(checkpoint_callbacks=[SimpleNamespace(best_model_path=best)], ckpt_path=resumed))

    there = tmp_path / "last.ckpt"
    there.touch()
    assert [kept(""), kept(str(tmp_path / "gone.ckpt"))] == ["", ""]
    assert [kept(str(there)), kept("", str(there))] == [f"; {there} is kept"] * 2


def test_a_folder_that_cannot_be_written_is_named_as_people_write_it():
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), b"runs/a/events")
    assert explain_failure(error) == "runs/a/events: Permission denied"


# ---- schedules, averaged weights, processes -------------------------------------------------------------------------


class Plateaus(Scripted):
    """Counts the steps of its schedule by epoch, and gets a signal before one call of a hook."""

    stepped = None
    at = ("", 0)

    def _count(self, name):
        self.calls = getattr(self, "calls", {})
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.at == (name, self.calls[name]):
            os.kill(os.getpid(), signal.SIGTERM)

    def training_step(self, batch, batch_idx):
        self._count("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self._count("validation_step")
        super().validation_step(batch, batch_idx)

    def lr_scheduler_step(self, scheduler, metric):
        self.stepped.append((self.current_epoch, float(metric)))
        super().lr_scheduler_step(scheduler, metric)


@pytest.mark.parametrize(
    "at", [("training_step", n) for n in (1, 3, 4, 6)] + [("validation_step", n) for n in (1, 2, 3)], ids=str
)
def test_a_plateau_schedule_steps_once_per_epoch_wherever_a_run_goes_on(tmp_path, monkeypatch, at):
    monkeypatch.setattr(Plateaus, "stepped", [])
    monkeypatch.setattr(Plateaus, "losses", (3.0, 4.0, 5.0))
    monkeypatch.setattr(Plateaus, "at", at)
    with pytest.raises(SystemExit):
        fit(tmp_path, 3, cls=Plateaus, monitor="val/loss")
    monkeypatch.setattr(Plateaus, "at", ("", 0))
    fit(tmp_path, 3, tmp_path / "checkpoints/last.ckpt", cls=Plateaus, monitor="val/loss")
    assert [epoch for epoch, _ in Plateaus.stepped] == [0, 1, 2]


def test_tests_of_a_finished_run_that_is_resumed_have_the_same_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # weights that Lightning puts in place at the end of training
    kill_runs.fit(kill_runs.SETTINGS["averaged weights"], resume=False)
    before = Path("metrics.json").read_text()
    kill_runs.fit(kill_runs.SETTINGS["averaged weights"], resume=True)
    assert Path("metrics.json").read_text() == before


@pytest.mark.parametrize("name", ["workers, clouds", "gan, accumulation, plateau", "averaged weights", "two processes"])
def test_moments_of_the_kill_script_are_survived(name, tmp_path):
    records = kill_runs.try_setting(name, 2, random.Random(0), tmp_path)
    assert len(records) >= 2
    assert [record for record in records if record["lost"] or not record["equal"]] == []


def test_the_cache_of_a_killed_process_is_built_again(tmp_path):
    records = kill_runs.try_cache(2, random.Random(0), tmp_path)
    assert all(record["resumed"] and record["equal"] and not record["lost"] for record in records)

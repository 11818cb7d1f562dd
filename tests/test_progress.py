"""The progress bar: drawn rarely on a terminal, a line for each epoch elsewhere."""

import re
import sys

import pytest
import torch
from test_base import small, trainer

from datamodules import MNISTDataModule
from wae_lightning.callbacks import ProgressBar


def fit(tmp_path, bar, **arguments):
    arguments = {"max_epochs": 2, "limit_train_batches": 6, "log_every_n_steps": 1, "limit_val_batches": 2} | arguments
    trainer(tmp_path, enable_progress_bar=True, callbacks=[bar], **arguments).fit(
        small(), MNISTDataModule(batch_size=50)
    )


def test_a_log_file_gets_a_line_for_each_epoch(tmp_path, capfd):
    fit(tmp_path, ProgressBar())
    shown = capfd.readouterr()
    lines = [line for line in (shown.out + shown.err).splitlines() if "epoch" in line.lower() or "%" in line]
    number = r"-?[\d.e+-]+"
    pattern = rf"epoch (\d): train/cost {number}, train/penalty {number}, val/loss {number}, \d+ s"
    assert [re.fullmatch(pattern, line).group(1) for line in lines] == ["0", "1"]


def test_a_terminal_gets_a_bar_that_fetches_values_only_when_it_draws(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    drawn = []

    class Noting(ProgressBar):
        def get_metrics(self, trainer, model):
            found = super().get_metrics(trainer, model)
            drawn.append((trainer.fit_loop.batch_idx, found))
            return found

    fit(tmp_path, Noting(refresh_rate=4), max_epochs=1, num_sanity_val_steps=0)
    # after four steps, after all, after the validation and after the epoch
    assert [batch for batch, _ in drawn] == [3, 5, 5, 5]
    assert all({"train/cost", "train/penalty"} <= set(found) for _, found in drawn)
    assert float(drawn[0][1]["train/cost"]) > 0
    assert "train/cost=" in capfd.readouterr().out


def test_the_value_shown_is_that_of_the_last_step(monkeypatch):
    class Trainer:
        loggers, progress_bar_metrics = (), {}
        callback_metrics = {"train/cost": torch.tensor(1.23456), "val/cost": torch.tensor(2.0)}  # noqa: RUF012

    assert ProgressBar().get_metrics(Trainer(), None) == {"train/cost": "1.235"}


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="refresh_rate must be at least 1, got 0"):
        ProgressBar(0)

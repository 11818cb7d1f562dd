"""Measures reconstruction costs as anomaly scores: ``python experiments/reproduce/anomaly_results.py DIR``.

For each digit a model is trained on MNIST without that digit. The AUROC is the share of pairs of one such digit of the
test set and one other in which the former's reconstruction costs more: 0.5 is chance, 1 tells them all apart. Writes
one entry for each digit into ``anomalies.json``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from records import EXPERIMENTS, commit, hardware, write_json
from sklearn.metrics import roc_auc_score

from datamodules import MNISTDataModule
from wae_lightning import from_config
from wae_lightning.evaluation import encode_batches
from wae_lightning.lightning import Trainer, seed_everything

CONFIG = "mnist_wae_mmd"


class WithoutOneDigit(MNISTDataModule):
    """MNIST whose training and validation sets lack a digit, which the test set has."""

    left_out = -1

    def setup(self, stage: str = "fit") -> None:
        ready = hasattr(self, "test_set")
        super().setup(stage)
        for part in () if ready else (self.train_set, self.val_set):
            part.rows = part.rows[part.labels[part.rows] != self.left_out]


def measure(digit: int, root: Path, epochs: int, **model_arguments: Any) -> dict[str, Any]:
    """Trains without a digit and scores the test set."""
    seed_everything(digit, verbose=False)
    start = time.process_time()
    data = WithoutOneDigit(root, batch_size=200)
    data.left_out = digit
    model, _ = from_config(CONFIG, **model_arguments)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, data)
    found = encode_batches(model, (data.on_after_batch_transfer(batch, 0) for batch in data.in_order("test")))
    assert found.labels is not None
    strange = found.labels == digit
    return {
        "digit": digit,
        "steps": trainer.global_step,
        "cpu_seconds": time.process_time() - start,
        "auroc": float(roc_auc_score(strange, found.cost)),
        "mean_cost_of_it": float(found.cost[strange].mean()),
        "mean_cost_of_others": float(found.cost[~strange].mean()),
    }


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path("data"), help="folder that holds MNIST/raw (data)")
    parser.add_argument("--digits", type=int, nargs="+", default=list(range(10)), help="which to leave out (all)")
    parser.add_argument("--epochs", type=int, default=1, help="(1)")
    out = EXPERIMENTS / "results" / "anomalies.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON file to write")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    settings = {"config": CONFIG, "epochs": arguments.epochs, "commit": commit(), "hardware": hardware()}
    runs: list[dict[str, Any]] = []
    for digit in arguments.digits:
        runs.append(measure(digit, arguments.root, arguments.epochs))
        print(runs[-1], flush=True)
        write_json(arguments.out, {**settings, "runs": runs})


if __name__ == "__main__":
    main()

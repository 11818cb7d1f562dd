"""How long it takes until something happens: imports, the command line's help, the first step of training."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.turns import Options
from wae_lightning.lightning import Callback

__all__ = ["StopAfterOneStep", "startup"]

TRAIN = str(Path(__file__).parents[1] / "train.py")


class StopAfterOneStep(Callback):
    """Ends the process, with no further work, once the first training step is done."""

    def on_train_batch_end(self, *_: Any) -> None:
        os._exit(0)


def _seconds(command: list[str], folder: str) -> tuple[float, float]:
    """Wall time and CPU time of a process."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


def startup(options: Options) -> dict[str, Any]:
    """Seconds of several processes that take turns, and what is between them."""
    data = [] if options.root is None else [f"--data.root={options.root}"]
    first_step = "--trainer.callbacks+=benchmarks.startup.StopAfterOneStep"
    commands = {
        "import pytorch_lightning": [sys.executable, "-c", "import pytorch_lightning"],
        "import wae_lightning": [sys.executable, "-c", "import pytorch_lightning, wae_lightning"],
        "train.py --help": [sys.executable, TRAIN, "--help"],
        "train.py, first step": [sys.executable, TRAIN, first_step, f"--accelerator={options.device.type}", *data],
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(1 if options.quick else 5):
            for name, command in commands.items():
                times[name].append(_seconds(command, folder))
    rows: dict[str, Any] = {
        name: {
            "s": statistics.median(wall for wall, _ in found),
            "CPU s": statistics.median(cpu for _, cpu in found),
        }
        for name, found in times.items()
    }
    lightning, ours, help_ = (times[name] for name in list(commands)[:3])
    for kind, column in (("s", 0), ("CPU s", 1)):
        added = statistics.median(b[column] - a[column] for a, b in zip(lightning, ours, strict=True))
        longer = statistics.median(b[column] / a[column] for a, b in zip(lightning, help_, strict=True))
        rows.setdefault("wae_lightning adds", {})[kind] = added
        rows.setdefault("--help, times as long as import pytorch_lightning", {})[kind] = longer
    return rows

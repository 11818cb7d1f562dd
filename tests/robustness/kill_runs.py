"""Kills training and cache building at random moments, goes on, and compares with what was not interrupted.

``python tests/robustness/kill_runs.py --moments 20`` tries that many moments per model and of building the cache, on
tiny networks and the data that comes with the package, and writes ``experiments/results/kill_runs.json``. Signal
(SIGKILL, SIGTERM, SIGINT), phase (training, validation, writing a checkpoint) and moment are drawn from ``--seed``;
within the phase the process runs on for a random time before the signal reaches it. Equal means: every weight, the
states of optimizers, schedules and random number generators, the queue of codes and the remembered codes. A checkpoint
is lost when one had been written and ``last.ckpt`` does not load, or holds fewer steps than the last one written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import datamodules.cache
from datamodules import CelebADataModule
from wae_lightning import WAE
from wae_lightning.cli import train
from wae_lightning.lightning import Trainer
from wae_lightning.training.interruption import AtomicCheckpointIO

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"
SMALL = ["--model.encoder.width=0.02", "--model.decoder.width=0.02", "--data.batch_size=50"]
RUNS = {
    # a queue of codes is one more thing to restore
    "mnist_wae_mmd": [*SMALL, "--model.code_queue=120"],
    "mnist_wae_gan": SMALL,
    "mnist_conditional": ["--data.batch_size=50"],
    "modelnet40_pointnet": [
        "--data.source=shapes", "--data.classes=[chair,lamp,table]", "--data.num_points=64", "--model.num_points=64",
        "--model.decoder.num_points=64", "--model.decoder.hidden=[32]", "--data.rotate=true", "--data.jitter=0.01",
        "--check_val_every_n_epoch=1",
    ],
}  # fmt: skip
TINY = [
    "--max_epochs=3", "--limit_train_batches=8", "--limit_val_batches=3", "--enable_progress_bar=false",
    "--enable_model_summary=false", "--trainer.deterministic=true", "--accelerator=cpu",
    "--checkpoint.every_n_train_steps=3",
]  # fmt: skip
PHASES = ("training", "validation", "checkpoint", "cache")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
NOT_COMPARED = ("callbacks", "loops", "hyper_parameters", "datamodule_hyper_parameters")
PICTURES = 300


class Run:
    """One process that does ``work`` in ``folder``; at the n-th call of a phase it says so, and may be killed.

    It is forked, so that imports are paid for once.
    """

    def __init__(self, folder: Path, work: Callable[[], None], moment: tuple[str, int] | None = None) -> None:
        self.calls = multiprocessing.Array("i", len(PHASES))
        self.seconds = multiprocessing.Array("d", len(PHASES))
        self.finished = multiprocessing.Array("i", len(PHASES))
        self.moment = moment
        folder.mkdir(parents=True, exist_ok=True)
        read, self.ready = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            self._work(folder, work)
        os.close(self.ready)
        self.at_moment = os.fdopen(read, "rb")

    def _work(self, folder: Path, work: Callable[[], None]) -> None:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["train.py"]
        Trainer.test = lambda *_, **__: [{}]  # type: ignore[assignment,method-assign]
        for owner, name, phase in (
            (WAE, "training_step", "training"),
            (WAE, "validation_step", "validation"),
            (AtomicCheckpointIO, "save_checkpoint", "checkpoint"),
            (datamodules.cache.Sources, "__getitem__", "cache"),
        ):
            setattr(owner, name, self._watched(getattr(owner, name), PHASES.index(phase)))
        status = 99
        try:
            work()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def _watched(self, function: Any, phase: int) -> Any:
        def watched(*arguments: Any, **named: Any) -> Any:
            self.calls[phase] += 1
            if self.moment == (PHASES[phase], self.calls[phase]):
                os.write(self.ready, b"!")
            start = time.perf_counter()
            result = function(*arguments, **named)
            self.seconds[phase] += time.perf_counter() - start
            self.finished[phase] += 1
            return result

        return watched

    def wait(self) -> int:
        """Returns the exit status; minus the number of the signal that killed it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def kill(self, number: signal.Signals, delay: float) -> int:
        """Sends a signal so many seconds after the moment, and returns the exit status."""
        if self.at_moment.read(1):
            time.sleep(delay)
        os.kill(self.process, number)
        return self.wait()


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """The places at which two checkpoints differ, tensor for tensor."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [path]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [found for i in range(len(a)) for found in differences(a[i], b[i], f"{path}/{i}")]
    return [] if a == b else [path]


def last(folder: Path, config: str) -> dict[str, Any] | None:
    """The last checkpoint of the only run in a folder, None if there is none; raises if it cannot be read."""
    found = list((folder / "runs" / config).glob("*/checkpoints/last.ckpt"))
    if not found:
        return None
    checkpoint: dict[str, Any] = torch.load(found[0], weights_only=True)
    return {name: value for name, value in checkpoint.items() if name not in NOT_COMPARED}


def try_model(config: str, moments: int, chance: random.Random, folder: Path) -> list[dict[str, Any]]:
    """Interrupts the training of one config at so many moments."""
    command = ["--config", config, *RUNS[config], *TINY]
    whole = Run(folder / "whole", lambda: train.main(command))
    if whole.wait() != 0:
        raise RuntimeError(f"{config} does not run at all: see {folder}/whole/log.txt")
    expected = last(folder / "whole", config)
    assert expected is not None
    records = []
    for trial in range(moments):
        phase = PHASES[trial % 3]
        number = SIGNALS[trial // 3 % 3]
        calls, seconds = whole.calls[PHASES.index(phase)], whole.seconds[PHASES.index(phase)]
        call = chance.randint(1, calls)
        delay = chance.uniform(0, 1.5 * seconds / calls)
        here = folder / f"moment_{trial}"
        run = Run(here, lambda: train.main(command), (phase, call))
        status = run.kill(number, delay)
        written, steps = run.finished[PHASES.index("checkpoint")], run.finished[PHASES.index("training")]
        record: dict[str, Any] = {
            "phase": phase, "call": call, "delay": round(delay, 4), "signal": number.name, "status": status,
            "checkpoints_written": written,
        }  # fmt: skip
        try:
            kept = last(here, config)
            step = kept["global_step"] if kept else 0
            # a signal that can be heeded must cost no step that was finished
            at_least = steps if status in (128 + signal.SIGINT, 128 + signal.SIGTERM) else 0
            record |= {"step": step, "lost": (kept is None and written > 0) or step < at_least}
        except Exception as error:
            record |= {"step": None, "lost": True, "error": str(error)}
        resume = [*command, "--ckpt_path=last"] if record["step"] else command
        again = Run(here, lambda resume=resume: train.main(resume)).wait()  # type: ignore[misc]
        found = differences(expected, last(here, config)) if again == 0 else [f"status {again}"]
        record |= {"resumed": again == 0, "equal": not found, "differences": found[:5]}
        records.append(record)
        print(f"{config:20} {json.dumps(record)}", flush=True)
    return records


def draw_pictures(folder: Path) -> None:
    """Noise in CelebA's layout."""
    pictures = folder / "celeba" / "img_align_celeba"
    pictures.mkdir(parents=True)
    noise = np.random.default_rng(0)
    names = [f"{number:06d}.jpg" for number in range(1, PICTURES + 1)]
    for name in names:
        Image.fromarray(noise.integers(0, 256, (218, 178, 3), dtype=np.uint8)).save(pictures / name)
    rows = "".join(f"{name} {number % 2 * 2 - 1}\n" for number, name in enumerate(names))
    (folder / "celeba/list_attr_celeba.txt").write_text(f"{PICTURES}\nSmiling\n{rows}")
    parts = "".join(f"{name} {(0, 0, 1, 2)[number % 4]}\n" for number, name in enumerate(names))
    (folder / "celeba/list_eval_partition.txt").write_text(parts)


def try_cache(moments: int, chance: random.Random, folder: Path) -> list[dict[str, Any]]:
    """Interrupts the building of CelebA's cache at so many moments; a cache that is there must be whole."""
    draw_pictures(folder / "set")

    def build() -> None:
        signal.signal(signal.SIGTERM, train.on_sigterm)
        CelebADataModule(folder / "set", cache_dir="cache").prepare_data()

    def content(place: Path) -> np.ndarray | None:
        files = list((place / "cache").glob("*.h5"))
        return datamodules.cache.Cache(files[0], (3, 64, 64), "uint8").map().numpy() if files else None

    whole = Run(folder / "whole", build)
    if whole.wait() != 0:
        raise RuntimeError(f"the cache cannot be built at all: see {folder}/whole/log.txt")
    expected = content(folder / "whole")
    assert expected is not None
    records = []
    for trial in range(moments):
        number = SIGNALS[trial % 3]
        call = chance.randint(1, PICTURES)
        # at times long enough for the last steps: flushing and renaming
        delay = chance.uniform(0, 0.1)
        here = folder / f"moment_{trial}"
        status = Run(here, build, ("cache", call)).kill(number, delay)
        record: dict[str, Any] = {
            "phase": "cache", "call": call, "delay": round(delay, 4), "signal": number.name, "status": status,
        }  # fmt: skip
        left = [path.name for path in (here / "cache").glob("*.tmp")]
        try:
            found = content(here)
            record["lost"] = found is not None and not np.array_equal(found, expected)
        except Exception as error:
            record |= {"lost": True, "error": str(error)}
        again = Run(here, build).wait()
        rebuilt = content(here) if again == 0 else None
        record |= {
            "resumed": again == 0,
            "equal": rebuilt is not None and np.array_equal(rebuilt, expected),
            "unfinished_file_left": bool(left),
        }
        records.append(record)
        print(f"{'celeba cache':20} {json.dumps(record)}", flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="moments per model and of cache building")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*RUNS, "celeba_cache"], nargs="*", default=[*RUNS, "celeba_cache"])
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_runs.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # forks of a process with threads may hang
    chance = random.Random(arguments.seed)
    report: dict[str, Any] = {"moments_each": arguments.moments, "seed": arguments.seed, "summary": {}, "failed": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            here = Path(folder) / name
            if name == "celeba_cache":
                records = try_cache(arguments.moments, chance, here)
            else:
                records = try_model(name, arguments.moments, chance, here)
            report["failed"][name] = [record for record in records if record["lost"] or not record["equal"]]
            report["summary"][name] = {"moments": len(records)} | {
                word: sum(record[word] for record in records) for word in ("resumed", "equal", "lost")
            }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{'':20} {'moments':>8} {'resumed':>8} {'equal':>8} {'lost':>8}")
    for name, counts in report["summary"].items():
        print(f"{name:20} " + " ".join(f"{count:8}" for count in counts.values()))
    failed = sum(c["moments"] - c["equal"] + c["lost"] for c in report["summary"].values())
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

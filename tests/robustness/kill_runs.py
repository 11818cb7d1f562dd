"""Kills training, testing and cache building at random moments, goes on, and compares with what was not interrupted.

``python tests/robustness/kill_runs.py`` tries 400 moments and more on one core in some minutes, and writes
``experiments/results/kill_runs.json``. What is trained are perceptrons on made-up data under each of ``SETTINGS``, by
Lightning's Trainer, and four configs by the command line. Signal (SIGKILL, SIGTERM, SIGINT), phase (training,
validation, writing a checkpoint, test) and moment are drawn from ``--seed``; within the phase the process runs on for a
random time before the signal reaches it. Every third run is killed once more after it has gone on.

Equal means: every weight, the states of optimizers, schedules and random number generators, the remembered codes, names
and weights of the best checkpoints, and the test's metrics. A checkpoint is lost when one had been written and
``last.ckpt`` does not load, or holds fewer steps than the last one written.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

import datamodules.cache
from datamodules import CelebADataModule
from datamodules.base import BatchDataModule, TensorRows
from datamodules.modelnet40 import PointClouds, augment
from wae_lightning import WAE, WAEGAN, WAEMMD, PointNetWAE
from wae_lightning.cli import train
from wae_lightning.lightning import EMAWeightAveraging, SIGTERMException, Trainer, seed_everything
from wae_lightning.networks import CouplingFlow, Critic, FullyConnectedDecoder, PointNetEncoder
from wae_lightning.noise import GaussianNoise
from wae_lightning.penalties import Adversarial
from wae_lightning.training import interruption
from wae_lightning.training.interruption import BackgroundCheckpointIO, LastCheckpoint
from wae_lightning.training.monitored import MonitoredCheckpoint

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"
PHASES = ("training", "validation", "checkpoint", "test", "cache")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
NOT_COMPARED = ("callbacks", "loops", "hyper_parameters", "datamodule_hyper_parameters")
PICTURES = 300
BEGUN = "begun"  # a file in the folder of a run that has been killed once


# ---- what is trained ------------------------------------------------------------------------------------------------


class Noise(BatchDataModule):
    """Noise as 28 pictures of 4 x 4 pixels, or as clouds of 8 of 16 points that are turned and jittered in training."""

    def __init__(self, batch_size: int = 4, num_workers: int = 0, clouds: bool = False) -> None:
        super().__init__(batch_size, num_workers)
        self.clouds = clouds

    def setup(self, stage: str = "fit") -> None:
        drawn, rows = torch.Generator().manual_seed(0), torch.arange(28)
        if self.clouds:
            points = torch.rand(28, 16, 3, generator=drawn)
            self.train_set: Any = PointClouds(points, rows, 8, fresh=True)
            self.val_set: Any = PointClouds(points, rows, 8, rows[::5])
        else:
            pictures = torch.rand(28, 1, 4, 4, generator=drawn)
            self.train_set = TensorRows(pictures, rows)
            self.val_set = TensorRows(pictures, rows, rows[::5])
        self.test_set = self.val_set

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.clouds and self.trainer is not None and self.trainer.training:
            return augment(batch[0], "y", True, (1, 1), (0.8, 1.25), 0.01, 0.0), batch[1]
        return batch


def perceptrons(cls: Any = WAEMMD, **arguments: Any) -> WAE:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))
    decoder = nn.Sequential(nn.Linear(2, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))
    model: WAE = cls(encoder=encoder, decoder=decoder, latent_dim=2, noise=GaussianNoise(), **arguments)
    return model


def point_net() -> PointNetWAE:
    return PointNetWAE(
        encoder=PointNetEncoder(2, channels=(4, 8), hidden=()), decoder=FullyConnectedDecoder(2, 8, hidden=(8,)),
        latent_dim=2, num_points=8, coupling=0.5, coupling_weight=0.1, coupled_codes=30,
    )  # fmt: skip


def queue_and_flow() -> WAE:
    return perceptrons(code_queue=6, flow=CouplingFlow(2, layers=2, hidden=4))


def gan(**arguments: Any) -> WAE:
    return perceptrons(WAEGAN, penalty=Adversarial(Critic(2, width=8, layers=1), steps=2), **arguments)


class Setting(NamedTuple):
    """What is trained, on what, and how."""

    model: Callable[[], WAE] = perceptrons
    data: Mapping[str, Any] = MappingProxyType({})
    trainer: Mapping[str, Any] = MappingProxyType({})
    every_n_steps: int | None = None
    processes: int = 1
    epochs_before: int | None = None
    """How long the killed run was to be, if it goes on with another number of epochs."""


PLATEAU = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.2)
STEPS = functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)
ONE_CYCLE = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2)
SETTINGS = {
    "plain": Setting(functools.partial(perceptrons, lr_scheduler=ONE_CYCLE)),
    "every_n_train_steps": Setting(every_n_steps=3),
    "workers": Setting(data={"num_workers": 2}, every_n_steps=3),
    "workers, clouds": Setting(point_net, {"num_workers": 2, "clouds": True}, every_n_steps=3),
    "coupling": Setting(point_net, {"clouds": True}, every_n_steps=3),
    "code queue, flow": Setting(queue_and_flow, every_n_steps=3),
    "accumulation": Setting(trainer={"accumulate_grad_batches": 4}, every_n_steps=1),
    "plateau": Setting(functools.partial(perceptrons, lr_scheduler=PLATEAU), every_n_steps=3),
    "averaged weights": Setting(trainer={"averaged": True}, every_n_steps=3),
    "bf16-mixed": Setting(trainer={"precision": "bf16-mixed"}, every_n_steps=3),
    "gan": Setting(gan, every_n_steps=3),
    "gan, accumulation, plateau": Setting(
        functools.partial(gan, lr_scheduler=PLATEAU), trainer={"accumulate_grad_batches": 3}, every_n_steps=1
    ),
    "max_epochs": Setting(
        functools.partial(perceptrons, lr_scheduler=STEPS), trainer={"max_epochs": 4}, every_n_steps=3, epochs_before=2
    ),
    "max_steps": Setting(trainer={"max_steps": 17, "max_epochs": -1}, every_n_steps=3),
    "val_check_interval": Setting(trainer={"val_check_interval": 4}, every_n_steps=3),
    "two processes": Setting(every_n_steps=3, processes=2),
}
SMALL = ["--model.encoder.width=0.02", "--model.decoder.width=0.02", "--data.batch_size=50"]
COMMANDS = {
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
    "--max_epochs=3", "--limit_train_batches=6", "--limit_val_batches=2", "--limit_test_batches=2",
    "--enable_progress_bar=false", "--enable_model_summary=false", "--trainer.deterministic=true", "--accelerator=cpu",
    "--checkpoint.every_n_train_steps=4", "--trainer.callbacks=[]",
]  # fmt: skip


def fit(setting: Setting, resume: bool) -> None:
    """Trains three epochs of seven steps, in the current folder, and tests, as the command line does."""
    flags: dict[str, Any] = {"max_epochs": 3, "limit_val_batches": 2, **setting.trainer}
    if setting.epochs_before and not resume and not Path(BEGUN).exists() and Path.cwd().name != "whole":
        flags["max_epochs"] = setting.epochs_before
    seed_everything(0, verbose=False)
    callbacks: list[Any] = [LastCheckpoint(setting.every_n_steps), MonitoredCheckpoint(dirpath="checkpoints")]
    if flags.pop("averaged", False):
        callbacks.append(EMAWeightAveraging(decay=0.9))
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        devices=setting.processes, strategy="ddp" if setting.processes > 1 else "auto", **flags,
    )  # fmt: skip
    trainer.strategy.checkpoint_io = BackgroundCheckpointIO()
    model, data = setting.model(), Noise(**setting.data)
    trainer.fit(model, data, ckpt_path="checkpoints/last.ckpt" if resume else None, weights_only=True)
    seed_everything(0, verbose=False)
    metrics = trainer.test(model, data, verbose=False)[0]
    if trainer.is_global_zero:
        Path("metrics.json").write_text(json.dumps(metrics))


# ---- how it is killed -----------------------------------------------------------------------------------------------


class Run:
    """Processes that do ``work`` in ``folder``; at the n-th call of a phase the last one says so, and may be killed.

    They are forked, so that imports are paid for once.
    """

    def __init__(
        self, folder: Path, work: Callable[[], None], moment: tuple[str, int] | None = None, processes: int = 1
    ) -> None:
        self.calls = multiprocessing.Array("i", len(PHASES))
        self.seconds = multiprocessing.Array("d", len(PHASES))
        self.finished = multiprocessing.Array("i", len(PHASES))
        self.moment = moment
        folder.mkdir(parents=True, exist_ok=True)
        read, self.ready = os.pipe()
        places = {}
        if processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
                places["WORLD_SIZE"] = str(processes)
        self.processes = []
        for rank in range(processes):
            process = os.fork()
            if process == 0:
                # gloo meets over the loopback device
                os.environ |= {**places, "LOCAL_RANK": str(rank), "NODE_RANK": "0"} if places else {}
                self._work(folder, work, watched=rank == processes - 1)
            self.processes.append(process)
        os.close(self.ready)
        self.at_moment = os.fdopen(read, "rb")

    def _work(self, folder: Path, work: Callable[[], None], watched: bool) -> None:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = ["train.py"]
        for owner, name, phase in (
            (WAE, "training_step", "training"),
            (WAE, "validation_step", "validation"),
            (WAE, "test_step", "test"),
            (interruption, "write_whole", "checkpoint"),
            (datamodules.cache.Sources, "__getitem__", "cache"),
        ):
            if watched:
                setattr(owner, name, self._watched(getattr(owner, name), PHASES.index(phase)))
        status = 99
        try:
            work()
            status = 0
        except SIGTERMException:
            status = 128 + signal.SIGTERM
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
        """Returns the last one's exit status; minus the number of the signal that killed it."""
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in self.processes]
        self.at_moment.close()
        return next((status for status in reversed(statuses) if status), 0)

    def kill(self, number: signal.Signals, delay: float, all_of_them: bool = True) -> int:
        """Sends a signal so many seconds after the moment, and returns the exit status."""
        if self.at_moment.read(1):
            time.sleep(delay)
        os.kill(self.processes[-1], number)
        if not all_of_them:
            # what a launcher does to the others when one process has died
            select.select([], [], [], 0.3)
        for process in self.processes[:-1]:
            os.kill(process, number)
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


def kept(folder: Path) -> dict[str, Any]:
    """What the only run in a folder has left: its checkpoints, without what cannot be the same, and the test's metrics.

    Raises:
        Exception: If ``last.ckpt`` cannot be read.
    """
    found: dict[str, Any] = {}
    for path in folder.rglob("*.ckpt"):
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
        # how often Lightning has counted an epoch twice
        checkpoint.get("Noise", {}).get("order", {}).pop("shift", None)
        found[path.name] = {name: value for name, value in checkpoint.items() if name not in NOT_COMPARED}
    for path in folder.rglob("metrics.json"):
        found["metrics"] = {name: x for name, x in json.loads(path.read_text()).items() if "seconds" not in name}
    return found


def try_run(
    name: str, work: Callable[[bool], None], moments: int, chance: random.Random, folder: Path, processes: int = 1
) -> list[dict[str, Any]]:
    """Interrupts one kind of training at so many moments.

    Args:
        name: What it is called.
        work: Trains in the current folder; is told whether to go on from the last checkpoint.
        moments: How many.
        chance: Draws them.
        folder: For all that is written.
        processes: How many processes train together.
    """
    whole = Run(folder / "whole", lambda: work(False), processes=processes)
    if whole.wait() != 0:
        raise RuntimeError(f"{name} does not run at all: {(folder / 'whole/log.txt').read_text()[-2000:]}")
    expected = kept(folder / "whole")
    phases = [phase for phase in PHASES if whole.calls[PHASES.index(phase)]]
    records = []
    for trial in range(moments):
        phase = phases[trial % len(phases)]
        number = SIGNALS[0] if processes > 1 else chance.choice(SIGNALS)
        here = folder / f"moment_{trial}"
        record: dict[str, Any] = {"lost": False, "moments": []}
        step, resume = 0, False
        for _ in range(2 if trial % 3 == 2 else 1):  # every third one is killed twice
            calls, seconds = whole.calls[PHASES.index(phase)], whole.seconds[PHASES.index(phase)]
            call, delay = chance.randint(1, calls), chance.uniform(0, 1.5 * seconds / calls)
            run = Run(here, lambda resume=resume: work(resume), (phase, call), processes)  # type: ignore[misc]
            status = run.kill(number, delay, all_of_them=trial % 2 == 0)
            (here / BEGUN).touch()
            written = run.finished[PHASES.index("checkpoint")]
            # a signal that can be heeded must cost no step that was finished
            at_least = step
            if status in (128 + signal.SIGINT, 128 + signal.SIGTERM) and not resume and phase != "test":
                at_least = run.finished[PHASES.index("training")] if "accumulation" not in name else 0
            try:
                last = kept(here).get("last.ckpt")
                step = last["global_step"] if last else 0
                record["lost"] |= (last is None and written > 1) or step < at_least
            except Exception as error:
                record |= {"lost": True, "error": str(error)}
            record["moments"].append([phase, call, round(delay, 4), number.name, status, step])
            resume = step > 0
            phase, number = chance.choice(phases), chance.choice(SIGNALS[: 1 if processes > 1 else 3])
        again = Run(here, lambda resume=resume: work(resume), processes=processes).wait()  # type: ignore[misc]
        found = differences(expected, kept(here)) if again == 0 else [f"status {again}"]
        record |= {"resumed": again == 0, "equal": not found, "differences": found[:5]}
        records.append(record)
        print(f"{name:20} {json.dumps(record)}", flush=True)
        shutil.rmtree(here)
    return records


def import_all(command: bool) -> None:
    """Trains once in this process, so that no fork imports anything by itself."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        fit(SETTINGS["plain"], resume=False)
        if command:
            train.main(["--config", "mnist_wae_mmd", *COMMANDS["mnist_wae_mmd"], *TINY, "--max_epochs=1"])
        os.chdir(before)
    gc.freeze()  # collections would make each fork copy what it shares


def try_setting(name: str, moments: int, chance: random.Random, folder: Path) -> list[dict[str, Any]]:
    """Interrupts training under one of ``SETTINGS``."""
    setting = SETTINGS[name]
    return try_run(name, functools.partial(fit, setting), moments, chance, folder, setting.processes)


def try_command(name: str, moments: int, chance: random.Random, folder: Path) -> list[dict[str, Any]]:
    """Interrupts the command line with one of ``COMMANDS``."""
    command = ["--config", name, *COMMANDS[name], *TINY]
    return try_run(name, lambda resume: train.main([*command, *["--ckpt_path=last"] * resume]), moments, chance, folder)


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
            "moments": [["cache", call, round(delay, 4), number.name, status]],
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
    parser.add_argument(
        "--runs", type=int, default=18, help="runs per setting, of which a third is killed twice; a sixth per command"
    )
    parser.add_argument("--seed", type=int, default=0)
    names = [*SETTINGS, *COMMANDS, "celeba cache"]
    parser.add_argument("--only", choices=names, nargs="*", default=names)
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_runs.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # forks of a process with threads may hang
    report: dict[str, Any] = {"seed": arguments.seed, "summary": {}, "failed": {}}
    import_all(not COMMANDS.keys().isdisjoint(arguments.only))
    for name in arguments.only:
        chance = random.Random(f"{arguments.seed} {name}")
        try_it, moments = (try_setting, arguments.runs) if name in SETTINGS else (try_command, arguments.runs // 6)
        with tempfile.TemporaryDirectory() as folder:
            if name == "celeba cache":
                records = try_cache(moments, chance, Path(folder))
            else:
                records = try_it(name, moments, chance, Path(folder))
        failed = [record for record in records if record["lost"] or not record["equal"]]
        report["failed"] |= {name: failed} if failed else {}
        report["summary"][name] = {
            "moments": sum(len(record["moments"]) for record in records),
            "runs": len(records),
            **{word: sum(record[word] for record in records) for word in ("resumed", "equal", "lost")},
        }
    rows = report["summary"].values()
    report["summary"]["all"] = {
        word: sum(row[word] for row in rows) for word in ("moments", "runs", "resumed", "equal", "lost")
    }
    rows = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in report["summary"].items()]
    text = ",\n".join(rows)
    arguments.out.write_text(
        f'{{\n "seed": {arguments.seed},\n "summary": {{\n{text}\n }},\n "failed": {json.dumps(report["failed"])}\n}}\n'
    )
    print(f"\n{'':26} {'moments':>8} {'runs':>8} {'resumed':>8} {'equal':>8} {'lost':>8}")
    for name, counts in report["summary"].items():
        print(f"{name:26} " + " ".join(f"{count:8}" for count in counts.values()))
    sys.exit(1 if report["failed"] else 0)


if __name__ == "__main__":
    main()

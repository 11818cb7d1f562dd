"""How times and memory are taken: candidates take turns, so that other work on the machine disturbs all alike."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from wae_lightning.lightning import Callback, Trainer

__all__ = [
    "WARM_UP",
    "Options",
    "Seconds",
    "StepTimer",
    "in_turns",
    "median",
    "peak_megabytes",
    "peak_of_process",
    "ratio",
    "seconds_of",
    "stopwatch",
]

WARM_UP = 5
"""Steps at the beginning of each epoch of Lightning's that do not count."""


@dataclass
class Options:
    """What the command line says."""

    device: torch.device
    root: str | None
    celeba_root: str | None
    modelnet40_root: str | None
    quick: bool


@dataclass
class Seconds:
    """Time on the clock, and time of the CPU summed over all threads of the process."""

    wall: float
    cpu: float


def stopwatch(device: torch.device) -> Callable[[], Seconds]:
    """Starts to measure; the function returned tells the time since then. Both wait for a GPU."""

    def marks() -> tuple[float, float]:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter(), time.process_time()

    wall, cpu = marks()

    def elapsed() -> Seconds:
        now_wall, now_cpu = marks()
        return Seconds(now_wall - wall, now_cpu - cpu)

    return elapsed


def seconds_of(action: Callable[[], Any], device: torch.device) -> Seconds:
    """The time an action takes, or what it returns if it timed itself."""
    elapsed = stopwatch(device)
    result = action()
    return result if isinstance(result, Seconds) else elapsed()


class StepTimer(Callback):
    """Times each epoch's training steps from the end of the ``WARM_UP``-th to the end of the last."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[Seconds] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.batch_idx + 1 == WARM_UP:
            self.elapsed = stopwatch(self.device)
        elif trainer.is_last_batch:
            self.times.append(self.elapsed())


def in_turns(actions: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, list[Seconds]]:
    """Runs each action once to warm up, then ``rounds`` times in turns."""
    for action in actions.values():
        action()
    times: dict[str, list[Seconds]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds_of(action, device))
    return times


def median(times: list[Seconds]) -> float:
    return statistics.median(time.wall for time in times)


def ratio(slower: list[Seconds], faster: list[Seconds]) -> dict[str, float]:
    """How many times as long one took as the other: medians over the rounds, by the clock and in CPU time."""
    pairs = list(zip(slower, faster, strict=True))
    return {
        "wall": statistics.median(a.wall / b.wall for a, b in pairs),
        "cpu": statistics.median(a.cpu / b.cpu for a, b in pairs),
    }


def _resident_and_peak() -> tuple[float, float]:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def peak_of_process(device: torch.device) -> float:
    """The most memory in MB that this process had so far: on the GPU, or resident."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else _resident_and_peak()[1]


def _growth(action: Callable[[], Any]) -> float:
    before, _ = _resident_and_peak()
    action()
    return _resident_and_peak()[1] - before


def peak_megabytes(action: Callable[..., Any], device: torch.device) -> float:
    """The most memory that an action uses beyond what was there before it.

    On the CPU: the growth of the largest resident size (``ru_maxrss``) of a process forked for it, which counts
    everything, allocator and libraries included. On a GPU: that of ``torch.cuda.max_memory_allocated``.
    """
    if device.type == "cuda":
        action()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    # the child may only use one thread: those of OpenMP do not survive a fork
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measure() -> None:
        torch.set_num_threads(1)
        sender.send(_growth(action))

    process = context.Process(target=measure)
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    finally:
        process.join()

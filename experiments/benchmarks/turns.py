"""How times and memory are taken: candidates take turns, so that other work on the machine disturbs all alike."""

from __future__ import annotations

import ctypes
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

__all__ = ["Options", "in_turns", "median", "peak_megabytes", "ratio", "seconds_of", "stopwatch"]


@dataclass
class Options:
    """What the command line says."""

    device: torch.device
    root: str | None = None
    celeba_root: str | None = None
    modelnet40_root: str | None = None
    quick: bool = False
    deadline: float = float("inf")
    """When no further row is begun, by ``time.perf_counter``."""


def stopwatch(device: torch.device) -> Callable[[], float]:
    """Starts to measure; the function returned tells the seconds since then. Both wait for a GPU."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    return lambda: now() - start


def seconds_of(action: Callable[[], Any], device: torch.device) -> float:
    elapsed = stopwatch(device)
    action()
    return elapsed()


def in_turns(actions: dict[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Runs each action once to warm up, then ``rounds`` times in turns, and returns the seconds."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            times[name].append(seconds_of(action, device))
    return times


def ratio(slower: list[float], faster: list[float]) -> float:
    """How many times as long one took as the other: the median over the rounds."""
    return median(a / b for a, b in zip(slower, faster, strict=True))


def peak_megabytes(action: Callable[[], Any], device: torch.device) -> float:
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
    # memory that was freed, and kept for the next one who asks, would hide what the action asks for
    getattr(ctypes.CDLL(None), "malloc_trim", lambda size: None)(0)
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measure() -> None:
        torch.set_num_threads(1)  # the threads of OpenMP do not survive a fork
        before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        action()
        sender.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6)

    process = context.Process(target=measure)
    process.start()
    sender.close()
    try:
        return float(receiver.recv())
    finally:
        process.join()

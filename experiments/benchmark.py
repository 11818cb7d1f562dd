"""Measures how fast everything is, and beside what: ``python experiments/benchmark.py --data.root DIR``.

Candidates take turns, so that other work on the machine disturbs all alike; times are medians over the turns, and a
ratio is the median of the ratios of each turn. pythae is measured where it is installed (``pip install
pythae==0.1.2``), a GPU with ``--device cuda``.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.graphs import graphs
from benchmarks.loaders import cache, loaders
from benchmarks.parts import chamfer, mmd_forms, sampling, startup
from benchmarks.training import precision, training
from benchmarks.turns import Options
from reproduce.records import write_json

from wae_lightning.training.allocator import keep_freed_memory

SECTIONS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "training": training,
    "loaders": loaders,
    "cache": cache,
    "mmd": mmd_forms,
    "chamfer": chamfer,
    "sampling": sampling,
    "startup": startup,
    "precision": precision,
    "graphs": graphs,
}
ON_A_GPU = ("precision", "graphs")


def machine(options: Options) -> dict[str, Any]:
    gpu = f", {torch.cuda.get_device_name(options.device)}" if options.device.type == "cuda" else ""
    versions = {"python": platform.python_version()}
    for package in ("torch", "pytorch-lightning", "torchvision", "wae-lightning", "pythae"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": f"{platform.machine()}, {os.cpu_count()} cores{gpu}",
        "threads": torch.get_num_threads(),
        "load before": os.getloadavg()[0],
        "quick": options.quick,
        "versions": versions,
    }


def show(name: str, section: dict[str, Any]) -> None:
    print(f"\n{name}: {SECTIONS[name].__doc__.splitlines()[0]}")  # type: ignore[union-attr]
    for row, cells in section.items():
        shown = (
            f"{column} {value:,.4g}" if isinstance(value, float) else f"{column} {value}"
            for column, value in cells.items()
        )
        print(f"  {row:45} " + " · ".join(shown))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="(all; precision and graphs only on a GPU)")
    parser.add_argument("--data.root", dest="root", help="folder that holds MNIST/raw; without it: the bundled digits")
    parser.add_argument("--celeba_root", help="folder that holds celeba/, for the loaders")
    parser.add_argument("--modelnet40_root", help="folder of ModelNet40, for the loaders")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(cpu)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (its own choice)")
    parser.add_argument("--minutes", type=float, help="begin nothing new after so long (9 on a GPU)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: to see that it works")
    parser.add_argument("--out", type=Path, help="JSON file to write; the sections that it has already are kept")
    known = parser.parse_args(arguments)
    if known.root and not (Path(known.root) / "MNIST" / "raw").is_dir():
        parser.error(f"--data.root {known.root}: no folder MNIST/raw there")
    if known.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if known.threads:
        torch.set_num_threads(known.threads)
        os.environ["OMP_NUM_THREADS"] = str(known.threads)
    roots = (known.root, known.celeba_root, known.modelnet40_root)
    minutes = known.minutes or (9 if known.device == "cuda" else float("inf"))
    started = time.perf_counter()
    options = Options(
        torch.device("cuda:0" if known.device == "cuda" else "cpu"),
        *(str(Path(root).resolve()) if root else None for root in roots),
        known.quick,
        started + 60 * minutes,
    )
    out = known.out.resolve() if known.out else None
    # LightningCLI and Lightning's launcher look at the command line; their hints are for users, not for a benchmark
    sys.argv = sys.argv[:1]
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    keep_freed_memory()
    results: dict[str, Any] = json.loads(out.read_text()) if out and out.exists() else {}
    results["machine"] = machine(options)
    print(json.dumps(results["machine"], indent=2))
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name in known.sections or [name for name in SECTIONS if known.device == "cuda" or name not in ON_A_GPU]:
                if time.perf_counter() > options.deadline:
                    print(f"\n{name}: not measured: {minutes:g} minutes are over")
                    continue
                results[name] = SECTIONS[name](options)
                show(name, results[name])
                if out:
                    write_json(out, results)
        finally:
            os.chdir(before)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()

"""Measures how fast everything is, and beside what: ``python experiments/benchmark.py --data.root DIR``.

Candidates take turns, so that other work on the machine disturbs all alike; times are medians over the turns, and a
ratio is the median of the ratios of each turn, by the clock and in CPU time. pythae is measured where it is installed
(``pip install pythae==0.1.2``), a GPU with ``--device cuda``.
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
from benchmarks.epoch import epoch, outside
from benchmarks.loaders import loaders
from benchmarks.parts import chamfer, mmd_forms, sampling
from benchmarks.scaling import scaling
from benchmarks.startup import startup
from benchmarks.training import precision, threads, training
from benchmarks.turns import Options, peak_of_process
from train import look_for_gpus_once

from wae_lightning.training.allocator import keep_freed_memory

SECTIONS: dict[str, Callable[[Options], dict[str, Any]]] = {
    "training": training,
    "outside": outside,
    "epoch": epoch,
    "threads": threads,
    "loaders": loaders,
    "mmd": mmd_forms,
    "chamfer": chamfer,
    "sampling": sampling,
    "startup": startup,
    "scaling": scaling,
    "precision": precision,
}


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    packages = ("torch", "pytorch-lightning", "torchvision", "wae-lightning", "pythae")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": f"{platform.machine()}, {os.cpu_count()} cores{gpu}",
        "threads": threads,
        "load before": os.getloadavg()[0],
        "versions": versions,
    }


def show(name: str, section: dict[str, Any]) -> None:
    print(f"\n{name}: {SECTIONS[name].__doc__.splitlines()[0]}")  # type: ignore[union-attr]
    for row, cells in section.items():
        if not isinstance(cells, dict):
            cells = {"": cells}
        shown = (
            f"{column} {value:,.4g}" if isinstance(value, float) else f"{column} {value}"
            for column, value in cells.items()
        )
        print(f"  {row:40} " + " · ".join(text.strip() for text in shown))


def plot(results: dict[str, Any], file: Path) -> None:
    """Draws how training compares, and how cost grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for number, (config, candidates) in enumerate(results.get("training", {}).items()):
        rates = {name: row["images/s"] for name, row in candidates.items()}
        places = [i + 0.27 * (number - 1) for i in range(len(rates))]
        left.barh(places, list(rates.values()), 0.27, label=config)
        left.set_yticks(range(len(rates)), list(rates))
    left.set(xlabel="images/s", title="training")
    left.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2))
    for name, found in results.get("scaling", {}).items():
        if name.startswith("step,"):
            middle.plot([int(x) for x in found], list(found.values()), "o-", label=name)
        elif name.startswith(("MMD", "Chamfer")):
            right.plot([int(x) for x in found], list(found.values()), "o-", label=name)
    for axes, title in ((middle, "one training step"), (right, "penalty and cost")):
        axes.set(xscale="log", yscale="log", ylabel="ms", title=title)
        axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="(all)")
    parser.add_argument("--data.root", dest="root", help="folder that holds MNIST/raw; without it: the bundled digits")
    parser.add_argument("--celeba_root", help="folder that holds celeba/, for the loaders")
    parser.add_argument("--modelnet40_root", help="folder of ModelNet40, for the loaders")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(cpu)")
    parser.add_argument("--threads", type=int, help="threads of PyTorch (its own choice)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: to see that it works")
    parser.add_argument("--out", type=Path, help="JSON file to write; the sections that it has already are kept")
    parser.add_argument("--plot", type=Path, help="PNG file to draw")
    arguments = parser.parse_args()
    if arguments.root and not (Path(arguments.root) / "MNIST" / "raw").is_dir():
        parser.error(f"--data.root {arguments.root}: no folder MNIST/raw there")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    roots = [
        str(Path(root).resolve()) if root else None
        for root in (arguments.root, arguments.celeba_root, arguments.modelnet40_root)
    ]
    device = torch.device("cuda:0" if arguments.device == "cuda" else "cpu")
    options = Options(device, *roots, arguments.quick)
    out, png = (path.resolve() if path else None for path in (arguments.out, arguments.plot))
    # LightningCLI and Lightning's launcher look at the command line; their hints are for users, not for a benchmark
    sys.argv = sys.argv[:1]
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    keep_freed_memory()
    look_for_gpus_once()
    results: dict[str, Any] = json.loads(out.read_text()) if out and out.exists() else {}
    results["machine"] = machine(device, torch.get_num_threads()) | {"quick": arguments.quick}
    print(json.dumps(results["machine"], indent=2))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in arguments.sections:
            results[name] = SECTIONS[name](options)
            show(name, results[name])
            if out:
                out.write_text(json.dumps(results, indent=2) + "\n")
        os.chdir("/")
    results["peak memory of this process, MB"] = peak_of_process(device)
    print(f"\n{time.perf_counter() - started:.0f} s; at most {results['peak memory of this process, MB']:.0f} MB")
    if out:
        out.write_text(json.dumps(results, indent=2) + "\n")
    if png:
        plot(results, png)


if __name__ == "__main__":
    main()

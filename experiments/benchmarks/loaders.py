"""The data modules against torchvision's classes and a per-item loader, on the same files.

Every rate is that of the fastest of several turns, and the turns of the candidates alternate. Ours include the
conversion to floats; a set that is missing is left out.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torchvision
from pytorch_lightning.profilers import SimpleProfiler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

from benchmarks.turns import Options
from datamodules import CelebADataModule, HalfImageDataModule, MNISTDataModule, ModelNet40DataModule
from wae_lightning import WAEMMD
from wae_lightning.lightning import LightningDataModule, Trainer

__all__ = ["loaders"]

BATCH_SIZE = 100
CLOUD_POINTS = 1024

Candidate = Callable[[], Iterable[Any]]


class AnyCelebA(torchvision.datasets.CelebA):
    """torchvision's class for any pictures in CelebA's layout: without the check that they are CelebA."""

    def _check_integrity(self) -> bool:
        return True


class CloudByCloud(Dataset[tuple[Tensor, Tensor]]):
    """The loader that one writes first: in memory, a random subset drawn for each cloud by itself."""

    def __init__(self, points: Tensor, labels: Tensor) -> None:
        self.points = points
        self.labels = labels

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        cloud = self.points[index]
        return cloud[torch.randperm(len(cloud))[:CLOUD_POINTS]], self.labels[index]


def ours(data: LightningDataModule) -> Candidate:
    """An epoch of the training loader and the conversion on the device."""
    loader = data.train_dataloader()
    return lambda: (data.on_after_batch_transfer(batch, 0) for batch in loader)


def theirs(dataset: Dataset[Any], num_workers: int, batch_size: int = BATCH_SIZE) -> Candidate:
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0
    )
    return lambda: loader


def rates(candidates: dict[str, Candidate], turns: int, seconds_of_turn: float) -> dict[str, dict[str, float]]:
    """Examples and batches per second of each, the fastest of the turns, from the second batch on."""
    best: dict[str, dict[str, float]] = {}
    for _ in range(turns):
        for name, candidate in candidates.items():
            examples = batches = 0
            started = None
            while started is None or time.perf_counter() - started < seconds_of_turn:
                for batch in candidate():
                    if started is None:
                        started = time.perf_counter()
                        continue
                    examples += len(batch[0])
                    batches += 1
                    if time.perf_counter() - started > seconds_of_turn:
                        break
            seconds = time.perf_counter() - started
            if examples / seconds > best.get(name, {"examples/s": 0})["examples/s"]:
                best[name] = {"examples/s": examples / seconds, "batches/s": batches / seconds}
    return best


def resident_bytes() -> int:
    """Memory of this process that is in RAM, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start(make: Callable[..., LightningDataModule], arguments: dict[str, Any]) -> dict[str, float]:
    """Seconds to the first batch, and the memory that an epoch leaves in use; in a process of its own."""
    # those of OpenMP do not survive the fork: a second one would be waited for without end
    torch.set_num_threads(1)
    before, started = resident_bytes(), time.perf_counter()
    data = make(**arguments)
    data.prepare_data()
    data.setup("fit")
    epoch = iter(ours(data)())
    next(epoch)
    seconds = time.perf_counter() - started
    for _ in epoch:
        pass
    return {"first batch s": seconds, "resident MB": (resident_bytes() - before) / 1e6}


def starts(make: Callable[..., LightningDataModule], arguments: dict[str, Any]) -> dict[str, float]:
    """Cold: without a cache; warm: once more."""
    figures = []
    for _ in range(2):
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as process:
            figures.append(process.submit(start, make, arguments).result())
    cold, warm = figures
    return {
        "first batch cold s": cold["first batch s"],
        "first batch warm s": warm["first batch s"],
        "resident MB": warm["resident MB"],
    }


def waiting_share(data: LightningDataModule, batches: int) -> float:
    """Share of a training epoch of the default model that its data take: loader, transfer and conversion."""
    profiler = SimpleProfiler()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=batches,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=profiler,
    )
    trainer.fit(WAEMMD(), data)
    spent = {name: sum(durations) for name, durations in profiler.recorded_durations.items()}
    parts = ("train_dataloader_next", "batch_to_device", "batch_transfer")
    waited = sum(seconds for name, seconds in spent.items() if any(part in name for part in parts))
    return waited / spent["run_training_epoch"]


def loaders(options: Options) -> dict[str, Any]:
    """Time to the first batch and memory; rates of the training loaders; share of training that waits for data."""
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
    turns, seconds = (1, 0.5) if options.quick else (3, 1.0)
    workers = (0,) if options.quick else (0, 2)
    root = Path(options.root or "data")
    celeba_root, modelnet40_root = Path(options.celeba_root or "data"), Path(options.modelnet40_root or "data")
    sets: dict[str, tuple[Callable[..., LightningDataModule], dict[str, Any]]] = {}
    compared: dict[str, dict[str, Candidate]] = {}
    with tempfile.TemporaryDirectory() as caches:
        if (root / "MNIST" / "raw").is_dir():
            digits = {"root": root, "batch_size": BATCH_SIZE}
            sets["MNIST"] = MNISTDataModule, digits
            sets["MNIST halves"] = HalfImageDataModule, digits
            by_image = torchvision.datasets.MNIST(root, transform=ToTensor())
            compared["MNIST"] = {f"torchvision, {n} workers": theirs(by_image, n) for n in workers}
        if (celeba_root / "celeba").is_dir():
            faces = {"root": celeba_root, "batch_size": BATCH_SIZE, "cache_dir": f"{caches}/memory"}
            sets["CelebA in memory"] = CelebADataModule, faces
            sets["CelebA from disk"] = CelebADataModule, {**faces, "cache_dir": f"{caches}/disk", "memory_budget": 0}
            crop = Compose([CenterCrop(140), Resize(64, interpolation=InterpolationMode.LANCZOS), ToTensor()])
            by_picture = AnyCelebA(celeba_root, transform=crop)
            alike = {f"torchvision, {n} workers": theirs(by_picture, n) for n in workers}
            compared["CelebA in memory"] = compared["CelebA from disk"] = alike
        clouds = {"root": modelnet40_root, "num_points": CLOUD_POINTS, "source": "hdf5", "batch_size": 32}
        try:
            data = ModelNet40DataModule(**clouds)
            data.setup("fit")
        except FileNotFoundError:
            clouds = {"num_points": CLOUD_POINTS, "source": "shapes", "batch_size": 32}
            data = ModelNet40DataModule(**clouds)
            data.setup("fit")
        name = f"ModelNet40 {clouds['source']}"
        sets[name] = ModelNet40DataModule, clouds
        by_cloud = CloudByCloud(data.train_set.points, data.train_set.labels)
        compared[name] = {f"cloud by cloud, {n} workers": theirs(by_cloud, n, 32) for n in workers}

        rows: dict[str, Any] = {f"{name}, start": starts(*made) for name, made in sets.items()}
        for name, (make, arguments) in sets.items():
            data = make(**arguments)
            data.prepare_data()
            data.setup("fit")
            measured = rates({"ours": ours(data), **compared.get(name, {})}, turns, seconds)
            rows[name] = measured["ours"]
            for other, rate in list(measured.items())[1:]:
                rows[f"{name}, {other}"] = {
                    "examples/s": rate["examples/s"],
                    "ours is faster by": measured["ours"]["examples/s"] / rate["examples/s"],
                }
        digits_module = MNISTDataModule(root if "MNIST" in sets else None, BATCH_SIZE)
        batches = 50 if options.quick else 300
        rows["WAEMMD on MNIST"] = {"share of time waiting for data": waiting_share(digits_module, batches)}
    return rows

"""The data modules against torchvision's classes and a loader of single clouds, on the same files.

What a cache costs stands beside one pass of torchvision's ``ImageFolder`` with as many processes.

Every rate is that of the fastest of several turns, and the turns of the candidates alternate. Ours include the
conversion to floats; a set that is missing is left out.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

from benchmarks.turns import Options, in_turns, median
from datamodules import (
    CelebADataModule,
    HalfImageDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    ModelNet40DataModule,
)
from wae_lightning.lightning import LightningDataModule

__all__ = ["cache", "loaders"]

BATCH_SIZE = 100
CLOUD_POINTS = 1024

Candidate = Callable[[], Iterable[Any]]


class AnyCelebA(torchvision.datasets.CelebA):  # type: ignore[misc]
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


def theirs(dataset: Dataset[Any], workers: Iterable[int], name: str, size: int = BATCH_SIZE) -> dict[str, Candidate]:
    def candidate(count: int) -> Candidate:
        loader = DataLoader(dataset, size, shuffle=True, num_workers=count, persistent_workers=count > 0)
        return lambda: loader

    return {f"{name}, {count} workers": candidate(count) for count in workers}


def rates(candidates: dict[str, Candidate], turns: int, seconds_of_turn: float) -> dict[str, float]:
    """Examples per second of each, the fastest of the turns, from the second batch on."""
    best = dict.fromkeys(candidates, 0.0)
    for _ in range(turns):
        for name, candidate in candidates.items():
            examples, started = 0, None
            while started is None or time.perf_counter() - started < seconds_of_turn:
                for batch in candidate():
                    if started is None:
                        started = time.perf_counter()
                        continue
                    examples += len(batch[0])
                    if time.perf_counter() - started > seconds_of_turn:
                        break
            best[name] = max(best[name], examples / (time.perf_counter() - started))
    return best


def loaders(options: Options) -> dict[str, Any]:
    """Seconds to the first batch, and examples per second of the training loaders."""
    turns, seconds, workers = (1, 0.5, (0,)) if options.quick else (3, 1.0, (0, 2))
    root, celeba_root, modelnet40_root = (
        Path(folder or "data") for folder in (options.root, options.celeba_root, options.modelnet40_root)
    )
    sets: dict[str, tuple[Callable[[], LightningDataModule], dict[str, Candidate]]] = {}
    with tempfile.TemporaryDirectory() as caches:
        if (root / "MNIST" / "raw").is_dir():
            by_image = theirs(torchvision.datasets.MNIST(root, transform=ToTensor()), workers, "torchvision")
            sets["MNIST"] = lambda: MNISTDataModule(root, BATCH_SIZE), by_image
            sets["MNIST halves"] = lambda: HalfImageDataModule(root=root, batch_size=BATCH_SIZE), {}
        if (celeba_root / "celeba").is_dir():
            crop = Compose([CenterCrop(140), Resize(64, interpolation=InterpolationMode.LANCZOS), ToTensor()])
            by_image = theirs(AnyCelebA(celeba_root, transform=crop), workers, "torchvision")
            for place, budget in (("memory", {}), ("disk", {"memory_budget": 0})):
                faces: dict[str, Any] = {"batch_size": BATCH_SIZE, "cache_dir": f"{caches}/{place}", **budget}
                sets[f"CelebA from {place}"] = lambda faces=faces: CelebADataModule(celeba_root, **faces), by_image
        source = "hdf5" if list(modelnet40_root.rglob("train_files.txt")) else "shapes"
        clouds = {"num_points": CLOUD_POINTS, "source": source, "batch_size": 32}
        clouds |= {"root": modelnet40_root} if source == "hdf5" else {}
        data = ModelNet40DataModule(**clouds)
        data.setup("fit")
        by_cloud = theirs(CloudByCloud(data.train_set.points, data.train_set.labels), workers, "cloud by cloud", 32)
        sets[f"ModelNet40 {source}"] = lambda: ModelNet40DataModule(**clouds), by_cloud

        rows: dict[str, Any] = {}
        for name, (make, others) in sets.items():
            for start in ("first", "second"):  # the first one builds the cache, if the set has one
                started = time.perf_counter()
                data = make()
                data.prepare_data()
                data.setup("fit")
                next(iter(ours(data)()))
                rows.setdefault(name, {})[f"s to the first batch, {start} time"] = time.perf_counter() - started
            measured = rates({"ours": ours(data), **others}, turns, seconds)
            rows[name]["examples/s"] = measured["ours"]
            for other in others:
                faster = measured["ours"] / measured[other]
                rows[f"{name}, {other}"] = {"examples/s": measured[other], "ours is faster by": faster}
    return rows


def write_pictures(folder: Path, count: int) -> None:
    """JPEG files of 500 x 400 pixels in ten folders; every hundredth has the same content."""
    random = np.random.default_rng(0)
    for number in range(min(count, 100)):
        coarse = Image.fromarray(random.integers(0, 256, (20, 25, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 400), Image.Resampling.BICUBIC), dtype=float)
        pixels = Image.fromarray((smooth + random.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8))
        pixels.save(folder / "picture.jpg", quality=90)
        content = (folder / "picture.jpg").read_bytes()
        for copy in range(number, count, 100):
            place = folder / f"class_{copy % 10}" / f"{copy}.jpg"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)
    (folder / "picture.jpg").unlink()


def cache(options: Options) -> dict[str, Any]:
    """Seconds until a folder of pictures of 500 x 400 pixels has been read once, and cropped to 64 x 64."""
    count, rounds, workers = (60, 1, 2) if options.quick else (10_000, 3, os.cpu_count() or 1)
    crop = Compose([Resize(64), CenterCrop(64), ToTensor()])
    with tempfile.TemporaryDirectory() as pictures:
        write_pictures(Path(pictures), count)

        def build() -> None:
            with tempfile.TemporaryDirectory() as place:
                data = ImageFolderDataModule(pictures, image_size=64, cache_dir=place)
                data.prepare_data()
                data.setup("fit")

        def read() -> None:
            for _ in DataLoader(torchvision.datasets.ImageFolder(pictures, crop), BATCH_SIZE, num_workers=workers):
                pass

        times = in_turns({"ours, into the cache": build, "ImageFolder": read}, torch.device("cpu"), rounds)
    return {f"{count} pictures, {name}": {"s": median(found)} for name, found in times.items()}

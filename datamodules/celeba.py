"""CelebA, and any set of pictures in its layout."""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
import torchvision
from torch import Tensor

from datamodules.base import training_and_validation_rows
from datamodules.cache import Cache, Sources, cache_key, md5_of, open_or_build
from datamodules.cached_images import CachedImageDataModule, Pictures
from datamodules.lists import read_picture_list
from datamodules.pictures import SUFFIXES
from wae_lightning.lightning import rank_zero_info

__all__ = ["CelebADataModule"]

_MD5 = {name: md5 for _, md5, name in torchvision.datasets.CelebA.file_list}
_PAPER_TEST_SIZE = 20_000


class CelebADataModule(CachedImageDataModule):
    """CelebA (Z. Liu et al., "Deep Learning Face Attributes in the Wild", 2015), or a set in the same layout.

    Batches are ``(images, labels)``: float32 (B, C, S, S) in [0, 1] and int64 attributes in {0, 1}, (B, 40) or as
    ``attributes`` says. The first use decodes all pictures, in parallel, into one HDF5 file of uint8 (N, C, S, S);
    later starts check that the pictures are still the same files and map it. Delete a cache whenever you like.

    Args:
        root: Folder in torchvision's layout: ``root/celeba/img_align_celeba/000001.jpg`` ..., ``list_attr_celeba.txt``
            and ``list_eval_partition.txt`` in ``root/celeba``. All of it may also lie in ``root`` itself, the lists may
            be CSV, the folders nested (``img_align_celeba/img_align_celeba``; ``Anno``, ``Eval`` and ``Img`` of the
            authors' drive), and the pictures PNG though the lists say JPEG.
        batch_size: Images per batch.
        num_workers: Worker processes of the DataLoader; 0 is fastest because a batch is one index operation.
        cache_dir: Folder of the cache; None puts it beside the pictures' folder.
        crop: Side of the square cut out of the middle, in pixels; ``closecrop`` is 140, the WAE paper's (the box
            19, 39, 159, 179 of 178 x 218); ``none`` takes the whole picture, which makes faces 18 % flatter.
        image_size: Side S of the images, in pixels; the crop is resized with Pillow's Lanczos filter.
        split: ``official`` is the partition file (0 training, 1 validation, 2 test). ``paper`` is the split of
            Tolstikhin et al., "Wasserstein Auto-Encoders" (2018): all pictures shuffled as their code does (seed
            123), the last 20,000 are the test set (a tenth of sets with fewer than 40,000); one in twenty of the
            rest, drawn with a fixed seed, is for validation.
        attributes: Which attributes are the labels: None for all, a list of names for (B, number), one name for (B,).
        flip: Mirror each training image with probability 1/2, on the device.
        memory_budget: Up to this size, in GB, the cache is kept mapped into memory, which the processes of a machine
            share; a larger one is read from disk batch by batch. CelebA at 64 x 64 has 2.5 GB.
        on_error: ``raise`` stops at the first missing or damaged picture; ``skip`` leaves such pictures out and
            reports how many and which.
        on_device: Whether all images lie on the trainer's device, as in :class:`~datamodules.images.ImageDataModule`.
        channels: C: 3 for colour, 1 for grey (ITU-R 601's luma).
        shift: Move each training image along each axis by up to this many pixels at random, on the device, so that few
            pictures do for many. What is missing at an edge is its outermost pixels.

    Raises:
        ValueError: If an argument is out of its range, or a list or a picture is damaged.
        FileNotFoundError: If ``root`` lacks the folder, a list, or a picture that a list names.
        OSError: If the cache cannot be written.
    """

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 100,
        num_workers: int = 0,
        cache_dir: str | Path | None = None,
        crop: str | int = "closecrop",
        image_size: int = 64,
        split: Literal["official", "paper"] = "official",
        attributes: str | list[str] | None = None,
        flip: bool = False,
        memory_budget: float = 4.0,
        on_error: Literal["raise", "skip"] = "raise",
        on_device: bool | None = None,
        channels: Literal[1, 3] = 3,
        shift: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, on_device, image_size, flip, memory_budget, on_error, shift)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}")
        if split not in ("official", "paper"):
            raise ValueError(f"split must be one of official, paper, got {split!r}")
        self.root = Path(root)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.crop = _side_of_crop(crop)
        self.split = split
        self.attributes = attributes
        self.channels = channels
        self.attribute_names: list[str] = []
        """Names of the labels' columns, after ``setup``."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        return self.channels, self.image_size, self.image_size

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says about the data; scores of different crops do not compare."""
        prepared = {"crop": self.crop, "image_size": self.image_size, "split": self.split, "channels": self.channels}
        return super().state_dict() | prepared

    def setup(self, stage: str = "fit") -> None:
        if hasattr(self, "test_set"):
            return
        super().setup(stage)
        foreign = ", ".join(name.decode() for name in self._cache.tables["foreign"])
        rank_zero_info(
            f"{self._counts()} from {self.folder}. By their md5 sums, "
            + (f"these files are not CelebA's own: {foreign}." if foreign else "the lists are CelebA's own.")
        )

    @functools.cached_property
    def folder(self) -> Path:
        """Where the lists and the pictures' folder are."""
        places = [self.root / "celeba", self.root / "CelebA", self.root]
        return next((folder for folder in places if _pictures_folder(folder).is_dir()), places[0])

    @functools.cached_property
    def _cache(self) -> Cache:
        pictures = _pictures_folder(self.folder)
        if not pictures.is_dir():
            packed = next(iter(sorted(self.root.glob("**/*.parquet"))), None)
            if packed is not None:
                raise ValueError(
                    f"{packed}: CelebA as Parquet is not read. Write its pictures into a folder ("
                    "for i, row in enumerate(datasets.load_dataset(...)['train']): row['image'].save(f'faces/{i}.png')"
                    ") and train on that with --config folder_wae_mmd, or fetch pictures and lists as published"
                )
            if any(path.suffix.lower() in SUFFIXES for path in self.root.rglob("*")):
                raise FileNotFoundError(
                    f"{pictures}: no such folder, but {self.root} holds pictures; --config folder_wae_mmd "
                    "(ImageFolderDataModule) trains on any. Of CelebA, the pictures 000001.jpg ... are expected there, "
                    "and beside the folder list_attr_celeba.txt and list_eval_partition.txt (or .csv)"
                )
            raise FileNotFoundError(
                f"{pictures}: no such folder. Expected there the pictures 000001.jpg ..., and beside the folder "
                "list_attr_celeba.txt and list_eval_partition.txt (or .csv). To get CelebA, run "
                f"torchvision.datasets.CelebA({str(self.folder.parent)!r}, download=True) (needs gdown), or fetch "
                "'img_align_celeba.zip' and these lists from the page of the set's authors (search for 'CelebA "
                "Dataset, MMLAB') and unpack it there."
            )
        lists = [_list_file(self.folder, name) for name in ("list_attr_celeba", "list_eval_partition")]
        for path in lists if self.split == "official" else lists[:1]:
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path}: no such file, and no {path.stem}.csv. Expected CelebA's list of that name beside "
                    f"{pictures}"
                )
        with os.scandir(pictures) as entries:
            # lazily: to keep 200,000 results of stat takes longer than to get them
            files = ((entry.name, entry.stat()) for entry in entries)
            key = cache_key("celeba 4", chain(files, ((path.name, path.stat()) for path in lists if path.is_file())))
        grey = "_grey" if self.channels == 1 else ""
        path = (self.cache_dir or self.folder) / f"celeba_{self.crop or 'whole'}_{self.image_size}{grey}_{key}.h5"
        return open_or_build(path, self.image_shape, "uint8", lambda: self._sources(lists, pictures), self.on_error)

    def _sources(self, lists: list[Path], pictures: Path) -> tuple[Sources, dict[str, np.ndarray]]:
        """Reads the lists; called only to build the cache, which keeps what they say."""
        names, columns, attributes = read_picture_list(lists[0])
        low = 0 if (attributes >= 0).all() else -1
        if len(bad := attributes[(attributes != low) & (attributes != 1)]):
            raise ValueError(f"{lists[0]}: attributes must be -1 or 1, found {bad[0]} (or 0 or 1 throughout)")
        tables = {"attributes": attributes > 0, "attribute_names": np.array(columns, dtype=h5py.string_dtype())}
        if lists[1].is_file():
            partition_names, _, partition = read_picture_list(lists[1], ["part"])
            if partition_names != names:
                places = {name: row for row, name in enumerate(partition_names)}
                if len(partition_names) != len(names) or places.keys() != set(names):
                    raise ValueError(
                        f"{lists[1]}: expected a line for each of the {len(names)} pictures of {lists[0].name}; "
                        f"found {_first_difference(names, partition_names)}"
                    )
                partition = partition[[places[name] for name in names]]
            if len(bad := partition[(partition < 0) | (partition > 2)]):
                raise ValueError(f"{lists[1]}: expected 0 (training), 1 (validation) or 2 (test), found {bad[0]}")
            tables["partition"] = partition[:, 0]
        published = {*lists, *(self.folder / name for name in _MD5)}
        foreign = [path.name for path in sorted(published) if path.is_file() and md5_of(path) != _MD5.get(path.name)]
        tables["foreign"] = np.array(foreign, dtype=h5py.string_dtype())
        there = _as_stored(names, pictures)
        if self.on_error == "raise":
            missing = [name for name in names if there[name] is None]
            if missing:
                raise FileNotFoundError(
                    f"{pictures / missing[0]}: no such picture, though {lists[0].name} names it ({len(missing)} of "
                    f"{len(names)} are missing; on_error='skip' leaves them out)"
                )
        stored = [there[name] or name for name in names]
        tables["names"] = np.array([os.fsencode(name) for name in stored])
        files = [pictures / name for name in stored]
        return Pictures(files, self.image_shape, self.crop or "stretch", exact=True), tables

    def _rows_of_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        cache = self._cache
        if self.split == "official":
            partition = torch.from_numpy(cache.tables["partition"])
            train, val, test = ((partition == part).nonzero()[:, 0] for part in range(3))
            for rows, part in (train, "0 (training)"), (val, "1 (validation)"), (test, "2 (test)"):
                if not len(rows):
                    raise ValueError(f"{_list_file(self.folder, 'list_eval_partition')}: no picture is in part {part}")
            return train, val, test
        order = _shuffled_as_in_the_paper(cache.shape[0])
        test_size = _PAPER_TEST_SIZE if len(order) >= 2 * _PAPER_TEST_SIZE else max(1, len(order) // 10)
        rest = torch.tensor(order[:-test_size])
        train, val = training_and_validation_rows(len(rest), 0.05, seed=0)
        return rest[train], rest[val], torch.tensor(order[-test_size:])

    def _names_of_rows(self) -> Sequence[str]:
        return [os.fsdecode(name) for name in self._cache.tables["names"]]

    def _labels_of_rows(self) -> Tensor:
        cache = self._cache
        names = [name.decode() for name in cache.tables["attribute_names"]]
        wanted = names if self.attributes is None else self.attributes
        self.attribute_names = [wanted] if isinstance(wanted, str) else list(wanted)
        for name in self.attribute_names:
            if name not in names:
                raise ValueError(f"attributes: {name!r} is not one of {', '.join(names)}")
        labels = torch.from_numpy(cache.tables["attributes"]).to(torch.uint8)
        columns = [names.index(name) for name in self.attribute_names]
        return labels[:, columns[0] if isinstance(wanted, str) else columns]


def _side_of_crop(crop: str | int) -> int | None:
    """The side of the square in pixels, or None for the whole picture."""
    side = {"closecrop": 140, "none": 0}.get(str(crop), crop)
    if not str(side).isdecimal() or (int(side) == 0 and crop != "none"):
        raise ValueError(f"crop must be 'closecrop', 'none' or the side of a square in pixels, got {crop!r}")
    return int(side) or None


def _pictures_folder(folder: Path) -> Path:
    """The folder of the pictures, however deep unpacking left it."""
    places = [folder / "img_align_celeba", folder / "Img" / "img_align_celeba"]
    places += [place.with_name("img_align_celeba_png") for place in places]
    found = next((place for place in places if place.is_dir()), places[0])
    while (found / found.name).is_dir():
        found /= found.name
    return found


def _list_file(folder: Path, name: str) -> Path:
    """The list of a name: the authors' text or CSV, also below ``Anno`` or ``Eval`` or in a folder of its own name."""
    for place in (folder, folder / "Anno", folder / "Eval"):
        for ending in (".txt", ".csv"):
            path = place / f"{name}{ending}"
            if (path := path / path.name if path.is_dir() else path).is_file():
                return path
    return folder / f"{name}.txt"


def _as_stored(names: list[str], pictures: Path) -> dict[str, str | None]:
    """For each picture that a list names the file in the folder, perhaps of another format; None if there is none."""
    there = {name for name in os.listdir(pictures) if not name.startswith(".")}
    if there.issuperset(names):
        return {name: name for name in names}
    formats = {".jpg", ".jpeg", ".png"}
    stems = {os.path.splitext(name)[0]: name for name in there if os.path.splitext(name)[1].lower() in formats}
    return {name: name if name in there else stems.get(os.path.splitext(name)[0]) for name in names}


def _first_difference(expected: list[str], found: list[str]) -> str:
    for line, (one, other) in enumerate(zip(expected, found, strict=False), 1):
        if one != other:
            return f"{other!r} in line {line} instead of {one!r}"
    return f"{len(found)} lines"


def _shuffled_as_in_the_paper(count: int) -> list[int]:
    """``random.seed(123); random.shuffle(range(count))`` as Python 2, in which the paper's code ran, did it."""
    generator = random.Random(123)
    order = list(range(count))
    for last in reversed(range(1, count)):
        other = int(generator.random() * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order

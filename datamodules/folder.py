"""Your own pictures: any folder of them."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.base import check_seed, training_and_validation_rows
from datamodules.cache import Cache, Sources, cache_key, open_or_build
from datamodules.cached_images import CachedImageDataModule, Pictures
from datamodules.pictures import SUFFIXES, Crop, rgb
from wae_lightning.lightning import rank_zero_info, rank_zero_warn

__all__ = ["ImageFolderDataModule", "find_files", "sort_pictures"]

_PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class ImageFolderDataModule(CachedImageDataModule):
    """The pictures of a folder and of all folders in it, of any formats and sizes.

    Batches are ``(images, labels)``: float32 (B, C, S, S) in [0, 1] and int64 (B,). The first use decodes all pictures,
    in parallel, into one HDF5 file of uint8 (N, C, S, S); later starts check that the pictures are still the same files
    and map it. A build that was killed goes on where it was. Delete a cache whenever you like.

    *Which files.* Those whose names end as pictures do (``.jpg``, ``.PNG``, ...). Other files, hidden ones, and what
    archives made on a Mac bring along (``__MACOSX``, ``._x.jpg``) are passed over, and one line says how many. A
    picture that cannot be read is an error, or left out: see ``on_error``.

    *Labels.* Of ``root/cat/a.jpg`` and ``root/dog/old/b.png`` the labels are 0 and 1, for the folders directly in
    ``root`` in alphabetic order (``class_names``). Without such folders all labels are 0; a picture that lies beside
    them has -1. If all pictures lie in a single folder of ``root``, as in many archives, that one counts as ``root``.

    *Sets.* If the folders in ``root`` are ``train`` and ``test``, ``val`` or both (or ``training``, ``testing``,
    ``valid``, ``validation``, ``dev``), they are these sets and hold the labels' folders. A set that has no folder is
    drawn at random, with a fixed seed, from the training pictures. ``train`` without the others is a label like any
    other; the others without ``train`` are refused, so that no test picture is trained on.

    Args:
        root: The folder.
        batch_size: Images per batch.
        num_workers: Worker processes of the DataLoader; 0 is fastest because a batch is one index operation.
        image_size: Side S of the images, in pixels.
        channels: 3 for RGB, 1 for grey.
        crop: ``centre`` cuts the largest square out of the middle, ``stretch`` takes the whole picture, ``pad`` takes
            it unstretched and fills the rest with the background.
        background: Colour under transparent pixels and around padded pictures, such as ``white`` or ``#ff8800``. None:
            white, but black under a picture that could not be seen on white, such as white ink.
        val_fraction: Share of the pictures that is for validation, in (0, 1); at least one picture.
        test_fraction: Share of the pictures that is for the test, in (0, 1); at least one picture.
        split_seed: Seed of the split; it is independent of the seed of the training run.
        exclude: Files and folders to leave out: their names, or their paths below ``root``, with ``*`` and ``?`` for
            any letters, such as ``["thumbnails", "*.gif", "cat/bad_*"]``.
        flip: Mirror each training image with probability 1/2, on the device.
        cache_dir: Folder of the cache; None puts it into ``root``.
        memory_budget: Up to this size, in GB, the cache is kept mapped into memory, which the processes of a machine
            share; a larger one is read from disk batch by batch. 100,000 images of 3 x 64 x 64 have 1.2 GB.
        on_error: ``raise`` stops at the first damaged picture; ``skip`` leaves such pictures out and reports how many
            and which.
        on_device: Whether all images lie on the trainer's device, as in :class:`~datamodules.images.ImageDataModule`.
        shift: Move each training image along each axis by up to this many pixels at random, on the device, so that few
            pictures do for many. What is missing at an edge is its outermost pixels.

    Raises:
        ValueError: If an argument is out of its range, a picture is damaged, or there are too few pictures.
        FileNotFoundError: If there is no such folder, or no picture in it.
        OSError: If the cache cannot be written.
    """

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 100,
        num_workers: int = 0,
        image_size: int = 64,
        channels: Literal[1, 3] = 3,
        crop: Crop = "centre",
        background: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        exclude: str | list[str] | None = None,
        flip: bool = False,
        cache_dir: str | Path | None = None,
        memory_budget: float = 4.0,
        on_error: Literal["raise", "skip"] = "raise",
        on_device: bool | None = None,
        shift: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, on_device, image_size, flip, memory_budget, on_error, shift)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
        if crop not in ("centre", "stretch", "pad"):
            raise ValueError(f"crop must be one of centre, stretch, pad, got {crop!r}")
        for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
            if not 0 < fraction < 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {fraction}")
        if background is not None:
            try:
                rgb(background)
            except ValueError as error:
                raise ValueError(f"background: {error}") from None
        self.root = Path(root)
        self.cache_dir = self.root if cache_dir is None else Path(cache_dir)
        self.channels = channels
        self.crop: Crop = crop
        self.background = background
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = check_seed(split_seed)
        self.exclude = [exclude] if isinstance(exclude, str) else list(exclude or [])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        return self.channels, self.image_size, self.image_size

    @property
    def class_names(self) -> list[str]:
        """The folders that the labels stand for; none, if the pictures are not in folders."""
        return self._sorted[0]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says about the data; scores of different crops do not compare."""
        prepared = {"crop": self.crop, "image_size": self.image_size, "channels": self.channels}
        return super().state_dict() | prepared

    def setup(self, stage: str = "fit") -> None:
        if hasattr(self, "test_set"):
            return
        super().setup(stage)
        names, passed_over = self.class_names, self._files[1]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        rank_zero_info(
            f"{self._counts()} from {self.root}; "
            + (f"{len(names)} labels: {shown}" if names else "no folders, so no labels")
            + (f"; {passed_over:,} other files were passed over." if passed_over else ".")
        )

    @functools.cached_property
    def _files(self) -> tuple[list[tuple[str, os.stat_result]], int]:
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"{self.root}: no such folder. Expected a folder of pictures (root, --data.root DIR)"
            )
        files, passed_over, idle = find_files(self.root, self.exclude)
        if not files:
            raise FileNotFoundError(
                f"{self.root}: no pictures. Expected .jpg, .png, .webp, .tif, .gif, .bmp or the like in this folder or "
                f"below it, found {passed_over:,} other files"
            )
        if idle:
            rank_zero_warn(f"exclude: nothing in {self.root} is called {' or '.join(map(repr, idle))}.")
        return files, passed_over

    @functools.cached_property
    def _sorted(self) -> tuple[list[str], list[int], list[str | None]]:
        try:
            return sort_pictures([name for name, _ in self._files[0]])
        except ValueError as error:
            raise ValueError(f"{self.root}: {error}") from None

    @functools.cached_property
    def _cache(self) -> Cache:
        files = self._files[0]
        _ = self._rows_of_parts()  # whatever is wrong with the folders is said before anything is built

        def sources() -> tuple[Sources, dict[str, Any]]:
            return Pictures([self.root / name for name, _ in files], self.image_shape, self.crop, self.background), {}

        key = cache_key(("folder 2", self.background), files)
        path = self.cache_dir / f"pictures_{self.crop}_{'x'.join(map(str, self.image_shape))}_{key}.h5"
        return open_or_build(path, self.image_shape, "uint8", sources, self.on_error)

    def _rows_of_parts(self) -> tuple[Tensor, Tensor, Tensor]:
        parts = self._sorted[2]
        rows = {
            part: torch.tensor([row for row, found in enumerate(parts) if found == part], dtype=torch.int64)
            for part in (None, "train", "val", "test")
        }
        rest = rows[None] if len(rows[None]) else rows["train"]
        count = len(rest)
        for part, fraction in (("test", self.test_fraction), ("val", self.val_fraction)):
            if not len(rows[part]):
                wanted = max(1, round(count * fraction))
                if wanted >= len(rest):
                    raise ValueError(
                        f"{self.root}: expected at least 3 pictures, and some for training beside val_fraction "
                        f"{self.val_fraction} and test_fraction {self.test_fraction}, found {len(parts)}"
                    )
                kept, drawn = training_and_validation_rows(len(rest), wanted / len(rest), self.split_seed)
                rest, rows[part] = rest[kept], rest[drawn]
        return rest, rows["val"], rows["test"]

    def _labels_of_rows(self) -> Tensor:
        return torch.tensor(self._sorted[1])

    def _names_of_rows(self) -> Sequence[str]:
        return [name for name, _ in self._files[0]]


def find_files(
    root: Path, exclude: Sequence[str], endings: Sequence[str] = SUFFIXES
) -> tuple[list[tuple[str, os.stat_result]], int, list[str]]:
    """Looks through a folder, and through what it links to, for pictures, or files with other endings.

    Args:
        root: The folder.
        exclude: See :class:`ImageFolderDataModule`.
        endings: How the names end, in lower case.

    Returns:
        Path below ``root``, with ``/``, and ``stat`` of each file, sorted; how many files were passed over because
        they end otherwise or are hidden; which patterns fit nothing.
    """
    files: list[tuple[str, os.stat_result]] = []
    passed_over = 0
    idle = dict.fromkeys(exclude)
    seen = set()  # folders, so that a link to a folder above ends somewhere

    def excluded(name: str) -> bool:
        fitting = [one for one in exclude if fnmatchcase(name, one.rstrip("/")) or fnmatchcase(Path(name).name, one)]
        for one in fitting:
            idle.pop(one, None)
        return bool(fitting)

    for folder, folders, names in os.walk(root, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        above = Path(folder).relative_to(root).as_posix()
        prefix = "" if above == "." else f"{above}/"
        folders[:] = sorted(
            name for name in folders if not (name.startswith(".") or name == "__MACOSX" or excluded(prefix + name))
        )
        for name in names:
            path = os.path.join(folder, name)
            if name.startswith(".") or os.path.splitext(name)[1].lower() not in endings:
                passed_over += 1
            elif not excluded(prefix + name):
                try:
                    found = os.stat(path)
                except OSError:  # a link to nowhere: reading it will say so
                    found = os.lstat(path)
                if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
                    files.append((prefix + name, found))
                else:
                    passed_over += 1  # a pipe would be waited for
    return sorted(files, key=lambda file: file[0]), passed_over, list(idle)


def sort_pictures(names: Sequence[str], to_train: bool = True) -> tuple[list[str], list[int], list[str | None]]:
    """Reads labels and sets from where pictures lie, as :class:`ImageFolderDataModule` says.

    Args:
        names: Paths with ``/``, at least one.
        to_train: Whether some are to be trained on; folders ``val`` or ``test`` then need one to train on beside them.

    Returns:
        Names of the labels; the label of each picture; ``train``, ``val``, ``test`` or None for each picture.

    Raises:
        ValueError: If folders named as sets lie beside something else, or without one to train on.
    """
    places = [name.split("/")[:-1] for name in names]
    while all(places) and len({place[0] for place in places}) == 1:
        places = [place[1:] for place in places]
    parts: list[str | None] = [None] * len(places)
    found = Counter(_PART_NAMES.get(place[0].lower()) if place else None for place in places)
    held_out = found["val"] or found["test"]
    if held_out and to_train and not found["train"]:
        name = next(place[0] for place in places if place and place[0].lower() in _PART_NAMES)
        raise ValueError(
            f"found a folder {name} and none named train: pictures to train on belong into a folder train beside it; "
            "if it is a label, give it another name"
        )
    if held_out and found["train"]:
        if found[None]:
            other = next(n for n, p in zip(names, places, strict=True) if not p or p[0].lower() not in _PART_NAMES)
            raise ValueError(
                f"expected either the folders of sets (train, val, test) or those of labels, found both, such as "
                f"{other}; exclude leaves some out"
            )
        parts = [_PART_NAMES[place[0].lower()] for place in places]
        places = [place[1:] for place in places]
    class_names = sorted({place[0] for place in places if place})
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = [numbers[place[0]] if place else (-1 if class_names else 0) for place in places]
    return class_names, labels, parts

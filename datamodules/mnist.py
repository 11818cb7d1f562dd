"""MNIST and the sets that share its file format."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import h5py
import torch
import torchvision
from torch import Tensor

from datamodules.base import training_and_validation_rows
from datamodules.images import ImageDataModule, Images
from wae_lightning.lightning import rank_zero_info

__all__ = ["BUNDLED_DIGITS", "MNISTDataModule", "read_idx"]

BUNDLED_DIGITS = Path(__file__).parent / "data" / "digits.h5"
"""10,000 training and 2,000 test digits of MNIST, made by ``experiments/make_bundled_digits.py``."""

_EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
_FOLDERS = {"mnist": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"} | {
    f"emnist-{split}": "EMNIST" for split in _EMNIST_SPLITS
}


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Reads a file of unsigned bytes in the IDX format, plain or gzipped.

    Layout: two zero bytes, the type code 8, the number of dimensions, each size as a big-endian 32-bit integer, then
    the data (Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", 1998).

    Args:
        path: The file; ``.gz`` is decompressed on the way.
        dimensions: How many dimensions the array must have: 3 for images, 1 for labels.

    Returns:
        A uint8 tensor of the shape that the header states.

    Raises:
        ValueError: If the file is not such an array or its length is not what the header promises.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a complete gzip file ({error})") from None
    header = 4 + 4 * dimensions
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise ValueError(f"{path}: expected the IDX magic number {magic.hex()}, found {content[:4].hex() or 'nothing'}")
    if len(content) < header:
        raise ValueError(f"{path}: truncated: {len(content)} bytes are fewer than the {header} of an IDX header")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise ValueError(
            f"{path}: its header promises {' x '.join(map(str, shape))} = {math.prod(shape)} bytes of data, "
            f"found {len(content) - header}: the file is truncated or damaged"
        )
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)


def read_digits(path: Path, part: str) -> tuple[Tensor, Tensor]:
    """Reads digits in the format of the bundled ones.

    Args:
        path: HDF5 with ``PART_images``, uint8 (N, 28, 28), and ``PART_labels``, uint8 (N,).
        part: ``train`` or ``test``.

    Returns:
        uint8 (N, 1, 28, 28) and int64 (N,).

    Raises:
        ValueError: If the file is no HDF5 file, lacks one of the two, or one is not as it must be.
    """
    try:
        with h5py.File(path, "r") as file:
            images, labels = file.get(f"{part}_images"), file.get(f"{part}_labels")
            for dataset in (images, labels):
                if not isinstance(dataset, h5py.Dataset) or dataset.dtype != "uint8" or not dataset.shape:
                    raise ValueError(f"{path}: expected uint8 arrays {part}_images and {part}_labels")
            if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
                raise ValueError(f"{path}: found {part}_images of {images.shape}, {part}_labels of {labels.shape}")
            # gzip shrinks at most 1032 times; a header that claims more must not make us allocate it
            if images.nbytes + labels.nbytes > 1100 * path.stat().st_size:
                raise ValueError(f"{path}: {part}_images claims the shape {images.shape}, more than the file can hold")
            return torch.from_numpy(images[()]).unsqueeze(1), torch.from_numpy(labels[()]).long()
    except Exception as error:  # h5py has no common exception for damaged files
        if str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: not a complete HDF5 file ({error})") from None


class MNISTDataModule(ImageDataModule):
    """MNIST, Fashion-MNIST, KMNIST or EMNIST from torchvision's folder layout, whole in memory as uint8.

    Batches are ``(images, labels)``: float32 (B, 1, 28, 28) in [0, 1] and int64 (B,). The official test set stays the
    test set; validation is taken out of the official training set by ``split_seed``. EMNIST is left as in its files
    (and as torchvision reads it): transposed, with the ``letters`` labelled 1 to 26.

    Args:
        root: Folder that holds torchvision's layout, for example ``root/MNIST/raw/train-images-idx3-ubyte``, plain or
            gzipped. None: use ``data/`` if the set lies there and otherwise, for MNIST, the bundled sample of 10,000
            training and 2,000 test digits; one line tells which. A root that is given must hold the set.
        batch_size: Images per batch.
        num_workers: Worker processes of the DataLoader; 0 is fastest because a batch is one index operation.
        variant: ``mnist``, ``fashion``, ``kmnist`` or ``emnist-`` followed by ``balanced``, ``byclass``, ``bymerge``,
            ``digits``, ``letters`` or ``mnist``.
        val_fraction: Share of the official training set that becomes the validation set.
        split_seed: Seed of that split.
        download: Let torchvision download the set into ``root`` (``data/`` if None) when it is missing.
        on_device: Whether all images lie on the trainer's device, as in :class:`~datamodules.images.ImageDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or a file is damaged.
        FileNotFoundError: If ``root`` holds no such set.

    Example:
        >>> digits = MNISTDataModule(batch_size=32)
        >>> digits.setup("test")
        >>> images, labels = next(iter(digits.test_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([32, 1, 28, 28]), torch.Size([32]))
    """

    def __init__(
        self,
        root: str | Path | None = None,
        batch_size: int = 100,
        num_workers: int = 0,
        variant: str = "mnist",
        val_fraction: float = 0.1,
        split_seed: int = 0,
        download: bool = False,
        on_device: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, on_device)
        if variant not in _FOLDERS:
            raise ValueError(f"variant must be one of {', '.join(_FOLDERS)}, got {variant!r}")
        self.root = None if root is None else Path(root)
        self.variant = variant
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.download = download

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (channels, height, width)."""
        return 1, 28, 28

    @property
    def content(self) -> str | None:
        """``digits``, if the images are digits of MNIST's kind and upright."""
        return "digits" if self.variant == "mnist" else None

    def prepare_data(self) -> None:
        if not self.download:
            return
        root = self.root or Path("data")
        if self.variant.startswith("emnist-"):
            torchvision.datasets.EMNIST(root, split=self.variant.removeprefix("emnist-"), download=True)
        else:
            getattr(torchvision.datasets, _FOLDERS[self.variant])(root, download=True)

    def setup(self, stage: str = "fit") -> None:
        if hasattr(self, "test_set"):
            return
        folder = self._folder()
        if folder is None:
            rank_zero_info(
                "No MNIST under data/: using the bundled sample of 10,000 training and 2,000 test digits. "
                "For the full set pass --data.root DIR or --data.download true."
            )
            train, test = (Images(*read_digits(BUNDLED_DIGITS, part)) for part in ("train", "test"))
        else:
            train, test = self._read(folder, "train"), self._read(folder, "test")
            rank_zero_info(f"Using {len(train):,} training and {len(test):,} test images from {folder}.")
        rows, val_rows = training_and_validation_rows(len(train), self.val_fraction, self.split_seed)
        self.train_set = Images(train.images, train.labels, rows)
        self.val_set = Images(train.images, train.labels, val_rows)
        self.test_set = test

    def _folder(self) -> Path | None:
        """The folder of the IDX files, or None for the bundled digits."""
        root = self.root or Path("data")
        folder = root / _FOLDERS[self.variant] / "raw"
        if folder.is_dir():
            return folder
        if self.root is None and self.variant == "mnist":
            return None
        raise FileNotFoundError(
            f"{folder}: no such folder. Expected the IDX files of {self.variant!r} there, in torchvision's layout; "
            "download=True (--data.download true) fetches them."
        )

    def _read(self, folder: Path, part: str) -> Images:
        if self.variant.startswith("emnist-"):
            stem = f"{self.variant}-{part}"
        else:
            stem = "train" if part == "train" else "t10k"
        images_file = _plain_or_gzipped(folder / f"{stem}-images-idx3-ubyte")
        labels_file = _plain_or_gzipped(folder / f"{stem}-labels-idx1-ubyte")
        images, labels = read_idx(images_file, 3), read_idx(labels_file, 1)
        if images.shape[1:] != (28, 28):
            raise ValueError(f"{images_file}: expected images of 28 x 28, found {images.shape[1]} x {images.shape[2]}")
        if len(images) != len(labels):
            raise ValueError(f"{labels_file}: {len(labels)} labels for the {len(images)} images of {images_file.name}")
        return Images(images.unsqueeze(1), labels.long())


def _plain_or_gzipped(path: Path) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{path}: no such file, and no {path.name}.gz beside it")

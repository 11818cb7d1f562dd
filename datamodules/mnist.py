"""MNIST and the sets that share its file format."""

from __future__ import annotations

from pathlib import Path

import h5py
import torch
import torchvision
from torch import Tensor

from datamodules.base import check_seed, training_and_validation_rows
from datamodules.idx import find_idx_files, read_idx
from datamodules.images import ImageDataModule, Images
from datamodules.mnist_files import find_tables, read_table
from wae_lightning.lightning import rank_zero_info, rank_zero_warn

__all__ = ["BUNDLED_DIGITS", "MNISTDataModule"]

BUNDLED_DIGITS = Path(__file__).parent / "data" / "digits.h5"
"""10,000 training and 2,000 test digits of MNIST, made by ``experiments/reproduce/make_bundled_digits.py``."""

_EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
_FOLDERS = {"mnist": "MNIST", "fashion": "FashionMNIST", "kmnist": "KMNIST"} | {
    f"emnist-{split}": "EMNIST" for split in _EMNIST_SPLITS
}


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
    """MNIST, Fashion-MNIST, KMNIST or EMNIST from the files of their archives, whole in memory as uint8.

    Batches are ``(images, labels)``: float32 (B, 1, 28, 28) in [0, 1] and int64 (B,). The official test set stays the
    test set; validation is taken out of the official training set by ``split_seed``. EMNIST is left as in its files
    (and as torchvision reads it): transposed, with the ``letters`` labelled 1 to 26.

    Args:
        root: Folder that holds torchvision's layout, for example ``root/MNIST/raw/train-images-idx3-ubyte``, or these
            files themselves; they may be gzipped, and be named and nested as archives and mirrors do
            (:func:`datamodules.idx.find_idx_files`). Or ``mnist.npz`` of Keras, CSV as on Kaggle (where there is no
            test file with labels, ``val_fraction`` of the training images are the test set), Parquet as on Hugging
            Face (needs pyarrow). None: use ``data/`` if the set lies there and otherwise, for MNIST, the bundled
            sample of 10,000 training and 2,000 test digits; one line tells which. A root that is given must hold the
            set.
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
        ModuleNotFoundError: If it holds Parquet files and pyarrow is not installed.

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
        self.split_seed = check_seed(split_seed)
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
        root, name = self.root or Path("data"), _FOLDERS[self.variant]
        files = find_idx_files(root, name, (*self._stems("train"), *self._stems("test")))
        tables = {} if files else find_tables(root, name, self.variant.partition("-")[2])
        if files:
            train, test = self._read(files, "train"), self._read(files, "test")
            folder = next(iter(files.values())).parent
        elif tables:
            train, test = self._read_tables(tables)
            folder = next(iter(tables.values()))[0].parent
        elif self.root is None and self.variant == "mnist":
            rank_zero_info(
                "No MNIST under data/: using the bundled sample of 10,000 training and 2,000 test digits. "
                "For the full set pass --data.root DIR or --data.download true."
            )
            train, test = (Images(*read_digits(BUNDLED_DIGITS, part)) for part in ("train", "test"))
            folder = None
        else:
            raise FileNotFoundError(
                f"{root / name / 'raw'}: no such folder. Expected the IDX files of {self.variant!r} there, in "
                f"torchvision's layout, or in {root} itself, or mnist.npz, CSV or Parquet files; download=True "
                "(--data.download true) fetches them."
            )
        if folder is not None:
            rank_zero_info(f"Using {len(train):,} training and {len(test):,} test images from {folder}.")
        rows, val_rows = training_and_validation_rows(len(train), self.val_fraction, self.split_seed)
        rows, val_rows = train.rows[rows], train.rows[val_rows]
        self.train_set = Images(train.images, train.labels, rows)
        self.val_set = Images(train.images, train.labels, val_rows)
        self.test_set = test

    def _stems(self, part: str) -> tuple[str, ...]:
        """What the names of the files of one part begin with; the first is the usual one."""
        if self.variant.startswith("emnist-"):
            return (f"{self.variant}-{part}",)
        return ("train",) if part == "train" else ("t10k", "test")

    def _read(self, files: dict[tuple[str, str], Path], part: str) -> Images:
        paths = []
        for kind, dimensions in ("images", 3), ("labels", 1):
            path = next((files[stem, kind] for stem in self._stems(part) if (stem, kind) in files), None)
            if path is None:
                folder = next(iter(files.values())).parent
                missing = folder / f"{self._stems(part)[0]}-{kind}-idx{dimensions}-ubyte"
                raise FileNotFoundError(f"{missing}: no such file, and no {missing.name}.gz beside it")
            paths.append(path)
        images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
        if images.shape[1:] != (28, 28):
            raise ValueError(f"{paths[0]}: expected images of 28 x 28, found {images.shape[1]} x {images.shape[2]}")
        if len(images) != len(labels):
            raise ValueError(f"{paths[1]}: {len(labels)} labels for the {len(images)} images of {paths[0].name}")
        return Images(images.unsqueeze(1), labels.long())

    def _read_tables(self, files: dict[str, list[Path]]) -> tuple[Images, Images]:
        if "train" not in files:
            raise FileNotFoundError(f"{files['test'][0]}: there is no file for training beside it")
        images, labels = read_table(files["train"], "train")
        if labels is None:
            raise ValueError(f"{files['train'][0]}: it has no labels; expected a column called label")
        test, of_test = read_table(files["test"], "test") if "test" in files else (None, None)
        if test is not None and of_test is not None:
            return Images(images, labels), Images(test, of_test)
        # the test set of Kaggle's competition
        why = (
            f"{files['test'][0]} has no labels"
            if "test" in files
            else f"There is no test file beside {files['train'][0]}"
        )
        rows, test_rows = training_and_validation_rows(len(images), self.val_fraction, self.split_seed + 1)
        rank_zero_warn(f"{why}: {len(test_rows):,} of the training images, drawn at random, are the test set instead.")
        return Images(images, labels, rows), Images(images, labels, test_rows)

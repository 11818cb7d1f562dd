"""Makes ``datamodules/data/digits.h5``, the sample of MNIST that comes with the package, from the full set.

python experiments/reproduce/make_bundled_digits.py DIR   (DIR holds MNIST/raw/..., as torchvision keeps it)
"""

import argparse
from pathlib import Path

import h5py
import torch

from datamodules.idx import read_idx
from datamodules.mnist import BUNDLED_DIGITS


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder that holds MNIST/raw")
    parser.add_argument("--train", type=int, default=10_000, help="training digits (10000)")
    parser.add_argument("--test", type=int, default=2_000, help="test digits (2000)")
    parser.add_argument("--out", type=Path, default=BUNDLED_DIGITS, help="HDF5 file to write")
    arguments = parser.parse_args(given)
    raw, out = arguments.root / "MNIST" / "raw", arguments.out
    generator = torch.Generator().manual_seed(0)
    with h5py.File(out, "w") as file:
        file.attrs["source"] = "MNIST by Y. LeCun, C. Cortes, C. Burges; licence CC BY-SA 3.0; a random sample"
        for part, stem, count in (("train", "train", arguments.train), ("test", "t10k", arguments.test)):
            images = read_idx(raw / f"{stem}-images-idx3-ubyte", 3)
            labels = read_idx(raw / f"{stem}-labels-idx1-ubyte", 1)
            rows = torch.randperm(len(images), generator=generator)[:count].sort().values
            # One chunk and the highest level: the file is read once, whole, so only its size matters.
            file.create_dataset(
                f"{part}_images",
                data=images[rows].numpy(),
                chunks=(count, 28, 28),
                compression="gzip",
                compression_opts=9,
            )
            file.create_dataset(f"{part}_labels", data=labels[rows].numpy(), compression="gzip", compression_opts=9)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

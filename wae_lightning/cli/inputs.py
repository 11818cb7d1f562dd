"""Reads pictures and point clouds as inputs of a trained model."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.clouds import CLOUD_ENDINGS, normalize, read_cloud
from datamodules.folder import find_files, sort_pictures
from datamodules.modelnet40 import turned
from datamodules.pictures import SUFFIXES, read_picture
from wae_lightning import WAE, ConditionalWAE, PointNetWAE
from wae_lightning.checkpoints import read_checkpoint
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.load import load_pairs

__all__ = ["input_reader", "list_inputs", "read_inputs"]


def read_array(path: Path, shape: tuple[int | None, ...]) -> Tensor:
    """Reads ``samples`` of an NPZ file as float32 (N, *shape); None stands for any size.

    Raises:
        UsageError: If there is no such array.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no ZIP file")
        with np.load(path, allow_pickle=False) as file:
            if "samples" not in file:
                raise UsageError(f"{path}: expected an array named samples, found {', '.join(file) or 'none'}")
            array = np.asarray(file["samples"])  # bytes, if the file in the archive is no array
    except UsageError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and ast each have exceptions of their own
        raise UsageError(f"{path}: not an NPZ file of plain arrays ({error})") from None
    wanted = " x ".join(["N", *("any" if size is None else str(size) for size in shape)])
    fits = array.ndim == len(shape) + 1 and all(
        size in (None, found) for size, found in zip(shape, array.shape[1:], strict=False)
    )
    if not fits or not len(array) or array.dtype.kind not in "fiu":
        found = " x ".join(map(str, array.shape))
        raise UsageError(f"{path}: expected numbers of shape {wanted}, found {array.dtype} of {found}")
    samples = torch.from_numpy(array.astype(np.float32))
    if not samples.isfinite().all():
        raise UsageError(f"{path}: its numbers must be finite")
    return samples


def read_images(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Reads a picture, or an NPZ file, as floats in [0, 1] of shape (N, *shape)."""
    if path.suffix.lower() == ".npz":
        images = read_array(path, shape)
        if images.min() < 0 or images.max() > 1:
            raise UsageError(f"{path}: images must lie in [0, 1], found [{images.min():.4g}, {images.max():.4g}]")
        return images
    channels, height, width = shape
    try:
        picture = read_picture(path, (channels, height, width))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    return torch.tensor(picture).unsqueeze(0).float() / 255


def read_preparation(ckpt: Path) -> tuple[dict[str, Any], tuple[str, str]]:
    """Reads how the training clouds of a checkpoint were prepared.

    Returns:
        How they were normalized, as arguments of ``read_cloud``; which axis was up in the files, and is in the clouds.

    Raises:
        UsageError: If they were normalized by numbers that the checkpoint does not hold.
    """
    checkpoint = read_checkpoint(ckpt)
    arguments = checkpoint.get("datamodule_hyper_parameters")
    how = arguments.get("normalization", "unit_sphere") if isinstance(arguments, dict) else "unit_sphere"
    # that of the data module stands under the name of its class
    states = [state for state in checkpoint.values() if isinstance(state, dict)]
    axes = "y", "y"  # from before they were written down
    for state in states:
        if all(state.get(name) in ("y", "z") for name in ("files_up", "up_axis")):
            axes = state["files_up"], state["up_axis"]
    if how != "whole_set":
        return {"normalization": how}, axes
    for state in states:
        center, size = state.get("center"), state.get("size")
        numbers = [*center, size] if isinstance(center, list) else []
        if len(numbers) == 4 and all(isinstance(n, float) and math.isfinite(n) for n in numbers) and numbers[3] > 0:
            return {"normalization": how, "center": center, "size": size}, axes
    raise UsageError(
        f"{ckpt}: its training clouds were normalized as whole_set, by a center and a size that it does not hold: "
        "--inputs cannot be"
    )


def list_inputs(paths: list[Path], model: WAE) -> tuple[list[Path], list[str], list[int] | None, list[str]]:
    """All files of ``--inputs``.

    Returns:
        The files; their names, below the folder if there is a single folder; then, of a folder with folders in it, a
        label for each file, and the names of the labels.

    Raises:
        UsageError: If there is nothing, or no such file.
    """
    if not paths:
        raise UsageError("--inputs FILE ... is needed for this")
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            endings = CLOUD_ENDINGS if isinstance(model, PointNetWAE) else (*SUFFIXES, ".npz")
            found = [path / name for name, _ in find_files(path, [], endings)[0]]
            if not found:
                raise UsageError(f"--inputs {path}: there is no file in this folder that ends as {', '.join(endings)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UsageError(f"--inputs {path}: no such file")
    if len(paths) > 1 or not paths[0].is_dir():
        return files, [str(file) for file in files], None, []
    names = [file.relative_to(paths[0]).as_posix() for file in files]
    try:
        class_names, labels, _ = sort_pictures(names, to_train=False)
    except ValueError as error:
        raise UsageError(f"--inputs {paths[0]}: {error}") from None
    return files, names, labels if class_names else None, class_names


def input_reader(ckpt: Path, model: WAE) -> Callable[[Path], Tensor]:
    """What reads a file as inputs (N, *input) of a model, which comes from ``ckpt``.

    Raises:
        UsageError: If it cannot be told how inputs are to be scaled.
    """
    if isinstance(model, PointNetWAE):
        points = model.sample(1).shape[1]
        normalization, (files_up, up) = read_preparation(ckpt)

        def read(path: Path) -> Tensor:
            of_the_set = normalization["normalization"] == "whole_set"  # whose center is that of turned clouds
            clouds = read_cloud(path, points, dtype=torch.float64, **({} if of_the_set else normalization))
            if path.suffix.lower() == ".off":  # others may be the model's own, which are turned
                clouds = turned(clouds, files_up, up)
            if of_the_set:
                clouds = normalize(clouds, "whole_set", normalization["center"], normalization["size"])
            return clouds.float()

        return read
    pairs = load_pairs(ckpt, model) if isinstance(model, ConditionalWAE) else None
    shape = tuple(model.sample(1).shape[1:]) if pairs is None else pairs.image_shape
    if len(shape) != 3:
        raise UsageError(f"--inputs: the model's inputs are of shape {shape}, neither images nor clouds")
    if model.input_range is None:
        raise UsageError("--inputs: the model's input_range is None, so nobody knows how its pictures were scaled")
    low, high = model.input_range
    return lambda path: low + (high - low) * read_images(path, shape)


def read_inputs(paths: list[Path], ckpt: Path, model: WAE) -> Tensor:
    """Reads all inputs of a model, which comes from ``ckpt``.

    Raises:
        UsageError: If a file is missing or cannot be an input of the model.
        ValueError: If a file is damaged, or is not what its ending says.
    """
    files = list_inputs(paths, model)[0]
    read = input_reader(ckpt, model)
    parts = [read(path) for path in files]
    if len({part.shape[1:] for part in parts}) > 1:
        raise UsageError("--inputs: all point clouds must have the same number of points")
    return torch.cat(parts)

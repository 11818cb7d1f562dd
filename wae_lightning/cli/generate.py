"""Draws from a trained model: ``generate.py CKPT --num_samples 64 --out samples.png``.

--what samples          draws from the prior, or from a mixture fitted to the training codes (--sampler gmm)
--what reconstruction   each input above, or before, what the model makes of it
--what interpolation    from one input, or sample, to the next, --steps points on each line
--what traversal        one latent dimension after the other from -2 to 2 times the prior's scale, a row for each
--what completion       a conditional model's answers to the observed part of each input

The ending of --out says how it is written: .png a picture of all, .gif frames of an interpolation, .npz the array
``samples`` (float32; images (N, C, H, W) in [0, 1], clouds (N, P, 3)), .ply one point cloud, no ending a folder with a
PNG (or a PLY) for each. Inputs are pictures of any kind, which are cropped to the middle and resized to the model's
size, or files .npz with an array ``samples``. Of point clouds they are meshes or points (.off, .ply, .npy, .npz, .txt),
turned as the training data was, and are normalized as that was. Nothing but the checkpoint is needed.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from datamodules.clouds import read_cloud
from datamodules.pictures import read_picture
from wae_lightning import WAE, ConditionalWAE, PointNetWAE
from wae_lightning.callbacks import draw_point_sets
from wae_lightning.checkpoints import read_checkpoint
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.flags import IMPORT_HELP, find_checkpoint
from wae_lightning.cli.load import import_modules, load_model
from wae_lightning.samplers import MixtureSampler
from wae_lightning.work import codes_at_once

__all__ = ["main"]

BATCH = 500
WHAT = ("samples", "reconstruction", "interpolation", "traversal", "completion")


# ---- inputs ---------------------------------------------------------------------------------------------------------


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
    if path.suffix == ".npz":
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


def read_normalization(ckpt: Path) -> dict[str, Any]:
    """Reads how the training clouds of a checkpoint were normalized, as arguments of ``read_cloud``.

    Raises:
        UsageError: If they were normalized by numbers that the checkpoint does not hold.
    """
    checkpoint = read_checkpoint(ckpt)
    arguments = checkpoint.get("datamodule_hyper_parameters")
    how = arguments.get("normalization", "unit_sphere") if isinstance(arguments, dict) else "unit_sphere"
    if how != "whole_set":
        return {"normalization": how}
    for state in checkpoint.values():  # that of the data module stands under the name of its class
        center, size = (state.get(name) if isinstance(state, dict) else None for name in ("center", "size"))
        numbers = [*center, size] if isinstance(center, list) else []
        if len(numbers) == 4 and all(isinstance(n, float) and math.isfinite(n) for n in numbers) and numbers[3] > 0:
            return {"normalization": how, "center": center, "size": size}
    raise UsageError(
        f"{ckpt}: its training clouds were normalized as whole_set, by a center and a size that it does not hold: "
        "--inputs cannot be"
    )


def read_inputs(paths: list[Path], ckpt: Path, model: WAE, shape: tuple[int, ...]) -> Tensor:
    """Reads all inputs of a model, which comes from ``ckpt``, with outputs of ``shape``.

    Raises:
        UsageError: If a file is missing or cannot be an input of the model.
        ValueError: If a file is damaged, or is not what its ending says.
    """
    if not paths:
        raise UsageError("--inputs FILE ... is needed for this")
    for path in paths:
        if not path.is_file():
            raise UsageError(f"--inputs {path}: no such file")
    if isinstance(model, PointNetWAE):
        normalization = read_normalization(ckpt)
        parts = [read_cloud(path, shape[0], **normalization) for path in paths]
    else:
        parts = [read_images(path, shape) for path in paths]
    if len({part.shape[1:] for part in parts}) > 1:
        raise UsageError("--inputs: all point clouds must have the same number of points")
    return torch.cat(parts)


# ---- what is drawn: (rows, columns, *shape) -------------------------------------------------------------------------


@torch.no_grad()
def apply_in_batches(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    return torch.cat([function(part) for part in torch.split(x, size)])


def lay_out(samples: Tensor) -> Tensor:
    """Lays N samples out in nearly a square, (rows, columns, *shape), or in one row."""
    n = len(samples)
    root = math.ceil(n**0.5)
    columns = next((c for c in range(root, min(2 * root, n) + 1) if n % c == 0), n)
    return samples.reshape(n // columns, columns, *samples.shape[1:])


@torch.no_grad()
def draw(model: WAE, what: str, inputs: list[Path], arguments: Any) -> Tensor:
    """Computes what the user asked for, (rows, columns, *shape).

    Raises:
        UsageError: If the model cannot do it, or an argument is out of its range.
    """
    for name, least in (("num_samples", 1), ("steps", 2), ("components", 1)):
        if getattr(arguments, name) < least:
            raise UsageError(f"--{name} must be at least {least}, got {getattr(arguments, name)}")
    generator = torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    size = codes_at_once(model, BATCH)
    if isinstance(model, ConditionalWAE):
        if what not in ("completion", "reconstruction"):
            raise UsageError(f"--what {what}: a conditional model needs --what completion and --inputs")
        images = read_inputs(inputs, arguments.ckpt, model, model.parts.image_shape)
        x, y = model.parts.split(images)
        if what == "reconstruction":
            return torch.stack([images, model.join(x, model(x, y))])
        answers = model.join(x.unsqueeze(1), model.complete(x, 8, generator=generator))
        return torch.cat([images.unsqueeze(1), answers], dim=1)
    if what == "completion":
        raise UsageError(f"--what completion: {type(model).__name__} is not a conditional model")
    sampler: Any = model.prior
    if arguments.sampler == "gmm":
        try:
            sampler = MixtureSampler(model.training_codes(), arguments.components, seed=arguments.seed)
        except ValueError as error:
            raise UsageError(f"--sampler gmm: {error}") from None
    shape = tuple(model.sample(1).shape[1:])
    if what == "reconstruction":
        x = read_inputs(inputs, arguments.ckpt, model, shape)
        pair = x, apply_in_batches(model, x, size)
        if x.shape == pair[1].shape:
            return torch.stack(pair, dim=0)
        raise UsageError(f"--inputs: the model puts out {shape[0]} points, the inputs have {x.shape[1]}")
    z = apply_in_batches(model.encode, read_inputs(inputs, arguments.ckpt, model, shape), size) if inputs else None
    if what == "interpolation":
        z = sampler.sample(arguments.num_samples, generator) if z is None else z
        if len(z) < 2:
            raise UsageError(f"--what interpolation needs at least 2 inputs or samples, got {len(z)}")
        return model.interpolate(z[:-1], z[1:], arguments.steps).transpose(0, 1)
    if what == "traversal":
        start = torch.zeros(model.latent_dim) if z is None else z[0]
        rows = start.repeat(model.latent_dim, arguments.steps, 1)
        way = torch.linspace(-2, 2, arguments.steps) * model.prior.scale
        for dimension in range(model.latent_dim):
            rows[dimension, :, dimension] = way
        decoded = apply_in_batches(model.decode, rows.flatten(0, 1), size)
        return decoded.reshape(*rows.shape[:2], *decoded.shape[1:])
    return lay_out(apply_in_batches(model.decode, sampler.sample(arguments.num_samples, generator), size))


# ---- files ----------------------------------------------------------------------------------------------------------


def write_ply(cloud: Tensor, path: Path) -> None:
    """Writes a point cloud (P, 3) as binary PLY."""
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(cloud)}\n"
        "property float x\nproperty float y\nproperty float z\nend_header\n"
    )
    path.write_bytes(header.encode() + cloud.numpy().astype("<f4").tobytes())


def break_rows(pairs: Tensor, columns: int = 10) -> Tensor:
    """Breaks two long rows (2, n, *shape) into pairs of short ones, the last filled up with ones (white)."""
    n = pairs.shape[1]
    if n <= columns:
        return pairs
    padded = torch.cat([pairs, pairs.new_ones(2, -n % columns, *pairs.shape[2:])], dim=1)
    return padded.reshape(2, -1, columns, *pairs.shape[2:]).transpose(0, 1).flatten(0, 1)


def draw_picture(rows: Tensor, clouds: bool) -> Image.Image:
    """Draws (rows, columns, *shape) as one picture."""
    if not clouds:
        grid = make_grid(rows.flatten(0, 1), nrow=rows.shape[1], pad_value=1).clamp(0, 1)
        return to_pil_image(grid)  # type: ignore[no-any-return]
    figure = draw_point_sets(list(rows))
    figure.set_dpi(80)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def write(rows: Tensor, what: str, out: Path) -> None:
    """Writes (rows, columns, *shape) in the format that the ending of ``out`` names; never half a file.

    Raises:
        UsageError: If the ending fits nothing, or the file cannot be written.
    """
    clouds = rows.ndim == 4
    # of reconstructions, files of numbers and folders hold no inputs
    all_of_them = rows[1] if what == "reconstruction" else rows.flatten(0, 1)
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == "":
            out.mkdir(exist_ok=True)
            for i, one in enumerate(all_of_them):
                if clouds:
                    write_ply(one, out / f"{i:05d}.ply")
                else:
                    to_pil_image(one.clamp(0, 1)).save(out / f"{i:05d}.png")
            return
        if out.suffix == ".png":
            shown = break_rows(rows) if what == "reconstruction" else rows
            draw_picture(shown, clouds).save(part, "PNG")
        elif out.suffix == ".npz":
            with part.open("wb") as file:
                np.savez_compressed(file, samples=all_of_them.numpy())
        elif out.suffix == ".gif" and what == "interpolation":
            # one frame for each step, all lines side by side
            frames = [draw_picture(rows[:, step : step + 1].transpose(0, 1), clouds) for step in range(rows.shape[1])]
            frames += frames[-2:0:-1]
            frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=80, loop=0)
        elif out.suffix == ".ply" and clouds and len(all_of_them) == 1:
            write_ply(all_of_them[0], part)
        else:
            raise UsageError(
                f"--out {out}: expected .png, .npz or a folder; .gif takes an interpolation, .ply one point cloud"
            )
        os.replace(part, out)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    finally:
        if part.exists():
            part.unlink()


def main(arguments: list[str] | None = None, program: str = "generate.py") -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ckpt", type=Path, help="checkpoint written by train.py")
    parser.add_argument("--what", choices=WHAT, default="samples", help="see above (samples)")
    parser.add_argument("--num_samples", type=int, default=64, help="how many samples, or ends of lines (64)")
    parser.add_argument("--sampler", choices=("prior", "gmm"), default="prior", help="where codes come from (prior)")
    parser.add_argument("--components", type=int, default=50, help="Gaussians of --sampler gmm (50)")
    parser.add_argument("--steps", type=int, default=10, help="points on a line (10)")
    parser.add_argument("--inputs", type=Path, nargs="+", default=[], metavar="FILE", help="pictures or clouds")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random (0)")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="file or folder to write (samples.png)")
    parser.add_argument("--import", nargs="+", default=[], metavar="MODULE", dest="modules", help=IMPORT_HELP)
    known = parser.parse_args(arguments)
    try:
        import_modules(known.modules)
        known.ckpt = find_checkpoint(known.ckpt)
        rows = draw(load_model(known.ckpt, known.modules), known.what, known.inputs, known).float().cpu()
        write(rows, known.what, known.out)
    except (FileNotFoundError, ValueError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{known.out}: {rows.shape[0]} x {rows.shape[1]} {'point clouds' if rows.ndim == 4 else 'images'}")

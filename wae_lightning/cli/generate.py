"""Draws from a trained model: ``generate.py CKPT --num_samples 64 --out samples.png``.

--what samples          draws from the prior, or from a mixture fitted to the training codes (--sampler gmm)
--what reconstruction   each input above, or before, what the model makes of it
--what interpolation    from one input, or sample, to the next, --steps points on each line
--what traversal        one direction of the codes after the other, from one tail to the other, a row for each; they
                        lead through the first input, or each through another sample
--what completion       a conditional model's answers to the observed part of each input; --mask says what is hidden,
                        where the model was trained on holes
--what style            of a model of labels: the code of each input, which has --input_labels, or of a sample, under
                        each of --labels
--what codes            code, reconstruction cost (an anomaly score) and, where there are any, label and name of each
                        input, or of each example of --part of the data that the checkpoint was trained on; --data.root
                        DIR and the like change its arguments. --out is .npz (z, cost, labels, names) or .csv

A model of labels draws --num_samples of each of --labels: 0-9 or 3,5 or cat,dog; of attributes Smiling,Male+Bald,none.
The ending of --out says how it is written: .png a picture of all, .gif frames of an interpolation, .npz the array
``samples`` (float32; images (N, C, H, W) in [0, 1], clouds (N, P, 3)) and ``labels``, if there are any, .ply one point
cloud, no ending a folder with a PNG (or a PLY) for each. Inputs are pictures of any kind, which are cropped to the
middle and resized to the model's size, files .npz with an array ``samples``, or folders of them. Of point clouds they
are meshes or points (.off, .ply, .npy, .npz, .txt), normalized as the training data was. If the model was trained on
OFF files, these are turned as there; others have to have the axis up that the training data had. Nothing but the
checkpoint is needed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from wae_lightning import WAE, ConditionalWAE
from wae_lightning.callbacks import draw_point_sets
from wae_lightning.callbacks.pictures import in_unit_range
from wae_lightning.captions import Caption, present
from wae_lightning.cli.codes import write_codes
from wae_lightning.cli.conditions import draw_pairs
from wae_lightning.cli.device import choose_device
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.files import whole_file
from wae_lightning.cli.flags import ACCELERATOR_HELP, ACCELERATORS, IMPORT_HELP, find_checkpoint, read_overrides
from wae_lightning.cli.inputs import read_inputs
from wae_lightning.cli.load import import_modules, load_model
from wae_lightning.drawing import traversal_codes
from wae_lightning.refinement import reconstruction_by
from wae_lightning.samplers import MixtureSampler
from wae_lightning.work import codes_at_once

__all__ = ["main"]

BATCH = 500
KINDS = {4: "point clouds", 5: "images"}
WHAT = ("samples", "reconstruction", "interpolation", "traversal", "completion", "style", "codes")


# ---- what is drawn: (rows, columns, *shape) -------------------------------------------------------------------------


@torch.no_grad()
def apply_in_batches(function: Callable[[Tensor], Tensor], x: Tensor, size: int, device: torch.device) -> Tensor:
    """Applies what runs on a device; arguments and results lie on the CPU."""
    return torch.cat([function(part.to(device)).cpu() for part in torch.split(x, size)])


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
    generator = torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    size = codes_at_once(model, BATCH)
    if what in ("completion", "style"):
        raise UsageError(f"--what {what}: {type(model).__name__} is not a conditional model")
    sampler: Any = model.prior
    if arguments.sampler == "gmm":
        try:
            sampler = MixtureSampler(model.training_codes(), arguments.components, seed=arguments.seed)
        except ValueError as error:
            raise UsageError(f"--sampler gmm: {error}") from None
    if what == "reconstruction":
        x = read_inputs(inputs, arguments.ckpt, model)
        pair = x, apply_in_batches(reconstruction_by(model, arguments.refine_steps), x, size, model.device)
        if x.shape == pair[1].shape:
            return torch.stack(pair, dim=0)
        raise UsageError(f"--inputs: the model puts out {pair[1].shape[1]} points, the inputs have {x.shape[1]}")
    z = (
        apply_in_batches(model.encode, read_inputs(inputs, arguments.ckpt, model), size, model.device)
        if inputs
        else None
    )
    if what == "interpolation":
        z = sampler.sample(arguments.num_samples, generator) if z is None else z
        if len(z) < 2:
            raise UsageError(f"--what interpolation needs at least 2 inputs or samples, got {len(z)}")
        return model.interpolate(z[:-1], z[1:], arguments.steps, arguments.through).transpose(0, 1)
    if what == "traversal":
        start = sampler.sample(model.latent_dim, generator) if z is None else z[:1].expand(model.latent_dim, -1)
        rows, decode = traversal_codes(model, start, arguments.steps, arguments.through)
        decoded = apply_in_batches(decode, rows.flatten(0, 1), size, model.device)
        return decoded.reshape(*rows.shape[:2], *decoded.shape[1:])
    return lay_out(apply_in_batches(model.decode, sampler.sample(arguments.num_samples, generator), size, model.device))


def draw_anything(model: WAE, known: Any) -> tuple[Tensor, Tensor | None]:
    """Computes what the user asked for, (rows, columns, *shape), on the CPU, and its labels, if it has any."""
    if known.num_samples is None:
        known.num_samples = 8 if isinstance(model, ConditionalWAE) else 64
    for name, least in (("num_samples", 1), ("steps", 2), ("components", 1), ("scale", 1), ("refine_steps", 0)):
        if getattr(known, name) is not None and getattr(known, name) < least:
            raise UsageError(f"--{name} must be at least {least}, got {getattr(known, name)}")
    if known.refine_steps and (known.what != "reconstruction" or isinstance(model, ConditionalWAE)):
        raise UsageError("--refine_steps is for --what reconstruction of a model without conditions")
    if isinstance(model, ConditionalWAE):
        torch.manual_seed(known.seed)
        rows, labels = draw_pairs(model, known.what, known)
        return rows.float().cpu(), labels
    for flag in ("labels", "input_labels", "mask"):
        if getattr(known, flag) is not None:
            raise UsageError(f"--{flag}: {type(model).__name__} is not a conditional model")
    return draw(model, known.what, known.inputs, known).float().cpu(), None


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


def draw_picture(rows: Tensor, clouds: bool, caption: Caption | None = None, scale: int | None = None) -> Image.Image:
    """Draws (rows, columns, *shape) as one picture."""
    if not clouds:
        grid = make_grid(rows.flatten(0, 1), nrow=rows.shape[1], pad_value=1).clamp(0, 1)
        return present(to_pil_image(grid), caption, scale)
    figure = draw_point_sets(list(rows))
    figure.set_dpi(80)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return present(Image.fromarray(np.asarray(canvas.buffer_rgba())), caption, scale)


def describe(rows: Tensor, what: str, labels: Tensor | None) -> Caption:
    """What is written beside a picture of (rows, columns, *shape)."""
    count, columns = rows.shape[:2]
    names = [str(int(label)) for label in labels[:, 0]] if labels is not None and labels.ndim == 2 else []
    if what == "reconstruction":
        return Caption("Inputs, and what the model makes of them", ["input", "model"] * (count // 2))
    if what == "completion":
        return Caption("The first picture of a row is the input", columns=["input", *[""] * (columns - 1)])
    if what == "traversal":
        return Caption("Traversal", [str(number) for number in range(1, count + 1)])
    return Caption(what.capitalize(), names if what == "samples" else [])


def write(rows: Tensor, what: str, out: Path, labels: Tensor | None = None, scale: int | None = None) -> None:
    """Writes (rows, columns, *shape) in the format that the ending of ``out`` names; never half a file.

    Raises:
        UsageError: If the ending fits nothing, or the file cannot be written.
    """
    clouds = rows.ndim == 4 and rows.shape[-1] == 3
    if out.suffix != ".npz" and not clouds and not (rows.ndim == 5 and rows.shape[2] in (1, 3)):
        shape = " x ".join(map(str, rows.shape[2:]))
        raise UsageError(f"--out {out}: what the model draws, {shape}, is neither images nor clouds: expected .npz")
    # of reconstructions, files of numbers and folders hold no inputs
    all_of_them = rows[1] if what == "reconstruction" else rows.flatten(0, 1)
    with whole_file("--out", out) as part:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == "":
            out.mkdir(exist_ok=True)
            ending = ".ply" if clouds else ".png"
            files = [out / f"{i:05d}{ending}" for i in range(len(all_of_them))]
            if others := sorted({*out.glob(f"[0-9][0-9][0-9][0-9][0-9]{ending}")} - {*files}):  # taken for these
                raise UsageError(f"--out {out}: the folder holds others, such as {others[0].name}; name an empty one")
            for one, path in zip(all_of_them, files, strict=True):
                if clouds:
                    write_ply(one, path)
                else:
                    to_pil_image(one.clamp(0, 1)).save(path)
            return
        if out.suffix == ".png":
            shown = break_rows(rows) if what == "reconstruction" else rows
            draw_picture(shown, clouds, describe(shown, what, labels), scale).save(part, "PNG")
        elif out.suffix == ".npz":
            with part.open("wb") as file:
                arrays: Any = {"samples": all_of_them.numpy()}
                if labels is not None:
                    arrays["labels"] = (labels[1] if what == "reconstruction" else labels.flatten(0, 1)).numpy()
                np.savez_compressed(file, **arrays)
        elif out.suffix == ".gif" and what == "interpolation":
            # one frame for each step, all lines side by side
            steps = range(rows.shape[1])
            frames = [draw_picture(rows[:, step].unsqueeze(0), clouds, scale=scale) for step in steps]
            frames += frames[-2:0:-1]
            frames[0].save(part, "GIF", save_all=True, append_images=frames[1:], duration=80, loop=0)
        elif out.suffix == ".ply" and clouds and len(all_of_them) == 1:
            write_ply(all_of_them[0], part)
        else:
            raise UsageError(
                f"--out {out}: expected .png, .npz or a folder; .gif takes an interpolation, .ply one point cloud"
            )


def main(arguments: list[str] | None = None, program: str = "generate.py") -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ckpt", type=Path, help="checkpoint written by train.py")
    parser.add_argument("--what", choices=WHAT, default="samples", help="see above (samples)")
    parser.add_argument("--num_samples", type=int, help="how many samples, ends of lines, or answers (64; 8 of each)")
    parser.add_argument("--labels", help="what to draw of a model of labels (all)")
    parser.add_argument("--input_labels", metavar="LABELS", help="labels of --inputs")
    parser.add_argument("--mask", metavar="X,Y,W,H", help="hole in each input, in its pixels, for --what completion")
    parser.add_argument("--sampler", choices=("prior", "gmm"), default="prior", help="where codes come from (prior)")
    parser.add_argument("--components", type=int, default=50, help="Gaussians of --sampler gmm (50)")
    parser.add_argument("--steps", type=int, default=10, help="points on a line (10)")
    through_help = "what interpolations and traversals are straight in: the encoder's own codes, or z (codes)"
    parser.add_argument("--through", choices=("codes", "z"), default="codes", help=through_help)
    parser.add_argument(
        "--inputs", type=Path, nargs="+", default=[], metavar="FILE", help="pictures or clouds, or folders of them"
    )
    refine_help = "move the code of each --inputs by N steps to where --what reconstruction is better (0)"
    parser.add_argument("--refine_steps", type=int, default=0, metavar="N", help=refine_help)
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="auto", help=ACCELERATOR_HELP)
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random (0)")
    parser.add_argument("--part", choices=("train", "val", "test"), default="test", help="set of --what codes (test)")
    parser.add_argument("--data.NAME", metavar="VALUE", help="another value for an argument of the data module")
    parser.add_argument(
        "--scale", type=int, help="size of a pixel in .png and .gif (they are 900 pixels wide, or more)"
    )
    parser.add_argument("--out", type=Path, help="file or folder to write (samples.png; codes.npz)")
    parser.add_argument("--import", nargs="+", default=[], metavar="MODULE", dest="modules", help=IMPORT_HELP)
    known, overrides = read_overrides(parser, arguments)
    codes = known.what == "codes"
    known.out = known.out or Path("codes.npz" if codes else "samples.png")
    try:
        not_of_codes = (
            "num_samples", "sampler", "components", "steps", "through", "labels", "input_labels", "mask", "scale",
            "refine_steps",
        )  # fmt: skip
        for name in not_of_codes if codes else ("part",):
            if getattr(known, name) != parser.get_default(name):
                raise UsageError(f"--{name} has no meaning for --what {known.what}")
        if overrides and not codes:
            raise UsageError(f"--data.{min(overrides)} has no meaning for --what {known.what}: --inputs are its data")
        import_modules(known.modules)
        known.ckpt = find_checkpoint(known.ckpt)
        model = load_model(known.ckpt, known.modules).to(choose_device(known.accelerator))
        if codes:
            print(f"{known.out}: {write_codes(model, known, overrides)}")
            return
        rows, labels = draw_anything(model, known)
        if rows.ndim > 4 and (model.input_range or known.out.suffix != ".npz"):
            rows = in_unit_range(model, rows)
        write(rows, known.what, known.out, labels, known.scale)
    except (OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{known.out}: {rows.shape[0]} x {rows.shape[1]} {KINDS.get(rows.ndim, 'samples')}")

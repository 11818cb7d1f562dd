"""What ``generate.py`` draws from models of pairs: images of labels, and completions of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from wae_lightning import ConditionalWAE
from wae_lightning.callbacks.labels import styles_of
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.inputs import list_inputs, read_inputs
from wae_lightning.cli.load import load_pairs
from wae_lightning.pairs import Labels, Masked, Pairs

__all__ = ["complete_images", "draw_labels", "draw_pairs", "read_hole", "read_labels"]


@torch.no_grad()
def draw_pairs(model: ConditionalWAE, what: str, arguments: Any) -> tuple[Tensor, Tensor | None]:
    """Computes what the user asked of a model of pairs, (rows, columns, *shape), and the labels of that.

    Raises:
        UsageError: If the model cannot do it, or an argument is out of its range.
    """
    pairs = load_pairs(arguments.ckpt, model)
    asked = {"--labels": arguments.labels, "--input_labels": arguments.input_labels, "--mask": arguments.mask}
    of_labels = isinstance(pairs, Labels)
    takes = ("--labels", "--input_labels") if of_labels else ("--mask",) if isinstance(pairs, Masked) else ()
    if wrong := [flag for flag, value in asked.items() if value is not None and flag not in takes]:
        raise UsageError(f"{wrong[0]}: the model was trained on pairs of {type(pairs).__name__}, which take none")
    able = ("samples", "style", "reconstruction") if of_labels else ("completion", "reconstruction")
    if what not in able:
        needs = f"takes --what {', '.join(able)}" if of_labels else "needs --what completion and --inputs"
        raise UsageError(f"--what {what}: a conditional model {'of labels ' if of_labels else ''}{needs}")
    images = None
    if arguments.inputs or not of_labels:
        images = read_inputs(arguments.inputs, arguments.ckpt, model).to(model.device)
    if isinstance(pairs, Labels):
        return draw_labels(model, pairs, what, images, arguments)
    assert images is not None
    files = list_inputs(arguments.inputs, model)[0]
    hole = None if arguments.mask is None else read_hole(arguments.mask, files, images)
    return complete_images(model, pairs, what, images, hole, arguments), None


def read_labels(flag: str, text: str, pairs: Labels) -> Tensor:
    """Reads the conditions that a user typed after a flag.

    Raises:
        UsageError: If the model knows no such labels.
    """
    try:
        return pairs.read(text)
    except ValueError as error:
        raise UsageError(f"{flag} {text}: {error}") from None


def draw_labels(
    model: ConditionalWAE, pairs: Labels, what: str, images: Tensor | None, arguments: Any
) -> tuple[Tensor, Tensor]:
    """Draws images of labels, (rows, columns, *shape), and says which label each has.

    Raises:
        UsageError: If something is missing, or does not fit.
    """
    wanted = pairs.examples() if arguments.labels is None else read_labels("--labels", arguments.labels, pairs)
    generator, count = torch.Generator().manual_seed(arguments.seed), arguments.num_samples
    if images is None:
        if what == "reconstruction":
            raise UsageError("--inputs FILE ... is needed for this")
        if what == "style":
            drawn = model.complete(wanted, count, z=model.prior.sample(count, generator, model.device))
            rows = drawn.transpose(0, 1)
            return rows, wanted.expand(count, *wanted.shape)
        rows = torch.cat([model.complete(one[None], count, generator=generator).cpu() for one in wanted])
        return rows, wanted.unsqueeze(1).expand(len(wanted), count, *wanted.shape[1:])
    if what == "samples":
        raise UsageError("--inputs: samples take none; --what style draws the style of inputs under each label")
    if arguments.input_labels is None:
        raise UsageError("--input_labels LABEL,... is needed with --inputs: the style is what the label does not tell")
    own = read_labels("--input_labels", arguments.input_labels, pairs)
    if len(own) not in (1, len(images)):
        raise UsageError(f"--input_labels: expected 1 label, or one for each of {len(images)} inputs, got {len(own)}")
    own = own.expand(len(images), *own.shape[1:])
    if what == "reconstruction":
        return torch.stack([images, model(own.to(model.device), images)]), torch.stack([own, own])
    styles = styles_of(model, own.to(model.device), images, wanted.to(model.device))
    labels = torch.cat([own.unsqueeze(1), wanted.expand(len(images), *wanted.shape)], dim=1)
    return torch.cat([images.unsqueeze(1), styles], dim=1), labels


def complete_images(
    model: ConditionalWAE, pairs: Pairs, what: str, images: Tensor, hole: Tensor | None, arguments: Any
) -> Tensor:
    """Draws what a model makes of images: (rows, columns, *shape)."""
    x, y = pairs.split(images)
    if hole is not None:
        x = Masked.with_hole(images, hole.to(images.device))
    if what == "reconstruction":
        return torch.stack([images, pairs.join(x, model(x, y))])
    generator = torch.Generator().manual_seed(arguments.seed)
    answers = pairs.join(x.unsqueeze(1), model.complete(x, arguments.num_samples, generator=generator))
    given = pairs.show(x)
    columns = [images] if given is None or hole is None else [images, given]
    return torch.cat([*(column.unsqueeze(1) for column in columns), answers], dim=1)


def read_hole(text: str, paths: list[Path], images: Tensor) -> Tensor:
    """Reads ``--mask x,y,w,h``, in pixels of each picture, as holes (B, 1, H, W) of what the model sees of it.

    Raises:
        UsageError: If it is no rectangle, or lies outside of a picture or of what is seen of it.
    """
    height, width = images.shape[-2:]
    numbers = [int(part) if part.strip().isascii() and part.strip().isdigit() else -1 for part in text.split(",")]
    if len(numbers) != 4 or min(numbers) < 0 or min(numbers[2:]) < 1:
        raise UsageError(
            f"--mask {text}: expected x,y,w,h in pixels, such as 10,20,30,30 with x and y from the top left"
        )
    x, y, w, h = numbers
    holes = []
    for path in paths:
        size, arrays = (width, height), path.suffix.lower() == ".npz"
        if arrays and len(paths) > 1:
            raise UsageError(
                f"--mask {text}: expected pictures, or one .npz file, found {path} among {len(paths)} files"
            )
        if not arrays:
            with Image.open(path) as file:
                size = ImageOps.exif_transpose(file).size
        if x + w > size[0] or y + h > size[1]:
            raise UsageError(f"--mask {text}: it lies outside of {path}, which has {size[0]} x {size[1]} pixels")
        picture = Image.new("L", size)
        picture.paste(255, (x, y, x + w, y + h))
        fitted = ImageOps.fit(picture, (width, height), Image.Resampling.BOX)
        hole = torch.tensor(list(fitted.tobytes()), dtype=torch.uint8).view(1, 1, height, width) > 0
        if not hole.any():
            raise UsageError(
                f"--mask {text}: it lies outside of the middle of {path}, which is all that the model sees"
            )
        holes.append(hole.expand(len(images) if arrays else 1, -1, -1, -1))
    return torch.cat(holes)

"""How evenly pictures change on the line from one to another, and along one direction of the codes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from wae_lightning.base import WAE
from wae_lightning.drawing import evaluation_mode, traversal_codes
from wae_lightning.work import codes_at_once

__all__ = ["evenness", "measure_lines", "measure_traversals"]

LINES, STEPS, DIRECTIONS = 100, 30, 16


def evenness(pictures: Tensor) -> dict[str, float]:
    """Measures lines of pictures by the Euclidean distances between neighbours.

    Args:
        pictures: Shape (steps, B, *shape), as ``interpolate`` gives them, at least 2 steps.

    Returns:
        Means over the lines that lead anywhere: ``largest_step``, the share of a line's length that its largest step
        takes, at least 1 / (steps - 1), and ``length``, that of a line over the distance of its ends, at least 1.

    Example:
        >>> evenness(torch.tensor([[0.0], [1.0], [4.0]]).unsqueeze(2))
        {'largest_step': 0.75, 'length': 1.0}
    """
    largest, lengths = _of_each_line(pictures)
    return {"largest_step": float(largest.mean()), "length": float(lengths.mean())}


def _of_each_line(pictures: Tensor) -> tuple[Tensor, Tensor]:
    flat = pictures.flatten(2).float()
    steps, ends = flat.diff(dim=0).norm(dim=2), (flat[-1] - flat[0]).norm(dim=1)
    steps, ends = steps[:, ends > 0], ends[ends > 0]
    paths = steps.sum(0)
    return steps.max(0).values / paths, paths / ends


@torch.no_grad()
def measure_lines(
    model: WAE,
    images: Tensor,
    classifier: nn.Module | None = None,
    ways: tuple[Literal["codes", "z"], ...] = ("codes",),
) -> dict[str, float]:
    """Measures lines of 30 pictures from each image to the one after it.

    Args:
        model: The model.
        images: Images (n, C, H, W), in no order of their classes; the first 101 are taken.
        classifier: Network from images to logits: it tells how many lines pass a class of neither end.
        ways: What the lines are straight in, see :meth:`WAE.interpolate`.

    Returns:
        ``lines_through_codes_largest_step``, ``..._length`` and ``..._third_class``, and so on for each way.
    """
    found: dict[str, float] = {}
    images = images[: LINES + 1].to(model.device)
    at_once = max(1, codes_at_once(model, 500) // STEPS)
    for way in ways:
        measures: dict[str, list[Tensor]] = {"largest_step": [], "length": [], "third_class": []}
        for start, end in zip(*(torch.split(x, at_once) for x in (images[:-1], images[1:])), strict=True):
            lines = model.interpolate(start, end, STEPS, way)
            for name, values in zip(measures, _of_each_line(lines), strict=False):
                measures[name].append(values)
            if classifier is not None:
                classes = classifier(lines.flatten(0, 1)).argmax(1).view(lines.shape[:2])
                third = (classes != classes[0]) & (classes != classes[-1])
                measures["third_class"].append(third.any(0).float())
        found |= {
            f"lines_through_{way}_{name}": float(torch.cat(values).mean())
            for name, values in measures.items()
            if values
        }
    return found


@torch.no_grad()
def measure_traversals(
    model: WAE, classifier: nn.Module | None = None, ways: tuple[Literal["codes", "z"], ...] = ("codes",)
) -> dict[str, float]:
    """Measures 30 pictures along each of the first 16 directions of the codes, each through another sample.

    Args:
        model: The model.
        classifier: Network from images to logits: it tells which share of all pictures is of the commonest class.
        ways: What the lines are straight in, see ``--through`` of ``generate.py``.

    Returns:
        ``traversals_through_codes_largest_step``, ``..._length`` and ``..._commonest_class``, and so on for each way.
    """
    found: dict[str, float] = {}
    start = model.prior.sample(min(model.latent_dim, DIRECTIONS), torch.Generator().manual_seed(0), model.device)
    at_once = codes_at_once(model, 500)
    with evaluation_mode(model):
        for way in ways:
            rows, decode = traversal_codes(model, start, STEPS, way)
            parts = torch.split(rows.flatten(0, 1), at_once)
            pictures = torch.cat([decode(part) for part in parts])
            measures = evenness(pictures.view(*rows.shape[:2], *pictures.shape[1:]).transpose(0, 1))
            if classifier is not None:
                classes = torch.cat([classifier(part).argmax(1) for part in torch.split(pictures, 500)])
                measures["commonest_class"] = float(classes.bincount().max()) / len(classes)
            found |= {f"traversals_through_{way}_{name}": value for name, value in measures.items()}
    return found

"""The codes of a set, what their reconstructions cost, and how well the codes follow the prior."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wae_lightning.base import WAE
from wae_lightning.drawing import evaluation_mode
from wae_lightning.kernels import InverseMultiquadric
from wae_lightning.lightning import LightningDataModule, is_overridden
from wae_lightning.penalties import mmd_test
from wae_lightning.refinement import reconstruction_by
from wae_lightning.training.inputs import check_range

__all__ = [
    "Codes",
    "batches_of",
    "compare_moments",
    "compare_with_prior",
    "encode_batches",
    "noise_share",
    "sizes_that_fit",
]

TEST_CODES, PRIOR_DRAWS = 1000, 1_000_000


class Codes(NamedTuple):
    """What a model makes of a set."""

    z: Tensor
    """Codes without encoder noise, float32 (N, latent_dim)."""
    cost: Tensor
    """The model's reconstruction cost of each example, float32 (N,): high for what it has not learned to draw."""
    labels: Tensor | None
    """int64 (N, ...), if the batches have any."""


def sizes_that_fit(sizes: Iterable[int], codes: Tensor) -> Iterator[int]:
    """The numbers of Gaussians that can be fitted to so many codes; says of others that their rows are left out."""
    for components in sizes:
        if components <= len(codes):
            yield components
        else:
            print(f"A mixture of {components} does not fit to {len(codes)} codes: its rows are left out.")


@torch.no_grad()
def encode_batches(model: WAE, batches: Iterable[Any], refine_steps: int = 0) -> Codes:
    """Encodes and reconstructs a set, in evaluation mode.

    Args:
        model: Any model here; of a conditional one the cost is that of the hidden part.
        batches: As the model takes them. Integers that stand last in a tuple, or under ``label`` or ``labels`` of a
            dictionary, are the labels.
        refine_steps: Of the reconstructions whose cost is computed, see :meth:`WAE.encode`; not of the codes.

    Returns:
        Codes, costs and labels, on the CPU.

    Raises:
        ValueError: If there is no batch, or one does not fit the model.
        FloatingPointError: If a batch holds numbers that are not finite.
    """
    codes, costs, labels = [], [], []
    with evaluation_mode(model):
        for number, batch in enumerate(batches, 1):
            for x in model.tensors_in_range(batch):
                check_range(x, model.input_range, f"batch {number}")
            batch = model.transfer_batch_to_device(batch, model.device, 0)
            z, reconstruction = model.predict_step(batch, 0)
            inputs = model.inputs_of(batch)
            target = inputs[-1] if isinstance(inputs, tuple) else inputs
            if refine_steps:
                reconstruction = reconstruction_by(model, refine_steps)(inputs)
            codes.append(z.float().cpu())
            costs.append(model.cost(target, reconstruction).float().cpu())
            labels.append(_labels_of(batch, len(z)))
    if not codes:
        raise ValueError("there is nothing to encode: the set is empty")
    known = [found for found in labels if found is not None]
    return Codes(torch.cat(codes), torch.cat(costs), torch.cat(known) if len(known) == len(labels) else None)


def batches_of(data: Any, part: str, in_order: bool = False) -> Iterator[Any]:
    """The batches of a set as models take them; of several loaders, one after the other.

    Args:
        data: A data module that has been set up.
        part: ``train``, ``val`` or ``test``.
        in_order: Each example once, in the order of the set, if the data module can.

    Raises:
        ValueError: If the data module has no such set, or an empty one.
    """
    hook = f"{part}_dataloader"
    if in_order and hasattr(data, "in_order"):
        loaders = data.in_order(part)
    elif isinstance(data, LightningDataModule) and not is_overridden(hook, data):
        loaders = None
    else:
        loaders = getattr(data, hook)()
    empty = True
    for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
        for batch in loader if loader is not None else ():
            yield data.on_after_batch_transfer(batch, 0)
            empty = False
    if empty:
        raise ValueError(f"{type(data).__name__} has no {part} data: its {hook} is missing or gives no batches")


def _labels_of(batch: Any, count: int) -> Tensor | None:
    if isinstance(batch, Mapping):
        last = next((batch[key] for key in ("label", "labels") if key in batch), None)
    else:
        last = batch[-1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    if not isinstance(last, Tensor) or last.is_floating_point() or not last.ndim or len(last) != count:
        return None
    return last.cpu().long()


def compare_with_prior(part: str, z: Tensor, model: WAE) -> dict[str, float]:
    """Moments of codes against the prior's, and the MMD between both with its p-value."""
    kernel = InverseMultiquadric()
    kernel.set_expected_squared_distance(model.prior.expected_squared_distance)
    some = z[torch.randperm(len(z))[:TEST_CODES]]
    squared, p_value = mmd_test(some, model.prior.sample(len(some)), kernel, permutations=500)
    found = compare_moments(z, model.prior.sample) | {"mmd": squared, "mmd_p_value": p_value}
    return {f"{part}_codes_{name}": value for name, value in found.items()}


def compare_moments(z: Tensor, sample: Callable[[int], Tensor]) -> dict[str, float]:
    """Compares mean, standard deviation and covariance of codes with those of the prior."""
    z, z_prior = z.double(), sample(PRIOR_DRAWS).double()
    covariance = z.T.cov()
    scale = z_prior.std(0)
    off_diagonal = covariance[~torch.eye(len(covariance), dtype=torch.bool)]
    return {
        "largest_mean_error": float((z.mean(0) - z_prior.mean(0)).abs().max()),
        "smallest_std_ratio": float((z.std(0) / scale).min()),
        "largest_std_ratio": float((z.std(0) / scale).max()),
        "mean_absolute_covariance": float(off_diagonal.abs().mean()) if len(off_diagonal) else 0.0,
    }


def noise_share(first: Tensor, second: Tensor) -> float:
    """The share of the variance of the encoder's codes that is noise: E Var(z | x) / Var z, summed over dimensions.

    Args:
        first: A random code of each input, (n, d).
        second: Another one of each input.
    """
    first, second = first.double(), second.double()
    # the difference of two draws has twice the variance of the noise
    return float((first - second).square().mean(0).sum() / 2 / first.var(0).sum())

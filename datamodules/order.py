"""In which order a training set is gone through: a function of (seed, epoch), so that a pass can go on at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

__all__ = ["BatchRows", "EpochBatches", "EpochOrder", "ResumableLoader"]


class BatchRows(list[int]):
    """The rows of one batch, and the seed of what its set draws for it: the same in this and in a worker process."""

    seed: int


class EpochOrder(DistributedSampler[Any]):
    """Draws a random order for each epoch, a function of (seed, epoch) alone; of n processes each takes every n-th row.

    Lightning calls ``set_epoch`` before each epoch, and leaves a ``DistributedSampler`` in its place. A pass that was
    not announced so is the next epoch. How many processes there are is asked in each pass, for a loader may be made
    before they are joined; where they do not divide the set, the first rows serve twice.

    Args:
        dataset: The training set.
        seed: 0 or more; the same in all processes.
    """

    dataset: Any

    def __init__(self, dataset: Any, seed: int) -> None:
        # torch's own would settle the number of processes here
        self.dataset = dataset
        self.seed = seed
        self.epoch = 0
        self.announced: int | None = None
        """The epoch that ``set_epoch`` has told last."""
        self.shift = 0
        """How many epochs more Lightning has counted than there were."""
        self._resumed: tuple[int, int, str | None] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Makes the next pass that of an epoch.

        Raises:
            ValueError: If the epoch that was under way cannot go on here; see ``ResumableLoader``.
        """
        epoch -= self.shift
        if self._resumed is not None:
            last, _, refusal = self._resumed
            if refusal is not None:
                raise ValueError(refusal)
            # Lightning counts an epoch twice when a run with max_steps goes on at its end: the order leaves out none
            self.shift += max(0, epoch - last - 1)
            epoch = min(epoch, last + 1)
        self.epoch = self.announced = epoch

    def resume(self, epoch: int, first_batch: int, refusal: str | None = None) -> None:
        """Makes the next pass go on at a batch if it is of this epoch, or fail if there is a reason to refuse it."""
        self.epoch = epoch
        self._resumed = epoch, first_batch, refusal

    @property
    def first_batch(self) -> int:
        """The batch at which the next pass begins."""
        return self._resumed[1] if self._resumed is not None and self._resumed[0] == self.epoch else 0

    def begin_next(self) -> None:
        """Notes that the pass of this epoch has begun."""
        if self._resumed is not None and self.announced not in (None, self._resumed[0]):
            self._resumed = None
        self.epoch += 1

    def rows(self) -> Tensor:
        """All rows that this process sees in this epoch, int64 (len(self),)."""
        rank, processes = rank_and_processes()
        count = len(self.dataset)
        seed = int(np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0])
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return order[torch.arange(rank, len(self) * processes, processes) % count]

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows().tolist())

    def __len__(self) -> int:
        return -(-len(self.dataset) // rank_and_processes()[1])


class EpochBatches(BatchSampler):
    """The order of an epoch in batches, from the one on at which the pass begins.

    Batches are ``BatchRows``; where the set lies on a device, they are tensors there, and the order crosses the bus
    once. Other samplers, which Lightning puts in for ``overfit_batches`` and for predictions, are served as by torch.
    """

    def __iter__(self) -> Iterator[Any]:
        order = self.sampler
        if not isinstance(order, EpochOrder):
            yield from super().__iter__()
            return
        device = getattr(order.dataset, "device", torch.device("cpu"))
        batches = torch.split(order.rows().to(device), self.batch_size)[: len(self)]
        seeds = np.random.SeedSequence([order.seed, order.epoch, rank_and_processes()[0]]).generate_state(len(batches))
        first = order.first_batch
        order.begin_next()
        for batch, seed in zip(batches[first:], seeds[first:].tolist(), strict=True):
            if device.type == "cpu":
                on_host = BatchRows(batch.tolist())
                on_host.seed = seed
                yield on_host
            else:
                yield batch


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over ``EpochBatches`` whose state is its place: seed, epoch, and batches of it that were yielded.

    Lightning saves and loads the state of loaders that have one. An epoch goes on in its middle only in batches of the
    same size and number among as many processes: Lightning counts batches, not examples, and would end it too soon or
    too late. Otherwise ``EpochOrder.set_epoch`` refuses it.
    """

    _place = 0, 0
    step_has_ended: Callable[[], bool] | None = None
    """Tells whether training is done with the latest batch; a checkpoint may be written within its hooks."""

    @property
    def sampler(self) -> Any:
        """The order that is cut into batches; Lightning asks it for its class and tells it the epoch."""
        return getattr(self.batch_sampler, "sampler", None)

    @sampler.setter
    def sampler(self, value: Any) -> None:
        pass  # torch puts a sequential one beside any batch sampler

    def __iter__(self) -> Any:
        # nothing is begun before the first batch is asked for: Lightning makes the iterator before it tells the epoch
        order = self.sampler
        if not isinstance(order, EpochOrder):
            yield from super().__iter__()
            return
        epoch, count = order.epoch, order.first_batch
        for batch in super().__iter__():
            count += 1
            if order.announced in (None, epoch):  # another pass that somebody makes meanwhile does not count
                self._place = epoch, count
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Seed and place, and what must be the same to go on there in the middle of an epoch."""
        if not isinstance(self.sampler, EpochOrder):
            return {}
        epoch, batches = self._place
        order = self.sampler
        ended = batches >= len(self) and (self.step_has_ended is None or self.step_has_ended())
        place = {"epoch": epoch, "batches": batches, "ended": ended}
        return {"seed": order.seed, **place, "shift": order.shift, **self._shape()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the loader go on, in the same order, at the place that ``state_dict`` tells."""
        order = self.sampler
        if not isinstance(order, EpochOrder) or "seed" not in state_dict:
            return
        epoch, batches, here = state_dict["epoch"], state_dict["batches"], self._shape()
        there = {name: state_dict[name] for name in here}
        refusal = None
        if batches >= there["batches_per_epoch"] and (there == here or state_dict["ended"]):
            batches = len(self)  # of whatever size: this epoch is done
        elif there != here and batches:
            refusal = (
                f"the checkpoint was saved in the middle of an epoch, after batch {batches} with {_listed(there)}, and "
                f"cannot go on with {_listed(here)}: take the same, or a checkpoint from the end of an epoch"
            )
        order.seed, order.shift = state_dict["seed"], state_dict["shift"]
        order.resume(epoch, batches, refusal)
        self._place = epoch, batches

    def _shape(self) -> dict[str, int]:
        batch_size = getattr(self.batch_sampler, "batch_size", 0)
        return {"batch_size": batch_size, "batches_per_epoch": len(self), "processes": rank_and_processes()[1]}


def _listed(values: dict[str, int]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def rank_and_processes() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1

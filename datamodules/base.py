"""What every data module here shares: loaders that fetch a whole batch by index."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wae_lightning.lightning import LightningDataModule, rank_zero_warn

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BatchDataModule", "ResumableLoader", "training_and_validation_rows"]


def _as_is(batch: Any) -> Any:
    """The collate function of data sets whose ``__getitems__`` already returns a batch."""
    return batch


class ResumableLoader(DataLoader[Any]):
    """A DataLoader that goes on in the middle of a pass, in the same order, when its state was saved there.

    Lightning saves and loads the state of loaders that have one. What the pass yielded before is fetched once more and
    dropped, so that worker processes draw their random numbers as they would have; the global generator of this process
    is left as it was, its state is the model's to restore.
    """

    _position: dict[str, Any] | None = None
    _resume_at: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Where the pass that yielded last stands: how many batches, and the random numbers that its order is from."""
        return self._position or {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Makes the next pass go on at a place that ``state_dict`` told of."""
        self._resume_at = state_dict or None

    def __iter__(self) -> Any:
        resume_at, self._resume_at = self._resume_at, None
        now = torch.get_rng_state()
        if resume_at is None:
            return self._counted(self._batches(), now, None)
        torch.set_rng_state(resume_at["rng_state"])
        batches = self._batches()
        torch.set_rng_state(now)
        return self._counted(batches, resume_at["rng_state"], resume_at)

    def _batches(self) -> Iterator[Any]:
        if self.num_workers or self.collate_fn is not _as_is:
            return super().__iter__()
        # what torch's iterator does, but for its marks for a profiler, which take as long as fetching a batch of digits
        torch.empty((), dtype=torch.int64).random_()  # its seed for workers: the order is the same with them
        dataset: Any = self.dataset
        return map(dataset.__getitems__, self.batch_sampler)  # type: ignore[arg-type]

    def _counted(self, batches: Iterator[Any], rng_state: Tensor, resume_at: dict[str, Any] | None) -> Iterator[Any]:
        # the order is drawn with the first batch, not before
        now = order_state = torch.get_rng_state()
        count = 0
        if resume_at is not None:
            order_state, count = resume_at["order_rng_state"], resume_at["batches"]
            torch.set_rng_state(order_state)
            for _ in range(count):
                next(batches, None)
            torch.set_rng_state(now)
        for batch in batches:
            count += 1
            self._position = {"batches": count, "rng_state": rng_state, "order_rng_state": order_state}
            yield batch


class BatchDataModule(LightningDataModule):
    """Base of all data modules: subclasses fill ``train_set``, ``val_set`` and ``test_set`` in ``setup``.

    The sets have ``__len__`` and ``__getitems__(indices)``, which returns a whole batch. Samplers are torch's own, so
    ``seed_everything`` fixes the order and Lightning shards the sets among processes as it does with any DataLoader.
    Training resumed in the middle of an epoch goes on with the next batch (``ResumableLoader``).

    Args:
        batch_size: Examples per batch.
        num_workers: Worker processes of the DataLoader. In-memory sets need none: 0 is fastest.

    Raises:
        ValueError: If ``batch_size`` is not positive or ``num_workers`` is negative.
    """

    train_set: Dataset[Any]
    val_set: Dataset[Any]
    test_set: Dataset[Any]

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self._remember_arguments()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        self.batch_size = batch_size
        self.num_workers = num_workers

    def _remember_arguments(self) -> None:
        """Keeps the subclass's arguments for the checkpoint, as plain data that loads with ``weights_only=True``."""
        self.save_hyperparameters(logger=False, frame=inspect.currentframe().f_back)  # type: ignore[union-attr]
        for name, value in list(self.hparams.items()):
            if isinstance(value, Path):
                self.hparams[name] = str(value)
            elif not isinstance(value, bool | int | float | str | list | tuple | dict | None):
                del self.hparams[name]

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        weights_only: bool | None = True,
        **arguments: Any,
    ) -> Self:
        """Makes the data module with the plain arguments that a checkpoint holds.

        A checkpoint is read as plain data and builds nothing: an argument that is an object must be given.

        Args:
            checkpoint_path: A path, a URL, or an open binary file.
            map_location: Device, or torch's other ways to name one.
            hparams_file: YAML or CSV file to take instead of the arguments in the checkpoint.
            weights_only: False also unpickles objects, which can run any code: only for files that you trust.
            **arguments: Arguments of the data module, to take instead of what the checkpoint says.
        """
        # without the instantiator, class paths stay the dictionaries that they are
        arguments["_instantiator"] = None
        return super().load_from_checkpoint(
            checkpoint_path,
            map_location=map_location,
            hparams_file=hparams_file,
            weights_only=weights_only,
            **arguments,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        # A last batch of another size would change the scale of the penalty and, with one example, break batch norm.
        drop_last = len(self.train_set) >= self.batch_size  # type: ignore[arg-type]
        return self._loader(self.train_set, ResumableLoader, shuffle=True, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def _loader(
        self,
        dataset: Dataset[Any],
        loader: type[DataLoader[Any]] = DataLoader,
        shuffle: bool = False,
        drop_last: bool = False,
    ) -> DataLoader[Any]:
        return loader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_as_is,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warns when a checkpoint was trained on differently prepared data; nothing else is restored."""
        here = self.state_dict()
        for name in sorted(state_dict.keys() | here.keys()):
            if state_dict.get(name) != here.get(name):
                rank_zero_warn(
                    f"The checkpoint was trained on data with {name} = {state_dict.get(name)!r}; "
                    f"this {type(self).__name__} has {here.get(name)!r}."
                )


def training_and_validation_rows(count: int, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits ``range(count)`` at random, but the same way for the same ``seed``.

    Args:
        count: Number of examples in the official training set.
        val_fraction: Share of them that goes to validation, in (0, 1).
        seed: Seed of the permutation; it is independent of the seed of the training run.

    Returns:
        Sorted row numbers of the training part and of the validation part.

    Raises:
        ValueError: If ``val_fraction`` leaves one of the two empty.
    """
    validation = round(count * val_fraction)
    if not 0 < validation < count:
        raise ValueError(f"val_fraction must leave both parts some of the {count} examples, got {val_fraction}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[validation:].sort().values, order[:validation].sort().values

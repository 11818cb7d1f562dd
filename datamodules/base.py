"""What every data module here shares: sets that give a whole batch by index, and their loaders."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.order import EpochBatches, EpochOrder, ResumableLoader
from wae_lightning.checkpoints import check_description, read_plain
from wae_lightning.lightning import LightningDataModule, rank_zero_warn
from wae_lightning.parts import Part, build, describe, recorded_arguments

if TYPE_CHECKING:
    from typing_extensions import Self

SPLIT = ("split_seed", "val_fraction", "test_fraction", "exclude")
"""Arguments that decide which examples are in which set: with others, what was trained on may be tested on."""

__all__ = ["SPLIT", "BatchDataModule", "TensorRows", "check_seed", "training_and_validation_rows"]


def _as_is(batch: Any) -> Any:
    """The collate function of data sets whose ``__getitems__`` already returns a batch."""
    return batch


class TensorRows(Dataset[tuple[Tensor, Tensor]]):
    """Examples and labels in memory; a whole batch is one index operation.

    Args:
        examples: (N, ...).
        labels: (N, ...).
        rows: Which rows of the two this data set consists of; None means all of them. Nothing is copied, so the
            training and the validation part of one set share its memory.
    """

    in_memory = True

    def __init__(self, examples: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.examples = examples
        self.labels = labels
        self.rows = torch.arange(len(labels), device=labels.device) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        examples, labels = self.__getitems__([index])
        return examples[0], labels[0]

    def __getitems__(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        rows = self.rows_of(indices)
        # index_select copies row by row, ten times faster than indexing does for rows of bytes
        return self.examples.index_select(0, rows), self.labels.index_select(0, rows)

    def rows_of(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Where the examples of these numbers stand in ``examples``."""
        return self.rows.index_select(0, torch.as_tensor(indices, device=self.device))

    @property
    def device(self) -> torch.device:
        """Where the examples lie and batches are put together."""
        return self.rows.device

    @property
    def bytes(self) -> int:
        """Size of the examples of this data set."""
        return len(self) * self.examples[:1].nbytes

    def to(self, device: torch.device) -> Self:
        """The same data set on a device: a copy of its own rows only."""
        moved = copy.copy(self)
        moved.examples, moved.labels = self.examples[self.rows].to(device), self.labels[self.rows].to(device)
        moved.rows = torch.arange(len(self), device=device)
        return moved


class BatchDataModule(LightningDataModule, Part):
    """Base of all data modules: subclasses fill ``train_set``, ``val_set`` and ``test_set`` in ``setup``.

    The sets have ``__len__`` and ``__getitems__(indices)``, which returns a whole batch. The order of the training set
    is a function of (seed, epoch), the seed being that of torch's generator when the loader is made, so
    ``seed_everything`` fixes it; a resumed run goes on in the order that it began with, with the next batch. With
    several processes each sees its own share, whatever ``use_distributed_sampler`` says.

    Args:
        batch_size: Examples per batch.
        num_workers: Worker processes of the DataLoader. In-memory sets need none: 0 is fastest.
        on_device: Whether the sets lie on the trainer's device for the whole run: then batches are drawn there, and
            no copy is left on the host. The order is the same either way. None: on a CUDA GPU, if a set in memory
            fills at most a third of what is free there.

    Raises:
        ValueError: If ``batch_size`` is not positive, ``num_workers`` is negative, or ``on_device`` is asked for along
            with worker processes, which cannot reach a device, or with sets that stay on disk.
    """

    train_set: Dataset[Any]
    val_set: Dataset[Any]
    test_set: Dataset[Any]

    def __init__(self, batch_size: int, num_workers: int, on_device: bool | None = None) -> None:
        super().__init__()
        path = describe(self).get("class_path", f"{type(self).__module__}.{type(self).__qualname__}")
        about = {**recorded_arguments(self), "_class_path": path}
        # its own frame would keep what the caller holds, such as loaders with their workers, until a garbage collection
        self.save_hyperparameters(about, frame=inspect.currentframe(), logger=False)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        if on_device and num_workers:
            raise ValueError(f"on_device needs num_workers 0, got {num_workers}: workers do not reach the device")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.on_device = on_device
        self._train_loader: ResumableLoader | None = None
        self._resumed: dict[str, Any] | None = None
        self._order_seed: int | None = None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, trust: Sequence[str] = (), **arguments: Any
    ) -> Self:
        """Makes the data module with the arguments that a checkpoint holds, read as plain data.

        Args:
            checkpoint_path: A path, or an open binary file.
            trust: Modules of your own whose classes it may name.
            **arguments: Arguments of the data module, to take instead of what the checkpoint says.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no checkpoint, or names a class that is not trusted.
        """
        path = Path(checkpoint_path) if isinstance(checkpoint_path, str) else checkpoint_path
        stored = dict(read_plain(path).get("datamodule_hyper_parameters", {}))
        kept = {name: value for name, value in stored.items() if not (name.startswith("_") or name in arguments)}
        for name, value in kept.items():
            check_description(value, trust=trust, name=name)
        return cls(**{name: build(value, trust, name=name) for name, value in kept.items()}, **arguments)

    def train_dataloader(self) -> DataLoader[Any]:
        train_set = self._placed("train_set")
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return self._loader(train_set)
        seed = torch.initial_seed() if self._order_seed is None else self._order_seed
        if self.trainer is not None:
            seed = self.trainer.strategy.broadcast(seed)
        order = EpochOrder(train_set, seed)
        # A last batch of another size would change the scale of the penalty and, with one example, break batch norm.
        batches = EpochBatches(order, self.batch_size, drop_last=len(order) >= self.batch_size)
        loader = ResumableLoader(train_set, batch_sampler=batches, **self._options(train_set))
        if self._resumed is not None:
            loader.load_state_dict(self._resumed)
            self._resumed = None
        if self.trainer is not None:
            loader.step_has_ended = self._step_has_ended
        self._train_loader = loader
        return loader

    def _step_has_ended(self) -> bool:
        """Whether Lightning counts the latest batch as done, and so begins an epoch if it was the last one."""
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current  # type: ignore[union-attr]
        return bool(progress.completed == progress.ready)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self._placed("val_set"))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self._placed("test_set"))

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def in_order(self, part: Literal["train", "val", "test"]) -> DataLoader[Any]:
        """A loader of one of the three sets that shows each example once, always in the same order."""
        return self._loader(self._placed(f"{part}_set"))

    def _loader(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=self.batch_size, **self._options(dataset))

    def _options(self, dataset: Dataset[Any]) -> dict[str, Any]:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "collate_fn": _as_is,
            # what lies on the device needs no pinning; what is pinned is copied while the device works
            "pin_memory": on_cuda and getattr(dataset, "device", torch.device("cpu")).type == "cpu",
            # torch draws a seed for workers in each pass: not from the generator that the model draws from
            "generator": torch.Generator().manual_seed(0),
        }

    def _placed(self, name: str) -> Dataset[Any]:
        """One of the three data sets, moved to the trainer's device before if it is to lie there."""
        dataset = getattr(self, name)
        if self.on_device is not False and not self.num_workers and self.trainer and isinstance(dataset, TensorRows):
            device = self.trainer.strategy.root_device
            fits = (
                device.type == "cuda" and dataset.in_memory and 3 * dataset.bytes <= torch.cuda.mem_get_info(device)[0]
            )
            if (self.on_device or fits) and dataset.device != device:
                dataset = dataset.to(device)
                setattr(self, name, dataset)
        return dataset  # type: ignore[no-any-return]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint says about the data; subclasses add how they are prepared.

        The place of the training loader is among it although Lightning saves that, too: Lightning gives it back too
        late to a loader that was made for a schedule which asks how long the run is, and not at the end of an epoch.
        """
        split = {name: getattr(self, name) for name in SPLIT if hasattr(self, name)}
        return split | ({} if self._train_loader is None else {"order": self._train_loader.state_dict()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lets training go on where it was, and warns when it was on differently prepared data."""
        here = self.state_dict()
        order = state_dict.get("order")
        if order and self.trainer is not None and self.trainer.state.fn == "fit":
            self._resumed, self._order_seed = order, order["seed"]
        for name in sorted((state_dict.keys() & here.keys()) - {"order"}):
            if state_dict[name] != here[name]:
                mixed = " What was trained on may now be validated or tested on." if name in SPLIT else ""
                rank_zero_warn(
                    f"The checkpoint was trained on data with {name} = {state_dict[name]!r}; "
                    f"this {type(self).__name__} has {here[name]!r}.{mixed}"
                )


def check_seed(seed: int) -> int:
    """Refuses a ``split_seed`` that is no whole number from 0 to 2³².

    Raises:
        ValueError: If it is something else.
    """
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"split_seed must be a whole number from 0 to 2**32, got {str(seed)[:40]}")
    return seed


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
    validation = round(count * val_fraction) if 0 < val_fraction < 1 else 0
    if not 0 < validation < count:
        raise ValueError(f"val_fraction must leave both parts some of the {count} examples, got {val_fraction}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[validation:].sort().values, order[:validation].sort().values

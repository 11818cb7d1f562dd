"""The codes of the latest batches, kept once for all that looks back at them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CodeMemory"]


class CodeMemory(nn.Module):
    """Remembers the codes of the latest batches, and is saved with the model.

    The penalty takes past codes from it (``code_queue``), so do a flow, the coupling of point sets, and
    ``training_codes``. It is part of the model's ``state_dict``, as extra state: its size varies.

    Args:
        capacity: At least so many codes are kept, once so many were seen; older batches are forgotten.

    Example:
        >>> memory = CodeMemory(capacity=3)
        >>> for value in range(4):
        ...     memory.remember(torch.full((2, 1), float(value)))
        >>> len(memory), memory.latest(3).flatten().tolist()
        (4, [3.0, 3.0, 2.0])
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._batches: deque[Tensor] = deque()
        self._count = 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # the codes move with the model, like its buffers, in their own precision: a resumed step copies nothing
        self._batches = deque(batch.to(fn(batch[:0]).device) for batch in self._batches)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __len__(self) -> int:
        return self._count

    def remember(self, codes: Tensor) -> None:
        """Adds the codes of one batch, (n, d); no gradient is kept."""
        # a copy: with CUDA graphs the next step overwrites the tensor
        self._batches.append(codes.detach().clone())
        self._count += len(codes)
        while self._count - len(self._batches[0]) >= self.capacity:
            self._count -= len(self._batches.popleft())

    def latest(self, count: int, like: Tensor | None = None) -> Tensor:
        """The latest ``count`` codes, or as many as there are: (n, d), the batches from the latest to the oldest.

        Args:
            count: How many at most.
            like: A tensor (m, d) whose device and type they shall have; it also says d while nothing is remembered.
        """
        found = [] if like is None else [like[:0]]
        for batch in reversed(self._batches):
            if count <= 0:
                break
            part = batch[-count:]
            found.append(part if like is None else part.to(like))
            count -= len(part)
        return torch.cat(found)

    def all(self) -> Tensor:
        """All codes, (n, d), on the device of the latest ones, the oldest first."""
        return torch.cat([batch.to(self._batches[-1].device) for batch in self._batches])

    def get_extra_state(self) -> Tensor:
        """What ``state_dict`` holds: the codes, and a last column that is 1 where a batch begins, (n, d + 1).

        It is a tensor, so that all of a state dict are tensors, as safetensors wants it.
        """
        if not self._batches:
            return torch.empty(0, 1)
        begins = [torch.arange(len(batch)) == 0 for batch in self._batches]
        codes = self.all()
        return torch.cat([codes, torch.cat(begins).to(codes).unsqueeze(1)], dim=1)

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what ``get_extra_state`` told.

        Raises:
            ValueError: If it is something else.
        """
        if not isinstance(state, Tensor) or state.ndim != 2 or not state.is_floating_point() or not state.shape[1]:
            raise ValueError("the remembered codes are no matrix of floats")
        begins = state[:, -1].nonzero().flatten().tolist()
        if begins[:1] != [0] * bool(len(state)):
            raise ValueError("the remembered codes do not begin with a batch")
        self._batches = deque(state[:, :-1].tensor_split(begins[1:]) if begins else ())
        self._count = len(state)

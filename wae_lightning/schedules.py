"""Learning-rate schedules that torch lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

__all__ = ["DividedLR", "OneCycle"]


class DividedLR(LambdaLR):
    """Divides the learning rate by another number at each milestone (``MultiStepLR`` knows one factor for all).

    The default is the ``manual`` schedule of the authors of the WAE (github.com/tolstikhin/wae): half from epoch 30 on,
    a fifth of that from epoch 50 on, a tenth of that from epoch 100 on.

    Args:
        optimizer: The optimizer.
        milestones: Epochs (or steps, if the model's ``lr_interval`` is ``step``), increasing.
        divisors: What the rate is divided by at each of them.

    Raises:
        ValueError: If the two differ in length.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = DividedLR(optimizer, milestones=[1, 2], divisors=[2, 5])
        >>> for _ in range(2):
        ...     optimizer.step()
        ...     schedule.step()
        >>> schedule.get_last_lr()
        [0.1]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int] = (30, 50, 100),
        divisors: Sequence[float] = (2.0, 5.0, 10.0),
    ) -> None:
        if len(milestones) != len(divisors):
            raise ValueError(f"each milestone needs its divisor, got {len(milestones)} and {len(divisors)}")
        self.milestones = tuple(milestones)
        self.divisors = tuple(divisors)
        super().__init__(optimizer, self._factor)

    def _factor(self, epoch: int) -> float:
        passed = (divisor for start, divisor in zip(self.milestones, self.divisors, strict=True) if epoch >= start)
        return 1 / math.prod(passed)


class OneCycle(OneCycleLR):
    """Torch's ``OneCycleLR``, of a length that is no part of its state: a resumed run may be longer or shorter.

    A run that is too short for a rise and a fall takes the first steps of the shortest cycle.

    Args:
        optimizer: The optimizer.
        max_lr: Largest learning rate, or one for each parameter group.
        total_steps: Length of the cycle.
        pct_start: Share of the cycle in which the rate rises.
        arguments: The other arguments of ``OneCycleLR``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float],
        total_steps: int,
        pct_start: float = 0.3,
        **arguments: Any,
    ) -> None:
        total_steps = max(total_steps, 4)
        if pct_start * total_steps <= 1:
            pct_start = 2 / total_steps
        super().__init__(optimizer, max_lr, total_steps=total_steps, pct_start=pct_start, **arguments)

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}

"""Learning-rate schedules that torch lacks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["DividedLR"]


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

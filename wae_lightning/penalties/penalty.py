"""What all penalties have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from wae_lightning.parts import Part
from wae_lightning.priors import Prior

__all__ = ["NoPenalty", "Penalty"]


class Penalty(Part, nn.Module, ABC):
    """A divergence between two samples of codes, which the encoder descends."""

    codes_per_input = 1
    """How many codes the model draws for each input; those of one input stand in consecutive rows of z."""

    def set_prior(self, prior: Prior) -> None:
        """Tells the penalty which prior it is used with; the model calls this once, when it is built."""

    @abstractmethod
    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        """Compares codes (n, d) with draws from the prior (m, d): a scalar."""


class NoPenalty(Penalty):
    """0: for models whose loss is the cost alone."""

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        return z.new_zeros(())

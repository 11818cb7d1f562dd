"""Penalties D(z, z_prior): how far the codes are from the prior.

A new one is a subclass of :class:`Penalty` with ``forward(z, z_prior) -> scalar``; nothing else changes.
"""

from wae_lightning.penalties.adversarial import Adversarial
from wae_lightning.penalties.cramer_wold import CramerWold
from wae_lightning.penalties.mmd import MMD, EnergyDistance, MMDPlusPlus, mmd, mmd_test
from wae_lightning.penalties.penalty import NoPenalty, Penalty
from wae_lightning.penalties.wasserstein import ExactWasserstein, MaxSlicedWasserstein, Sinkhorn, SlicedWasserstein

__all__ = [
    "MMD",
    "Adversarial",
    "CramerWold",
    "EnergyDistance",
    "ExactWasserstein",
    "MMDPlusPlus",
    "MaxSlicedWasserstein",
    "NoPenalty",
    "Penalty",
    "Sinkhorn",
    "SlicedWasserstein",
    "mmd",
    "mmd_test",
]

"""Wasserstein auto-encoders as LightningModules."""

from wae_lightning.base import WAE
from wae_lightning.conditional import ConditionalWAE
from wae_lightning.gan import WAEGAN
from wae_lightning.mmd import WAEMMD
from wae_lightning.pointnet import PointNetWAE

__version__ = "0.1.0"

__all__ = ["WAE", "WAEGAN", "WAEMMD", "ConditionalWAE", "PointNetWAE", "__version__"]

"""Wasserstein auto-encoders as LightningModules."""

from wae_lightning.base import WAE
from wae_lightning.mmd import WAEMMD

__version__ = "0.1.0"

__all__ = ["WAE", "WAEMMD", "__version__"]

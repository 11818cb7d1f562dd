"""LightningDataModules. They work with any LightningModule and never import ``wae_lightning``."""

from datamodules.mnist import MNISTDataModule

__all__ = ["MNISTDataModule"]

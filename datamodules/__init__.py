"""LightningDataModules. They work with any LightningModule and know no model."""

from datamodules.celeba import CelebADataModule
from datamodules.folder import ImageFolderDataModule
from datamodules.half_images import HalfImageDataModule
from datamodules.mnist import MNISTDataModule
from datamodules.modelnet40 import ModelNet40DataModule

__all__ = [
    "CelebADataModule",
    "HalfImageDataModule",
    "ImageFolderDataModule",
    "MNISTDataModule",
    "ModelNet40DataModule",
]

"""LightningDataModules. They work with any LightningModule and know no model."""

from datamodules.celeba import CelebADataModule
from datamodules.folder import ImageFolderDataModule
from datamodules.half_images import HalfImageDataModule
from datamodules.labels import LabelDataModule
from datamodules.mnist import MNISTDataModule
from datamodules.modelnet40 import ModelNet40DataModule
from datamodules.pairs import DownscaledDataModule, GreyDataModule, MaskedDataModule

__all__ = [
    "CelebADataModule",
    "DownscaledDataModule",
    "GreyDataModule",
    "HalfImageDataModule",
    "ImageFolderDataModule",
    "LabelDataModule",
    "MNISTDataModule",
    "MaskedDataModule",
    "ModelNet40DataModule",
]

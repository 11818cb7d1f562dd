"""Callbacks that show what a model does; they use only its public methods."""

from wae_lightning.callbacks.images import ImagePictures

__all__ = ["ImagePictures"]

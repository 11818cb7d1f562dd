"""Callbacks that show what a model does; they use only its public methods."""

from wae_lightning.callbacks.codes import CodePictures
from wae_lightning.callbacks.completions import CompletionPictures
from wae_lightning.callbacks.dashboard import Dashboard
from wae_lightning.callbacks.images import ImagePictures
from wae_lightning.callbacks.point_clouds import PointCloudPictures, draw_point_sets

__all__ = [
    "CodePictures",
    "CompletionPictures",
    "Dashboard",
    "ImagePictures",
    "PointCloudPictures",
    "draw_point_sets",
]

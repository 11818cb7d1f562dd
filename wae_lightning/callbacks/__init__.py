"""Callbacks that show what a model does; they use only its public methods."""

from wae_lightning.callbacks.codes import CodePictures
from wae_lightning.callbacks.completion_measures import MeasureCompletions
from wae_lightning.callbacks.completions import CompletionPictures
from wae_lightning.callbacks.dashboard import Dashboard
from wae_lightning.callbacks.images import ImagePictures
from wae_lightning.callbacks.labels import LabelPictures
from wae_lightning.callbacks.pictures import Pictures, log_picture
from wae_lightning.callbacks.point_clouds import PointCloudPictures, draw_point_sets
from wae_lightning.callbacks.progress import ProgressBar
from wae_lightning.callbacks.sample_quality import SampleQuality

__all__ = [
    "CodePictures",
    "CompletionPictures",
    "Dashboard",
    "ImagePictures",
    "LabelPictures",
    "MeasureCompletions",
    "Pictures",
    "PointCloudPictures",
    "ProgressBar",
    "SampleQuality",
    "draw_point_sets",
    "log_picture",
]

"""Measures of quality that torchmetrics lacks."""

from wae_lightning.metrics.completion import CodeDependence, CompletionMetrics
from wae_lightning.metrics.digit_classifier import DigitClassifier, DigitClassifierTwin, DigitFeatures
from wae_lightning.metrics.images import PrecisionRecall, Sharpness
from wae_lightning.metrics.patches import PatchDistance
from wae_lightning.metrics.point_clouds import (
    ClassifierAgreement,
    LinearSVMAccuracy,
    OccupancyDivergence,
    PointSetDistances,
    PointSetReconstruction,
)

__all__ = [
    "ClassifierAgreement",
    "CodeDependence",
    "CompletionMetrics",
    "DigitClassifier",
    "DigitClassifierTwin",
    "DigitFeatures",
    "LinearSVMAccuracy",
    "OccupancyDivergence",
    "PatchDistance",
    "PointSetDistances",
    "PointSetReconstruction",
    "PrecisionRecall",
    "Sharpness",
]

"""Measures of quality that torchmetrics lacks."""

from wae_lightning.metrics.completion import CodeDependence, CompletionMetrics
from wae_lightning.metrics.digit_classifier import DigitClassifier, DigitFeatures
from wae_lightning.metrics.images import PrecisionRecall, Sharpness
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
    "DigitFeatures",
    "LinearSVMAccuracy",
    "OccupancyDivergence",
    "PointSetDistances",
    "PointSetReconstruction",
    "PrecisionRecall",
    "Sharpness",
]

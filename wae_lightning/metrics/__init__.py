"""Measures of quality that torchmetrics lacks."""

from wae_lightning.metrics.digit_classifier import DigitClassifier, DigitFeatures

__all__ = ["DigitClassifier", "DigitFeatures"]

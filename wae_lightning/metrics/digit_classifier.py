"""A small classifier of MNIST digits, whose features are the yardstick for generated digits."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from wae_lightning.checkpoints import read_plain

__all__ = ["DigitClassifier", "DigitFeatures"]

WEIGHTS = Path(__file__).parent / "digit_classifier.pt"
"""Weights in half precision, made by ``experiments/reproduce/train_digit_classifier.py`` from MNIST's training set."""


class DigitClassifier(nn.Module):
    """Five 3 x 3 convolutions and two linear layers for digits of 28 x 28 in [0, 1].

    Example:
        >>> import torch
        >>> DigitClassifier.pretrained().features(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 128])
    """

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, out_channels, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 1), (64, 64, 2), (64, 64, 2)):
            layers.append(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU(inplace=True))
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(64 * 4 * 4, self.num_features)
        self.output = nn.Linear(self.num_features, 10)

    @classmethod
    def pretrained(cls) -> DigitClassifier:
        """The classifier with the weights that come with the package, in evaluation mode and without gradients."""
        classifier = cls()
        classifier.load_state_dict(read_plain(WEIGHTS))
        return classifier.eval().requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """Maps digits (B, 1, 28, 28) in [0, 1] to the activations before the last layer, (B, 128).

        Raises:
            ValueError: If ``x`` has another shape.
        """
        if x.shape[1:] != (1, 28, 28):
            raise ValueError(f"the digit classifier takes images of shape (B, 1, 28, 28), got {tuple(x.shape)}")
        return self.hidden(self.convolutions(x).flatten(1)).relu()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Maps digits (B, 1, 28, 28) in [0, 1] to the logits of the ten classes, (B, 10)."""
        return self.output(self.features(x))  # type: ignore[no-any-return]


class DigitFeatures(nn.Module):
    """The features of the pretrained classifier as an extractor for torchmetrics' Fréchet distance and the like.

    Example:
        >>> from torchmetrics.image.fid import FrechetInceptionDistance
        >>> distance = FrechetInceptionDistance(feature=DigitFeatures())  # takes floats in [0, 1]
    """

    num_features = DigitClassifier.num_features

    def __init__(self) -> None:
        super().__init__()
        self.classifier = DigitClassifier.pretrained()

    def forward(self, x: Tensor) -> Tensor:
        """Maps digits (B, 1, 28, 28) in [0, 1] to features (B, 128)."""
        return self.classifier.features(x)

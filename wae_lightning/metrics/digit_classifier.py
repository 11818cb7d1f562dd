"""Two small classifiers of MNIST digits, whose features are yardsticks for generated digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.checkpoints import read_plain

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["DigitClassifier", "DigitClassifierTwin", "DigitFeatures"]


class DigitClassifier(nn.Module):
    """Five 3 x 3 convolutions and two linear layers for digits of 28 x 28 in [0, 1].

    What :meth:`pretrained` gives is a yardstick, and stays in evaluation mode also where it is part of a module that is
    trained.

    Example:
        >>> import torch
        >>> DigitClassifier.pretrained().features(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 128])
    """

    num_features = 128
    fixed = False
    weights = Path(__file__).parent / "digit_classifier.pt"
    """In half precision, made by ``experiments/reproduce/train_digit_classifier.py`` from MNIST's training set."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, out_channels, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 1), (64, 64, 2), (64, 64, 2)):
            layers.append(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False))
            layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.ReLU(inplace=True))
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(64 * 4 * 4, self.num_features)
        self.activation: nn.Module = nn.ReLU()
        self.output = nn.Linear(self.num_features, 10)

    @classmethod
    def pretrained(cls) -> Self:
        """The classifier with the weights that come with the package, in evaluation mode and without gradients."""
        classifier = cls()
        classifier.load_state_dict(read_plain(cls.weights))
        classifier.fixed = True
        return classifier.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, unless the weights are those of :meth:`pretrained`."""
        return super().train(mode and not self.fixed)

    def features(self, x: Tensor) -> Tensor:
        """Maps digits (B, 1, 28, 28) in [0, 1] to the activations before the last layer, (B, 128).

        Raises:
            ValueError: If ``x`` has another shape.
        """
        if x.shape[1:] != (1, 28, 28):
            raise ValueError(f"the digit classifier takes images of shape (B, 1, 28, 28), got {tuple(x.shape)}")
        return self.activation(self.hidden(self.convolutions(x).flatten(1)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Maps digits (B, 1, 28, 28) in [0, 1] to the logits of the ten classes, (B, 10)."""
        return self.output(self.features(x))  # type: ignore[no-any-return]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.branch(x))


class DigitClassifierTwin(DigitClassifier):
    """Another classifier, for a second opinion that sees blur: 5 x 5 and residual convolutions, other seed and targets.

    It has learnt which digit it sees and how far the picture was blurred. The first one was trained on pictures that
    interpolation had softened, and takes blurred digits for real ones.
    """

    weights = Path(__file__).parent / "digit_classifier_twin.pt"

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 24, 5, 2, padding=2, bias=False), nn.BatchNorm2d(24), nn.GELU(), _Residual(24),
            nn.Conv2d(24, 64, 3, 2, padding=1, bias=False), nn.BatchNorm2d(64), nn.GELU(), _Residual(64),
            nn.Conv2d(64, 64, 3, 2, padding=1, bias=False), nn.BatchNorm2d(64), nn.GELU(),
        )  # fmt: skip
        self.activation = nn.GELU()
        self.blur = nn.Linear(self.num_features, 1)
        """From the features to the standard deviation of the blur, in pixels: its second target."""


class DigitFeatures(nn.Module):
    """The features of a pretrained classifier as an extractor for torchmetrics' Fréchet distance and the like.

    Args:
        twin: Those of :class:`DigitClassifierTwin` in place of :class:`DigitClassifier`.

    Example:
        >>> from torchmetrics.image.fid import FrechetInceptionDistance
        >>> distance = FrechetInceptionDistance(feature=DigitFeatures())  # takes floats in [0, 1]
    """

    num_features = DigitClassifier.num_features

    def __init__(self, twin: bool = False) -> None:
        super().__init__()
        self.classifier = (DigitClassifierTwin if twin else DigitClassifier).pretrained()

    def forward(self, x: Tensor) -> Tensor:
        """Maps digits (B, 1, 28, 28) in [0, 1] to features (B, 128)."""
        return self.classifier.features(x)

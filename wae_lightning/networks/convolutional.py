"""Convolutional encoder and decoder for images of any size from 16 to 256, as in the authors' code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wae_lightning.parts import Part
from wae_lightning.precision import in_full_precision

__all__ = ["ConvDecoder", "ConvEncoder", "check_image_shape", "into_range", "to_pixels", "widened"]

# PyTorch 2.6 cannot tell export from compilation
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class _SameConv2d(nn.Conv2d):
    """Convolution of stride 2 with TensorFlow's 'SAME' padding: the output has half the size, rounded up."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, size: tuple[int, int]) -> None:
        total = [max((math.ceil(s / 2) - 1) * 2 + kernel_size - s, 0) for s in size]
        self.uneven = any(t % 2 for t in total)
        padding = (0, 0) if self.uneven else (total[0] // 2, total[1] // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride=2, padding=padding)
        top, left = (t // 2 for t in total)
        self.margins = (left, total[1] - left, top, total[0] - top)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.margins) if self.uneven else x)


class _SameConvTranspose2d(nn.ConvTranspose2d):
    """The transpose of such a convolution (stride 2 or 1): the output has exactly the size asked for."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, from_size: tuple[int, int], size: tuple[int, int]
    ) -> None:
        stride = (1 if from_size == size else 2,) * 2
        self.uncut = tuple((f - 1) * stride[0] + kernel_size for f in from_size)
        self.cut = tuple((u - s) // 2 for u, s in zip(self.uncut, size, strict=True))
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=(self.cut[0], self.cut[1]))
        self.size = size
        self.exact = all(u - 2 * c == s for u, c, s in zip(self.uncut, self.cut, size, strict=True))

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        traced = is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if self.out_channels > 1 or x.device.type != "cpu" or traced:
            y: Tensor = super().forward(x)
            if self.exact:
                return y
            # not a view: on CUDA, batch norm in bfloat16 is fast only where channels lie together without gaps
            return y[:, :, : self.size[0], : self.size[1]].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", enabled=False):
            x = x.to(self.weight.dtype)
            y = _ToOneChannel.apply(x, self.weight, self.stride, self.uncut, self.cut, self.size)
            return y if self.bias is None else y + self.bias.view(-1, 1, 1)


class _ToOneChannel(torch.autograd.Function):
    """A transposed convolution to one channel as a matrix product, whose patches are added up: four times as fast.

    Only forward: the usual backward pass is fast. It cannot be exported.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        stride: tuple[int, int],
        uncut: tuple[int, int],
        cut: tuple[int, int],
        size: tuple[int, int],
    ) -> Tensor:
        patches = x.flatten(2).transpose(1, 2) @ weight.flatten(1)
        y = F.fold(patches.transpose(1, 2), uncut, weight.shape[2:], stride=stride)
        # not a view: forward-mode derivatives want the output and its tangent laid out alike
        return y[:, :, cut[0] : cut[0] + size[0], cut[1] : cut[1] + size[1]].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, *ctx.geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, uncut, cut, size = ctx.geometry
        below, right = (u - 2 * c - s for u, c, s in zip(uncut, cut, size, strict=True))
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            F.pad(grad, (0, right, 0, below)), x, weight, None, stride, cut, (1, 1), True, (0, 0), 1,
            (*ctx.needs_input_grad[:2], False),
        )  # fmt: skip
        return grad_x, grad_weight, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, weight_tangent: Tensor | None, *_: None) -> Tensor:
        x, weight = ctx.saved_tensors
        pairs = ((x_tangent, weight), (x, weight_tangent))
        parts = [_ToOneChannel.apply(a, b, *ctx.geometry) for a, b in pairs if a is not None and b is not None]
        return torch.stack(parts).sum(0)


def to_pixels(logits: Tensor) -> Tensor:
    """The sigmoid, in float32 (float64 stays) also under autocast, with a gradient however large the logit.

    In half precision 1 is reached at a logit of 7, and in float32 at 17: from there on a cross-entropy would be wrong
    and have no gradient. So the value, not the gradient, stops growing at 1 - ε.
    """
    logits = in_full_precision(logits)
    largest = -math.log(torch.finfo(logits.dtype).eps)
    return (logits + (logits.clamp(max=largest) - logits).detach()).sigmoid()


def into_range(y: Tensor, output_range: Sequence[float] | None) -> Tensor:
    """The last activation: a sigmoid onto the range, (-1, 1) as any other, or none, in float32 also under autocast."""
    if output_range is None:
        return in_full_precision(y)
    low, high = output_range
    return to_pixels(y) if (low, high) == (0, 1) else low + (high - low) * to_pixels(y)


def _half(size: tuple[int, int]) -> tuple[int, int]:
    return math.ceil(size[0] / 2), math.ceil(size[1] / 2)


def check_image_shape(image_shape: Sequence[int]) -> tuple[int, tuple[int, int]]:
    """The channels and the (height, width) of images, if they are of a size that networks are made for."""
    if len(image_shape) != 3 or image_shape[0] < 1 or not all(7 <= size <= 256 for size in image_shape[1:]):
        raise ValueError(
            "image_shape must be (channels, height, width) with at least 1 channel and sizes from 7 to 256 "
            f"(16 to 256 for whole images), got {tuple(image_shape)}"
        )
    channels, height, width = image_shape
    return channels, (height, width)


def widened(channels: Sequence[int], width: float) -> list[int]:
    """Channel counts times a factor, at least 1 each."""
    if not (width > 0 and math.isfinite(width)):
        raise ValueError(f"width must be positive and finite, got {width}")
    channels = list(channels)
    if not channels or min(channels) < 1:
        raise ValueError(f"channels must be one or more positive numbers, got {tuple(channels)}")
    return [max(round(c * width), 1) for c in channels]


def _positive_features(name: str, count: int) -> int:
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def _perceptron(sizes: Sequence[int], normalize: bool) -> nn.Sequential:
    """Linear layers, each followed by batch norm, if asked for, and ReLU; empty for a single size."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        norm = [nn.BatchNorm1d(outputs)] if normalize else []
        layers += [nn.Linear(inputs, outputs), *norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _initialize(network: nn.Module, init_std: float | None) -> None:
    """Draws weights from N(0, init_std²), cut at two standard deviations in convolutions; biases become 0."""
    if init_std is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=init_std, a=-2 * init_std, b=2 * init_std)
            else:
                nn.init.normal_(module.weight, std=init_std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ConvEncoder(nn.Module, Part):
    """Stride-2 convolutions, each followed by batch norm and ReLU, then one linear layer.

    With ``width=1.0`` this is the DCGAN-style encoder of Tolstikhin et al. (ICLR 2018), layer by layer: channels
    128-256-512-1024, 'SAME' padding, kernels of 4 (MNIST) or 5 (CelebA). Weights are kept in channels_last format.

    Args:
        image_shape: (channels, height, width) of the input, sizes from 16 to 256 (parts of images down to 7).
        latent_dim: Number of output features: d, or 2d for :class:`~wae_lightning.noise.GaussianNoise`.
        width: Factor on all channel counts; 1.0 is the paper's, 1/8 suits two CPU cores.
        kernel_size: Side of the kernels, at least 2.
        channels: Output channels of each convolution at width 1.0; each halves the size.
        hidden: Units of fully connected layers between the convolutions and the code, with batch norm and ReLU (the
            paper has none). They cost little and help the codes to take the shape of the prior.
        init_std: Standard deviation of the initial weights (the authors use 0.01); None: PyTorch's default.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> ConvEncoder((3, 64, 64), latent_dim=64)(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 8,
        width: float = 0.125,
        kernel_size: int = 4,
        channels: Sequence[int] = (128, 256, 512, 1024),
        hidden: Sequence[int] = (),
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        in_channels, size = check_image_shape(image_shape)
        _positive_features("latent_dim", latent_dim)
        _positive_features("kernel_size - 1", kernel_size - 1)
        layers: list[nn.Module] = []
        for out_channels in widened(channels, width):
            layers.append(
                nn.Sequential(
                    _SameConv2d(in_channels, out_channels, kernel_size, size),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(inplace=True),
                )
            )
            in_channels, size = out_channels, _half(size)
        self.convolutions = nn.Sequential(*layers)
        sizes = [in_channels * size[0] * size[1], *(_positive_features("hidden", units) for units in hidden)]
        self.hidden = _perceptron(sizes, normalize=True)
        self.output = nn.Linear(sizes[-1], latent_dim)
        _initialize(self, init_std)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (B, *image_shape) to features (B, latent_dim)."""
        x = x.to(self.output.weight.dtype)
        return self.output(self.hidden(self.convolutions(x).flatten(1)))  # type: ignore[no-any-return]


class ConvDecoder(nn.Module, Part):
    """A linear layer, ReLU, then transposed convolutions with batch norm and ReLU, then one more without.

    With ``width=1.0`` this is ``dcgan_mod`` of the authors' code, layer by layer: 7·7·1024-512-256-1 for 28 x 28
    (kernel 4), 8·8·1024-512-256-128-3 for 64 x 64 (kernel 5), no batch norm after the linear layer, the last layer of
    stride 1, all others of stride 2.

    Args:
        latent_dim: d, number of input features.
        image_shape: (channels, height, width) of the output, sizes from 16 to 256 (parts of images down to 7).
        width: Factor on all channel counts; 1.0 is the paper's, 1/8 suits two CPU cores.
        kernel_size: Side of the kernels, at least 2.
        channels: Channels after the linear layer and after each transposed convolution but the last, at width 1.0.
            None: as many as take the size from about 8 to that of the image, halving from 1024 (512 if
            ``last_stride`` is 2).
        hidden: Units of fully connected layers between the code and the linear layer, with ReLU (the paper has none).
            They cost little and help to turn a prior without gaps into separate kinds of images.
        last_stride: Stride of the last layer. 1: the authors'. 2: the last layer doubles the size, too, so that none
            works on many channels at full size: about five times less arithmetic.
        init_std: Standard deviation of the initial weights (the authors use 0.01); None: PyTorch's default.
        output_range: Least and largest value of the output, which passes through a sigmoid; None: no activation.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> ConvDecoder(64, (3, 64, 64))(torch.randn(2, 64)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        latent_dim: int = 8,
        image_shape: Sequence[int] = (1, 28, 28),
        width: float = 0.125,
        kernel_size: int = 4,
        channels: Sequence[int] | None = None,
        hidden: Sequence[int] = (),
        last_stride: Literal[1, 2] = 1,
        init_std: float | None = None,
        output_range: tuple[float, float] | None = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.output_range = output_range
        out_channels, size = check_image_shape(image_shape)
        _positive_features("latent_dim", latent_dim)
        _positive_features("kernel_size - 1", kernel_size - 1)
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be one of 1, 2, got {last_stride}")
        if channels is None:
            doublings = max(round(math.log2(max(size) / 8)), 1)
            channels = [1024 // last_stride // 2**i for i in range(doublings + 2 - last_stride)]
        widths = [*widened(channels, width), out_channels]
        sizes = [size] if last_stride == 2 else [size, size]
        while len(sizes) < len(widths):
            sizes.insert(0, _half(sizes[0]))
        self.start = (*sizes[0], widths[0])
        inputs = [latent_dim, *(_positive_features("hidden", units) for units in hidden)]
        self.hidden = _perceptron(inputs, normalize=False)
        self.input = nn.Linear(inputs[-1], math.prod(self.start))
        layers: list[nn.Module] = [nn.ReLU(inplace=True)]
        for i in range(len(widths) - 1):
            convolution = _SameConvTranspose2d(widths[i], widths[i + 1], kernel_size, sizes[i], sizes[i + 1])
            if i == len(widths) - 2:
                layers.append(convolution)
            else:
                layers.append(nn.Sequential(convolution, nn.BatchNorm2d(widths[i + 1]), nn.ReLU(inplace=True)))
        self.convolutions = nn.Sequential(*layers)
        _initialize(self, init_std)
        self.to(memory_format=torch.channels_last)

    def forward(self, z: Tensor) -> Tensor:
        """Maps codes (B, latent_dim) to images (B, *image_shape) in ``output_range``, in float32 or float64."""
        # channels come last in memory, as the convolutions like it: a view, not a copy
        start = self.input(self.hidden(z.to(self.input.weight.dtype))).unflatten(1, self.start).permute(0, 3, 1, 2)
        return into_range(self.convolutions(start), self.output_range)

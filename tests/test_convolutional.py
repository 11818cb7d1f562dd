"""The convolutional networks: the paper's layers at width 1, TensorFlow's padding, any size."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from wae_lightning.networks import ConvDecoder, ConvEncoder
from wae_lightning.networks.convolutional import _SameConv2d, _SameConvTranspose2d


def shapes(network, x):
    """Output shapes of the linear and convolutional layers, channels last, as the paper writes them."""
    seen = []

    def note(module, inputs, output):
        seen.append(tuple(output.shape[1:]) if output.ndim == 2 else (*output.shape[2:], output.shape[1]))

    for module in network.modules():
        if isinstance(module, nn.Linear | _SameConv2d | _SameConvTranspose2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        network.eval()(x)
    return seen


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_width_1_is_the_papers_mnist_network_layer_by_layer(capsys):
    encoder, decoder = ConvEncoder(width=1.0), ConvDecoder(width=1.0)
    assert shapes(encoder, torch.rand(1, 1, 28, 28)) == [
        (14, 14, 128), (7, 7, 256), (4, 4, 512), (2, 2, 1024), (8,),
    ]  # fmt: skip
    assert shapes(decoder, torch.randn(1, 8)) == [(7 * 7 * 1024,), (14, 14, 512), (28, 28, 256), (28, 28, 1)]
    # weights and biases of 4 x 4 convolutions, of batch norms and of the linear layers
    assert count(encoder) == sum(
        16 * i * o + o + 2 * o for i, o in ((1, 128), (128, 256), (256, 512), (512, 1024))
    ) + 4096 * 8 + 8  # fmt: skip
    assert count(decoder) == 9 * 50176 + sum(16 * i * o + 3 * o for i, o in ((1024, 512), (512, 256))) + 16 * 256 + 1
    with capsys.disabled():
        print(f"\nMNIST at width 1: encoder {count(encoder):,}, decoder {count(decoder):,} weights")


def test_width_1_is_the_papers_celeba_network_layer_by_layer(capsys):
    shape = (3, 64, 64)
    encoder = ConvEncoder(shape, latent_dim=64, width=1.0, kernel_size=5)
    decoder = ConvDecoder(64, shape, width=1.0, kernel_size=5)
    assert shapes(encoder, torch.rand(1, *shape)) == [
        (32, 32, 128), (16, 16, 256), (8, 8, 512), (4, 4, 1024), (64,),
    ]  # fmt: skip
    assert shapes(decoder, torch.randn(1, 64)) == [
        (8 * 8 * 1024,), (16, 16, 512), (32, 32, 256), (64, 64, 128), (64, 64, 3),
    ]  # fmt: skip
    assert count(encoder) + count(decoder) == pytest.approx(40e6, rel=0.1)
    with capsys.disabled():
        print(f"\nCelebA at width 1: encoder {count(encoder):,}, decoder {count(decoder):,} weights")


def same_convolution(x, weight):
    """TensorFlow's 'SAME' convolution of stride 2 by its definition, one image and one channel, in NumPy."""
    k, size = len(weight), len(x)
    out = math.ceil(size / 2)
    before = max((out - 1) * 2 + k - size, 0) // 2
    result = np.zeros((out, out))
    for i in range(out):
        for j in range(out):
            for a in range(k):
                for b in range(k):
                    row, column = 2 * i + a - before, 2 * j + b - before
                    if 0 <= row < size and 0 <= column < size:
                        result[i, j] += x[row, column] * weight[a, b]
    return result


@pytest.mark.parametrize("kernel_size", [3, 4, 5])
@pytest.mark.parametrize("size", [7, 8, 28])
def test_padding_is_that_of_tensorflow(kernel_size, size):
    convolution = _SameConv2d(1, 1, kernel_size, (size, size)).double()
    nn.init.zeros_(convolution.bias)
    x = torch.rand(1, 1, size, size, dtype=torch.float64)
    expected = same_convolution(x[0, 0].numpy(), convolution.weight[0, 0].detach().numpy())
    torch.testing.assert_close(convolution(x)[0, 0].detach(), torch.from_numpy(expected))


@pytest.mark.parametrize("kernel_size", [3, 4, 5])
@pytest.mark.parametrize("size", [7, 8, 28])
def test_the_transposed_convolution_is_the_transpose(kernel_size, size):
    """<conv(x), y> = <x, transposed(y)> for all x and y, when both have the same weight."""
    half = math.ceil(size / 2)
    convolution = _SameConv2d(2, 3, kernel_size, (size, size)).double()
    transposed = _SameConvTranspose2d(3, 2, kernel_size, (half, half), (size, size)).double()
    nn.init.zeros_(convolution.bias)
    nn.init.zeros_(transposed.bias)
    transposed.weight.data = convolution.weight.data
    x = torch.rand(1, 2, size, size, dtype=torch.float64)
    y = torch.rand(1, 3, half, half, dtype=torch.float64)
    torch.testing.assert_close((convolution(x) * y).sum(), (x * transposed(y)).sum())


@pytest.mark.parametrize("kernel_size", [3, 4, 5])
@pytest.mark.parametrize("size", [(7, 8), (28, 27)])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_way_to_one_channel_is_the_transposed_convolution(kernel_size, size, stride):
    start = size if stride == 1 else tuple(math.ceil(s / 2) for s in size)
    transposed = _SameConvTranspose2d(3, 1, kernel_size, start, size).double()
    x = torch.rand(2, 3, *start, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.conv_transpose2d(x, transposed.weight, transposed.bias, stride, transposed.padding)
    expected = expected[:, :, : size[0], : size[1]]
    y = transposed(x)
    assert y.shape == (2, 1, *size)
    torch.testing.assert_close(y, expected)
    weights, inputs = torch.rand_like(y), (x, *transposed.parameters())
    torch.testing.assert_close(
        torch.autograd.grad((weights * y).sum(), inputs), torch.autograd.grad((weights * expected).sum(), inputs)
    )


@pytest.mark.parametrize("size", [(6, 6), (5, 6)])
def test_the_way_to_one_channel_has_all_kinds_of_derivatives(size):
    transposed = _SameConvTranspose2d(2, 1, 4, (3, 3), size).double()
    x = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        # batched gradients make PyTorch compile something the old way
        warnings.simplefilter("ignore", FutureWarning)
        assert torch.autograd.gradcheck(transposed, (x,), check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(transposed, (x,))


@pytest.mark.parametrize("way", ["autocast", "compiled", "frozen"])
def test_the_way_to_one_channel_is_open(way):
    transposed = _SameConvTranspose2d(2, 1, 4, (3, 3), (6, 6))
    x = torch.rand(4, 2, 3, 3, requires_grad=True)
    expected = nn.functional.conv_transpose2d(x, transposed.weight, transposed.bias, 2, transposed.padding)
    wanted = torch.autograd.grad(expected.square().sum(), x)
    if way == "frozen":
        transposed.requires_grad_(False)
    layer = torch.compile(transposed, backend="aot_eager") if way == "compiled" else transposed
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        y = layer(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x), wanted)


def test_the_decoders_jacobian_is_the_same_by_all_modes():
    decoder, z = ConvDecoder(3, (1, 16, 16), width=1 / 64).double().eval(), torch.randn(3, dtype=torch.float64)

    def image(z):
        return decoder(z.unsqueeze(0)).squeeze(0)

    expected = torch.stack([(image(z + 1e-6 * e) - image(z - 1e-6 * e)) / 2e-6 for e in torch.eye(3).double()], -1)
    for jacobian in (torch.func.jacrev(image), torch.func.jacfwd(image)):
        torch.testing.assert_close(jacobian(z), expected, rtol=1e-6, atol=1e-8)
    gradients = torch.func.vmap(torch.func.grad(lambda z: image(z).sum()))(torch.stack([z, 2 * z]))
    torch.testing.assert_close(gradients[0], expected.sum((0, 1, 2)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("last_stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [4, 5])
@pytest.mark.parametrize(
    "shape", [(1, 16, 16), (1, 28, 28), (3, 33, 47), (2, 64, 64), (1, 14, 28), (4, 100, 99), (3, 256, 256), (1, 7, 28)]
)
def test_any_size_and_any_number_of_channels(shape, kernel_size, last_stride):
    encoder = ConvEncoder(shape, 5, width=1 / 64, kernel_size=kernel_size)
    decoder = ConvDecoder(5, shape, width=1 / 64, kernel_size=kernel_size, last_stride=last_stride)
    y = decoder(encoder(torch.rand(2, *shape)))
    assert y.shape == (2, *shape)
    assert 0 <= y.min() <= y.max() <= 1


def test_hidden_layers_lie_between_convolutions_and_code():
    encoder, decoder = ConvEncoder(width=1 / 16, hidden=(30, 20)), ConvDecoder(width=1 / 16, hidden=(30, 20))
    assert shapes(encoder, torch.rand(1, 1, 28, 28))[-3:] == [(30,), (20,), (8,)]
    assert shapes(decoder, torch.randn(1, 8))[:3] == [(30,), (20,), (7 * 7 * 64,)]


def test_weights_lie_in_memory_with_the_channels_last():
    for network in (ConvEncoder(), ConvDecoder()):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                assert module.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kernel_size", [4, 5])
def test_what_layers_put_out_lies_so_too_and_without_gaps(kernel_size):
    decoder, found = ConvDecoder(8, (3, 32, 32), kernel_size=kernel_size), []
    for layer in decoder.modules():
        if isinstance(layer, _SameConvTranspose2d):
            layer.register_forward_hook(lambda layer, x, y: found.append(y))
    decoder(torch.rand(2, 8))
    assert len(found) == 3
    assert all(y.is_contiguous(memory_format=torch.channels_last) for y in found)


def test_initial_weights_have_the_standard_deviation_asked_for():
    network = ConvEncoder(width=0.5, init_std=0.01)
    weight = network.convolutions[3][0].weight
    # a normal distribution cut at two standard deviations has 0.88 of its standard deviation
    assert weight.std().item() == pytest.approx(0.0088, rel=0.02)
    assert weight.abs().max() <= 0.02
    assert network.output.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not network.output.bias.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvEncoder((1, 0, 28)), r"image_shape must be .* got \(1, 0, 28\)"),
        (lambda: ConvDecoder(8, (1, 28)), r"image_shape must be .* got \(1, 28\)"),
        (lambda: ConvDecoder(8, (1, 28, 512)), r"sizes from 7 to 256 .* got \(1, 28, 512\)"),
        (lambda: ConvEncoder(latent_dim=0), "latent_dim must be at least 1, got 0"),
        (lambda: ConvDecoder(0), "latent_dim must be at least 1, got 0"),
        (lambda: ConvEncoder(width=0), "width must be positive and finite, got 0"),
        (lambda: ConvEncoder(channels=()), r"channels must be one or more positive numbers, got \(\)"),
        (lambda: ConvDecoder(hidden=(8, 0)), "hidden must be at least 1, got 0"),
        (lambda: ConvDecoder(last_stride=3), "last_stride must be one of 1, 2, got 3"),
        (lambda: ConvEncoder(kernel_size=1), "kernel_size - 1 must be at least 1, got 0"),
    ],
)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

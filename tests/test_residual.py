"""The residual networks: any size, no checkerboard, what a step learns."""

import pytest
import torch
from torch.nn import functional as F

from wae_lightning.networks import ResidualDecoder, ResidualEncoder


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 28, 28), (3, 16, 40), (4, 33, 70), (1, 7, 9)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_any_image_is_encoded_and_decoded_to_its_own_shape(shape, patch):
    encoder = ResidualEncoder(shape, 5, width=0.2, patch=patch)
    decoder = ResidualDecoder(5, shape, width=0.2, patch=patch)
    y = decoder(encoder(torch.rand(2, *shape)))
    assert y.shape == (2, *shape)
    assert y.min() >= 0
    assert y.max() <= 1
    wide = ResidualDecoder(5, shape, width=0.2, patch=patch, output_range=(-1, 1))(torch.randn(2, 5) * 100)
    assert wide.min() < 0


def test_all_of_the_image_matters():
    """Also the last row and column of an image that no whole number of patches fills."""
    encoder, x = ResidualEncoder((1, 30, 21), 4, width=0.3).eval(), torch.rand(1, 1, 30, 21, requires_grad=True)
    encoder(x).square().sum().backward()
    assert (x.grad != 0).all()


def test_they_learn():
    torch.manual_seed(0)
    x = torch.rand(32, 1, 16, 16)
    encoder, decoder = ResidualEncoder((1, 16, 16), 8, width=0.5), ResidualDecoder(8, (1, 16, 16), width=0.5)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(decoder(encoder(x)), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad.abs().sum() > 0 for parameter in parameters if parameter.ndim > 1)


def test_pixels_of_a_patch_are_alike_at_the_start():
    """No place within a patch is brighter or more varied than the others by much: there is no checkerboard."""
    torch.manual_seed(0)
    decoder = ResidualDecoder(16, (1, 64, 64), output_range=None).eval()
    with torch.no_grad():
        y = decoder(torch.randn(400, 16))[:, :, 8:-8, 8:-8]
    deviations = F.pixel_unshuffle(y, 4).std((0, 2, 3))
    assert deviations.max() < 2.5 * deviations.min()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"channels": ()}, "channels must be one or more positive numbers"),
        ({"width": -1.0}, "width must be positive"),
        ({"image_shape": (3, 64)}, "image_shape must be"),
    ],
)
@pytest.mark.parametrize("cls", [ResidualDecoder, ResidualEncoder])
def test_bad_arguments(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)

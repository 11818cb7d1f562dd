"""Lines between pictures: what they are straight in, and how evenly they change."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from wae_lightning import WAE
from wae_lightning.evaluation.lines import evenness, measure_lines
from wae_lightning.networks import CouplingFlow, MixtureFlow
from wae_lightning.priors import Normal


def model(flow, scale=1.0):
    """Its encoder's own codes are the pixels."""
    decoder = nn.Sequential(nn.Unflatten(1, (1, 2, 3)))
    return WAE(nn.Flatten(), decoder, prior=Normal(6, scale), flow=flow, input_range=None).eval()


@pytest.mark.parametrize("flow", [None, MixtureFlow(6, 4), CouplingFlow(6)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_lines_through_codes_are_straight_in_pictures_and_those_through_z_in_z(flow, scale):
    torch.manual_seed(0)
    one, a, b = model(flow, scale), torch.randn(4, 1, 2, 3), torch.randn(4, 1, 2, 3)
    weights = torch.linspace(0, 1, 5).view(-1, 1, 1, 1, 1)
    lines = one.interpolate(a, b, 5)
    torch.testing.assert_close(lines, torch.lerp(a, b, weights), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.interpolate(one.encode(a), one.encode(b), 5), lines, rtol=1e-4, atol=1e-4)
    other = one.interpolate(a, b, 5, through="z")
    torch.testing.assert_close(other[[0, -1]], torch.stack([a, b]), rtol=1e-4, atol=1e-4)
    z = one.encode(other.flatten(0, 1)).view(5, 4, 6)
    torch.testing.assert_close(z, torch.lerp(z[0], z[-1], weights.view(-1, 1, 1)), rtol=1e-3, atol=1e-3)


def test_another_way_is_refused():
    with pytest.raises(ValueError, match="through must be codes or z, got 'zz'"):
        model(None).interpolate(torch.zeros(1, 6), torch.ones(1, 6), 3, "zz")


def test_evenness_is_that_of_numpy():
    lines = torch.randn(7, 5, 1, 4, 4).cumsum(0)
    largest, length = [], []
    for line in lines.numpy().reshape(7, 5, -1).transpose(1, 0, 2):
        steps = [np.linalg.norm(y - x) for x, y in itertools.pairwise(line)]
        largest.append(max(steps) / sum(steps))
        length.append(sum(steps) / np.linalg.norm(line[-1] - line[0]))
    found = evenness(lines)
    assert found["largest_step"] == pytest.approx(np.mean(largest), rel=1e-5)
    assert found["length"] == pytest.approx(np.mean(length), rel=1e-5)


def test_a_straight_line_is_even_and_one_that_leads_nowhere_does_not_count():
    line = torch.linspace(0, 1, 30).view(30, 1, 1).expand(30, 2, 3) * torch.tensor([1.0, 0.0]).view(1, 2, 1)
    found = evenness(line)
    assert found["largest_step"] == pytest.approx(1 / 29, rel=1e-4)
    assert found["length"] == pytest.approx(1, rel=1e-4)


def test_a_third_class_is_one_of_neither_end():
    class Tens(nn.Module):
        """The class is the first pixel, in tens."""

        def forward(self, x):
            return torch.nn.functional.one_hot((x[:, 0, 0, 0] * 10).round().long().clamp(0, 9), 10).float()

    images = torch.zeros(4, 1, 2, 3)
    images[:, :, 0, 0] = torch.tensor([0.0, 0.1, 0.5, 0.5]).view(4, 1)
    images[:, :, 1, 0] = torch.arange(4.0).view(4, 1)
    found = measure_lines(model(None), images, Tens(), ("codes", "z"))
    assert found["lines_through_codes_third_class"] == pytest.approx(1 / 3)
    assert found["lines_through_z_largest_step"] == pytest.approx(1 / 29, rel=1e-4)
    assert "lines_through_codes_third_class" not in measure_lines(model(None), images)

"""Lines between pictures: what they are straight in, and how evenly they change."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from wae_lightning import WAE
from wae_lightning.drawing import traversal_codes
from wae_lightning.evaluation.lines import evenness, measure_lines, measure_traversals
from wae_lightning.mixtures import Mixture
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


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_traversals_follow_the_principal_directions_of_the_codes(scale):
    """Codes are from a known normal distribution: each line is as long as four of its standard deviations."""
    flow, turn = MixtureFlow(6, 1), torch.linalg.qr(torch.randn(6, 6))[0].double()
    mean, variances = torch.full((6,), 5.0).double(), torch.tensor([100.0, 25.0, 9.0, 4.0, 1.0, 0.1]).double()
    flow.set_mixture(Mixture(torch.ones(1).double(), mean[None], (turn * variances @ turn.T)[None]))
    one = model(flow, scale)
    start = one.encode(torch.randn(3, 1, 2, 3))
    rows, decode = traversal_codes(one, start, 7, "codes")
    pictures = decode(rows.flatten(0, 1)).view(3, 7, 6).double()
    steps = pictures.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=1e-3, atol=1e-3)
    through = one.decode(start).flatten(1).double()
    for i in range(3):
        along = (pictures[i] - mean) @ turn
        assert along[-1, i].abs().item() == pytest.approx(2 * variances[i].sqrt().item(), rel=0.15)
        assert along[0, i].item() == pytest.approx(-along[-1, i].item(), rel=0.15)
        distance = (pictures[i, -1] - pictures[i, 0]).norm()
        assert distance.item() == pytest.approx(4 * variances[i].sqrt().item(), rel=0.1)
        # the line leads through its start: what is across it stays
        way = (pictures[i, -1] - pictures[i, 0]) / distance
        across = through[i] - pictures[i]
        torch.testing.assert_close(
            across - (across @ way)[:, None] * way, torch.zeros(7, 6).double(), atol=1e-3, rtol=0
        )


def test_the_share_of_the_commonest_class_in_traversals():
    class Sign(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0, 0, 0] < 1, x[:, 0, 0, 0] >= 1], dim=1).float()

    found = measure_traversals(model(None), Sign(), ("codes", "z"))
    start = Normal(6).sample(6, torch.Generator().manual_seed(0))[:, 0]
    # the first line leads from -2 to 2 along the first pixel, which the others leave as it is
    below = 30 * int((start[1:] < 1).sum()) + int((np.linspace(-2, 2, 30) < 1).sum())
    expected = max(below, 180 - below) / 180
    for way in ("codes", "z"):
        assert found[f"traversals_through_{way}_commonest_class"] == pytest.approx(expected)
        assert found[f"traversals_through_{way}_largest_step"] == pytest.approx(1 / 29, rel=1e-3)
        assert found[f"traversals_through_{way}_length"] == pytest.approx(1, rel=1e-3)
    assert not [name for name in measure_traversals(model(None)) if "class" in name]

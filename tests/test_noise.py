"""Encoder noise: its distribution."""

import math

import pytest
import scipy.stats
import torch

from wae_lightning.noise import InputNoise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_input_noise_is_normal_and_cut_at_exactly_two_standard_deviations(dtype):
    torch.manual_seed(0)
    noise = InputNoise(std=0.25).on_input(torch.zeros(400, 1000, dtype=dtype))
    assert noise.dtype == dtype
    assert 0.499 < noise.abs().max() <= 0.5
    expected = scipy.stats.truncnorm(-2, 2, scale=0.25)
    draws = noise.double().flatten()
    assert draws.mean().item() == pytest.approx(0, abs=0.002)
    assert draws.std().item() == pytest.approx(expected.std(), rel=0.005)
    if dtype != torch.bfloat16:
        assert scipy.stats.kstest(draws[::20].numpy(), expected.cdf).pvalue > 1e-3


def test_input_noise_is_added_to_the_input():
    x = torch.rand(3, 1, 8, 8)
    difference = InputNoise(std=0.01).on_input(x) - x
    assert 0 < difference.abs().max() <= 0.02 + 1e-6


def test_drawing_input_noise_never_looks_at_a_value():
    # a look at a value makes a GPU wait; "meta" tensors have none and refuse it
    assert InputNoise().on_input(torch.rand(4, 3, device="meta")).shape == (4, 3)
    assert math.isfinite(InputNoise().std)

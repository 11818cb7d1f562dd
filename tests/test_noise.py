"""Encoder noise: its distribution."""

import math

import pytest
import scipy.stats
import torch

from wae_lightning.noise import FixedNoise, GaussianNoise, ImplicitNoise, InputNoise


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


def test_fixed_noise_keeps_the_variance_of_codes_of_variance_one():
    features = torch.randn(400_000, 1)
    noise = FixedNoise(0.6)
    torch.testing.assert_close(noise.mean(features), 0.8 * features)
    rest = noise(features) - 0.8 * features
    assert rest.std().item() == pytest.approx(0.6, rel=0.01)
    assert noise(features).std().item() == pytest.approx(1, rel=0.01)


def test_gaussian_noise_has_the_standard_deviation_that_the_encoder_says():
    # log-variances of 0 and ln 4 at an initial deviation of 0.5
    features = torch.tensor([[1.0, -2.0, 0.0, math.log(4)]]).repeat(200_000, 1)
    z = GaussianNoise(initial_std=0.5)(features)
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -2.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(z.std(0), torch.tensor([0.5, 1.0]), rtol=0.01, atol=0)
    torch.testing.assert_close(GaussianNoise(0.5).mean(features), features[:, :2])


def test_implicit_noise_is_a_matrix_of_the_features_times_a_normal_vector():
    noise = ImplicitNoise(2)
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
        features = torch.tensor([[3.0, -5.0]])
        matrix = noise.mixing(features).view(2, 2)
        z = noise(features.repeat(400_000, 1))
    torch.testing.assert_close(z.mean(0), features[0], atol=0.02, rtol=0)
    torch.testing.assert_close(z.T.cov(), matrix @ matrix.T, atol=0.02, rtol=0.02)

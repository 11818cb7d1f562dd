"""Priors: their moments, their supports, their constants."""

import pytest
import torch

from wae_lightning.kernels import InverseMultiquadric
from wae_lightning.priors import Normal, Sphere, Uniform

PRIORS = [Normal(3), Normal(5, 2.0), Uniform(3), Uniform(4, 0.5), Sphere(3), Sphere(6, 2.0)]


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_the_expected_squared_distance_is_that_of_draws(prior):
    generator = torch.Generator().manual_seed(0)
    a, b = prior.sample(200_000, generator), prior.sample(200_000, generator)
    squared = (a - b).square().sum(1)
    error = squared.std().item() / 200_000**0.5
    assert abs(squared.mean().item() - prior.expected_squared_distance) < 4 * error


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_draws_have_mean_0_and_lie_in_the_support(prior):
    z = prior.sample(100_000, torch.Generator().manual_seed(0))
    assert z.shape == (100_000, prior.latent_dim)
    assert z.dtype == torch.float32
    assert z.mean(0).abs().max() < 0.03 * prior.scale
    if isinstance(prior, Sphere):
        torch.testing.assert_close(z.norm(dim=1), torch.full((100_000,), prior.scale))
    elif isinstance(prior, Uniform):
        assert z.abs().max() <= prior.scale
        torch.testing.assert_close(z.var(0), torch.full((prior.latent_dim,), prior.scale**2 / 3), rtol=0.02, atol=0)
    else:
        torch.testing.assert_close(z.T.cov(), prior.scale**2 * torch.eye(prior.latent_dim), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_projection_leads_into_the_support(prior):
    z = prior.project(10 * torch.randn(50, prior.latent_dim))
    if isinstance(prior, Sphere):
        torch.testing.assert_close(z.norm(dim=1), torch.full((50,), prior.scale))
    elif isinstance(prior, Uniform):
        assert z.abs().max() <= prior.scale


def test_the_log_density_of_the_normal_prior():
    z = torch.randn(10, 4)
    expected = torch.distributions.Normal(0, 1.5).log_prob(z).sum(1)
    torch.testing.assert_close(Normal(4, 1.5).log_prob(z), expected)
    with pytest.raises(NotImplementedError, match="Sphere has no log-density"):
        Sphere(4).log_prob(z)


def test_the_generator_fixes_the_draws():
    draws = [Normal(3).sample(5, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("cls", [Normal, Uniform, Sphere])
def test_bad_arguments_are_refused(cls):
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        cls(0)
    for scale in (1e20, 1e-20):
        with pytest.raises(ValueError, match="between 1e-15 and 1e15, or squares of codes overflow float32; got 1e"):
            cls(2, scale)
    # the largest and the smallest have finite squares, and kernels of them a finite value
    for scale in (1e15, 1e-15):
        prior = cls(8, scale)
        kernel = InverseMultiquadric()
        kernel.set_expected_squared_distance(prior.expected_squared_distance)
        assert 0 < kernel(prior.sample(9), prior.sample(9)).mean() < 7
    for scale in (0.0, -1.0, float("inf")):
        with pytest.raises(ValueError, match=f"scale of the prior must be positive and finite, got {scale}"):
            cls(2, scale)

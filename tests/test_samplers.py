"""Mixtures fitted to codes, the codes that a checkpoint keeps, and the permutation test of codes against the prior."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture
from torch.utils.data import DataLoader

from wae_lightning import WAEMMD
from wae_lightning.kernels import RBF, InverseMultiquadric
from wae_lightning.lightning import Trainer
from wae_lightning.penalties import mmd, mmd_test
from wae_lightning.priors import Normal
from wae_lightning.samplers import MixtureSampler


def test_one_component_is_the_gaussian_of_the_codes():
    codes = torch.randn(2000, 3) @ torch.randn(3, 3) + 2
    drawn = MixtureSampler(codes, components=1).sample(200_000)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), codes.T.cov(), atol=0.1, rtol=0.05)


def test_it_finds_clusters_and_draws_them_in_random_order():
    centers = torch.tensor([[-5.0, 0], [5, 0], [0, 8]])
    labels = torch.randint(3, (3000,))
    sampler = MixtureSampler(centers[labels] + 0.5 * torch.randn(3000, 2), components=3)
    drawn = sampler.sample(3000, torch.Generator().manual_seed(1))
    nearest = torch.cdist(drawn, centers).min(1)
    assert nearest.values.max() < 3
    assert np.allclose(nearest.indices.bincount(minlength=3) / 3000, labels.bincount() / 3000, atol=0.04)
    # not one component after the other
    assert (nearest.indices[1:] != nearest.indices[:-1]).float().mean() > 0.5
    torch.testing.assert_close(sampler.sample(5, torch.Generator().manual_seed(1)), drawn[:5], atol=20, rtol=0)
    again = sampler.sample(3000, torch.Generator().manual_seed(1))
    assert torch.equal(again, drawn)


def test_it_draws_on_the_device_asked_for():
    sampler = MixtureSampler(torch.randn(50, 2), components=2)
    assert sampler.sample(3, device="meta").device.type == "meta"
    assert sampler.sample(3, torch.Generator(), device="meta").device.type == "meta"
    assert sampler.sample(3).device.type == "cpu"


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="components must lie between 1 and the number of codes, got 5, 3"):
        MixtureSampler(torch.rand(3, 2), components=5)
    with pytest.raises(ValueError, match="codes must be finite"):
        MixtureSampler(torch.full((9, 2), torch.nan), components=2)


def test_a_checkpoint_keeps_the_latest_training_codes(tmp_path):
    model = WAEMMD(latent_dim=2)
    with pytest.raises(ValueError, match="holds no training codes"):
        model.training_codes()
    images = torch.rand(60, 1, 28, 28)
    trainer = Trainer(max_epochs=2, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit(model, DataLoader(images, batch_size=20))
    codes = model.training_codes()
    assert codes.shape == (120, 2)
    assert not codes.requires_grad
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = WAEMMD.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True, latent_dim=2)
    assert torch.equal(loaded.training_codes(), codes)


def test_only_about_ten_thousand_codes_are_kept():
    model = WAEMMD(latent_dim=2)
    for i in range(30):
        model.memory.remember(torch.full((900, 2), float(i)))
    codes = model.training_codes()
    assert 10_000 <= len(codes) < 10_900
    assert codes[-1, 0] == 29


def test_the_permutation_test_knows_equal_and_different_distributions():
    kernel = InverseMultiquadric()
    kernel.set_expected_squared_distance(4.0)
    p_values = []
    for _ in range(60):
        z, z_prior = torch.randn(30, 2), torch.randn(40, 2)
        estimate, p = mmd_test(z, z_prior, kernel, permutations=99)
        assert estimate == pytest.approx(float(mmd(z.double(), z_prior.double(), kernel)))
        p_values.append(p)
    # uniform under equal distributions
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert mmd_test(torch.randn(60, 2) + 1, torch.randn(60, 2), kernel, permutations=99)[1] == 0.01


def test_the_permutation_test_counts_the_estimates_of_new_divisions():
    z, z_prior = torch.randn(6, 2, dtype=torch.float64) + 0.5, torch.randn(5, 2, dtype=torch.float64)
    kernel = RBF(bandwidth=1.0)
    given, p = mmd_test(z, z_prior, kernel, permutations=50, generator=torch.Generator().manual_seed(3))
    generator, pooled = torch.Generator().manual_seed(3), torch.cat([z, z_prior])
    count = 1
    for _ in range(50):
        chosen = torch.randperm(11, generator=generator)[:6]
        rest = torch.tensor([i for i in range(11) if i not in chosen])
        count += float(mmd(pooled[chosen], pooled[rest], kernel)) >= given - 1e-12
    assert p == pytest.approx(count / 51)
    with pytest.raises(ValueError, match="permutations must be at least 1, got 0"):
        mmd_test(z, z_prior, kernel, permutations=0)


def test_the_seed_of_a_mixture_is_that_of_scikit_learn():
    codes = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    found = [MixtureSampler(codes, components=7, seed=seed).means for seed in (0, 5)]
    for means, seed in zip(found, (0, 5), strict=True):
        fitted = GaussianMixture(7, reg_covar=1e-6, random_state=seed).fit(codes.double().numpy())
        torch.testing.assert_close(means.double(), torch.from_numpy(fitted.means_), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(*found)


def test_codes_of_another_scale_give_samples_of_that_scale():
    codes = Normal(2, 5.0).sample(3000)
    drawn = MixtureSampler(codes, components=3).sample(50_000)
    torch.testing.assert_close(drawn.T.cov(), codes.T.cov(), rtol=0.1, atol=1.0)


def test_clusters_are_drawn_by_their_weights():
    codes = torch.cat([0.1 * torch.randn(800, 2) - 5, 0.1 * torch.randn(200, 2) + 5])
    drawn = MixtureSampler(codes, components=2).sample(4000)
    assert (drawn[:, 0] > 0).float().mean().item() == pytest.approx(0.2, abs=0.03)

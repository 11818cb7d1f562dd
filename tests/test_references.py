"""The VAE and the plain auto-encoder that WAEs are compared with."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.utils.data import DataLoader

from wae_lightning.lightning import Trainer
from wae_lightning.noise import EncoderNoise, GaussianNoise
from wae_lightning.priors import Sphere
from wae_lightning.references import VAE, AutoEncoder


def logged(model, images):
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    return trainer.validate(model, DataLoader(images, batch_size=len(images)), verbose=False)[0]


def test_the_vaes_loss_is_the_negative_evidence_lower_bound():
    model, images = VAE(latent_dim=3, penalty_weight=2.5).eval(), torch.rand(6, 1, 28, 28)
    with torch.no_grad():
        list(model.encoder.parameters())[-1].add_(torch.linspace(-1, 1, 6))
    torch.manual_seed(1)
    rows = model.draw_codes(images)
    z, cost, divergence = rows[:, :3], model.terms(images, rows)["cost"], model.penalty_of(rows)
    with torch.no_grad():
        mean, log_variance = model.encoder(images).double().chunk(2, dim=1)
        q = Normal(mean, (log_variance.exp() + 1e-8).sqrt())
        torch.manual_seed(1)
        z_expected = mean + q.stddev * torch.randn(6, 3)
        torch.testing.assert_close(z.double(), z_expected, atol=1e-5, rtol=1e-5)
        likelihood = F.binary_cross_entropy(model.decode(z), images, reduction="sum") / 6
    expected = kl_divergence(q, Normal(torch.zeros_like(mean), 1)).sum(1).mean()
    assert divergence.item() == pytest.approx(expected.item(), rel=1e-5)
    assert cost.item() == pytest.approx(likelihood.item(), rel=1e-5)
    found = logged(model, images)
    assert found["val/penalty"] == pytest.approx(expected.item(), rel=1e-5)
    assert found["val/loss"] == pytest.approx(found["val/cost"] + 2.5 * found["val/penalty"], rel=1e-5)


def test_the_divergence_vanishes_at_the_prior():
    model = VAE(latent_dim=2)
    for parameter in model.encoder.parameters():
        torch.nn.init.zeros_(parameter)
    assert logged(model, torch.rand(4, 1, 28, 28))["val/penalty"] == pytest.approx(0, abs=1e-6)


def test_the_auto_encoders_loss_is_its_cost():
    model, images = AutoEncoder(latent_dim=3), torch.rand(6, 1, 28, 28)
    found = logged(model, images)
    expected = 0.05 * (model.eval()(images) - images).square().sum() / 6
    assert found["val/loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert found["val/penalty"] == 0


@pytest.mark.parametrize("model", [VAE(latent_dim=2), AutoEncoder(latent_dim=2)])
def test_both_learn_to_reconstruct(model):
    images = torch.zeros(64, 1, 28, 28)
    for i in range(64):
        images[i, 0, i % 20 : i % 20 + 8] = 1.0
    trainer = Trainer(max_epochs=12, logger=False, enable_checkpointing=False, accelerator="cpu")
    before = logged(model, images)["val/cost"]
    trainer.fit(model, DataLoader(images, batch_size=16, shuffle=True))
    assert logged(model, images)["val/cost"] < 0.6 * before
    assert math.isfinite(model.training_codes().sum())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="AutoEncoder has no penalty_weight"):
        AutoEncoder(penalty_weight=1.0)
    with pytest.raises(ValueError, match="VAE has no standardize_codes"):
        VAE(standardize_codes=True)
    with pytest.raises(ValueError, match="VAE has no prior"):
        VAE(prior=Sphere(3))
    with pytest.raises(ValueError, match=r"VAE needs a Gaussian encoder, noise=GaussianNoise\(\); got EncoderNoise"):
        VAE(noise=EncoderNoise())
    assert VAE(noise=GaussianNoise(0.5)).noise.initial_std == 0.5

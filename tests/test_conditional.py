"""The conditional WAE: what its parts see, its joint penalty, completions, test, pictures, and words on mistakes."""

import functools
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import codes_and_loss, pl
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from datamodules import HalfImageDataModule, MNISTDataModule
from wae_lightning import WAEMMD, ConditionalWAE, from_config
from wae_lightning.callbacks import CompletionPictures, MeasureCompletions
from wae_lightning.callbacks.completions import most_ambiguous
from wae_lightning.cli import train
from wae_lightning.costs import BinaryCrossEntropy, SquaredError
from wae_lightning.image_parts import ImageParts
from wae_lightning.joint_mmd import CodesAndFeatures, JointMMD, joint_mmd
from wae_lightning.kernels import RBF, InverseMultiquadric, Kernel
from wae_lightning.networks import (
    ConditionalConvDecoder,
    ConditionalConvEncoder,
    ConditionalMLPDecoder,
    ConditionalMLPEncoder,
    CouplingFlow,
    Critic,
    MixtureFlow,
    WhitenedPCA,
)
from wae_lightning.noise import EncoderNoise, FixedNoise, GaussianNoise, InputNoise
from wae_lightning.penalties import (
    MMD,
    Adversarial,
    CramerWold,
    EnergyDistance,
    ExactWasserstein,
    MMDPlusPlus,
    SlicedWasserstein,
    mmd,
)
from wae_lightning.priors import Normal, Sphere
from wae_lightning.report import ReportWAE
from wae_lightning.training.features import FitFeatures

OBSERVED = ("top", "bottom", "left", "right", "1_quadrant", "2_quadrants", "3_quadrants")
SHORT = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1,
    "limit_test_batches": 2,
}  # fmt: skip


def small(observed="top", fraction=0.5, shape=(1, 28, 28), cls=ConditionalWAE, d=3, **arguments):
    """A model with small perceptrons."""
    parts = ImageParts(shape, observed, fraction)
    report = cls is ReportWAE
    noise = arguments.setdefault("noise", EncoderNoise() if report else FixedNoise(0.5))
    seen = [parts.condition_shape] if report else [parts.condition_shape, parts.target_shape]
    return cls(
        ConditionalMLPEncoder(seen, d * noise.features_per_dimension, hidden=(16,)),
        ConditionalMLPDecoder(d, parts.target_shape, None if report else parts.condition_shape, hidden=(16,)),
        latent_dim=d,
        condition_shape=parts.condition_shape,
        target_shape=parts.target_shape,
        **arguments,
    )


TOP = ImageParts((1, 28, 28))


def halves(observed="top", **arguments):
    return HalfImageDataModule(MNISTDataModule(batch_size=40), observed, **arguments)


def images(n=4, shape=(1, 28, 28)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


# ---- parts of images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("observed", OBSERVED)
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.7])
def test_parts_are_those_of_the_data_module(observed, fraction):
    parts, data = ImageParts((1, 28, 28), observed, fraction), halves(observed, fraction=fraction)
    assert (parts.condition_shape, parts.target_shape) == (data.condition_shape, data.target_shape)
    assert torch.equal(parts.mask, data.mask)
    whole = images()
    for ours, theirs in zip(parts.split(whole), data.split(whole), strict=True):
        assert torch.equal(ours, theirs)
    x, y = parts.split(whole)
    assert torch.equal(parts.join(x, y), whole)


@pytest.mark.parametrize("observed", OBSERVED)
@pytest.mark.parametrize(("fraction", "shape"), [(0.5, (1, 28, 28)), (0.25, (3, 16, 12))])
def test_completions_leave_the_observed_pixels_untouched(observed, fraction, shape):
    model, parts = small(observed, fraction, shape).eval(), ImageParts(shape, observed, fraction)
    whole = images(3, shape)
    x, y = parts.split(whole)
    completions = model.complete(x, 4)
    assert completions.shape == (3, 4, *parts.target_shape)
    completed = parts.join(x.unsqueeze(1), completions)
    assert completed.shape == (3, 4, *shape)
    seen = parts.mask.expand(shape)
    assert torch.equal(completed[..., seen], whole.unsqueeze(1).expand_as(completed)[..., seen])
    assert (completions.min() >= 0) & (completions.max() <= 1)
    # where the target is no rectangle, nothing lies outside of it
    inside = parts.split(parts.join(x, completions[:, 0]))[1]
    assert torch.equal(parts.join(x, inside), completed[:, 0])
    assert (parts.hidden(x) == ~parts.mask).all()
    assert torch.equal(parts.show(x)[..., parts.mask[0]], whole[..., parts.mask[0]])
    assert (parts.show(x)[..., ~parts.mask[0]] == 0.5).all()
    assert model(x, y).shape == y.shape


# ---- what depends on what -------------------------------------------------------------------------------------------


def test_code_and_observed_part_are_both_used():
    model = small().eval()
    x, _ = TOP.split(images())
    z = torch.randn(4, 3)
    same_x = x[:1].expand_as(x)
    assert not torch.allclose(model.decode(same_x, z), model.decode(same_x, z.flip(0)), atol=1e-3)
    same_z = z[:1].expand_as(z)
    assert not torch.allclose(model.decode(x, same_z), model.decode(x.flip(0), same_z), atol=1e-3)


def test_the_encoder_sees_both_parts_but_in_report_mode_one():
    x, y = ImageParts((1, 28, 28)).split(images())
    conditional, report = small().eval(), small(cls=ReportWAE).eval()
    z = conditional.encode(x, y)
    assert not torch.allclose(z, conditional.encode(x.flip(0), y))
    assert not torch.allclose(z, conditional.encode(x, y.flip(0)))
    assert torch.equal(report.encode(x, y), report.encode(x))


def test_report_mode_is_the_report_s_model():
    model = small(cls=ReportWAE).eval()
    x, y = TOP.split(images())
    assert (model.match, type(model.penalty)) == ("marginal", MMD)
    assert torch.equal(model(x), model.decoder(model.encoder(x)))
    completions = model.complete(x, 3)
    assert torch.equal(completions, model(x).unsqueeze(1).expand(-1, 3, -1, -1, -1))
    codes, _ = codes_and_loss(model, (x, y))
    assert codes.shape == (4, 3)


def test_completions_of_given_codes():
    model = small().eval()
    x, _ = TOP.split(images())
    z = torch.randn(5, 3)
    shared = model.complete(x, 5, z=z)
    assert torch.equal(shared, model.complete(x, 5, z=z.expand(4, 5, 3)))
    torch.testing.assert_close(shared[2, 3:4], model.decode(x[2:3], z[3:4]))
    own = model.complete(x, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(own, model.complete(x, 5, generator=torch.Generator().manual_seed(1)))
    assert own.flatten(2).unique(dim=1).shape[1] == 5


@pytest.mark.parametrize("prior", [Normal(3), Sphere(3)])
def test_interpolation_leads_from_one_completion_to_the_other(prior):
    model = small(prior=prior).eval()
    x, y = TOP.split(images())
    a, b = prior.sample(4), prior.sample(4)
    line = model.interpolate(x, a, b, 5)
    assert line.shape == (5, *y.shape)
    torch.testing.assert_close(line[0], model.decode(x, a))
    torch.testing.assert_close(line[-1], model.decode(x, b))
    middle = prior.project((a + b) / 2)
    torch.testing.assert_close(line[2], model.decode(x, middle))
    torch.testing.assert_close(model.interpolate(x, y, y.flip(0), 3)[0], model(x, y))


# ---- the penalty ----------------------------------------------------------------------------------------------------


class Constant(Kernel):
    def of_squared_distances(self, squared):
        return torch.ones_like(squared)


def double_loop(z, z_prior, features, bandwidth, feature_bandwidth):
    def gauss(a, b, sigma):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist(), strict=True)) / (2 * sigma**2))

    n, total = len(z), 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                of_codes = gauss(z[i], z[j], bandwidth) + gauss(z_prior[i], z_prior[j], bandwidth)
                of_codes -= 2 * gauss(z[i], z_prior[j], bandwidth)
                total += gauss(features[i], features[j], feature_bandwidth) * of_codes
    return total / (n * (n - 1))


def test_joint_mmd_equals_a_double_loop():
    generator = torch.Generator().manual_seed(0)
    z, z_prior, features = (torch.randn(13, d, generator=generator, dtype=torch.float64) for d in (3, 3, 2))
    expected = double_loop(z, z_prior, features, 1.3, 0.7)
    assert joint_mmd(z, z_prior, features, RBF(1.3), RBF(0.7)).item() == pytest.approx(expected, rel=1e-10)
    penalty = JointMMD(RBF(1.3), RBF(0.7))
    penalty.set_prior(Normal(3))
    rows = penalty(torch.cat([z, features], 1), torch.cat([z_prior, features], 1))
    assert rows.item() == pytest.approx(expected, rel=1e-10)


def test_joint_mmd_with_a_constant_feature_kernel_is_the_marginal_mmd():
    """Up to the diagonal of the cross term, which the joint estimate leaves out."""
    z, z_prior = torch.randn(400, 3, dtype=torch.float64) + 0.5, torch.randn(400, 3, dtype=torch.float64)
    kernel = InverseMultiquadric(c=6.0)
    joint = joint_mmd(z, z_prior, torch.randn(400, 2, dtype=torch.float64), kernel, Constant())
    across = kernel(z, z_prior)
    correction = 2 * across.mean() - 2 * (across.sum() - across.trace()) / (400 * 399)
    assert (mmd(z, z_prior, kernel) + correction).item() == pytest.approx(joint.item(), rel=1e-9)
    assert joint.item() == pytest.approx(mmd(z, z_prior, kernel).item(), rel=0.05)


def test_joint_mmd_sees_dependence_that_the_marginal_one_does_not():
    features = torch.randn(500, 2)
    independent, dependent = torch.randn(500, 2), features.clone()
    z_prior = torch.randn(500, 2)
    arguments = (features, InverseMultiquadric(c=4.0), RBF())
    assert joint_mmd(dependent, z_prior, *arguments) > 20 * abs(joint_mmd(independent, z_prior, *arguments))
    assert mmd(dependent, z_prior, InverseMultiquadric(c=4.0)) < 0.02


def test_the_joint_mmd_is_unbiased():
    values = [joint_mmd(*torch.randn(3, 8, 2, dtype=torch.float64), RBF(1.0), RBF(1.0)).item() for _ in range(3000)]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))


def test_an_mmd_becomes_joint_with_its_kernel():
    kernel = InverseMultiquadric()
    model = small(penalty=MMD(kernel))
    assert isinstance(model.penalty, JointMMD)
    assert model.penalty.kernel is kernel
    assert kernel.c == Normal(3).expected_squared_distance


@pytest.mark.parametrize("penalty", [MMD(), EnergyDistance(), SlicedWasserstein(), ExactWasserstein()])
def test_every_penalty_on_two_samples_sees_dependence(penalty):
    model = small(penalty=penalty, features=nn.Flatten(), shape=(1, 2, 3))
    independent, dependent = torch.randn(2, 200, 6)
    dependent[:, :3] = dependent[:, 3:]
    values = [model.penalty(rows, model.prior_like(rows)).item() for rows in (independent, dependent)]
    assert values[1] > 1.3 * values[0]


@pytest.mark.parametrize("match", ["joint", "marginal"])
def test_the_critic_sees_features_only_if_the_match_is_joint(match):
    features = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(5))
    critic = Critic(3 + 5 * (match == "joint"), width=8)
    model = small(penalty=Adversarial(critic, log_prior=False), match=match, features=features)
    x, y = TOP.split(images())
    rows, _ = codes_and_loss(model, (x, y))
    prior = model.prior_like(rows)
    assert rows.shape == prior.shape == (4, 8 if match == "joint" else 3)
    if match == "joint":
        assert torch.equal(rows[:, 3:], features(x))
        assert torch.equal(prior[:, 3:], features(x))


def test_the_loss_is_cost_plus_weight_times_penalty():
    model = small(noise=EncoderNoise(), penalty=MMD(), cost=SquaredError(0.05), penalty_weight=3.0)
    model.features.fit(TOP.split(images(100))[0])
    x, y = TOP.split(images(8))
    logged = {}
    model.trainer = pl.Trainer(**SHORT)
    model.log_dict = lambda values, **_: logged.update(values)
    torch.manual_seed(0)
    loss = model.training_step((x, y, torch.arange(8)), 1)
    torch.manual_seed(0)
    z = model.encoder(x, y)
    cost = 0.05 * (y - model.decoder(x, z)).square().flatten(1).sum(1).mean()
    penalty = joint_mmd(z, torch.randn(8, 3), model.features(x), model.penalty.kernel, RBF())
    torch.testing.assert_close(loss, cost + 3.0 * penalty)
    torch.testing.assert_close(logged["train/cost"], cost)


def test_binary_cross_entropy_is_that_of_torch():
    x, y = torch.rand(2, 3, 1, 4, 5)
    expected = [nn.functional.binary_cross_entropy(b, a, reduction="sum").item() for a, b in zip(x, y, strict=True)]
    assert BinaryCrossEntropy(scale=0.5)(x, y).tolist() == pytest.approx([0.5 * value for value in expected])


# ---- features and networks ------------------------------------------------------------------------------------------


def test_whitened_principal_components_are_those_of_an_svd():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((500, 12)) @ np.diag(np.linspace(3, 0.5, 12)) @ generator.standard_normal((12, 12))
    features = WhitenedPCA(4, (3, 4))
    state = torch.get_rng_state()
    features.fit(torch.tensor(x.reshape(-1, 3, 4), dtype=torch.float32))
    assert torch.equal(torch.get_rng_state(), state)
    u, _, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    found = features(torch.tensor(x.reshape(-1, 3, 4), dtype=torch.float32)).numpy()
    # the sign of a component is free
    np.testing.assert_allclose(np.abs(found), np.abs(u[:, :4] * math.sqrt(499)), atol=2e-3)


def test_components_without_variance_are_not_blown_up():
    features = WhitenedPCA(3, (5,))
    x = torch.zeros(50, 5)
    x[:, 0] = torch.randn(50)
    features.fit(x)
    assert (features(x)[:, 1:] == 0).all()
    assert features(x)[:, 0].std() == pytest.approx(1, abs=1e-4)
    x = torch.randn(50, 1) * torch.tensor([0.3, 0.1, 0.7, 0.2, 0.5])  # what else varies is rounding
    features.fit(x)
    assert (features(x)[:, 1:] == 0).all()


def test_a_single_validation_image_has_a_loss(tmp_path):
    pair = TensorDataset(torch.rand(1, 1, 14, 28), torch.rand(1, 1, 14, 28))
    model = ConditionalWAE(match="joint", features=nn.Flatten())
    runs = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    (found,) = runs.validate(model, DataLoader(pair), verbose=False)
    assert found["val/loss"] == pytest.approx(found["val/cost"] + 4 * found["val/penalty"], rel=1e-5)


def test_few_inputs_have_few_components():
    features, x = WhitenedPCA(16, (3, 8)), torch.rand(5, 3, 8)
    features.fit(x)
    found = features(x)
    assert (found[:, 4:] == 0).all()
    torch.testing.assert_close(found[:, :4].T.cov(), torch.eye(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("observed", OBSERVED)
def test_convolutional_networks_take_every_part(observed):
    parts = ImageParts((3, 28, 28), observed)
    encoder = ConditionalConvEncoder([parts.condition_shape, parts.target_shape], 6, width=1 / 64, hidden=8)
    decoder = ConditionalConvDecoder(6, parts.target_shape, parts.condition_shape, width=1 / 64, hidden=8)
    model = ConditionalWAE(
        encoder, decoder, latent_dim=6, condition_shape=parts.condition_shape, target_shape=parts.target_shape
    )
    x, y = parts.split(images(2, (3, 28, 28)))
    assert model.encode(x, y).shape == (2, 6)
    assert model(x, y).shape == y.shape
    alone = ConditionalConvDecoder(6, parts.target_shape, width=1 / 64)
    assert alone(torch.randn(2, 6)).shape == y.shape


# ---- likelihoods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("noise", [FixedNoise(0.5), GaussianNoise(0.7)])
def test_importance_weights_against_the_densities_of_torch(noise, scale):
    model = small(noise=noise, prior=Normal(3, scale)).eval()
    x, y = TOP.split(images())
    torch.manual_seed(3)
    weights = model.log_weights(x, y, 6)
    torch.manual_seed(3)
    mean, std = model.posterior(x, y)
    q = torch.distributions.Normal(mean.unsqueeze(1), std.unsqueeze(1))
    z = mean.unsqueeze(1) + std.unsqueeze(1) * torch.randn(4, 6, 3)
    for k in range(6):
        likelihood = -BinaryCrossEntropy()(y, model.decode(x, z[:, k]))
        prior = torch.distributions.Normal(0, scale).log_prob(z[:, k]).sum(1)
        torch.testing.assert_close(weights[:, k], likelihood + prior - q.log_prob(z).sum(2)[:, k], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("noise", [FixedNoise(0.5), GaussianNoise(0.7)])
def test_the_posterior_is_what_the_encoder_draws_from(noise, scale):
    model = small(noise=noise, prior=Normal(3, scale)).eval()
    x, y = (part[:1].expand(20_000, -1, -1, -1) for part in TOP.split(images(1)))
    mean, std = model.posterior(x[:1], y[:1])
    z = model.encode(x, y, noise=True)
    torch.testing.assert_close(z.mean(0), mean[0], atol=0.02 * scale, rtol=0)
    torch.testing.assert_close(z.std(0), std[0], atol=0.02 * scale, rtol=0)


@pytest.mark.parametrize("noise", [EncoderNoise(), InputNoise()])
def test_an_encoder_without_density_has_no_posterior(noise):
    model = small(noise=noise).eval()
    x, y = TOP.split(images())
    assert model.posterior(x, y) is None
    assert model.log_weights(x, y, 5, prior=True).shape == (4, 5)
    with pytest.raises(ValueError, match="has no density"):
        model.log_weights(x, y, 5)


# ---- under Lightning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"penalty": MMD()},
        {"penalty": MMD(), "match": "marginal"},
        {"cls": ReportWAE},
        {"penalty": MMD(), "code_queue": 60},
        {"penalty": MMD(), "pretrain_steps": 2},
        {"observed": "1_quadrant"},
    ],
    ids=str,
)
def test_training_and_test(tmp_path, arguments):
    model = small(**arguments)
    before = [parameter.detach().clone() for parameter in model.encoder.parameters()]
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[MeasureCompletions(40)], **SHORT)
    data = halves(arguments.get("observed", "top"))
    trainer.fit(model, data)
    assert not any(map(torch.equal, before, model.encoder.parameters()))
    (results,) = trainer.test(model, data, verbose=False)
    measured = {"psnr", "psnr_best", "bce_best", "ssim", "agreement", "label_entropy", "diversity", "fid", "rank_error"}
    assert {f"test/{name}" for name in measured | {"hsic_over_null", "r_squared", "nll_prior", "cost"}} <= set(results)
    assert all(math.isfinite(value) for value in results.values())
    if arguments.get("cls") is ReportWAE:
        assert results["test/diversity"] == 0
        assert results["test/label_entropy"] == 0
        assert results["test/psnr"] == pytest.approx(results["test/psnr_best"])
        assert "test/nll" not in results
    else:
        assert results["test/nll"] <= results["test/negative_elbo"]
        assert results["test/diversity"] > 0
    codes, reconstructions = trainer.predict(model, DataLoader(TensorDataset(*data.split(images())), 4))[0]
    assert codes.shape == (4, 3)
    assert reconstructions.shape == (4, *data.target_shape)


def test_a_label_net_stands_beside_the_model(tmp_path):
    model = small(match="marginal")
    label_net = nn.Sequential(nn.Flatten(), nn.Linear(14 * 28, 10))
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[MeasureCompletions(0, label_net)], **SHORT)
    (results,) = trainer.test(model, halves(), verbose=False)
    assert 0 < results["test/agreement_reference"] < 0.3
    assert results["test/label_entropy_reference"] > 1
    # the components were never fitted, so nothing can be said of them; nor of the likelihood
    assert not {"test/r_squared", "test/nll_prior"} & set(results)


def test_features_are_fitted_once_and_stay_in_the_checkpoint(tmp_path):
    model = small(penalty=MMD())
    trainer = pl.Trainer(default_root_dir=tmp_path, **SHORT)
    trainer.fit(model, halves())
    components = model.features.components.clone()
    assert model.features.fitted
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = small(penalty=MMD())
    again.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"])
    trainer = pl.Trainer(default_root_dir=tmp_path, **SHORT)
    trainer.fit(again, halves("bottom"))
    assert torch.equal(again.features.components, components)
    assert not list(again.features.parameters())
    assert not any("metrics" in name for name in again.state_dict())


def test_code_follows_prior_and_forgets_the_observed_part():
    """On images whose hidden part is a bit of the observed one and a bit of its own, training must separate the two."""
    torch.manual_seed(0)
    own, shared = torch.rand(2000, 1, 1, 1), torch.rand(2000, 1, 1, 1)
    x, y = shared.expand(-1, 1, 2, 4), torch.cat([shared.expand(-1, 1, 2, 2), own.expand(-1, 1, 2, 2)], 3)
    correlations = {}
    for match in ("joint", "marginal"):
        torch.manual_seed(0)
        model = small(
            shape=(1, 4, 4), d=1, noise=FixedNoise(0.2), penalty=MMD(), match=match, penalty_weight=5.0,
            cost=SquaredError(1.0), optimizer=functools.partial(torch.optim.Adam, lr=1e-2),
            features=nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(1)),
        )  # fmt: skip
        trainer = pl.Trainer(**SHORT | {"limit_train_batches": None, "max_epochs": 10})
        trainer.fit(model, DataLoader(TensorDataset(x, y), 100, shuffle=True))
        z = model.eval().encode(x, y)
        pairs = torch.cat([z, own.view(-1, 1), shared.view(-1, 1)], 1).detach().T
        correlations[match] = pairs.corrcoef()[0, 1:].abs()
    assert correlations["joint"][0] > 0.9
    assert correlations["joint"][1] < 0.15


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_the_ambiguous_parts_are_those_whose_neighbours_disagree():
    x = torch.cat([torch.full((20, 1, 2, 2), 0.1), torch.full((20, 1, 2, 2), 0.9)]) + 0.01 * images(40, (1, 2, 2))
    y = torch.zeros(40, 1, 2, 2)
    y[20:] = images(20, (1, 1, 1)).round()
    assert (most_ambiguous(x, y, 10) >= 20).all()


def test_the_picture_shows_observed_part_truth_and_completions(tmp_path):
    model = small().eval()
    x, y = TOP.split(images(12))
    callback = CompletionPictures(rows=3, columns=4)
    picture = callback.draw(model, x, y, TOP)
    assert picture.shape == (3, 3 * 30 + 2, 6 * 30 + 2)
    assert torch.equal(picture, callback.draw(model, x, y, TOP))
    first = most_ambiguous(x, y, 3)[0]
    assert torch.equal(picture[:1, 2:16, 2:30], x[first])
    assert (picture[:, 16:30, 2:30] == 0.5).all()
    assert torch.equal(picture[:1, 16:30, 32:60], y[first])
    assert torch.equal(picture[:1, 2:16, 62:90], x[first])


def test_the_config_trains_draws_and_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    flags = ["--limit_train_batches=2", "--limit_val_batches=1", "--limit_test_batches=1", "--max_epochs=1"]
    fast = ["--data.batch_size=20", "--enable_progress_bar=false"]
    train.main(["--config", "mnist_conditional", *flags, *fast])
    run = tmp_path / "runs" / "mnist_conditional" / "version_0"
    assert (run / "completions.png").exists()
    model = ConditionalWAE.load_from_checkpoint(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert model.eval().complete(torch.rand(2, 1, 14, 28), 3).shape == (2, 3, 1, 14, 28)


@pytest.mark.parametrize("name", ["mnist_conditional_report", "mnist_conditional_paper", "celeba_conditional"])
def test_the_other_configs_build_models_that_fit_their_data(name):
    model, data = from_config(name)
    model.eval()
    x, y = data.split(images(2, data.image_shape))
    assert model(x, y).shape == y.shape
    assert isinstance(model, ReportWAE) == ("report" in name)


# ---- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"condition_shape": ()}, r"condition_shape must be one or more positive numbers, got \(\)"),
        ({"target_shape": (1, 0, 28)}, "target_shape must be one or more positive numbers"),
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"flow": CouplingFlow(8, condition_features=3)}, "the flow must have condition_features 16"),
        ({"flow": CouplingFlow(8, condition_features=16), "match": "marginal"}, "must have condition_features 0"),
        ({"flow": MixtureFlow(8, 2, 16)}, "must have condition_features 0 or 0 with match='joint', got 16"),
        ({"match": "both"}, "match must be one of joint, marginal, got 'both'"),
        ({"penalty": Adversarial(log_prior=True)}, "log_prior knows the density of codes alone"),
        ({"penalty": CramerWold()}, "CramerWold knows the density of codes alone"),
        ({"penalty": MMDPlusPlus(100), "noise": GaussianNoise()}, "MMDPlusPlus compares codes only"),
        ({"penalty": Adversarial(Critic(8))}, "does not take codes of latent_dim 24"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConditionalWAE(**arguments)


def test_inputs_that_do_not_fit(tmp_path):
    model = small().eval()
    x, y = TOP.split(images())
    for call, message in (
        (lambda: model.complete(x, 0), "n must be at least 1, got 0"),
        (lambda: MeasureCompletions(-1), "likelihood_images must be 0 or more, got -1"),
        (
            lambda: model.complete(images(), 2),
            r"condition must be of shape \(B, 1, 14, 28\), as in training, got \(4, 1, 28, 28\)",
        ),
        (
            lambda: model.complete(x.numpy(), 2),
            r"condition must be of shape \(B, 1, 14, 28\), as in training, got ndarray",
        ),
        (lambda: model.complete((255 * x).byte(), 2), "condition must be floats, as in training, got torch.uint8"),
        (lambda: model.complete(x, 2, z=torch.randn(3, 3)), r"z must be \(2, 3\) or \(4, 2, 3\)"),
        (lambda: model.encode(x), "encode needs the target"),
        (lambda: model.encode(x, y[..., 1:]), r"target must be of shape \(B, 1, 14, 28\)"),
        (lambda: model.decode(x), "decode needs the condition and the code"),
        (lambda: model.sample(3), r"use complete\(x, n\)"),
        (lambda: model.interpolate(x, torch.randn(4, 3), torch.randn(4, 3), 1), "steps must be at least 2"),
        (lambda: model.interpolate(x, torch.randn(4, 3), torch.randn(3, 3), 2), "must have one shape"),
        (lambda: small(cls=ReportWAE).complete(x, 2, z=torch.randn(2, 3)), "complete takes no z"),
        (lambda: ReportWAE(match="joint"), "match must be marginal for ReportWAE"),
        (lambda: small(cls=ReportWAE).interpolate(x, x, x, 2), "nothing to interpolate"),
        (lambda: model.features(x), "has not seen data"),
        (lambda: WhitenedPCA(0), "num_features must lie between 1 and"),
        (lambda: WhitenedPCA(4, (5,)).fit(torch.ones(4, 5)), "2 different training inputs, all 4 are alike"),
        (lambda: joint_mmd(*torch.randn(3, 1, 2), RBF(1.0), RBF(1.0)), "at least 2 codes, got 1"),
        (lambda: joint_mmd(y[:, 0, 0], y[:3, 0, 0], y[:, 0, 0], RBF(1.0), RBF(1.0)), "got 4, 3 and 4"),
        (lambda: ConditionalMLPEncoder([(1, 2, 2)], hidden=()), "hidden must be positive"),
        (lambda: ConditionalMLPDecoder(0), "latent_dim must be positive"),
        (lambda: CompletionPictures(columns=0), "rows and columns must be at least 1, got 10 and 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (MNISTDataModule(batch_size=20), r"needs batches \(condition, target, ...\)"),
        (DataLoader(images(20), 10), r"needs batches \(condition, target, ...\)"),
        (halves("left"), r"the condition must be of shape \(B, 1, 14, 28\), as in training, got \(40, 1, 28, 14\)"),
        (DataLoader(TensorDataset(images(20, (1, 14, 28)), images(20, (1, 7, 28))), 10), "the target must be of"),
        (DataLoader(TensorDataset(*2 * [2 * images(60, (1, 14, 28))]), 20), r"floats in \[0, 1\]"),
    ],
    ids=["labels", "tensors", "other half", "wrong target", "range"],
)
def test_data_that_does_not_fit(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        pl.Trainer(default_root_dir=tmp_path, **SHORT).fit(small(), data)


# ---- priors of another scale ----------------------------------------------------------------------------------------


def test_the_scale_of_the_prior_counts():
    model = small(prior=Normal(3, 2.0)).eval()
    x, y = TOP.split(images())
    own = model.complete(x, 5, generator=torch.Generator().manual_seed(1))
    z = 2 * torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(own.flatten(0, 1), model.decode(x.repeat_interleave(5, 0), z))
    # both parts of what the critic sees: codes of the scale, features of variance 1
    joint = CodesAndFeatures(Normal(3, 2.0), 4)
    assert (joint.latent_dim, joint.scale) == (7, 2.0)
    both = torch.cat([2 * torch.randn(2, 100_000, 3), torch.randn(2, 100_000, 4)], 2)
    expected = (both[0] - both[1]).square().sum(1).mean().item()
    assert joint.expected_squared_distance == pytest.approx(expected, rel=0.02)
    # the draws that codes are compared with
    model.features.fit(TOP.split(images(40))[0])
    compared = model.compared((x, y), model.draw_codes((x, y)))
    torch.manual_seed(4)
    draws = model.prior_like(compared)
    torch.manual_seed(4)
    torch.testing.assert_close(draws[:, :3], 2 * torch.randn(4, 3))
    assert torch.equal(draws[:, 3:], compared[:, 3:])


def test_the_features_are_those_of_the_observed_part():
    model = small(features=nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(1)), penalty=MMD()).eval()
    x, y = TOP.split(images())
    compared = model.compared((x, y), torch.zeros(4, 3))
    torch.testing.assert_close(compared[:, 3], x.mean((1, 2, 3)))


def test_noise_on_the_input_is_for_training():
    model = small(noise=InputNoise(0.3))
    x, y = TOP.split(images())
    assert not torch.equal(model.train().encode(x, y), model.encode(x, y))
    assert torch.equal(model.eval().encode(x, y), model.encode(x, y))


def test_fitting_features_leaves_no_trace_in_the_generator():
    features, seen = WhitenedPCA(2, (1, 28, 28)), []
    loader = DataLoader(images(60), 20, shuffle=True)
    strategy = SimpleNamespace(batch_to_device=lambda batch, _: batch, broadcast=lambda buffer: buffer)
    loop = SimpleNamespace(setup_data=lambda: None)
    precision = SimpleNamespace(convert_input=lambda batch: batch)
    fitting = SimpleNamespace(fit_loop=loop, train_dataloader=loader, strategy=strategy, precision_plugin=precision)
    state = torch.get_rng_state()
    callback = FitFeatures(features, lambda batch: seen.append(len(batch)) or batch, count=40)
    module = SimpleNamespace(device="cpu", on_before_batch_transfer=lambda batch, _: batch)
    callback.on_fit_start(fitting, module)
    assert torch.equal(torch.get_rng_state(), state)
    assert features.fitted
    assert seen == [20, 20]


@pytest.mark.parametrize("third", ["names", "weights", "nothing"])
def test_measures_do_not_depend_on_the_range_nor_on_what_follows_the_target(tmp_path, third):
    """Of the same completions, drawn between 0 and 1 and between -1 and 1."""
    x, y = TOP.split(images(12))
    drawn = torch.rand(12, 100, *y.shape[1:], generator=torch.Generator().manual_seed(0))
    more = {"names": ("a.png",), "weights": (0.5,), "nothing": ()}[third]
    found = []
    for low in (0.0, -1.0):
        features = nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(1))
        model = small(input_range=(low, 1.0), features=features, cost=SquaredError())
        scaled = low + (1 - low) * drawn
        model.complete = lambda x, n, z=None, scaled=scaled: scaled[: len(x), :n]
        rows = [(x[i], low + (1 - low) * y[i], *more) for i in range(12)]
        trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[MeasureCompletions()], **SHORT)
        (results,) = trainer.test(model, DataLoader(rows, 12), verbose=False)
        found.append(results)
    for name in ("mse", "psnr", "psnr_best", "ssim", "bce", "sharpness_ratio"):
        assert found[1][f"test/{name}"] == pytest.approx(found[0][f"test/{name}"], rel=1e-3), name
    assert "test/nll_prior" in found[0]
    assert not any("nll" in name for name in found[1])
    with pytest.raises(
        ValueError, match=r"likelihoods are of pixels in \[0, 1\], and the model's input_range is \(-1.0"
    ):
        small(input_range=(-1.0, 1.0)).log_weights(x, y, 2)


def test_tiny_images_and_a_single_one_are_measured_and_other_models_refused(tmp_path):
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[MeasureCompletions()], **SHORT)
    model = ConditionalWAE(
        ConditionalMLPEncoder([(1, 2, 4), (1, 2, 4)], 3, (8,), standardize=True),
        ConditionalMLPDecoder(3, (1, 2, 4), (1, 2, 4), (8,)),
        features=nn.Flatten(), condition_shape=(1, 2, 4), target_shape=(1, 2, 4), latent_dim=3,
    )  # fmt: skip
    for count in (1, 6):
        pairs = TensorDataset(torch.rand(count, 1, 2, 4), torch.rand(count, 1, 2, 4))
        (results,) = trainer.test(model, DataLoader(pairs, 4), verbose=False)
        assert math.isfinite(results["test/psnr"])
        assert "test/ssim" not in results
        assert ("test/hsic_over_null" in results) == (count > 1)
    with pytest.raises(ValueError, match="MeasureCompletions measures a ConditionalWAE, got WAEMMD"):
        trainer.test(WAEMMD(latent_dim=2), DataLoader(torch.rand(4, 1, 28, 28), 4), verbose=False)


def test_other_numbers_of_conditions_than_of_targets_or_codes():
    model = small().eval()
    x, y = TOP.split(images(4))
    for call, message in (
        (lambda: model.encode(x[:1], y), "expected as many conditions as targets, got 1 and 4"),
        (lambda: model.decode(x[:3], torch.randn(2, 3)), "expected as many conditions as codes, got 3 and 2"),
        (
            lambda: model.decode(x, torch.randn(4, 5)),
            r"the codes must be of shape \(B, 3\), as in training, got \(4, 5\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_likelihoods_are_of_as_many_images_as_asked(tmp_path, monkeypatch):
    asked = []

    def log_weights(x, y, n, prior=False):
        asked.append((len(x), n, prior))
        # of the first batch 1, 3 and of the second 10, 30, so that each has its own share in the mean
        value = 1.0 if len(x) == 4 else 10.0
        return torch.tensor([value, 3 * value]).expand(len(x), 2) - (100 if prior else 0)

    model = small(features=nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(1)))
    monkeypatch.setattr(model, "log_weights", log_weights)
    measure = MeasureCompletions(7)
    trainer = pl.Trainer(default_root_dir=tmp_path, callbacks=[measure], **SHORT | {"limit_test_batches": 3})
    (found,) = trainer.test(model, DataLoader(TensorDataset(*TOP.split(images(12))), 4), verbose=False)
    assert asked == [(4, 100, True), (4, 100, False), (3, 100, True), (3, 100, False)]
    assert found["test/negative_elbo"] == pytest.approx(-(4 * 2 + 3 * 20) / 7, rel=1e-5)
    nll = [-math.log((math.exp(a) + math.exp(3 * a)) / 2) for a in (1.0, 10.0)]
    expected = (4 * nll[0] + 3 * nll[1]) / 7
    assert found["test/nll"] == pytest.approx(expected, rel=1e-4)
    assert found["test/nll_prior"] == pytest.approx(expected + 100, rel=1e-4)

"""The normalizing flows between codes and prior."""

import copy
import re

import numpy as np
import pytest
import torch
from helpers import codes_and_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm
from torch.utils.data import DataLoader
from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
from torchcfm.optimal_transport import OTPlanSampler

from wae_lightning import WAE, WAEGAN, PointNetWAE
from wae_lightning.lightning import Trainer
from wae_lightning.networks import ConvDecoder, CouplingFlow, FlowMatching, MixtureFlow
from wae_lightning.noise import FixedNoise
from wae_lightning.priors import Normal

FLOWS = [CouplingFlow, FlowMatching, MixtureFlow]


def random_flow(cls, dim):
    torch.manual_seed(0)
    if cls is CouplingFlow:
        flow = CouplingFlow(dim, layers=5, hidden=16).double()
        for coupling in flow.couplings:
            torch.nn.init.normal_(coupling.network[-1].weight, std=0.3)
        return flow
    if cls is FlowMatching:
        flow = FlowMatching(dim, hidden=16, steps=8).double()
        for layer in flow.layers:
            torch.nn.init.normal_(layer.weight, std=1.2 / layer.in_features**0.5)
        return flow
    flow = MixtureFlow(dim, components=5).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return flow


def test_at_the_start_it_only_permutes():
    x = torch.randn(4, 5)
    z, log_determinant = CouplingFlow(5)(x)
    assert torch.equal(z.sort(1).values, x.sort(1).values)
    assert not log_determinant.any()


@pytest.mark.parametrize("cls", FLOWS)
@pytest.mark.parametrize("dim", [2, 3, 8])
def test_it_is_invertible_and_knows_its_determinant(cls, dim):
    flow = random_flow(cls, dim)
    x = torch.randn(6, dim, dtype=torch.float64)
    z, log_determinant = flow(x)
    assert not torch.allclose(z, x, atol=0.1)
    torch.testing.assert_close(flow.inverse(z), x)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda row: flow(row.unsqueeze(0))[0].squeeze(0), x[i])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_determinant[i])
        back = torch.autograd.functional.jacobian(lambda row: flow.inverse(row.unsqueeze(0)).squeeze(0), z[i].detach())
        torch.testing.assert_close(back @ jacobian, torch.eye(dim, dtype=torch.float64))
    normal = multivariate_normal(np.zeros(dim)).logpdf(z.detach().numpy())
    torch.testing.assert_close(flow.log_prob(x), torch.from_numpy(normal) + log_determinant)


def test_the_density_of_a_mixture_is_that_of_its_gaussians():
    flow, x = random_flow(MixtureFlow, 4), 2 * torch.randn(10, 4, dtype=torch.float64)
    expected = 0
    for k, weight in enumerate(flow.weight_logits.softmax(0).tolist()):
        root = flow.below[k].tril(-1) + flow.log_diagonal[k].exp().diag()
        covariance = torch.linalg.inv(root.T @ root).detach().numpy()
        expected += weight * multivariate_normal(flow.means[k].detach().numpy(), covariance).pdf(x.numpy())
    torch.testing.assert_close(flow.log_prob(x).exp(), torch.from_numpy(expected))


def test_the_first_coordinate_of_a_mixture_passes_through_its_distribution_function():
    flow, x = random_flow(MixtureFlow, 2), torch.randn(10, 2, dtype=torch.float64)
    scales, means = (-flow.log_diagonal[:, 0]).exp().detach().numpy(), flow.means[:, 0].detach().numpy()
    below = norm(means, scales).cdf(x[:, :1].numpy()) @ flow.weight_logits.softmax(0).detach().numpy()
    np.testing.assert_allclose(flow(x)[0][:, 0].detach().numpy(), norm.ppf(below), rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    spread=st.floats(0.1, 50),
    sd=st.floats(0.02, 3),
    dim=st.integers(2, 6),
    components=st.sampled_from([1, 2, 10, 100]),
    seed=st.integers(0, 1000),
)
def test_a_mixture_inverts_everywhere(spread, sd, dim, components, seed):
    """Clusters far apart and narrow, where the sum of their weights may exceed 1 by rounding."""
    generator = torch.Generator().manual_seed(seed)
    flow = MixtureFlow(dim, components).double()
    with torch.no_grad():
        flow.means.copy_(spread * torch.randn(flow.means.shape, generator=generator))
        flow.log_diagonal.fill_(-np.log(sd))
        flow.below.copy_(torch.randn(flow.below.shape, generator=generator) / (sd * dim))
        z = torch.randn(100, dim, generator=generator, dtype=torch.float64)
        z = torch.cat([z, 24 * torch.rand(100, dim, generator=generator, dtype=torch.float64) - 12])
        back = flow(flow.inverse(z))[0]
        torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
        z = z.float()
        x = flow.float().inverse(z)
        assert x.isfinite().all()
        assert (flow(x)[0] - z).abs().max() < 5e-5 + 5e-6 * (1 + dim) * spread / sd


def test_draws_between_far_and_narrow_clusters_are_finite():
    for spread, sd, components in ((5, 0.1, 10), (10, 0.1, 100)):
        torch.manual_seed(0)
        flow = MixtureFlow(2, components)
        with torch.no_grad():
            flow.means.copy_(spread * torch.randn(components, 2))
            flow.log_diagonal.fill_(-np.log(sd))
            assert flow.inverse(torch.randn(5000, 2)).isfinite().all()


@settings(deadline=None, max_examples=15)
@given(std=st.floats(0.01, 1.0), dim=st.integers(2, 9), seed=st.integers(0, 1000))
def test_a_coupling_flow_of_any_weights_is_exact_but_for_the_rounding_of_its_result(std, dim, seed):
    torch.manual_seed(seed)
    flow = CouplingFlow(dim, hidden=32)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(std * torch.randn_like(parameter))
        exact, x = copy.deepcopy(flow).double(), torch.randn(100, dim)
        for found, expected in ((flow(x)[0], exact(x.double())[0]), (flow.inverse(x), exact.inverse(x.double()))):
            assert found.isfinite().all()
            torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-6)
        if std < 0.1:
            torch.testing.assert_close(flow.inverse(flow(x)[0]), x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("distance", [8.0, 30.0])
def test_a_mixture_inverts_far_from_its_gaussians(distance):
    flow = random_flow(MixtureFlow, 3)
    z = torch.tensor([[distance, 0, -distance], [-distance, distance, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(flow(flow.inverse(z))[0], z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("distance", [0.0, 3.0, 8.0, 25.0, torch.linspace(0, 25, 40, dtype=torch.float64).view(-1, 1)])
def test_without_gradients_a_mixture_maps_as_with_them(distance):
    # coordinates in the far tails do not go the quicker way
    flow = random_flow(MixtureFlow, 6)
    with torch.no_grad():
        x = flow.inverse(torch.randn(40, 6, dtype=torch.float64).clamp(-4, 4) + distance)
        quick = flow(x)
    with torch.enable_grad():
        exact = flow(x)
    torch.testing.assert_close(quick, tuple(part.detach() for part in exact), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cls", FLOWS)
def test_it_stays_invertible_under_mixed_precision(cls):
    flow = random_flow(cls, 8).float()
    x = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(flow.inverse(flow(x)[0]), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("cls", "sizes"), [
    (CouplingFlow, {"layers": 6, "hidden": 32}), (MixtureFlow, {}),
    (FlowMatching, {"hidden": 64}), (FlowMatching, {"hidden": 64, "transport": True}),
])  # fmt: skip
def test_training_makes_two_clusters_normal(cls, sizes):
    torch.manual_seed(0)
    flow = cls(2, **sizes)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)

    def two_clusters(n):
        return 0.3 * torch.randn(n, 2) + 2 * torch.randint(0, 2, (n, 1)) - 1

    for _ in range(400):
        loss = flow.loss(two_clusters(100 if "transport" in sizes else 256))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = flow.inverse(torch.randn(2000, 2))
    # draws lie in the two clusters, half of them in each, and hardly any between them
    assert 0.4 < (drawn.sum(1) > 0).float().mean() < 0.6
    assert (drawn.sum(1).abs() < 0.6).float().mean() < 0.1
    assert drawn[drawn.sum(1) > 0].std(0) == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("transport", [False, True])
def test_flow_matching_regresses_as_torchcfm_does(transport):
    """Its pairs by optimal transport, its points and its velocities, for the same draws."""
    flow, x = random_flow(FlowMatching, 5), torch.randn(40, 5).double() + 2
    flow.transport = transport
    torch.manual_seed(3)
    loss = flow.loss(x)
    torch.manual_seed(3)
    z, t = torch.randn_like(x), torch.rand_like(x[:, :1])
    if transport:
        plan = torch.from_numpy(OTPlanSampler("exact").get_map(z, x))
        z = z[plan.argmax(0)]
    matcher = ConditionalFlowMatcher(sigma=0.0)
    t, point, velocity = matcher.sample_location_and_conditional_flow(z, x, t.flatten())
    expected = (flow.velocity(point, t.unsqueeze(1)) - velocity).square().mean()
    torch.testing.assert_close(loss, expected)


def test_the_velocity_field_of_a_gaussian_leads_to_it():
    """The exact field of N(m, s²) in the place of the network: midpoint steps lead to m + s z, and back."""

    class Exact(FlowMatching):
        def velocity(self, x, t):
            variance = (1 - t) ** 2 + (0.5 * t) ** 2
            return 3 + (0.25 * t - (1 - t)) / variance * (x - 3 * t)

    flow, z = Exact(2, steps=40).double(), torch.randn(50, 2).double()
    torch.testing.assert_close(flow.inverse(z), 3 + 0.5 * z, rtol=0, atol=2e-3)
    torch.testing.assert_close(flow.to_normal(3 + 0.5 * z), z, rtol=0, atol=5e-3)


def test_a_field_too_steep_for_its_steps_is_undone_as_well_as_can_be():
    flow = random_flow(FlowMatching, 3).float()
    with torch.no_grad():
        for layer in flow.layers:
            layer.weight.mul_(3)
        x = torch.randn(200, 3)
        back = flow.inverse(flow.to_normal(x))
    assert back.isfinite().all()


def small_model(**arguments):
    torch.manual_seed(0)
    return PointNetWAE(latent_dim=6, num_points=32, **arguments)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("cls", FLOWS)
def test_reconstructions_do_not_depend_on_the_flow(cls, scale):
    parts = {"num_points": 32, "prior": Normal(6, scale)}
    torch.manual_seed(0)
    with_flow, without = PointNetWAE(flow=random_flow(cls, 6).float(), **parts), PointNetWAE(**parts)
    without.load_state_dict({k: v for k, v in with_flow.state_dict().items() if not k.startswith("flow")})
    clouds = torch.rand(3, 50, 3)
    with_flow.eval(), without.eval()
    torch.testing.assert_close(with_flow(clouds), without(clouds))
    assert not torch.allclose(with_flow.encode(clouds), without.encode(clouds), atol=0.01)
    torch.testing.assert_close(with_flow.decode(with_flow.encode(clouds)), without(clouds), rtol=1e-4, atol=1e-5)
    # z is what the flow makes of the encoder's codes, at the prior's scale
    torch.testing.assert_close(with_flow.encode(clouds), scale * with_flow.flow(without.encode(clouds))[0])
    z = with_flow.prior.sample(5, torch.Generator().manual_seed(1))
    torch.testing.assert_close(with_flow.decode(z), without.decode(with_flow.flow.inverse(z / scale)))
    torch.testing.assert_close(with_flow.sample(5, torch.Generator().manual_seed(1)), with_flow.decode(z))


def test_the_flow_is_trained_on_codes_with_noise_of_the_given_deviation():
    seen = []

    class Recording(MixtureFlow):
        def log_prob(self, x):
            seen.append(x.detach())
            return super().log_prob(x)

    class Zero(torch.nn.Linear):
        def forward(self, x):
            return 0 * super().forward(x.flatten(1))

    model = WAE(Zero(256, 6), ConvDecoder(6, (1, 16, 16)), flow=Recording(6), flow_noise=0.25, latent_dim=6)
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.fit(model, DataLoader(torch.rand(600, 1, 16, 16), batch_size=200))
    noise = torch.cat(seen)
    assert noise.std().item() == pytest.approx(0.25, rel=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("cls", FLOWS)
def test_the_flow_learns_and_sends_no_gradient_to_the_encoder(cls):
    clouds = torch.rand(64, 40, 3)
    models = [small_model(flow=flow, penalty_weight=0.0, noise=FixedNoise(0.1)) for flow in (None, cls(6))]
    gradients = []
    for model in models:
        torch.manual_seed(2)  # equal encoder noise; the flow draws its own afterwards
        _, cost = codes_and_loss(model.train(), clouds)
        cost.backward()
        gradients.append([parameter.grad for parameter in model.encoder.parameters()])
    for without, with_flow in zip(*gradients, strict=True):
        torch.testing.assert_close(with_flow, without)
    assert all(parameter.grad is not None for parameter in models[1].flow.parameters())


@pytest.mark.parametrize("cls", FLOWS)
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_training_and_loading(precision, cls):
    model = small_model(flow=cls(6))
    loader = DataLoader(torch.rand(64, 40, 3), batch_size=16)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, loader)
    assert "train/flow_loss" in trainer.callback_metrics
    assert model.eval().float().sample(3).shape == (3, 32, 3)
    other = small_model(flow=cls(6))
    other.load_state_dict(model.state_dict())
    clouds = torch.rand(2, 40, 3)
    torch.testing.assert_close(other.eval().encode(clouds), model.encode(clouds))


def test_the_flow_sees_the_codes_of_the_last_batches_whatever_their_size():
    model = small_model(flow=MixtureFlow(6))
    codes = torch.randn(50, 6)
    for size in (20, 7, 23):
        model.memory.remember(codes[len(model.memory) :][:size])
    seen = model.memory.latest(28)
    assert torch.equal(seen.sort(0).values, codes[22:].sort(0).values)


def test_a_flow_beside_a_critic_leaves_the_critic_alone():
    torch.manual_seed(0)
    model = WAEGAN(flow=MixtureFlow(8, components=3))
    trainer = Trainer(
        max_steps=3, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer.fit(model, DataLoader(torch.rand(32, 1, 28, 28), batch_size=8))
    assert not any(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CouplingFlow(1), "at least 2 dimensions"),
        (lambda: FlowMatching(4, steps=0), "at least 1 hidden unit and 1 step, got 256, 0"),
        (lambda: MixtureFlow(4, components=0), "components must be at least 1, got 0"),
        (lambda: small_model(flow=CouplingFlow(5)), "the flow must have 6 dimensions"),
        (lambda: small_model(flow=CouplingFlow(6), coupling=0.5), "either a flow or coupling"),
        (lambda: small_model(flow=CouplingFlow(6), coupling_weight=0.1), "either a flow or coupling"),
        (lambda: small_model(flow_noise=0.0), "flow_noise must be positive"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("cls", FLOWS)
@pytest.mark.parametrize("shape", [(3, 5), (3, 3), (4,), (2, 3, 4)])
def test_points_of_other_dimensions_are_refused(cls, shape):
    flow, found = cls(4), re.escape(str(shape))
    for way in (flow, flow.inverse, flow.to_normal, flow.log_prob, flow.loss):
        with pytest.raises(ValueError, match=rf"the flow takes points \(B, 4\), got {found}"):
            way(torch.randn(shape))


def test_a_mixture_of_labels_takes_labels():
    flow = MixtureFlow(4, 3, condition_features=2)
    x = torch.randn(2, 4)
    for way in (flow, flow.inverse, flow.log_prob):
        assert way(x, torch.eye(2)) is not None
        with pytest.raises(ValueError, match=r"takes labels, as one-hot vectors, for conditions, got \[0.2, 0.3\]"):
            way(x, torch.tensor([[0.0, 1.0], [0.2, 0.3]]))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_loss_of_a_flow_is_its_codes_negative_log_density_per_dimension(scale):
    """And its codes are those before the prior's scale, whose images under the flow are standard normal."""
    model = WAE(torch.nn.Flatten(), torch.nn.Unflatten(1, (1, 2, 3)), prior=Normal(6, scale), flow=MixtureFlow(6, 2),
                flow_noise=1e-4).eval()  # fmt: skip
    x = torch.rand(50, 1, 2, 3)
    loss = model.terms(x, model.draw_codes(x))["flow_loss"]
    means, codes = model.flow.means.detach().numpy(), x.flatten(1).numpy()
    density = sum(0.5 * multivariate_normal(mean, np.eye(6)).pdf(codes) for mean in means)
    assert loss.item() == pytest.approx(-np.log(density).mean() / 6, rel=1e-3)

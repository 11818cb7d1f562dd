"""The normalizing flow between codes and prior."""

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from wae_lightning import PointNetWAE
from wae_lightning.networks import CouplingFlow
from wae_lightning.noise import FixedNoise


def random_flow(dim):
    torch.manual_seed(0)
    flow = CouplingFlow(dim, layers=5, hidden=16).double()
    for coupling in flow.couplings:
        torch.nn.init.normal_(coupling.network[-1].weight, std=0.3)
    return flow


def test_at_the_start_it_only_permutes():
    x = torch.randn(4, 5)
    z, log_determinant = CouplingFlow(5)(x)
    assert torch.equal(z.sort(1).values, x.sort(1).values)
    assert not log_determinant.any()


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_it_is_invertible_and_knows_its_determinant(dim):
    flow = random_flow(dim)
    x = torch.randn(6, dim, dtype=torch.float64)
    z, log_determinant = flow(x)
    assert not torch.allclose(z, x, atol=0.1)
    torch.testing.assert_close(flow.inverse(z), x)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda row: flow(row.unsqueeze(0))[0].squeeze(0), x[i])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_determinant[i])


def test_it_stays_invertible_under_mixed_precision():
    flow = random_flow(8).float()
    x = torch.randn(6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(flow.inverse(flow(x)[0]), x, rtol=1e-4, atol=1e-5)


def test_maximum_likelihood_makes_two_clusters_normal():
    torch.manual_seed(0)
    flow = CouplingFlow(2, layers=6, hidden=32)
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)

    def two_clusters(n):
        return 0.3 * torch.randn(n, 2) + 2 * torch.randint(0, 2, (n, 1)) - 1

    for _ in range(400):
        z, log_determinant = flow(two_clusters(256))
        loss = (0.5 * z.square().sum(1) - log_determinant).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = flow.inverse(torch.randn(2000, 2))
    # draws lie in the two clusters, half of them in each, and hardly any between them
    assert 0.4 < (drawn.sum(1) > 0).float().mean() < 0.6
    assert (drawn.sum(1).abs() < 0.6).float().mean() < 0.1
    assert drawn[drawn.sum(1) > 0].std(0) == pytest.approx(0.3, abs=0.08)


def small_model(**arguments):
    torch.manual_seed(0)
    return PointNetWAE(latent_dim=6, num_points=32, **arguments)


def test_reconstructions_do_not_depend_on_the_flow():
    with_flow, without = small_model(flow=CouplingFlow(6)), small_model()
    for coupling in with_flow.flow.couplings:
        torch.nn.init.normal_(coupling.network[-1].weight, std=0.1)
    without.load_state_dict({k: v for k, v in with_flow.state_dict().items() if not k.startswith("flow")})
    clouds = torch.rand(3, 50, 3)
    with_flow.eval(), without.eval()
    torch.testing.assert_close(with_flow(clouds), without(clouds))
    assert not torch.allclose(with_flow.encode(clouds), without.encode(clouds), atol=0.01)
    torch.testing.assert_close(with_flow.decode(with_flow.encode(clouds)), without(clouds))


def test_the_flow_learns_and_sends_no_gradient_to_the_encoder():
    clouds = torch.rand(64, 40, 3)
    models = [small_model(flow=flow, penalty_weight=0.0, noise=FixedNoise(0.1)) for flow in (None, CouplingFlow(6))]
    gradients = []
    for model in models:
        model.log = lambda *_: None
        torch.manual_seed(2)  # equal encoder noise; the flow draws its own afterwards
        _, cost = model.train()._codes_and_cost(clouds)
        cost.backward()
        gradients.append([parameter.grad for parameter in model.encoder.parameters()])
    for without, with_flow in zip(*gradients, strict=True):
        torch.testing.assert_close(with_flow, without)
    assert all(parameter.grad is not None for parameter in models[1].flow.parameters())


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_training_and_loading(precision):
    model = small_model(flow=CouplingFlow(6))
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
    other = small_model(flow=CouplingFlow(6))
    other.load_state_dict(model.state_dict())
    clouds = torch.rand(2, 40, 3)
    torch.testing.assert_close(other.eval().encode(clouds), model.encode(clouds))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CouplingFlow(1), "at least 2 dimensions"),
        (lambda: small_model(flow=CouplingFlow(5)), "the flow must have 6 dimensions"),
        (lambda: small_model(flow=CouplingFlow(6), coupling=0.5), "either a flow or coupling"),
        (lambda: small_model(flow=CouplingFlow(6), coupling_weight=0.1), "either a flow or coupling"),
        (lambda: small_model(flow_noise=0.0), "flow_noise must be positive"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""PointNet's networks and PointNetWAE."""

import math
import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from helpers import codes_and_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from wae_lightning import PointNetWAE
from wae_lightning.callbacks import PointCloudPictures, draw_point_sets
from wae_lightning.costs import SquaredError, chamfer_distance
from wae_lightning.kernels import squared_distances
from wae_lightning.lightning import TensorBoardLogger, Trainer
from wae_lightning.networks import (
    FoldingDecoder,
    FullyConnectedDecoder,
    PointNetClassifier,
    PointNetEncoder,
    SeedDecoder,
    TNet,
)
from wae_lightning.noise import FixedNoise, GaussianNoise
from wae_lightning.penalties import MMD
from wae_lightning.penalties.adversarial import Adversarial
from wae_lightning.pointnet import assign, upright_pose
from wae_lightning.priors import Normal


def solids(n: int, points: int = 128, seed: int = 0) -> Tensor:
    """Surfaces of boxes and ellipsoids of random sizes, (n, points, 3), in random order."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, points, 3, generator=generator)
    boxes = x / x.abs().amax(2, keepdim=True)
    balls = x / x.norm(dim=2, keepdim=True)
    kind = torch.arange(n).view(-1, 1, 1) % 2 == 0
    return torch.where(kind, 0.6 * boxes, balls) * (0.3 + 0.7 * torch.rand(n, 1, 3, generator=generator))


def small_model(**arguments: object) -> PointNetWAE:
    d = 8
    defaults: dict[str, object] = {
        "encoder": PointNetEncoder(d, (16, 32), (32,)),
        "decoder": FullyConnectedDecoder(d, 128, (64,)),
        "latent_dim": d,
    }
    return PointNetWAE(**{**defaults, **arguments})  # type: ignore[arg-type]


def quiet_trainer(**flags: object) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", enable_model_summary=False, **{**defaults, **flags})  # type: ignore[arg-type]


# ---- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transforms", [{}, {"input_transform": True, "feature_transform": True}])
def test_order_of_the_points_does_not_matter(transforms):
    encoder = PointNetEncoder(16, **transforms).eval()
    x = solids(3, 500)
    code = encoder(x)
    torch.testing.assert_close(encoder(x[:, torch.randperm(500)]), code, rtol=0, atol=1e-5)
    repeated = torch.cat([x, x[:, :100]], 1)
    torch.testing.assert_close(encoder(repeated), code, rtol=0, atol=1e-5)


@pytest.mark.parametrize("transforms", [{}, {"input_transform": True, "feature_transform": True}])
def test_critical_points_give_the_gradient_of_all_points(transforms):
    torch.manual_seed(0)
    encoder = PointNetEncoder(4, (16, 32), (8,), **transforms)
    x = solids(4, 200)

    def gradients() -> list[Tensor]:
        encoder.zero_grad()
        encoder(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters()]

    by_critical_points = gradients()
    for module in encoder.modules():
        if hasattr(module, "outputs"):
            module.outputs = 10_000  # more than points: no search
    for found, expected in zip(by_critical_points, gradients(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=3e-5)


def test_transforms_begin_as_the_identity_and_are_kept_orthogonal():
    torch.testing.assert_close(TNet(3)(solids(2)), torch.eye(3).expand(2, 3, 3))
    encoder = PointNetEncoder(4, (16, 32), feature_transform=True)
    assert encoder.orthogonality() == 0
    encoder(solids(2))
    assert encoder.orthogonality() == 0
    encoder.feature_transforms = 2 * torch.eye(16).expand(2, 16, 16)
    assert encoder.orthogonality().item() == pytest.approx(0.5 * 16 * 9)


def test_orthogonality_counts_in_training():
    torch.manual_seed(0)
    model = small_model(encoder=PointNetEncoder(8, (16, 32), feature_transform=True), orthogonality_weight=10.0)
    with torch.no_grad():
        model.encoder.feature_transform.output[-1].bias.mul_(2)
    x = solids(4)
    model.train()
    (_, with_weight), model.orthogonality_weight = codes_and_loss(model, x), 0.0
    _, without = codes_and_loss(model, x)
    assert (with_weight - without).item() == pytest.approx(10 * 0.5 * 16 * 9, rel=1e-4)


@pytest.mark.parametrize(
    "decoder",
    [
        FullyConnectedDecoder(8, 100),
        SeedDecoder(8, 100),
        SeedDecoder(8, 100, seeds="fixed"),
        FoldingDecoder(8, 100),
        FoldingDecoder(8, 101, patches=4, folds=1),
        FoldingDecoder(8, 100, spread="random"),
    ],
)
def test_decoders_put_out_as_many_points_as_asked(decoder):
    z = torch.randn(3, 8)
    points = decoder(z)
    assert points.shape in ((3, 100, 3), (3, 101, 3))
    points.square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters() if parameter.requires_grad)


def test_pointwise_layers_equal_those_of_the_concatenation():
    decoder = SeedDecoder(8, 20, hidden=(16, 12))
    z = torch.randn(2, 8)
    joined = torch.cat([z.unsqueeze(1).expand(-1, 20, -1), decoder.seeds.expand(2, -1, -1)], 2)
    weight = torch.cat([decoder.mlp.of_set.weight, decoder.mlp.of_point.weight], 1)
    expected = decoder.mlp.rest((joined @ weight.T + decoder.mlp.of_set.bias).relu())
    torch.testing.assert_close(decoder(z), expected)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 300))
def test_sheet_covers_the_square_evenly(n):
    sheet = FoldingDecoder(2, n)._sheet(n, 1, torch.zeros(1))[0]
    assert sheet.shape == (n, 2)
    assert sheet.abs().max() < 1
    assert sheet.mean(0).abs().max() < 0.1 + 1 / math.sqrt(n)
    assert len(torch.unique(sheet, dim=0)) == n


def test_seeds_learn_or_stay_fixed():
    assert SeedDecoder(8, 20).seeds.requires_grad
    assert not SeedDecoder(8, 20, seeds="fixed").seeds.requires_grad


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PointNetEncoder(0), "latent_dim must be at least 1, got 0"),
        (lambda: PointNetEncoder(8, channels=()), "channels must be at least 1"),
        (lambda: PointNetEncoder(8, hidden=(0,)), "hidden must be at least 1"),
        (lambda: FullyConnectedDecoder(8, 0), "num_points must be at least 1"),
        (lambda: SeedDecoder(seeds="some"), "seeds must be one of learned, fixed, got 'some'"),
        (lambda: FoldingDecoder(spread="even"), "spread must be one of grid, random, got 'even'"),
        (
            lambda: PointNetWAE(invariance=["colour"]),
            r"invariance must be a list, each one of rotation, scale or None, got \['colour'\]",
        ),
        (lambda: PointNetWAE(coupling=1.5), "coupling must lie between 0 and 1"),
        (lambda: PointNetWAE(coupling_weight=-1), "coupling_weight must be 0 or more"),
        (lambda: PointNetWAE(up_axis="w"), "up_axis must be one of x, y, z, got 'w'"),
        (lambda: PointNetWAE(orthogonality_weight=-1), "orthogonality_weight must be 0 or more"),
        (lambda: PointCloudPictures(columns=1), "columns must be at least 2"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_classifier():
    assert PointNetClassifier(5)(solids(3)).shape == (3, 5)


# ---- the model -------------------------------------------------------------------------------------------------------


def test_works_without_arguments():
    model = PointNetWAE().eval()
    assert model.latent_dim == 128
    x = solids(2, 300)
    assert model.encode(x).shape == (2, 128)
    assert model(x).shape == model.sample(2).shape == (2, 2048, 3)
    assert model.interpolate(x, x.flip(0), 3).shape == (3, 2, 2048, 3)


@pytest.mark.parametrize("points", [256, 8192])
def test_any_number_of_points_and_batches_of_one(points):
    model = PointNetWAE(num_points=points, latent_dim=4).eval()
    x = solids(1, points)
    assert model(x).shape == (1, points, 3)
    _, cost = codes_and_loss(model, x)
    assert cost.isfinite()


def test_code_does_not_depend_on_the_order_of_the_points():
    model = small_model().eval()
    x = solids(4)
    torch.testing.assert_close(model.encode(x), model.encode(x[:, torch.randperm(128)]), rtol=0, atol=1e-5)


def test_points_that_repeat_are_welcome():
    model = small_model().train()
    x = solids(4)[:, :32].repeat(1, 4, 1)
    _, cost = codes_and_loss(model, x)
    cost.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_bad_input_ends_in_one_sentence():
    model = small_model()
    x = solids(4)
    with pytest.raises(ValueError, match=r"got \(B, 3, N\) = \(4, 3, 128\): transpose"):
        model.encode(x.transpose(1, 2))
    spoilt = x.clone()
    spoilt[0, 0, 0] = float("nan")
    trainer = quiet_trainer(max_epochs=1)
    with pytest.raises(ValueError, match="must be finite"):
        trainer.fit(model, DataLoader(spoilt, batch_size=4))
    single = x.clone()
    single[2] = 0.5
    with pytest.raises(ValueError, match="point set 2 of the first batch has all points in one place"):
        quiet_trainer(max_epochs=1).fit(small_model(), DataLoader(single, batch_size=4))


def test_gaussian_noise_doubles_the_default_encoders_features():
    model = PointNetWAE(noise=GaussianNoise(), latent_dim=6, num_points=64)
    assert model.encode(solids(2)).shape == (2, 6)


def test_encoder_standardises_before_the_noise():
    encoder = PointNetEncoder(8, (16, 32), standardize=True)
    model = small_model(encoder=encoder, noise=FixedNoise(0.6)).train()
    z = model.encode(solids(256))
    assert z.var(0).mean().item() == pytest.approx(1, abs=0.1)


def test_the_box_is_encoded_exactly_and_the_rest_does_not_see_it():
    x = torch.rand(8, 50, 3) * (0.6 + 0.4 * torch.rand(8, 1, 3)) + torch.randn(8, 1, 3)
    encoder = PointNetEncoder(13, (16, 32), (8,), box=True).eval()  # its standardisation has not begun
    half = np.ptp(x.numpy(), axis=1) / 2
    expected = np.concatenate([np.log(half), (x.numpy().max(1) + x.numpy().min(1)) / 2], 1)
    code = encoder(x)
    np.testing.assert_allclose(code[:, :6].detach(), expected, atol=1e-4)
    stretched = encoder(x * torch.tensor([1.5, 1.2, 1.9]) + 3)
    torch.testing.assert_close(code[:, 6:], stretched[:, 6:], rtol=0, atol=1e-4)
    thin = encoder(x * torch.tensor([1.0, 1.0, 0.01]))
    np.testing.assert_allclose(thin[:, 2].detach(), np.log(0.1 * half[:, :2].max(1)), atol=1e-4)
    assert encoder(torch.ones(2, 5, 3)).isfinite().all()
    trained = PointNetEncoder(13, (16, 32), (8,), standardize=True, box=True)(x)
    torch.testing.assert_close(trained.mean(0), torch.zeros(13), rtol=0, atol=1e-5)


def test_the_decoder_puts_points_into_the_box_of_the_code():
    decoder = FullyConnectedDecoder(13, 50, (8,), box=True)
    z = torch.randn(3, 13)
    z[1:, 6:] = z[0, 6:]
    inner = decoder.layers(z).unflatten(1, (50, 3))
    size, middle = torch.randn(6, 6), torch.randn(6)
    decoder.box.weight.data, decoder.box.bias.data = size, middle
    box = z[:, :6] @ size.T + middle
    torch.testing.assert_close(decoder(z), inner * box[:, None, :3].exp() + box[:, None, 3:])
    assert decoder(1e4 * z).isfinite().all()


def test_few_latent_dimensions_have_no_room_for_a_box():
    with pytest.warns(UserWarning, match="box needs latent_dim 13 or more and is left out, got 12"):
        encoder, decoder = PointNetEncoder(12, (8,), box=True), FullyConnectedDecoder(12, 5, (8,), box=True)
    assert (encoder.box, decoder.box) == (None, None)
    assert decoder(encoder(solids(4))).shape == (4, 5, 3)


@pytest.mark.filterwarnings("ignore:box needs")
def test_a_box_of_one_network_only_is_said():
    encoder, decoder = PointNetEncoder(20, (8,), box=True), FullyConnectedDecoder(10, 5, (8,), box=True)
    with pytest.warns(
        UserWarning, match="treated by itself by the encoder only: box is for both, and the decoder has it"
    ):
        PointNetWAE(encoder, decoder, noise=GaussianNoise(), latent_dim=10)
    with pytest.warns(UserWarning, match="treated by itself by the decoder only"):
        PointNetWAE(PointNetEncoder(16, (8,)), FullyConnectedDecoder(16, 5, (8,), box=True), latent_dim=16)
    encoder, decoder = PointNetEncoder(26, (8,), box=True), FullyConnectedDecoder(13, 5, (8,), box=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PointNetWAE(encoder, decoder, noise=GaussianNoise(), latent_dim=13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_poses_in_every_precision(dtype):
    torch.manual_seed(0)
    model = small_model(invariance=["rotation", "scale"]).to(dtype)
    x = (solids(4) * torch.tensor([1.0, 2.0, 3.0])).to(dtype)
    assert model.terms(x, model.draw_codes(x))["cost"].isfinite()
    model.eval()
    assert model.encode(x).dtype == dtype
    reference = small_model(invariance=["rotation", "scale"]).double().eval()
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        found, expected = model(x).double(), reference(x.double())
    assert (found - expected).abs().max() < (0.1 if dtype is torch.bfloat16 else 1e-3) * expected.abs().max()


def test_training_in_boxes_learns_their_sizes():
    torch.manual_seed(0)
    model = small_model(
        encoder=PointNetEncoder(16, (16, 32), (32,), standardize=True, box=True),
        decoder=FullyConnectedDecoder(16, 128, (64,), box=True),
        latent_dim=16,
    ).train()
    optimizer, x = torch.optim.Adam(model.parameters(), 0.02), solids(64)
    for _ in range(150):
        optimizer.zero_grad()
        model.terms(x, model.draw_codes(x))["cost"].backward()
        optimizer.step()
    reach = [torch.cat([points.amax(1), points.amin(1)], 1) for points in (x, model.eval()(x).detach())]
    assert (reach[0] - reach[1]).abs().mean() < 0.05


def test_upright_pose_undoes_turns():
    x = solids(6) * torch.tensor([1.0, 1.0, 0.4]) + 0.1
    x = torch.cat([x, x[:, :40] + torch.tensor([0.3, 0.0, 0.1])], 1)
    angle = torch.rand(6) * 2 * math.pi
    turn = torch.zeros(6, 3, 3)
    turn[:, 1, 1] = 1
    turn[:, 0, 0] = turn[:, 2, 2] = angle.cos()
    turn[:, 0, 2] = angle.sin()
    turn[:, 2, 0] = -angle.sin()
    rotation = upright_pose(x)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(3).expand(6, 3, 3))
    assert (torch.linalg.det(rotation) > 0).all()
    torch.testing.assert_close(x @ rotation, x @ turn @ upright_pose(x @ turn), rtol=0, atol=1e-4)

    model = small_model(invariance=["rotation", "scale"]).eval()
    torch.testing.assert_close(model.encode(x), model.encode(2.5 * x @ turn), rtol=0, atol=1e-3)
    torch.testing.assert_close(2.5 * model(x) @ turn, model(2.5 * x @ turn), rtol=0, atol=1e-2)
    plain = small_model().eval()
    assert (plain.encode(x) - plain.encode(2.5 * x @ turn)).abs().max() > 0.01


@pytest.mark.parametrize("up_axis", ["x", "y", "z"])
def test_up_stays_up(up_axis):
    axis = "xyz".index(up_axis)
    x = solids(3)
    torch.testing.assert_close((x @ upright_pose(x, up_axis))[:, :, axis], x[:, :, axis])


def test_partners_are_the_least_distant_assignment_of_draws_from_the_prior():
    model = small_model(coupling=0.5, coupled_codes=5)
    z = torch.randn(5, 8)
    state = torch.random.get_rng_state()
    partners = model._prior_partners(z)
    torch.random.set_rng_state(state)
    draws = model.prior.sample(5)
    least = min(
        permutations(range(5)), key=lambda order: (z.double() - draws[list(order)].double()).square().sum().item()
    )
    assert torch.equal(partners, draws[list(least)])


class Elsewhere(torch.Tensor):
    """On the CPU, and says that it lies on a GPU."""

    device = torch.device("cuda")

    __torch_function__ = torch._C._disabled_torch_function_impl


@pytest.mark.parametrize(("n", "d", "times"), [(64, 8, 300), (512, 8, 3), (512, 128, 3)])
def test_the_assignment_of_a_gpu_is_nearly_the_exact_one(n, d, times):
    torch.manual_seed(0)
    codes, draws = torch.randn(n, d).tanh() + 0.3, torch.randn(n, d)
    distances = squared_distances(codes, draws)
    rows, drawn = torch.arange(n), torch.stack([assign(distances.as_subclass(Elsewhere)) for _ in range(times)])
    exact = distances[rows, assign(distances)].sum().item()
    found = distances[rows, drawn].sum(1).mean().item()
    assert exact < found < 1.08 * exact
    # partners follow the prior: each draw from it is taken as often as any other
    counts = drawn.flatten().bincount(minlength=n) / times
    assert times < 300 or 0.7 < counts.min() <= counts.max() < 1.3
    torch.testing.assert_close(draws[drawn].mean((0, 1)), draws.mean(0), rtol=0, atol=0.06)


def test_partners_follow_the_prior_however_the_codes_lie():
    model = small_model(coupling=0.5, coupled_codes=64)
    partners = torch.cat([model._prior_partners(0.1 * torch.randn(16, 8) + 3) for _ in range(200)])
    assert partners.mean(0).abs().max() < 0.1
    torch.testing.assert_close(partners.T.cov(), torch.eye(8), rtol=0, atol=0.15)


def test_coupling_counts():
    torch.manual_seed(0)
    model = small_model(coupling=1.0, coupling_weight=2.0)
    x = solids(32)
    model.train()
    z, cost = codes_and_loss(model, x)
    cost.backward()
    assert z.shape == (32, 8)
    model.coupling = 0.0
    torch.manual_seed(1)
    _, weighted = codes_and_loss(model, x)
    model.coupling_weight = 0.0
    _, plain = codes_and_loss(model, x)
    assert weighted.item() > plain.item() + 0.1


def test_trains_with_each_kind_of_penalty():
    data = DataLoader(solids(16), batch_size=8)
    for penalty in (MMD(), Adversarial(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)))):
        model = small_model(penalty=penalty)
        before = model.encoder.points.mlp[0].weight.clone()
        quiet_trainer(max_epochs=1).fit(model, data)
        assert not torch.equal(before, model.encoder.points.mlp[0].weight)


def test_row_wise_cost_gives_blobs_and_chamfer_gives_shapes():
    """The report's result and its remedy: the same layers, the same steps, only the cost differs."""
    train, test = solids(192), solids(64, seed=1)
    found = {}
    for name, cost in (("rows", SquaredError(1 / 128)), ("chamfer", None)):
        torch.manual_seed(0)
        model = small_model(cost=cost, penalty_weight=0.0, prior=Normal(8))
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        model.train()
        for _ in range(60):
            for batch in train[torch.randperm(192)].split(32):
                # rows come in the order in which points were sampled: none
                _, cost_value = codes_and_loss(model, batch[:, torch.randperm(128)])
                optimizer.zero_grad()
                cost_value.backward()
                optimizer.step()
        with torch.no_grad():
            output = model.eval()(test)
        found[name] = (
            chamfer_distance(test, output).mean().item(),
            (output - output.mean(1, keepdim=True)).square().sum(2).mean().sqrt().item(),
        )
    radius = test.square().sum(2).mean().sqrt().item()
    assert found["rows"][1] < 0.5 * radius
    assert found["chamfer"][1] > 0.8 * radius
    assert found["chamfer"][0] < 0.2 * found["rows"][0]


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_figures_have_equal_axes_and_one_view():
    figure = draw_point_sets([solids(3), solids(2, 50)], ["input", "output"])
    boxes = figure.axes
    assert len(boxes) == 5
    for axes in boxes:
        assert axes.get_xlim() == axes.get_ylim() == axes.get_zlim()
        assert (axes.elev, axes.azim) == (boxes[0].elev, boxes[0].azim)


def test_pictures_are_written(tmp_path):
    data = DataLoader(solids(8), batch_size=4)
    trainer = quiet_trainer(
        max_epochs=1,
        logger=TensorBoardLogger(tmp_path, name=None, version=""),
        callbacks=[PointCloudPictures(columns=2, every_n_epochs=1)],
    )
    model = small_model()
    trainer.fit(model, data, data)
    trainer.test(model, data, verbose=False)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "samples.png",
        "reconstructions.png",
        "interpolations.png",
    }
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    assert "reconstructions" in tags["images"]
    assert any("samples/turnable" in tag for tag in tags["tensors"])


def test_a_coupled_code_lies_between_code_and_partner():
    decoded = []

    class Look(FullyConnectedDecoder):
        def forward(self, z):
            decoded.append(z)
            return super().forward(z)

    model = small_model(decoder=Look(8, 128, (64,)), coupling=0.25, coupling_weight=2.0).train()
    x, own, partner = solids(400), torch.randn(400, 8, requires_grad=True), torch.randn(400, 8) + 5
    model._prior_partners = lambda code: partner
    terms = model.terms(x, own)
    assert terms["coupling"].item() == pytest.approx((own - partner).square().sum().item() / (400 * 8), rel=1e-5)
    way = ((decoded[0] - own) / (partner - own)).detach()
    torch.testing.assert_close(way, way[:, :1].expand(-1, 8), atol=1e-4, rtol=1e-3)
    assert way.min() > -1e-4
    assert way.max() <= 1
    moved = way[:, 0] > 1e-4
    assert moved.float().mean().item() == pytest.approx(0.25, abs=0.07)
    assert way[moved].mean().item() == pytest.approx(0.5, abs=0.1)
    # the whole gradient of what is decoded reaches the code
    (gradient,) = torch.autograd.grad(decoded[0].sum(), own)
    torch.testing.assert_close(gradient, torch.ones_like(own))


def test_sets_are_encoded_at_root_mean_square_radius_one():
    seen = []

    class Look(PointNetEncoder):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    small_model(encoder=Look(8, (16, 32), (32,)), invariance=["scale"]).eval().encode(7 * solids(3))
    torch.testing.assert_close(seen[0].square().sum(2).mean(1), torch.ones(3))


def test_partners_are_of_the_scale_of_the_prior():
    model = small_model(prior=Normal(8, 3.0), coupling=0.5, coupled_codes=64)
    partners = torch.cat([model._prior_partners(torch.randn(16, 8)) for _ in range(60)])
    torch.testing.assert_close(partners.std(0), torch.full((8,), 3.0), rtol=0.15, atol=0)


def test_clouds_far_from_normalised_are_named():
    with pytest.warns(UserWarning, match=r"point sets reach 2\d\d\.\d from the origin"):
        quiet_trainer(max_epochs=1, limit_val_batches=0).fit(small_model(), DataLoader(250 * solids(8), batch_size=4))


@pytest.mark.parametrize("patches", [1, 3, 5])
def test_patches_share_all_points(patches):
    decoder = FoldingDecoder(4, 100, patches=patches, hidden=(8, 8))
    assert decoder(torch.randn(2, 4)).shape == (2, 100, 3)


def test_partners_are_assigned_together_with_the_codes_before():
    model = small_model(coupling=0.5, coupled_codes=40)
    model.memory.remember(torch.full((36, 8), 5.0))
    partners = torch.cat([model._prior_partners(torch.full((4, 8), -5.0)) for _ in range(20)])
    # of 40 draws, the four that lie lowest; of four draws alone the mean would be 0
    assert partners.sum(1).max() < 0


def test_the_first_axis_points_to_the_side_of_positive_skewness():
    # heavy on the negative side, with a tail on the positive one
    along = torch.tensor([-1.0] * 8 + [2.0] * 3)
    x = torch.stack([along, torch.linspace(-1, 1, 11), torch.linspace(-0.1, 0.1, 11)], 1).unsqueeze(0)
    for points in (x, x * torch.tensor([-1.0, 1.0, -1.0])):
        posed = (points @ upright_pose(points))[0, :, 0]
        assert posed.mean() < 0 < posed.pow(3).sum()
    x = torch.randn(20, 50, 3).exp() * torch.tensor([3.0, 1.0, 1.0]) * torch.randn(20, 1, 3).sign()
    posed = (x - x.mean(1, keepdim=True)) @ upright_pose(x)
    assert (posed[:, :, 0].pow(3).sum(1) > 0).all()

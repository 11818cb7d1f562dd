"""Codes that are moved to where they reconstruct better."""

import json

import pytest
import torch
from helpers import small
from torch import nn

from wae_lightning import WAE, ConditionalWAE, PointNetWAE
from wae_lightning.cli import evaluate as command
from wae_lightning.costs import SquaredError, chamfer_distance
from wae_lightning.evaluation import encode_batches, evaluate
from wae_lightning.networks import FullyConnectedDecoder, MixtureFlow, PointNetEncoder
from wae_lightning.priors import Normal, Sphere, Uniform
from wae_lightning.refinement import reconstruction_by, refine_codes


def linear(prior=None, **arguments):
    """A linear decoder, and an encoder that is off: what the best code is, least squares tell."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(6, 3), nn.Linear(3, 6)
    prior = prior or Normal(3)
    with torch.no_grad():
        encoder.weight.mul_(0.3 * prior.scale)
        decoder.weight.div_(prior.scale)
    return WAE(encoder, decoder, prior, cost=SquaredError(), input_range=None, **arguments).eval()


def least_squares(model, x):
    decoder = model.decoder
    return torch.linalg.lstsq(decoder.weight, (x - decoder.bias).T).solution.T


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_refined_code_is_the_one_that_costs_least(scale):
    model, x = linear(Normal(3, scale)), torch.randn(5, 6)
    best = least_squares(model, x)
    refined = model.encode(x, refine_steps=300)
    torch.testing.assert_close(refined, best, rtol=0, atol=0.01 * scale)
    apart = [(codes - best).norm(dim=1) for codes in (model.encode(x), model.encode(x, refine_steps=10), refined)]
    assert (apart[0] > apart[1]).all()
    assert (apart[1] > apart[2]).all()
    assert not refined.requires_grad


def test_a_code_that_no_step_makes_better_stays():
    model, x = linear(), torch.randn(4, 6)
    best = least_squares(model, x)
    model.encoder = nn.Linear(6, 3)  # a linear map of four inputs to their best codes
    with torch.no_grad():
        model.encoder.weight.copy_(torch.linalg.lstsq(x, best).solution.T)
        model.encoder.bias.zero_()
    torch.testing.assert_close(model.encode(x, refine_steps=3), best, rtol=1e-4, atol=1e-4)


def test_each_example_is_refined_by_itself():
    model, x = linear(), torch.randn(5, 6)
    together = model.encode(x, refine_steps=7)
    torch.testing.assert_close(torch.cat([model.encode(one[None], refine_steps=7) for one in x]), together)


@pytest.mark.parametrize("prior", [Uniform(3, scale=0.4), Sphere(3, scale=2.0)])
def test_refined_codes_stay_in_the_support_of_the_prior(prior):
    model, x = linear(prior), 5 * torch.randn(50, 6)
    refined = model.encode(x, refine_steps=20)
    if isinstance(prior, Sphere):
        torch.testing.assert_close(refined.norm(dim=1), torch.full((50,), 2.0))
    else:
        assert refined.abs().max() <= 0.4
        assert not (refined == model.encode(x)).all()
    costs = [(model.decode(codes) - x).square().sum(1) for codes in (model.encode(x), refined)]
    assert (costs[1] <= costs[0]).all()
    assert costs[1].mean() < costs[0].mean()


def test_a_flow_cancels_out():
    model, x = linear(flow=MixtureFlow(3, components=2)), torch.randn(5, 6)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(model.encode(x, refine_steps=5)), model(x, refine_steps=5))
    assert not torch.allclose(model(x, refine_steps=5), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_every_mode_and_precision_and_leaves_no_trace(mode, dtype):
    model = PointNetWAE(latent_dim=13, num_points=20, encoder=PointNetEncoder(13, [8], [8], standardize=True))
    model = model.to(dtype).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    with mode():
        x = torch.randn(3, 20, 3, dtype=dtype)
        refined, plain = model(x, refine_steps=3), model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.encode(x, refine_steps=2).isfinite().all()
    distances = [chamfer_distance(x.float(), found.float()) for found in (refined, plain)]
    assert (distances[0] <= distances[1]).all()
    assert distances[0].mean() < distances[1].mean()
    assert model.encode(x, refine_steps=1).dtype == dtype
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_a_pose_is_undone():
    torch.manual_seed(0)
    model = PointNetWAE(
        PointNetEncoder(4, [8], [8]), FullyConnectedDecoder(4, 30, [8]), latent_dim=4, invariance=["rotation", "scale"]
    ).eval()
    x = torch.rand(4, 30, 3) * torch.tensor([3.0, 1.0, 2.0])
    with torch.no_grad():
        plain, refined = model(x), model(x, refine_steps=30)
    # under Chamfer, in the frame of the inputs; each cloud was scaled by its own size
    assert (chamfer_distance(x, refined) < chamfer_distance(x, plain)).all()


@pytest.mark.parametrize("steps", [-1, 2.5, "3", None, True])
def test_what_is_no_number_of_steps_is_refused(steps):
    for model, x in ((linear(), torch.rand(2, 6)), (PointNetWAE(num_points=8), torch.rand(2, 8, 3))):
        for call in (model, model.encode):
            with pytest.raises(ValueError, match=f"refine_steps must be a whole number, 0 or more, got {steps!r}"):
                call(x, refine_steps=steps)
    with pytest.raises(ValueError, match="refine_steps must be a whole number, 0 or more"):
        evaluate(small(), None, refine_steps=steps)


def test_refine_codes_says_what_it_cannot_use():
    code, prior = torch.zeros(4, 3), Normal(3)
    for costs_of, message in (
        (lambda z: z.square().sum(), r"expected shape \(4,\), got \(\)"),
        (lambda z: z.detach().sum(1), r"expected shape \(4,\), got \(4,\) without a gradient"),
    ):
        with pytest.raises(ValueError, match=message):
            refine_codes(code, costs_of, 3, prior)
    with pytest.raises(ValueError, match="refine_codes takes at least 1 step, got 0"):
        refine_codes(code, lambda z: z.sum(1), 0, prior)
    bias = torch.zeros(4, requires_grad=True)
    assert torch.equal(refine_codes(code, lambda z: bias * 1, 3, prior), code)  # a decoder that has collapsed


@pytest.mark.parametrize("prior", [Normal(3, 1e10), Normal(3, 1e-10), Sphere(3, 1e-15), Sphere(3, 1e12)])
def test_the_scale_of_a_prior_changes_no_more_than_the_scale(prior):
    torch.manual_seed(0)
    start, target = torch.randn(5, 3), torch.randn(5, 3)
    if isinstance(prior, Sphere):
        start = nn.functional.normalize(start)

    def refined(prior, factor):
        found = refine_codes(
            prior.scale * start, lambda z: factor * (z / prior.scale - target).square().sum(1), 9, prior
        )
        return found / prior.scale

    expected = refined(type(prior)(3), 1.0)
    assert ((expected - target).norm(dim=1) < (start - target).norm(dim=1)).all()
    torch.testing.assert_close(refined(prior, 1.0), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(refined(prior, 1e-10), expected, rtol=1e-3, atol=1e-4)


class Bounded(Normal):
    def project(self, z):
        return z.sigmoid()


def test_a_support_that_is_not_known_is_asked_for():
    with pytest.raises(ValueError, match="Bounded must have into_support, as it has project, for codes to be moved"):
        linear(Bounded(3)).encode(torch.rand(2, 6), refine_steps=2)


class Clamped(WAE):
    def forward(self, x):
        return super().forward(x).clamp(0, 1)


def test_a_forward_of_somebody_elses_is_used_as_it_is():
    model = Clamped(nn.Linear(6, 8), nn.Linear(8, 6), cost=SquaredError(), input_range=None)
    assert reconstruction_by(model, 0) is model
    with pytest.raises(ValueError, match="refine_steps must be 0 for Clamped: its forward does not take them"):
        encode_batches(model, [torch.rand(2, 6)], 5)


def test_costs_of_vectors_are_refined_and_codes_are_not():
    model, x = linear(), torch.randn(6, 6)
    plain, refined = (encode_batches(model, [x[:4], x[4:]], steps) for steps in (0, 10))
    torch.testing.assert_close(plain.z, refined.z)
    torch.testing.assert_close(refined.cost, (model(x, refine_steps=10) - x).square().sum(1).detach())
    assert (refined.cost < plain.cost).all()


def test_what_has_no_reconstructions_is_refused():
    with pytest.raises(ValueError, match="refine_steps must be 0 for ConditionalWAE: its forward does not take them"):
        evaluate(ConditionalWAE(), None, refine_steps=5)
    with pytest.raises(ValueError, match="refine_steps is of reconstructions of test data"):
        evaluate(small(), None, refine_steps=5)


def test_evaluate_measures_refined_reconstructions(few_digits, quick_measures, trained, tmp_path, capsys):
    checkpoint = str(trained("mnist_wae_mmd", "--model.latent_dim=4", "--trainer.callbacks=[]"))
    found = []
    for steps in ("0", "5"):
        command.main([
            checkpoint, f"--data.root={few_digits}", "--num_samples=20", f"--refine_steps={steps}",
            f"--out={tmp_path / steps}.json",
        ])  # fmt: skip
        found.append(json.loads((tmp_path / f"{steps}.json").read_text()))
    plain, refined = found
    assert refined["mse"] < plain["mse"]
    assert refined["fid_digits_reconstructions"] != plain["fid_digits_reconstructions"]
    assert (refined["refine_steps"], "refine_steps" in plain) == (5, False)
    same = [name for name in plain if "samples" in name or "codes" in name or "fid_digits_20" in name]
    assert len(same) > 5
    assert {name: plain[name] for name in same} == {name: refined[name] for name in same}
    for flags, message in (
        ([checkpoint, "--refine_steps", "-1"], "--refine_steps must be at least 0, got -1"),
        (
            ["--real", "a", "--samples", "b", "--refine_steps", "3"],
            "without a checkpoint, --plot, --data or --refine_steps",
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            command.main(flags)
        assert message in capsys.readouterr().err

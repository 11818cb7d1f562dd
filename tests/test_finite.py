"""Numbers going wrong: penalties and costs stay finite for every legal input; what does not stay so stops the run."""

import functools
import math
import re

import pytest
import torch
from helpers import perceptrons, trainer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from wae_lightning import WAEGAN, WAEMMD
from wae_lightning.callbacks import CodePictures, ImagePictures
from wae_lightning.costs import (
    AbsoluteError,
    BinaryCrossEntropy,
    ChamferDistance,
    EarthMoversDistance,
    Euclidean,
    SinkhornDistance,
    SquaredError,
)
from wae_lightning.kernels import RBF, Laplacian
from wae_lightning.lightning import CSVLogger, ModelCheckpoint
from wae_lightning.networks import Critic, MixtureFlow
from wae_lightning.penalties import (
    MMD,
    Adversarial,
    CramerWold,
    EnergyDistance,
    ExactWasserstein,
    MaxSlicedWasserstein,
    MMDPlusPlus,
    Sinkhorn,
    SlicedWasserstein,
)
from wae_lightning.priors import Normal
from wae_lightning.training.finite import first_bad_module, first_bad_weights

PENALTIES = {
    "mmd, imq": lambda d: MMD(),
    "mmd, rbf": lambda d: MMD(RBF(2.0)),
    "mmd, rbf with the median": lambda d: MMD(RBF()),
    "mmd, laplacian": lambda d: MMD(Laplacian(2.0)),
    "energy distance": lambda d: EnergyDistance(),
    "mmd++": lambda d: MMDPlusPlus(dataset_size=1000, codes_per_input=2),
    "cramer-wold": lambda d: CramerWold(),
    "sliced": lambda d: SlicedWasserstein(),
    "max-sliced": lambda d: MaxSlicedWasserstein(),
    "exact": lambda d: ExactWasserstein(),
    "sinkhorn": lambda d: Sinkhorn(),
    "adversarial": lambda d: Adversarial(critic=Critic(d, width=16)),
}
COSTS = {
    "squared": SquaredError(), "euclidean": Euclidean(), "absolute": AbsoluteError(), "bce": BinaryCrossEntropy(),
}  # fmt: skip
POINT_COSTS = {
    "chamfer": ChamferDistance(), "chamfer, not squared": ChamferDistance(squared=False),
    "earth mover's": EarthMoversDistance(), "sinkhorn": SinkhornDistance(),
}  # fmt: skip


def assert_finite(value, *inputs):
    value.sum().backward()
    assert value.isfinite().all()
    for x in inputs:
        assert x.grad is not None
        assert x.grad.isfinite().all()


def codes(n, d, scale, repeated, seed):
    z = scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    if repeated:
        z = z[:1].repeat(n, 1)
    return z.requires_grad_()


@pytest.mark.parametrize("name", PENALTIES)
@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from([2, 4, 16]), st.sampled_from([1, 2, 8, 64]), st.sampled_from([0.0, 1e-8, 1e-4, 1.0, 1e2, 1e4]),
    st.sampled_from([1e-8, 1.0, 1e4]), st.booleans(), st.integers(0, 1000),
)  # fmt: skip
@example(n=2, d=4096, scale=1.0, prior_scale=1.0, repeated=False, seed=0)
@example(n=4, d=4096, scale=1e4, prior_scale=1.0, repeated=True, seed=0)
@example(n=2, d=8, scale=0.0, prior_scale=1.0, repeated=True, seed=0)
def test_penalties_are_finite_for_legal_codes(name, n, d, scale, prior_scale, repeated, seed):
    torch.manual_seed(seed)
    n = max(n, 4) if name == "mmd++" else n  # it needs two codes of each of two inputs
    prior = Normal(d, scale=prior_scale)
    penalty = PENALTIES[name](d)
    penalty.set_prior(prior)
    z = codes(n, d, scale, repeated, seed)
    assert_finite(penalty(z, prior.sample(n, torch.Generator().manual_seed(seed + 1))), z)


@pytest.mark.parametrize("name", PENALTIES)
def test_codes_equal_to_the_draws_have_a_finite_gradient(name):
    penalty = PENALTIES[name](8)
    penalty.set_prior(Normal(8))
    z = torch.randn(6, 8).requires_grad_()
    assert_finite(penalty(z, z.detach().clone()), z)


@pytest.mark.parametrize("name", COSTS)
@settings(deadline=None, max_examples=15)
@given(st.sampled_from([1, 2, 5]), st.sampled_from([0.0, 1e-8, 0.5, 1.0]), st.sampled_from([0.0, 1e-8, 0.5, 1.0]))
def test_costs_of_images_are_finite(name, n, target, reconstruction):
    x = torch.full((n, 1, 64, 64), target)
    y = torch.full((n, 1, 64, 64), reconstruction).requires_grad_()
    assert_finite(COSTS[name](x, y), y)


@pytest.mark.parametrize("name", POINT_COSTS)
@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from([1, 2, 33]), st.sampled_from([0.0, 1e-8, 1.0, 1e4]), st.sampled_from([0.0, 1e-8, 1.0, 1e4]),
    st.booleans(), st.integers(0, 1000),
)  # fmt: skip
@example(points=33, scale=0.0, other_scale=1e4, same=False, seed=0)
def test_costs_of_point_sets_are_finite(name, points, scale, other_scale, same, seed):
    generator = torch.Generator().manual_seed(seed)
    x = scale * torch.randn(2, points, 3, generator=generator)
    y = x.clone() if same else other_scale * torch.randn(2, points, 3, generator=generator)
    y.requires_grad_()
    assert_finite(POINT_COSTS[name](x, y), y)


# ---- a run whose numbers go wrong -----------------------------------------------------------------------------------


class GoesBad(nn.Module):
    """Hands its input on, and multiplies it by ``factor`` from the n-th training step on (or in that one alone)."""

    def __init__(self, at, factor=math.nan, once=False):
        super().__init__()
        self.at, self.factor, self.once, self.calls = at, factor, once, 0

    def forward(self, *x):
        self.calls += self.training
        bad = self.training and (self.calls == self.at if self.once else self.calls >= self.at)
        return x[0] * self.factor if bad else x[0]


class BadPenalty(MMD):
    def __init__(self, at):
        super().__init__()
        self.bad = GoesBad(at)

    def forward(self, z, z_prior):
        return self.bad(super().forward(z, z_prior))


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


class OverflowsBackward(GoesBad):
    def forward(self, x):
        self.calls += self.training
        return BadGradient.apply(x) if self.calls == self.at and self.training else x


def images(count=40):
    return DataLoader(torch.rand(count, 1, 4, 4), batch_size=4)


def fit(folder, model, batches=10, **arguments):
    """Trains with a checkpoint after every second step; returns the trainer and the checkpoint's file."""
    callback = ModelCheckpoint(folder, "kept", every_n_train_steps=2, enable_version_counter=False)
    arguments = {"limit_train_batches": batches, "log_every_n_steps": 5} | arguments
    trained = trainer(folder, enable_checkpointing=True, callbacks=[callback], **arguments)
    with pytest.raises(FloatingPointError) as stop:
        trained.fit(model, images(4 * batches))
    return str(stop.value), torch.load(folder / "kept.ckpt", weights_only=True)


def with_layer(part, layer, cls=WAEMMD, **arguments):
    networks = perceptrons()
    networks[part].append(layer)
    return cls(**networks, **arguments)


def test_a_cost_that_is_not_finite_names_step_term_and_module(tmp_path):
    message, kept = fit(tmp_path, with_layer("decoder", GoesBad(at=3)), max_epochs=3)
    assert "training step 3: cost not finite (cost nan, penalty " in message
    assert "first bad module: decoder.3 (its output); " in message
    assert f"{tmp_path / 'kept.ckpt'} is kept" in message
    assert kept["global_step"] == 2
    assert first_bad_weights(with_weights(kept)) is None


def with_weights(checkpoint):
    model = with_layer("decoder", GoesBad(at=3))
    model.load_state_dict(checkpoint["state_dict"])
    return model


def test_a_penalty_that_is_not_finite_names_the_penalty(tmp_path):
    message, kept = fit(tmp_path, WAEMMD(**perceptrons(), penalty=BadPenalty(at=3)))
    assert re.search(r"training step 3: penalty not finite \(cost [\d.]+, penalty nan\)", message)
    assert kept["global_step"] == 2


def test_a_gradient_that_is_not_finite_stops_before_the_next_checkpoint(tmp_path):
    message, kept = fit(tmp_path, with_layer("encoder", OverflowsBackward(at=3)))
    assert "training step 4: cost and penalty not finite" in message
    assert kept["global_step"] == 2


def test_weights_that_are_not_finite_are_not_saved_although_the_loss_was(tmp_path):
    message, kept = fit(tmp_path, with_layer("encoder", OverflowsBackward(at=4)))
    assert message.startswith("step 4: encoder.1.weight is not finite, so no checkpoint is written")
    assert kept["global_step"] == 2


def test_the_adversarial_model_stops_too(tmp_path):
    message, kept = fit(tmp_path, with_layer("decoder", GoesBad(at=3), WAEGAN))
    assert "training step 3: cost not finite" in message
    assert kept["global_step"] == 2


def test_on_the_cpu_it_stops_before_the_weights_are_spoilt(tmp_path):
    model = with_layer("decoder", GoesBad(at=3))
    with pytest.raises(FloatingPointError, match=r"step 3: cost .* first bad module: decoder.3 \(its output\)\. Try"):
        trainer(tmp_path, limit_train_batches=20, log_every_n_steps=5, max_epochs=2).fit(model, images(80))
    assert model.global_step == 2


@pytest.mark.parametrize("lr", [1e25, 1e30])
def test_a_last_step_that_diverges_is_named_by_the_validation_after_it(tmp_path, lr):
    """Nothing else looks at it: the loss was finite, the weights still are, and pictures of codes are drawn."""
    optimizer = functools.partial(torch.optim.Adam, lr=lr)
    model = with_layer("encoder", nn.Linear(2, 2), optimizer=optimizer, flow=MixtureFlow(2, 2))
    logged = trainer(tmp_path, callbacks=[CodePictures(4), ImagePictures(4)], logger=CSVLogger(tmp_path))
    with pytest.raises(FloatingPointError, match="validation after step 1: codes are not finite; first bad module"):
        logged.fit(model, images(4), images())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_bad_batch_is_named(tmp_path):
    x = torch.rand(40, 1, 4, 4)
    x[30] = math.nan
    with pytest.raises(
        FloatingPointError,
        match=r"^training step 8: the batch itself is bad, it holds NaN or infinity: look at the data$",
    ):
        trainer(tmp_path, limit_train_batches=8).fit(WAEMMD(**perceptrons()), DataLoader(x, batch_size=4))


def test_detect_anomaly_names_the_operation(tmp_path):
    model = with_layer("encoder", OverflowsBackward(at=2))
    with pytest.raises(RuntimeError, match=r"Function '\w+Backward\w*' returned nan values"):
        trainer(tmp_path, limit_train_batches=5, detect_anomaly=True).fit(model, images())


class Scaler:
    """Stands in for a gradient scaler, which leaves out steps whose gradient overflows."""


def test_a_gradient_scaler_may_leave_out_single_steps(tmp_path):
    def run(once):
        model = with_layer("decoder", GoesBad(at=3, once=once))
        model.automatic_optimization = True
        trained = trainer(tmp_path, limit_train_batches=10, log_every_n_steps=5)
        trained.precision_plugin.scaler = Scaler()
        # the scaler's part: no step with a bad gradient
        step = torch.optim.Adam.step

        def careful(self, closure=None):
            return step(self, lambda: _zeroed(closure(), model))

        trained.fit(model_with(model, careful), images())

    run(once=True)
    with pytest.raises(FloatingPointError, match="training step 6: cost"):
        run(once=False)


@pytest.mark.parametrize(
    ("precision", "advice"), [("16-mixed", "try precision bf16-mixed"), ("32-true", "Try a lower")]
)
def test_an_overflow_of_float16_is_called_so(tmp_path, precision, advice):
    trained = trainer(tmp_path)
    trained.precision_plugin.precision = precision
    with pytest.raises(FloatingPointError, match=advice):
        trained.fit(with_layer("decoder", GoesBad(at=2, once=False)), images())


def _zeroed(loss, model):
    for parameter in model.parameters():
        parameter.grad = None if parameter.grad is None else parameter.grad.nan_to_num(0, 0, 0)
    return loss


def model_with(model, step):
    class Careful(torch.optim.Adam):
        pass

    Careful.step = step
    model.make_optimizer = lambda parameters: Careful(parameters, lr=1e-3)
    return model


def test_the_first_bad_module_is_first_in_the_order_of_the_run():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.second(self.first(x))

    model = Reversed()
    assert first_bad_module(model, lambda: model(torch.ones(1, 2))) is None
    with torch.no_grad():
        model.second.bias[0] = math.inf
        assert first_bad_module(model, lambda: model(torch.ones(1, 2))) == "second (its weights)"
        model.first.weight[0, 0] = 3e38
        assert first_bad_module(model, lambda: model(2 * torch.ones(1, 2))) == "first (its output)"


def test_a_mask_of_infinities_is_no_bad_weight():
    model = nn.BatchNorm1d(2)
    model.register_buffer("mask", torch.tensor([-math.inf, 0]))
    model.running_var[0] = 1.0
    holder = nn.Sequential(nn.Linear(1, 1))
    holder.register_buffer("mask", torch.tensor([-math.inf, 0]))
    assert first_bad_weights(holder) is None
    model.running_mean[0] = math.inf
    assert first_bad_weights(model) == "running_mean"

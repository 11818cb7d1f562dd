"""The WAE: its interface, its loss, its training loop, its checkpoints."""

import enum
import functools
import json
import shutil

import numpy as np
import pytest
import torch
from helpers import ONE_CYCLE, perceptrons, pl, small, trainer, weights
from torch.utils.data import DataLoader

from datamodules import MNISTDataModule
from wae_lightning import WAE, WAEMMD
from wae_lightning.costs import AbsoluteError, SquaredError
from wae_lightning.evaluation import encode_batches
from wae_lightning.kernels import RBF
from wae_lightning.networks import ConvDecoder, ConvEncoder
from wae_lightning.noise import EncoderNoise, FixedNoise, GaussianNoise, ImplicitNoise, InputNoise
from wae_lightning.penalties import MMD, MMDPlusPlus
from wae_lightning.priors import Normal, Sphere, Uniform
from wae_lightning.training import moment_mismatch


def test_the_interface_without_arguments():
    model = WAEMMD().eval()
    x = torch.rand(3, 1, 28, 28)
    z = model.encode(x)
    assert z.shape == (3, 8)
    assert model.decode(z).shape == model(x).shape == x.shape
    assert model.interpolate(x, x.flip(0), 5).shape == (5, 3, 1, 28, 28)
    assert torch.equal(
        model.sample(2, torch.Generator().manual_seed(1)), model.sample(2, torch.Generator().manual_seed(1))
    )
    assert isinstance(model.prior, Normal)
    assert isinstance(model.cost, SquaredError)


def test_interpolation_goes_from_one_input_to_the_other():
    model = small().eval()
    x = torch.rand(4, 1, 28, 28)
    path = model.interpolate(x[:2], x[2:], 3)
    torch.testing.assert_close(path[0], model(x[:2]))
    torch.testing.assert_close(path[-1], model(x[2:]))
    middle = (model.encode(x[:2]) + model.encode(x[2:])) / 2
    torch.testing.assert_close(path[1], model.decode(middle))
    torch.testing.assert_close(model.interpolate(model.encode(x[:2]), model.encode(x[2:]), 3), path)


@pytest.mark.parametrize("prior", [Normal(3, 2.0), Uniform(3), Sphere(3, 1.5)])
def test_codes_lie_in_the_support_of_the_prior(prior):
    model = WAE(encoder=ConvEncoder(latent_dim=3, width=1 / 64), decoder=ConvDecoder(3, width=1 / 64), prior=prior)
    z = 10 * model.encode(torch.rand(5, 1, 28, 28))
    inside = {
        "Normal": True,
        "Uniform": (z / 10).abs().max() <= 1,
        "Sphere": torch.allclose(z.norm(dim=1), torch.tensor(15.0)),
    }
    assert inside[type(prior).__name__]


def original_loss(x, y, z, z_prior, weight, sigma=1.0):
    """The objective of the authors' code in NumPy: 0.05 · l2sq, IMQ summed over seven scales with C = 2 d σ² s, λ."""
    x, y, z, z_prior = (np.asarray(a, dtype=np.float64) for a in (x, y, z, z_prior))
    n, d = z.shape
    cost = 0.05 * ((x - y) ** 2).reshape(n, -1).sum(1).mean()
    distances = [((a[:, None] - b[None]) ** 2).sum(2) for a, b in ((z, z), (z_prior, z_prior), (z, z_prior))]
    penalty = 0.0
    for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0):
        c = 2 * d * sigma**2 * scale
        codes, prior, across = (c / (c + distance) for distance in distances)
        penalty += ((codes + prior) * (1 - np.eye(n))).sum() / (n * n - n) - 2 * across.sum() / n**2
    return cost + weight * penalty


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_training_loss_is_that_of_the_original_code(scale):
    model = WAEMMD(**perceptrons(), penalty_weight=7.0, prior=Normal(2, scale))
    model.trainer = trainer(".")
    model.log_dict = lambda *_, **__: None
    x = torch.rand(20, 1, 4, 4)
    torch.manual_seed(3)
    loss = model.training_step((x, torch.zeros(20)), 0)
    torch.manual_seed(3)
    z_prior = scale * torch.randn(20, 2)
    with torch.no_grad():
        z = model.encode(x)
        expected = original_loss(x, model.decode(z), z, z_prior, 7.0, scale)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"penalty_weight": 3.0},
        {"cost": AbsoluteError()},
        {"penalty": MMD(RBF(1.0))},
        {"prior": Normal(2, 3.0)},
        {"noise": FixedNoise(0.5)},
        {"noise": InputNoise(0.3)},
        {"noise": ImplicitNoise(2)},
        {"standardize_codes": True},
    ],
    ids=str,
)
def test_each_argument_changes_the_loss(changed):
    def loss(**arguments):
        torch.manual_seed(0)
        model = WAE(**perceptrons(), **arguments)
        model.trainer = trainer(".")
        model.log_dict = lambda *_, **__: None
        torch.manual_seed(0)
        return model.training_step(torch.rand(20, 1, 4, 4), 0).item()

    assert loss() == loss()
    assert loss(**changed) != loss()


@pytest.mark.parametrize("clip", [None, 0.05])
def test_gradients_are_clipped_when_asked(tmp_path, clip):
    model = small(optimizer=functools.partial(torch.optim.SGD, lr=1.0))
    flat = lambda: torch.cat([parameter.detach().flatten() for parameter in model.parameters()])  # noqa: E731
    before = flat()
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=0, gradient_clip_val=clip).fit(model, MNISTDataModule())
    step = (flat() - before).norm().item()
    assert step == pytest.approx(0.05, rel=1e-3) if clip else step > 0.1


@pytest.mark.parametrize("noise", [None, InputNoise(), FixedNoise(0.3), GaussianNoise(), ImplicitNoise(4)], ids=str)
def test_noise_is_for_training_and_on_request(noise):
    torch.manual_seed(0)
    model = small(noise=noise)
    x = torch.rand(6, 1, 28, 28)
    model.train()
    assert (noise is None) == torch.equal(model.encode(x), model.encode(x))
    model.eval()
    assert torch.equal(model.encode(x), model.encode(x))
    random = isinstance(noise, FixedNoise | GaussianNoise | ImplicitNoise)
    assert random != torch.equal(model.encode(x, noise=True), model.encode(x, noise=True))


def test_gaussian_noise_has_the_variance_that_the_encoder_says():
    noise = GaussianNoise(initial_std=0.5)
    features = torch.tensor([[1.0, -2.0, 0.0, 2.0]]).repeat(200_000, 1)
    z = noise(features)
    torch.testing.assert_close(z.mean(0), torch.tensor([1.0, -2.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(z.var(0), 0.25 * torch.tensor([0.0, 2.0]).exp(), rtol=0.02, atol=0)


def test_two_runs_with_one_seed_give_identical_weights(tmp_path):
    results = []
    for _ in range(2):
        pl.seed_everything(5, verbose=False)
        model = small(noise=GaussianNoise(), standardize_codes=True)
        trainer(tmp_path).fit(model, MNISTDataModule())
        results.append(weights(model))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "arguments",
    [
        {"lr_scheduler": ONE_CYCLE, "pretrain_steps": 3},
        {"noise": GaussianNoise(), "standardize_codes": True, "code_queue": 150},
    ],
    ids=["one-cycle, pretrained", "noise, queue"],
)
def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(tmp_path, arguments):
    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, save_last=True, filename="{epoch}", save_top_k=-1)
    pl.seed_everything(5, verbose=False)
    whole = small(**arguments)
    trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[checkpoint]).fit(whole, MNISTDataModule())
    pl.seed_everything(77, verbose=False)
    resumed = small(**arguments)
    trainer(tmp_path, max_epochs=2).fit(
        resumed, MNISTDataModule(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True
    )
    assert torch.equal(weights(whole), weights(resumed))


def test_a_checkpoint_is_plain_data_and_needs_nothing_else(tmp_path):
    model = WAEMMD(penalty_weight=3.0, latent_dim=5, standardize_codes=True)
    fitting = trainer(tmp_path, limit_train_batches=1)
    fitting.fit(model, MNISTDataModule())
    path = tmp_path / "model.ckpt"
    fitting.save_checkpoint(path)
    loaded = WAEMMD.load_from_checkpoint(path, weights_only=True).eval()
    assert loaded.penalty_weight == 3.0
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(model.eval()(x), loaded(x))


def test_hyper_parameters_say_how_the_model_was_made():
    model = small(cost=SquaredError(2.0), lr_scheduler=ONE_CYCLE, penalty_weight=4.0)
    assert model.hparams["penalty_weight"] == 4.0
    assert model.hparams["cost"] == {"class_path": "wae_lightning.costs.SquaredError", "init_args": {"scale": 2.0}}
    scheduler = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.01}}
    assert model.hparams["lr_scheduler"] == scheduler
    assert model.hparams["encoder"]["init_args"]["latent_dim"] == 4
    assert dict(model.hparams) == dict(model.hparams_initial)
    assert json.loads(json.dumps(dict(model.hparams))) == dict(model.hparams)


class Colour(str, enum.Enum):
    red = "red"


class Tinted(WAEMMD):
    def __init__(self, colour, gain, **arguments):
        super().__init__(**arguments)
        self.colour, self.gain = colour, gain


def test_hyper_parameters_that_only_look_plain_become_plain(tmp_path):
    model = Tinted(Colour.red, np.float64(2), latent_dim=np.int64(4))
    fitting = trainer(tmp_path, limit_train_batches=1)
    fitting.fit(model, MNISTDataModule())
    fitting.save_checkpoint(tmp_path / "model.ckpt")
    stored = torch.load(tmp_path / "model.ckpt", weights_only=True)["hyper_parameters"]
    assert [type(stored[name]) for name in ("colour", "gain", "latent_dim")] == [str, float, int]
    loaded = Tinted.load_from_checkpoint(tmp_path / "model.ckpt")
    assert (loaded.colour, loaded.gain, loaded.latent_dim) == ("red", 2.0, 4)


@pytest.mark.parametrize("batch", ["tensor", "tuple"])
def test_trains_on_any_data_loader(tmp_path, batch):
    images = torch.rand(32, 1, 28, 28)
    data = images if batch == "tensor" else torch.utils.data.TensorDataset(images, torch.arange(32))
    model = small()
    before = weights(model).clone()
    trainer(tmp_path).fit(model, DataLoader(data, 16), DataLoader(data, 16))
    assert not torch.equal(before, weights(model))


def test_samples_are_decoded_draws_from_the_prior():
    for prior in (Normal(4, 3.0), Uniform(4, 0.5), Sphere(4, 2.0)):
        model = small(prior=prior)
        z = prior.sample(5, torch.Generator().manual_seed(1))
        drawn = model.sample(5, torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(drawn, model.eval().decode(z))


@pytest.mark.parametrize("prior", [Normal(2, 3.0), Sphere(2, 3.0)])
def test_lines_lead_from_one_code_to_the_other_on_a_sphere_too(prior):
    seen = []

    class Look(torch.nn.Identity):
        def forward(self, z):
            seen.append(z)
            return z

    model = WAE(encoder=torch.nn.Flatten(), decoder=Look(), prior=prior)
    model.interpolate(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]]), 5)
    # halves of a chord of a quarter circle
    chord = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]])
    lengths = chord.square().sum(1, keepdim=True).sqrt() if isinstance(prior, Sphere) else 1
    torch.testing.assert_close(seen[0], 3 * chord / lengths)


def test_codes_of_one_input_stand_in_consecutive_rows():
    model = WAEMMD(**perceptrons(features=4), noise=GaussianNoise(1e-3), penalty=MMDPlusPlus(8, codes_per_input=3))
    x = torch.rand(5, 1, 4, 4)
    with torch.no_grad():
        codes, means = model.draw_codes(x), model.encode(x, noise=False)
    for row, code in enumerate(codes):
        assert (code - means).norm(dim=1).argmin() == row // 3


def test_the_penalty_of_a_step_sees_the_codes_of_the_steps_before(tmp_path):
    seen = []

    class Look(MMD):
        def forward(self, z, z_prior):
            seen.append((len(z), len(z_prior)))
            return super().forward(z, z_prior)

    model = WAEMMD(**perceptrons(), penalty=Look(), code_queue=11)
    images = torch.rand(20, 1, 4, 4)
    trainer(tmp_path, limit_train_batches=None, limit_val_batches=0).fit(model, DataLoader(images, 5))
    assert seen == [(5, 5), (10, 10), (15, 15), (16, 16)]


def test_predict_returns_codes_and_reconstructions(tmp_path):
    model = small(noise=GaussianNoise())
    (batch,) = trainer(tmp_path, limit_predict_batches=1).predict(model, MNISTDataModule())
    codes, reconstructions = batch
    assert codes.shape == (100, 4)
    data = MNISTDataModule()
    data.setup("test")
    with torch.no_grad():
        means = model.eval().encoder(data.test_set.images[:100].float() / 255)[:, :4]
    torch.testing.assert_close(codes, means, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().decode(codes), reconstructions)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.full((4, 1, 28, 28), 255.0), ValueError, r"got torch.float32 in \[255, 255\] in prediction step 1"),
        (torch.zeros(4, 1, 28, 28, dtype=torch.uint8), ValueError, "got torch.uint8 of shape"),
        (torch.full((4, 1, 28, 28), float("nan")), FloatingPointError, "prediction step 1: the batch itself is bad"),
    ],
)
def test_predict_checks_its_batches_as_training_does(tmp_path, images, error, message):
    with pytest.raises(error, match=message):
        trainer(tmp_path).predict(small(), torch.utils.data.DataLoader(images, 4))
    with pytest.raises(error, match=message.replace("prediction step", "batch")):
        encode_batches(small(), [images])


def test_logs_cost_and_penalty_and_their_weighted_sum(tmp_path):
    fitting = trainer(tmp_path)
    fitting.fit(small(penalty_weight=7.0), MNISTDataModule())
    logged = fitting.callback_metrics
    assert {"train/cost", "train/penalty", "val/cost", "val/penalty", "val/loss"} <= set(logged)
    expected = logged["val/cost"] + 7.0 * logged["val/penalty"]
    torch.testing.assert_close(logged["val/loss"], expected)


def test_a_last_batch_of_one_image_does_not_stop_validation(tmp_path):
    images = torch.rand(17, 1, 28, 28)
    fitting = trainer(tmp_path, limit_val_batches=None)
    fitting.fit(small(), DataLoader(images, 16, drop_last=True), DataLoader(images, 16))
    assert torch.isfinite(fitting.callback_metrics["val/loss"])


class UnknownLength(torch.utils.data.IterableDataset):
    """Images of which nobody knows how many there are."""

    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter(self.images)


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("length", ["known", "unknown"])
def test_what_is_logged_is_the_mean_over_all_examples(tmp_path, stage, length):
    images = torch.rand(19, 1, 28, 28)
    model = small(noise=EncoderNoise())
    loader = DataLoader(images if length == "known" else UnknownLength(images), 8)
    fitting = trainer(tmp_path, limit_val_batches=None, limit_test_batches=None)
    run = fitting.validate if stage == "val" else fitting.test
    # twice: nothing is left of the first time
    for _ in range(2):
        (logged,) = run(model, loader, verbose=False)
    with torch.no_grad():
        costs = model.eval().cost(images, model(images))
    assert logged[f"{stage}/cost"] == pytest.approx(costs.mean().item(), rel=1e-5)
    expected = logged[f"{stage}/cost"] + model.penalty_weight * logged[f"{stage}/penalty"]
    assert logged[f"{stage}/loss"] == pytest.approx(expected, rel=1e-5)


def test_a_validation_of_some_batches_only_logs_their_mean(tmp_path):
    images = torch.rand(40, 1, 28, 28)
    model, fitting = small(noise=EncoderNoise()), trainer(tmp_path, limit_val_batches=2, num_sanity_val_steps=1)
    fitting.fit(model, DataLoader(images, 8, drop_last=True), DataLoader(images, 8))
    with torch.no_grad():
        costs = model.eval().cost(images[:16], model(images[:16]))
    assert fitting.callback_metrics["val/cost"].item() == pytest.approx(costs.mean().item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_cost_and_penalty_get_full_precision(tmp_path, precision):
    seen = []

    class Spy(SquaredError):
        def _unscaled(self, target, reconstruction):
            seen.extend([target.dtype, reconstruction.dtype, torch.is_autocast_enabled("cpu")])
            return super()._unscaled(target, reconstruction)

    class SpyMMD(MMD):
        def forward(self, z, z_prior):
            seen.extend([z.dtype, z_prior.dtype, torch.is_autocast_enabled("cpu")])
            return super().forward(z, z_prior)

    model = small(cost=Spy(), penalty=SpyMMD())
    trainer(tmp_path, precision=precision, limit_val_batches=0).fit(model, MNISTDataModule())
    assert set(seen) == {torch.float32, False}


def test_one_cycle_takes_its_length_from_the_trainer(tmp_path):
    model = small(optimizer=functools.partial(torch.optim.Adam, lr=1.0), lr_scheduler=ONE_CYCLE)
    fitting = trainer(tmp_path, max_epochs=2)
    fitting.fit(model, MNISTDataModule())
    scheduler = fitting.lr_scheduler_configs[0].scheduler
    assert (scheduler.total_steps, scheduler.last_epoch) == (6, 6)
    with pytest.raises(ValueError, match="OneCycleLR needs the length of the run"):
        trainer(tmp_path, max_epochs=-1, max_time={"seconds": 1}).fit(small(lr_scheduler=ONE_CYCLE), MNISTDataModule())


def test_a_scheduler_steps_each_epoch_or_each_step(tmp_path):
    halve = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    for interval, expected in (("epoch", 1e-3 / 4), ("step", 1e-3 / 2**6)):
        fitting = trainer(tmp_path, max_epochs=2)
        fitting.fit(small(lr_scheduler=halve, lr_interval=interval), MNISTDataModule())
        assert fitting.optimizers[0].param_groups[0]["lr"] == pytest.approx(expected)


def test_pretraining_matches_the_moments_of_the_codes(tmp_path):
    images = torch.rand(256, 1, 4, 4, generator=torch.Generator().manual_seed(1)).round()

    def mismatch(pretrain_steps):
        torch.manual_seed(0)
        model = WAEMMD(
            **perceptrons(), pretrain_steps=pretrain_steps, optimizer=functools.partial(torch.optim.SGD, lr=0.0)
        )
        trainer(tmp_path).fit(model, DataLoader(images, 64), DataLoader(images, 64))
        return moment_mismatch(model.encode(images), torch.randn(100_000, 2)).item()

    assert mismatch(200) < 0.6 * mismatch(0)


def test_past_codes_leave_the_penalty_its_weight():
    """The gradient of the penalty on a long queue must be that on a batch as long, on average."""
    penalty = MMD(RBF(1.0))
    z = torch.randn(400, 2) + 1
    model = WAE(**perceptrons(), penalty=penalty, code_queue=300)
    model.trainer = trainer(".")
    leaf = z.clone().requires_grad_()
    penalty(leaf, torch.randn(400, 2, generator=torch.Generator().manual_seed(1))).backward()
    model.memory.remember(z[:300])
    batch = z[300:].clone().requires_grad_()
    joined = model._with_past_codes(batch)
    assert joined.shape == (400, 2)
    penalty(joined, torch.randn(400, 2, generator=torch.Generator().manual_seed(1))).backward()
    torch.testing.assert_close(batch.grad.sum(0), leaf.grad[300:].sum(0) * 4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty_weight": -1.0}, "penalty_weight must be 0 or more and finite, got -1.0"),
        ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        ({"latent_dim": 3, "prior": Normal(4)}, "latent_dim is 3, but the prior has 4 dimensions"),
        ({"standardize_codes": True, "prior": Sphere(4)}, "standardize_codes needs a Normal prior, got Sphere"),
        ({"pretrain_steps": -1}, "pretrain_steps must be 0 or more, got -1"),
        ({"code_queue": -1}, "code_queue must be 0 or more, got -1"),
        ({"image_shape": (1, 3, 3)}, "image_shape must be .* got \\(1, 3, 3\\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WAEMMD(**arguments)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"the encoder must put out \(B, 4\) for 2 latent dimensions with GaussianNoise"
    ):
        WAE(**perceptrons(), noise=GaussianNoise()).encode(torch.rand(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"floats in \[0, 1\].* got torch.float32 in \[-"):
        trainer(tmp_path).fit(small(), DataLoader(torch.rand(8, 1, 28, 28) * 2 - 1, 4))
    with pytest.raises(ValueError, match="MMD needs at least 2 codes in a batch, got 1: raise the batch size"):
        trainer(tmp_path).fit(WAEMMD(**perceptrons()), DataLoader(torch.rand(4, 1, 4, 4), 1))
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        WAE().sample(0)
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        WAE().interpolate(torch.zeros(1, 8), torch.zeros(1, 8), 1)


def test_a_one_cycle_run_can_be_made_longer(tmp_path):
    first = trainer(tmp_path, max_epochs=1)
    first.fit(small(lr_scheduler=ONE_CYCLE), MNISTDataModule())
    first.save_checkpoint(tmp_path / "end.ckpt")
    longer = trainer(tmp_path, max_epochs=3)
    longer.fit(small(lr_scheduler=ONE_CYCLE), MNISTDataModule(), ckpt_path=tmp_path / "end.ckpt", weights_only=True)
    scheduler = longer.lr_scheduler_configs[0].scheduler
    assert (scheduler.total_steps, scheduler.last_epoch, longer.global_step) == (9, 9, 9)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_train_alike_and_keep_the_names_of_their_weights():
    def trained(compile):
        torch.manual_seed(0)
        model = WAEMMD(**perceptrons(d=4), compile=compile)
        loader = DataLoader(torch.rand(32, 1, 4, 4), batch_size=16)
        flags = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        pl.Trainer(max_epochs=2, accelerator="cpu", **flags).fit(model, loader)
        return model.state_dict()

    plain, compiled = trained(False), trained(True)
    assert plain.keys() == compiled.keys()
    for name in plain.keys() - {"memory._extra_state"}:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-4, atol=1e-5)


def test_the_mismatch_of_moments_is_that_of_numpy():
    z, draws = torch.randn(40, 3) @ torch.randn(3, 3), 2 * torch.randn(50, 3)
    covariances = [np.cov(x.double().numpy(), rowvar=False) for x in (z, draws)]
    means = [x.double().numpy().mean(0) for x in (z, draws)]
    expected = ((means[0] - means[1]) ** 2).mean() + ((covariances[0] - covariances[1]) ** 2).mean()
    assert moment_mismatch(z, draws).item() == pytest.approx(expected, rel=1e-4)


def test_a_plateau_is_left_once_an_epoch(tmp_path):
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, factor=0.5, threshold=1e9)
    model = small(optimizer=functools.partial(torch.optim.SGD, lr=1e-6), lr_scheduler=plateau)
    fitting = trainer(tmp_path, max_epochs=4)
    fitting.fit(model, MNISTDataModule())
    # by this threshold no value is better than the best one
    assert fitting.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-6 / 2**4)


def test_a_resumed_run_of_a_shuffled_loader_goes_on_as_the_whole_one(tmp_path):
    images = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def run(epochs, path=None):
        torch.manual_seed(0)
        model = WAEMMD(**perceptrons())
        torch.manual_seed(9 if path is None else 123)
        fitting = trainer(tmp_path, max_epochs=epochs, limit_train_batches=None, limit_val_batches=0)
        fitting.fit(model, DataLoader(images, 8, shuffle=True), ckpt_path=path, weights_only=True)
        fitting.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return weights(model)

    run(1)
    assert torch.equal(run(2), run(2, tmp_path / "1.ckpt"))

"""On a GPU, pretended: nothing mixes two devices, and no training step waits for the device or copies to it."""

import functools

import pytest
import torch
from helpers import pl, small, trainer
from pretend_device import pretend_device, put_there
from pytorch_lightning import Callback

from datamodules import HalfImageDataModule, LabelDataModule, MNISTDataModule, ModelNet40DataModule
from wae_lightning import WAE, WAEGAN, ConditionalWAE, PointNetWAE, costs, kernels, noise, penalties, priors
from wae_lightning.callbacks import (
    CodePictures,
    CompletionPictures,
    ImagePictures,
    LabelPictures,
    PointCloudPictures,
    SampleQuality,
)
from wae_lightning.cli import generate
from wae_lightning.cli.flags import complete_flags
from wae_lightning.cli.train import Train
from wae_lightning.evaluation import clouds, completions, evaluate_completions, evaluate_images, evaluate_labels
from wae_lightning.networks import (
    CouplingFlow,
    FlowMatching,
    MixtureFlow,
    PointNetClassifier,
    PointNetEncoder,
    WhitenedPCA,
)
from wae_lightning.penalties import MMD
from wae_lightning.samplers import MixtureSampler

CUDA = torch.device("cuda:0")
SHORT = [
    "--limit_train_batches=4", "--limit_val_batches=1", "--limit_test_batches=1", "--enable_progress_bar=false",
    "--model.latent_dim=4", "--data.batch_size=50",
]  # fmt: skip
MODELS = {
    "mmd": lambda: small(standardize_codes=True, flow=MixtureFlow(4, 5), code_queue=40, noise=noise.GaussianNoise()),
    "gan": lambda: small(WAEGAN, noise=noise.InputNoise()),
    "conditional": lambda: ConditionalWAE(latent_dim=4),
    "labels": lambda: ConditionalWAE(
        num_classes=10, target_shape=(1, 28, 28), latent_dim=4, flow=MixtureFlow(4, 2, condition_features=10)
    ),
    "pointnet": lambda: PointNetWAE(PointNetEncoder(4, feature_transform=True), num_points=128, latent_dim=4),
    "coupled": lambda: PointNetWAE(num_points=64, latent_dim=4, coupling=0.5, coupling_weight=1.0),
    "clouds with a flow": lambda: PointNetWAE(num_points=64, latent_dim=4, flow=MixtureFlow(4, 5), fit_flow=0),
}


def data_of(name, **arguments):
    if name in ("pointnet", "coupled", "clouds with a flow"):
        return ModelNet40DataModule(
            num_points=64, batch_size=16, source="shapes", classes=["chair", "lamp"], **arguments
        )
    modules = {"conditional": HalfImageDataModule, "labels": LabelDataModule}
    return modules.get(name, MNISTDataModule)(batch_size=32, **arguments)


class FewDigits(MNISTDataModule):
    """The first 60 test images."""

    def setup(self, stage="fit"):
        super().setup(stage)
        self.test_set.rows = self.test_set.rows[:60]


def measure_few(model, root):
    measured = evaluate_images(model, FewDigits(root), num_samples=60)
    assert all(value == value for value in measured.values())
    assert {"fid_digits_60", "mse", "test_codes_mmd"} <= measured.keys()


class Phases(Callback):
    """Says where a run is: in the first step of an epoch, in another ``step``, in getting a batch, or elsewhere."""

    def __init__(self, record):
        self.record = record

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.record.phase = "step" if batch_idx else "first step"

    def on_train_batch_end(self, trainer, *_):
        self.record.phase = "epoch's end" if trainer.is_last_batch else "step"

    def on_train_epoch_start(self, *_):
        self.record.phase = "epoch's start"

    on_validation_start = on_test_start = on_train_epoch_end = on_train_epoch_start


def fitted(name, folder, record, **arguments):
    model = MODELS[name]()
    data = data_of(name, **arguments)
    fitting = put_there(trainer(folder, limit_train_batches=5, callbacks=[Phases(record)]))
    fitting.fit(model, data)
    return model, data


# ---- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_no_training_step_waits_or_copies(tmp_path, name):
    with pretend_device() as record:
        model, data = fitted(name, tmp_path, record)
        assert not record.of("step")
        assert record.of("first step")  # they are seen
        # Lightning takes the model back to the CPU after a run, and the data stay
        assert model.device.type == "cpu"
        assert getattr(data, "images", data).train_set.labels.device == CUDA
        codes = model.training_codes()
        assert codes.device.type == "cpu"
        model.to(CUDA).eval()
        torch.testing.assert_close(model.training_codes().cpu(), codes)
        if isinstance(model, ConditionalWAE):
            x = torch.tensor([3, 5], device=CUDA) if model.num_classes else torch.rand(2, 1, 14, 28, device=CUDA)
            assert model.complete(x, 3).device == CUDA
            return
        drawn = model.sample(4)
        assert drawn.device == CUDA
        assert model.interpolate(drawn[:2], drawn[2:], 3).device == CUDA
        for sampler in (model.prior, MixtureSampler(codes, 2)):
            assert model.decode(sampler.sample(3)).device == CUDA
        predicted = put_there(trainer(tmp_path, limit_predict_batches=1)).predict(model, data)
        assert len(predicted[0]) == 2


def test_a_critic_under_a_gradient_scaler_makes_no_step_wait(tmp_path):
    fused = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)
    with pretend_device() as record:
        plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
        plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
        model = small(WAEGAN, optimizer=fused, penalty=penalties.Adversarial(optimizer=fused))
        fitting = put_there(trainer(tmp_path, limit_train_batches=5, callbacks=[Phases(record)], plugins=[plugin]))
        fitting.fit(model, MNISTDataModule(batch_size=32))
        assert not record.of("step")


def test_a_wait_in_a_step_is_seen(tmp_path):
    class Waiting(MMD):
        def forward(self, z, z_prior):
            assert z.mean().item() < 100
            return super().forward(z, z_prior) + z.new_zeros(4)[[0, 1]].sum() + torch.zeros(1).to(z).sum()

    with pretend_device() as record:
        put_there(trainer(tmp_path, callbacks=[Phases(record)])).fit(small(penalty=Waiting()), MNISTDataModule())
        assert {what for what, _ in record.of("step")} == {"item", "list as index", "to"}
        with pytest.raises(RuntimeError, match="on the same device"):
            torch.ones(2, device=CUDA) + torch.ones(2)
        with pytest.raises(RuntimeError, match="on the same device"):
            torch.stack([torch.ones((), device=CUDA), torch.ones(())])
        with pytest.raises(RuntimeError, match="a generator on cuda:0"):
            torch.rand(2, device=CUDA, generator=torch.Generator())
        with pytest.raises(TypeError, match="to numpy"):
            torch.ones(2, device=CUDA).numpy()


def test_the_command_line_trains_resumes_tests_and_generates(tmp_path, monkeypatch, few_digits):
    config = "mnist_wae_gan"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "choose_device", lambda accelerator: CUDA)
    flags = [f"--config={config}", f"--data.root={few_digits}", "--accelerator=cpu", "--enable_model_summary=false"]
    flags += SHORT
    before = torch.get_float32_matmul_precision()
    with pretend_device() as record:
        for more in (["--max_epochs=1"], ["--max_epochs=2", "--ckpt_path=last"]):
            cli = Train(*complete_flags([*flags, *more]))
            put_there(cli.trainer).callbacks.insert(0, Phases(record))
            cli.train()
        assert not record.of("step")
        assert cli.trainer.global_step == 8
        last = f"runs/{config}/version_0"
        for what in ("samples", "traversal", "interpolation")[: 3 if config == "mnist_wae_mmd" else 1]:
            generate.main([last, f"--what={what}", "--num_samples=4", f"--out={what}.png"])
        generate.main([last, "--sampler=gmm", "--components=2", "--num_samples=4", "--out=gmm.npz"])
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("mmd", lambda: [ImagePictures(), CodePictures(30), SampleQuality(num_samples=20)]),
        ("conditional", lambda: [CompletionPictures()]),
        ("labels", lambda: [LabelPictures(), CodePictures(30)]),
        ("pointnet", lambda: [PointCloudPictures(), CodePictures(30)]),
    ],
)
def test_callbacks_draw_and_measure(tmp_path, name, make):
    with pretend_device():
        fitting = put_there(trainer(tmp_path, limit_train_batches=2, callbacks=make()))
        model, data = MODELS[name](), data_of(name)
        fitting.fit(model, data)
        fitting.test(model, data, verbose=False)


@pytest.mark.usefixtures("quick_measures")
def test_measures_of_a_model_on_the_device(tmp_path, monkeypatch, few_digits):
    with pretend_device() as record:
        model, _ = fitted("mmd", tmp_path, record)
        measure_few(model.to(CUDA).eval(), few_digits)
        model, data = MODELS["conditional"]().to(CUDA).eval(), data_of("conditional")

        def testing(**flags):
            return put_there(trainer(tmp_path, limit_test_batches=1, callbacks=flags["callbacks"]))

        monkeypatch.setattr(completions, "Trainer", testing)
        monkeypatch.setattr(clouds, "EMD_CLOUDS", 6)
        monkeypatch.setattr(completions.LabelNet, "fit", lambda self, data, epochs: self.eval())
        assert "diversity" in " ".join(evaluate_completions(model, data, seed=0))
        model, data = MODELS["labels"]().to(CUDA).eval(), data_of("labels")
        assert "mse" in evaluate_labels(model, data, 20, 0, "auto", None)
        model, data = MODELS["pointnet"]().to(CUDA).eval(), data_of("pointnet")
        data.setup("fit")
        judge = PointNetClassifier(2).eval()
        assert "linear SVM on codes" in clouds.measure_model(model, data, judge, fitted=[2])


# ---- parts ----------------------------------------------------------------------------------------------------------


def there(part):
    return part.to(CUDA) if isinstance(part, torch.nn.Module) else part


def compared_with_the_cpu(record, part, run, *tensors):
    """Runs a part here and there, with gradients; returns the waits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = run(part, *tensors)
    on_device = there(part)
    given = [x.to(CUDA).requires_grad_() for x in tensors]
    record.waits.clear()
    record.copies.clear()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found = run(on_device, *given)
    found.sum().backward()
    waits = dict(record.waits + record.copies)
    assert found.device == CUDA
    assert all(x.grad.device == CUDA for x in given if x.grad is not None)
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), rtol=1e-3, atol=1e-4)
    return waits


PENALTIES = {
    name: cls
    for name, cls in vars(penalties).items()
    if isinstance(cls, type) and issubclass(cls, penalties.Penalty) and name not in ("Penalty", "NoPenalty")
}
PENALTIES["MMDPlusPlus"] = lambda: penalties.MMDPlusPlus(100, codes_per_input=4)
for name in ("RBF", "Laplacian"):
    PENALTIES[f"MMD, {name}"] = lambda name=name: penalties.MMD(getattr(kernels, name)())
IN_OTHER_LIBRARIES = ("ExactWasserstein", "Sinkhorn")


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(name):
    penalty = PENALTIES[name]()
    penalty.set_prior(priors.Normal(4))
    with pretend_device() as record:
        waits = compared_with_the_cpu(
            record, penalty, lambda p, z, prior: p(z, prior), torch.randn(20, 4), torch.randn(20, 4)
        )
        assert not waits or name in IN_OTHER_LIBRARIES


@pytest.mark.parametrize("name", [n for n in costs.__all__ if n[0].isupper() and n != "Cost"])
def test_costs(name):
    with pretend_device() as record:
        of_pictures = name == "PyramidError"
        x, y = torch.rand(2, 3, 1, 20, 8) if of_pictures else torch.rand(2, 3, 20, 3)
        cost = costs.PyramidError(patches=1.0) if of_pictures else getattr(costs, name)()
        waits = compared_with_the_cpu(record, cost, lambda cost, x, y: cost(x, y), x, y)
        assert not waits or name == "EarthMoversDistance"


@pytest.mark.parametrize("prior", [priors.Normal(4), priors.Uniform(4), priors.Sphere(4)], ids=str)
def test_priors(prior):
    with pretend_device() as record:
        drawn = prior.sample(5, device=CUDA)
        assert drawn.device == prior.project(drawn).device == CUDA
        assert not record.waits
        assert prior.sample(5, torch.Generator(), CUDA).device == CUDA


NOISES = [
    noise.EncoderNoise(),
    noise.FixedNoise(0.5),
    noise.GaussianNoise(),
    noise.ImplicitNoise(4),
    noise.InputNoise(),
]


@pytest.mark.parametrize("given", NOISES, ids=lambda x: type(x).__name__)
def test_noises(given):
    with pretend_device() as record:
        features = torch.randn(6, 4 * given.features_per_dimension)
        assert not compared_with_the_cpu(record, given, lambda noise, x: noise(noise.on_input(x)), features)


@pytest.mark.parametrize(
    "flow", [CouplingFlow(4), MixtureFlow(4, 5), FlowMatching(4, 16, 4)], ids=lambda x: type(x).__name__
)
def test_flows(flow):
    with pretend_device() as record:
        z = torch.randn(6, 4)
        for run in (lambda f, x: f.log_prob(x), lambda f, x: f(x)[0], lambda f, x: f.inverse(x)):
            waits = compared_with_the_cpu(record, flow.cpu(), run, z)
            # the inverse of a mixture, which no training step computes, searches until it is exact
            assert {what for _, what, _ in waits} <= ({"__bool__"} if isinstance(flow, MixtureFlow) else set())


def test_principal_components():
    with pretend_device() as record:
        features = WhitenedPCA(3, (1, 4, 4))
        features.fit(torch.rand(50, 1, 4, 4))
        assert not compared_with_the_cpu(record, features, lambda f, x: f(x), torch.rand(6, 1, 4, 4))


# ---- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mmd", "conditional", "pointnet"])
def test_what_fits_lies_on_the_device_and_what_does_not_is_pinned(tmp_path, name):
    for free, on_device in ((2**36, True), (1, False)):
        with pretend_device(free_bytes=free) as record:
            data = data_of(name)
            data.trainer = put_there(trainer(tmp_path))
            data.prepare_data()
            data.setup("fit")
            loader = data.train_dataloader()
            assert loader.pin_memory is not on_device
            if on_device:
                batches = iter(loader)
                next(batches)
                record.waits.clear()
                record.copies.clear()
                assert all(part.device == CUDA for batch in batches for part in batch)
                assert not record.waits + record.copies


# ---- a device without float64 ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_measures")
def test_the_default_config_makes_no_float64_on_a_device_that_has_none(tmp_path, monkeypatch, few_digits):
    monkeypatch.chdir(tmp_path)
    with pretend_device("mps"):
        cli = Train(*complete_flags(["--accelerator=cpu", "--max_epochs=1", "--enable_model_summary=false", *SHORT]))
        put_there(cli.trainer)
        cli.train()
        model = WAE.load_from_checkpoint("runs/mnist_wae_mmd/version_0/checkpoints/last.ckpt").to("mps:0").eval()
        assert model.sample(4).device.type == "mps"
        measure_few(model, few_digits)
        with pytest.raises(TypeError, match="float64"):
            torch.ones(1, device="mps:0").double()

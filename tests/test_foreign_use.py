"""Our parts in other people's projects: their data, their modules, their command line, their callbacks and loggers."""

import csv
import functools
import json
import math
import textwrap

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    LearningRateMonitor,
    ModelSummary,
    StochasticWeightAveraging,
)
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.tuner import Tuner
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.model_summary import summarize
from test_celeba import draw_celeba
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from datamodules import CelebADataModule, HalfImageDataModule, MNISTDataModule, ModelNet40DataModule
from wae_lightning import WAEGAN, WAEMMD, ConditionalWAE, PointNetWAE
from wae_lightning.callbacks import CodePictures, Dashboard, ImagePictures
from wae_lightning.costs import Cost
from wae_lightning.kernels import Kernel
from wae_lightning.networks import (
    ConditionalMLPDecoder,
    ConditionalMLPEncoder,
    CouplingFlow,
    FullyConnectedDecoder,
    PointNetEncoder,
)
from wae_lightning.noise import GaussianNoise
from wae_lightning.penalties import MMD, Penalty
from wae_lightning.priors import Prior

D = 3
"""Latent dimensions; images are 1 x 8 x 8, halves 1 x 4 x 8, point sets 20 x 3."""


class TheirEncoder(nn.Module):
    """Somebody's network, unaware of this package."""

    def __init__(self, features=D):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ELU())
        self.head = nn.Linear(12, features)

    def forward(self, pictures):
        return self.head(self.layers(pictures))


class TheirDecoder(nn.Sequential):
    def __init__(self, features=D):
        super().__init__(nn.Linear(features, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))


class TheirCritic(nn.Module):
    def __init__(self, features=D):
        super().__init__()
        self.layers = nn.utils.parametrizations.spectral_norm(nn.Linear(features, 1))

    def forward(self, z):
        return self.layers(z)


class TheirPenalty(Penalty):
    """The squared distance of the two means."""

    def forward(self, z, z_prior):
        return (z.mean(0) - z_prior.mean(0)).square().sum()


class TheirKernel(Kernel):
    """The rational quadratic kernel."""

    def of_squared_distances(self, squared):
        return (1 + squared / 2).rsqrt()


class TheirCost(Cost):
    """Huber's loss."""

    def _unscaled(self, target, reconstruction):
        return F.huber_loss(reconstruction, target, reduction="none").flatten(1).sum(1)


class TheirPrior(Prior):
    """Each coordinate is -1 or 1."""

    @property
    def expected_squared_distance(self):
        return 2.0 * self.latent_dim * self.scale**2

    def _sample_unscaled(self, n, generator, device):
        return torch.randint(2, (n, self.latent_dim), generator=generator, device=device) * 2.0 - 1


def images(count=32):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def data_set(name):
    """What a stranger feeds: pictures and labels, pairs of halves, or point sets alone."""
    if name == "PointNetWAE":
        return torch.randn(32, 20, 3, generator=torch.Generator().manual_seed(1))
    if name == "ConditionalWAE":
        return TensorDataset(images()[:, :, :4], images()[:, :, 4:])
    return TensorDataset(images(), torch.arange(32) % 10)


class TheirData(pl.LightningDataModule):
    def __init__(self, name="WAEMMD", batch_size=8):
        super().__init__()
        self.name = name
        self.batch_size = batch_size

    def setup(self, stage):
        self.set = data_set(self.name)

    def train_dataloader(self):
        return DataLoader(self.set, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.set, batch_size=self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


def ours(name, **arguments):
    """The smallest model of each kind."""
    if name == "PointNetWAE":
        networks = {"encoder": PointNetEncoder(4, (8,), (8,)), "decoder": FullyConnectedDecoder(4, 20, (8,))}
        return PointNetWAE(**{"latent_dim": 4, "flow": CouplingFlow(4, 2, 8), **networks, **arguments})
    if name == "ConditionalWAE":
        encoder = ConditionalMLPEncoder([(1, 4, 8), (1, 4, 8)], D, (8,), standardize=True)
        decoder = ConditionalMLPDecoder(D, (1, 4, 8), (1, 4, 8), (8,))
        features = nn.Flatten()
        shapes = {"condition_shape": (1, 4, 8), "target_shape": (1, 4, 8)}
        return ConditionalWAE(encoder, decoder, latent_dim=D, features=features, **shapes, **arguments)
    cls = {"WAEMMD": WAEMMD, "WAEGAN": WAEGAN}[name]
    return cls(**{"encoder": TheirEncoder(), "decoder": TheirDecoder(), "latent_dim": D, **arguments})


MODELS = ["WAEMMD", "WAEGAN", "ConditionalWAE", "PointNetWAE"]


def trainer(folder, **arguments):
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, "max_epochs": 2, "log_every_n_steps": 1,
    }  # fmt: skip
    return pl.Trainer(**defaults | arguments)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_our_modules_train_test_and_predict_on_a_foreign_data_module(name, tmp_path):
    model, runs = ours(name), trainer(tmp_path)
    before = weights(model)
    runs.fit(model, TheirData(name))
    assert not torch.equal(weights(model), before)
    assert weights(model).isfinite().all()
    (results,) = runs.test(model, TheirData(name), verbose=False)
    assert {"test/cost", "test/penalty"} <= results.keys()
    predictions = runs.predict(model, TheirData(name))
    model.eval()
    z, outputs = (torch.cat(parts) for parts in zip(*predictions, strict=True))
    assert z.shape == (32, model.latent_dim)
    with torch.no_grad():
        if name == "ConditionalWAE":
            x, y = data_set(name).tensors
            assert torch.allclose(z, model.encode(x, y), atol=1e-5)
            assert torch.allclose(outputs, model(x, y), atol=1e-5)
        else:
            x = data_set(name) if name == "PointNetWAE" else images()
            assert torch.allclose(z, model.encode(x), atol=1e-5)
            assert torch.allclose(outputs, model(x), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_our_modules_train_on_a_plain_data_loader(name, tmp_path):
    model = ours(name)
    trainer(tmp_path).fit(model, DataLoader(data_set(name), 8), DataLoader(data_set(name), 8))
    assert weights(model).isfinite().all()


class TheirStream(IterableDataset):
    """Has no length, and counts in float64."""

    def __iter__(self):
        return iter(images().double())


def test_our_modules_train_on_a_stream_of_another_precision(tmp_path):
    model = ours("WAEMMD")
    before = weights(model)
    trainer(tmp_path, max_epochs=-1, max_steps=6).fit(model, DataLoader(TheirStream(), 8))
    assert not torch.equal(weights(model), before)


class TheirModule(pl.LightningModule):
    """A linear model from the first element of a batch to the last: classes, or a half of an image."""

    def __init__(self, inputs, outputs, classes=True, features=None):
        super().__init__()
        self.classes = classes
        self.features = features or nn.Flatten()
        self.linear = nn.Linear(inputs, outputs)

    def loss(self, batch):
        prediction = self.linear(self.features(batch[0]))
        if self.classes:
            return F.cross_entropy(prediction, batch[1].long())
        return F.mse_loss(prediction, batch[1].flatten(1))

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch), batch_size=len(batch[0]))

    def predict_step(self, batch, batch_idx):
        return self.linear(self.features(batch[0]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


@pytest.mark.parametrize("name", ["mnist", "halves", "clouds", "celeba"])
def test_our_data_modules_train_a_foreign_module(name, tmp_path):
    if name == "mnist":
        data, module = MNISTDataModule(), TheirModule(784, 10)
    elif name == "halves":
        data, module = HalfImageDataModule(), TheirModule(392, 392, classes=False)
    elif name == "clouds":
        data = ModelNet40DataModule(num_points=16, batch_size=8, source="shapes", classes=["chair", "lamp"])
        module = TheirModule(3, 2, features=lambda points: points.square().mean(1))
    else:
        data = CelebADataModule(draw_celeba(tmp_path), batch_size=5, image_size=16)
        # one attribute as the class
        module = TheirModule(3 * 256, 2)
        whole = module.loss
        module.loss = lambda batch: whole((batch[0], batch[1][:, 0]))
    runs = trainer(tmp_path, limit_train_batches=20, limit_test_batches=2, limit_predict_batches=2)
    untrained = runs.validate(module, data, verbose=False)[0]["val_loss"]
    runs.fit(module, data)
    # a few noisy pictures tell nothing of an attribute
    assert runs.callback_metrics["val_loss"] < (untrained if name != "celeba" else math.inf)
    assert math.isfinite(runs.test(module, data, verbose=False)[0]["test_loss"])
    assert len(runs.predict(module, data)) == 2


# ---- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        {"penalty": TheirPenalty(), "cost": TheirCost(scale=2.0)},
        {"penalty": MMD(TheirKernel()), "prior": TheirPrior(D)},
        {"critic": TheirCritic()},
        {"encoder": TheirEncoder(2 * D), "noise": GaussianNoise()},
        {"penalty": TheirPenalty(), "code_queue": 20, "standardize_codes": True},
    ],
    ids=lambda parts: "+".join(parts),
)
def test_parts_from_outside(parts, tmp_path):
    model = ours("WAEGAN" if "critic" in parts else "WAEMMD", **parts)
    before = weights(model)
    runs = trainer(tmp_path, enable_checkpointing=True, logger=CSVLogger(tmp_path))
    runs.fit(model, TheirData())
    assert not torch.equal(weights(model), before)
    assert model.sample(5).shape == (5, 1, 8, 8)
    # a checkpoint holds plain data; objects are given again
    again = type(model).load_from_checkpoint(
        runs.checkpoint_callback.best_model_path,
        weights_only=True,
        **{"encoder": TheirEncoder(), "decoder": TheirDecoder(), **parts},
    )
    assert torch.equal(again.eval().encode(images()), model.eval().encode(images()))


def test_foreign_parts_are_what_the_loss_is_made_of(tmp_path):
    model = ours("WAEMMD", penalty=TheirPenalty(), cost=TheirCost(scale=2.0), prior=TheirPrior(D), penalty_weight=3.0)
    (logged,) = trainer(tmp_path).validate(model, DataLoader(images(), 32), verbose=False)
    model.eval()
    z = model.encode(images())
    cost = 2 * F.huber_loss(model.decode(z), images(), reduction="sum") / 32
    assert logged["val/cost"] == pytest.approx(cost.item(), rel=1e-4)
    assert logged["val/loss"] == pytest.approx(logged["val/cost"] + 3 * logged["val/penalty"], rel=1e-4)


# ---- another project's command line ----------------------------------------------------------------------------------


def test_class_paths_in_another_projects_lightning_cli(tmp_path, monkeypatch):
    (tmp_path / "their_project.py").write_text(
        textwrap.dedent("""
        import torch
        from pytorch_lightning import LightningDataModule
        from torch import nn
        from torch.utils.data import DataLoader
        from wae_lightning.penalties import Penalty

        class FirstMoment(Penalty):
            def __init__(self, power: float = 2.0) -> None:
                super().__init__()
                self.power = power

            def forward(self, z, z_prior):
                return (z.mean(0) - z_prior.mean(0)).abs().pow(self.power).sum()

        class Encoder(nn.Module):
            def __init__(self, features: int) -> None:
                super().__init__()
                self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, features))

            def forward(self, x):
                return self.layers(x)

        class Noise(LightningDataModule):
            def __init__(self, size: int = 28) -> None:
                super().__init__()
                self.size = size

            def train_dataloader(self):
                return DataLoader(torch.rand(16, 1, self.size, self.size), 8)

            val_dataloader = train_dataloader
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(
        textwrap.dedent(f"""
        seed_everything: 1
        model:
          class_path: wae_lightning.WAEMMD
          init_args:
            latent_dim: 2
            encoder: {{class_path: their_project.Encoder, init_args: {{features: 2}}}}
            decoder:
              class_path: wae_lightning.networks.ConvDecoder
              init_args: {{latent_dim: 2, width: 0.02}}
            penalty: {{class_path: their_project.FirstMoment, init_args: {{power: 1.0}}}}
            optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.5}}}}
        data: {{class_path: their_project.Noise}}
        trainer:
          accelerator: cpu
          logger: false
          enable_checkpointing: false
          enable_progress_bar: false
          enable_model_summary: false
          max_steps: 2
          default_root_dir: {tmp_path}
        """)
    )
    cli = functools.partial(LightningCLI, save_config_callback=None, subclass_mode_model=True, subclass_mode_data=True)
    made = cli(args=["fit", f"--config={config}"])
    assert isinstance(made.model, WAEMMD)
    assert made.trainer.global_step == 2
    assert made.model.penalty.power == 1.0
    assert made.trainer.optimizers[0].param_groups[0]["lr"] == 0.5
    # their module and our data, and our arguments on the command line
    ours_too = ["--data=datamodules.MNISTDataModule", "--data.batch_size=30", "--model.penalty_weight=7"]
    made = cli(args=["validate", f"--config={config}", *ours_too, "--trainer.limit_val_batches=1"])
    assert isinstance(made.datamodule, MNISTDataModule)
    assert made.datamodule.batch_size == 30
    assert made.model.penalty_weight == 7
    assert made.trainer.callback_metrics["val/loss"].isfinite()


def test_a_lightning_cli_of_one_model_and_one_data_module_takes_its_own_optimizer(tmp_path):
    flags = [
        "fit", "--model.latent_dim=2", "--model.encoder=ConvEncoder", "--model.encoder.width=0.02",
        "--model.encoder.latent_dim=2", "--data.batch_size=20", "--optimizer=torch.optim.AdamW", "--optimizer.lr=0.01",
        "--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.logger=false",
        "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]  # fmt: skip
    made = LightningCLI(WAEMMD, MNISTDataModule, args=flags, save_config_callback=None)
    (optimizer,) = made.trainer.optimizers
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 0.01


# ---- Lightning's callbacks and tuner ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_model_summary_counts_every_parameter(name, tmp_path, caplog):
    model = ours(name)
    with caplog.at_level("INFO"):
        trainer(tmp_path, callbacks=[ModelSummary(max_depth=2)], max_epochs=1).fit(model, TheirData(name))
    assert "encoder.layers" in caplog.text or "encoder.points" in caplog.text
    summary = summarize(model, max_depth=2)
    assert summary.total_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_early_stopping_watches_our_loss(name, tmp_path):
    # nothing is an improvement of a million
    stop = EarlyStopping("val/loss", min_delta=1e6, patience=2, strict=True)
    runs = trainer(tmp_path, callbacks=[stop], max_epochs=20)
    runs.fit(ours(name), TheirData(name))
    assert runs.current_epoch == 3


def test_stochastic_weight_averaging(tmp_path):
    model = ours("WAEMMD")
    average = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=2, annealing_epochs=1)
    seen = []

    class Record(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(weights(pl_module))

    trainer(tmp_path, callbacks=[average, Record()], max_epochs=5).fit(model, TheirData())
    assert torch.allclose(weights(model), torch.stack(seen[:4]).mean(0), atol=1e-6)
    assert model.sample(2).isfinite().all()


def test_stochastic_weight_averaging_says_that_it_takes_one_optimizer(tmp_path):
    with pytest.raises(MisconfigurationException, match="1 `optimizer`"):
        trainer(tmp_path, callbacks=[StochasticWeightAveraging(swa_lrs=1e-2)]).fit(ours("WAEGAN"), TheirData())


@pytest.mark.parametrize("name", MODELS)
def test_exponential_moving_average_of_the_weights(name, tmp_path):
    model = ours(name)
    decay, expected, updates = 0.7, [], []

    class Record(pl.Callback):
        """Averages the encoder's weights by hand after each step of the auto-encoder."""

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            now = weights(pl_module.encoder)
            expected[:] = [now if not expected else decay * expected[0] + (1 - decay) * now]
            updates.append(trainer.global_step)

    average = EMAWeightAveraging(decay=decay)
    runs = trainer(tmp_path, callbacks=[average, Record()], max_epochs=3, num_sanity_val_steps=0)
    runs.fit(model, TheirData(name))
    assert updates == list(range(1, 13))
    assert torch.allclose(weights(model.encoder), expected[0], atol=1e-5)


def test_the_learning_rate_finder_sets_our_learning_rate(tmp_path):
    data = DataLoader(images(256), 8, drop_last=True)
    model = ours("WAEMMD", optimizer=functools.partial(torch.optim.SGD, lr=123.0))
    before = weights(model)
    found = Tuner(trainer(tmp_path)).lr_find(model, data, num_training=30, min_lr=1e-4, max_lr=1e-1)
    assert torch.equal(weights(model), before)
    assert model.lr == found.suggestion()
    runs = trainer(tmp_path, max_epochs=1)
    runs.fit(model, data)
    assert runs.optimizers[0].param_groups[0]["lr"] == found.suggestion()


def test_the_learning_rate_finder_as_a_callback(tmp_path):
    data = DataLoader(images(256), 8, drop_last=True)
    model = ours("ConditionalWAE", penalty=MMD())
    data = DataLoader(TensorDataset(images(256)[:, :, :4], images(256)[:, :, 4:]), 8)
    finder = LearningRateFinder(num_training_steps=20, min_lr=1e-4, max_lr=1e-1)
    runs = trainer(tmp_path, callbacks=[finder], max_epochs=1)
    runs.fit(model, data)
    assert runs.optimizers[0].param_groups[0]["lr"] == model.lr == finder.optimal_lr.suggestion()


def test_the_learning_rate_finder_says_that_it_takes_one_optimizer(tmp_path):
    with pytest.raises(MisconfigurationException, match="single optimizer"):
        Tuner(trainer(tmp_path)).lr_find(ours("WAEGAN"), TheirData())


@pytest.mark.parametrize("name", MODELS)
def test_the_batch_size_finder_doubles_the_batches(name, tmp_path):
    model, data = ours(name), TheirData(name)
    before = weights(model)
    found = Tuner(trainer(tmp_path)).scale_batch_size(model, datamodule=data, max_trials=3, steps_per_trial=1)
    assert torch.equal(weights(model), before)
    assert found == data.batch_size == 8
    finder = BatchSizeFinder(init_val=4, max_trials=3, steps_per_trial=1)
    trainer(tmp_path, callbacks=[finder], max_epochs=1).fit(model, data)
    assert data.batch_size == 16


def test_the_batch_size_finder_changes_our_data_module(tmp_path):
    data = MNISTDataModule(batch_size=2)
    runs = trainer(tmp_path)
    found = Tuner(runs).scale_batch_size(TheirModule(784, 10), datamodule=data, max_trials=5, steps_per_trial=1)
    assert found == data.batch_size == data.hparams.batch_size == 32
    assert len(next(iter(data.train_dataloader()))[0]) == 32


# ---- loggers ---------------------------------------------------------------------------------------------------------


class StrictLogger(Logger):
    """Refuses what Weights & Biases refuses or mangles: keys that are no strings, values that are no numbers."""

    def __init__(self):
        super().__init__()
        self.metrics, self.hyperparameters, self.steps = {}, {}, []

    name, version = "strict", "0"

    def log_metrics(self, metrics, step=None):
        for key, value in metrics.items():
            assert type(key) is str, f"key {key!r}"
            assert type(value) in (int, float), f"{key}: {type(value).__name__}"
        assert step is None or not self.steps or step >= self.steps[-1], "steps must not go back"
        self.steps.append(step)
        self.metrics |= metrics

    def log_hyperparams(self, params, *args, **kwargs):
        for key, value in params.items():
            assert type(key) is str, f"key {key!r}"
            assert isinstance(value, bool | int | float | str | list | tuple | dict | None), f"{key}: {value!r}"
        self.hyperparameters |= params


@pytest.mark.parametrize("name", MODELS)
def test_a_strict_logger_takes_all_that_we_log(name, tmp_path):
    logger = StrictLogger()
    callbacks = [LearningRateMonitor(), Dashboard()]
    if name == "WAEMMD":
        callbacks += [ImagePictures(columns=2), CodePictures()]
    schedule = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-3)
    model = ours(name, lr_scheduler=schedule)
    runs = trainer(tmp_path, logger=logger, callbacks=callbacks)
    runs.fit(model, TheirData(name))
    runs.test(model, TheirData(name), verbose=False)
    assert {"train/cost", "train/penalty", "val/loss", "test/cost"} <= logger.metrics.keys()
    assert any(key.startswith("lr-") for key in logger.metrics)
    assert logger.hyperparameters["latent_dim"] == model.latent_dim
    assert json.loads(json.dumps(logger.hyperparameters)) == logger.hyperparameters


@pytest.mark.parametrize("name", MODELS)
def test_csv_logger(name, tmp_path):
    logger = CSVLogger(tmp_path, name="")
    trainer(tmp_path, logger=logger).fit(ours(name), TheirData(name))
    rows = list(csv.DictReader((tmp_path / "version_0/metrics.csv").open()))
    steps = [row for row in rows if row["train/cost"]]
    assert len(steps) == 8
    assert all(math.isfinite(float(row["train/penalty"])) for row in steps)
    assert len([row for row in rows if row["val/loss"]]) == 2


# ---- export ----------------------------------------------------------------------------------------------------------


class Method(nn.Module):
    """One method of a model as the forward of a module, which is what exporters take; also in docs/deployment.md."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs):
        return getattr(self.model, self.name)(*inputs)


def exportable(name, method):
    """A model after some training, inputs to trace it with, other inputs of another batch size, and its outputs."""
    model = ours(name)
    if name == "PointNetWAE":
        # at the start a flow only permutes
        nn.init.normal_(model.flow.couplings[0].network[-1].weight, std=0.1)
    if name == "WAEMMD":
        model = ours(name, noise=GaussianNoise(), encoder=TheirEncoder(2 * D), standardize_codes=True)
        model.train().encode(images())
    model.eval().requires_grad_(False)

    def inputs(n):
        x = {"PointNetWAE": torch.rand(n, 20, 3), "ConditionalWAE": torch.rand(n, 1, 4, 8)}
        x = x.get(name, torch.rand(n, 1, 8, 8))
        if name == "ConditionalWAE":
            return x, x.flip(2) if method == "encode" else model.prior.sample(n)
        return (x if method == "encode" else model.prior.sample(n),)

    part, others = Method(model, method), inputs(5)
    return part.eval(), inputs(3), others, part(*others)


def any_batch_size(inputs):
    # PyTorch 2.6 wants a largest size for graphs with slices
    batch = torch.export.Dim("batch", max=2**16)
    return (tuple({0: batch} for _ in inputs),)


@pytest.mark.parametrize("method", ["encode", "decode"])
@pytest.mark.parametrize("name", MODELS)
def test_torch_export(name, method):
    part, inputs, others, expected = exportable(name, method)
    program = torch.export.export(part, inputs, dynamic_shapes=any_batch_size(inputs))
    assert torch.allclose(program.module()(*others), expected, atol=1e-4)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="PyTorch 2.6 exports to ONNX with no onnxscript that was tried")
@pytest.mark.parametrize("method", ["encode", "decode"])
@pytest.mark.parametrize("name", ["WAEMMD", "ConditionalWAE", "PointNetWAE"])
def test_onnx_export(name, method, tmp_path):
    """A WAEGAN's networks are those of WAEMMD."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    part, inputs, others, expected = exportable(name, method)
    program = torch.onnx.export(part, inputs, dynamo=True, dynamic_shapes=any_batch_size(inputs), verbose=False)
    program.save(tmp_path / "part.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "part.onnx")
    names = [put.name for put in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (x.numpy() for x in others), strict=True)))
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)

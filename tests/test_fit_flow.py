"""Mixtures fitted to codes beside training, and the warning of a flow that does not fit."""

import copy
import functools
import itertools
import random
import warnings

import numpy as np
import pytest
import torch
from helpers import perceptrons, pl
from scipy.stats import chi2, kstest, multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from wae_lightning import WAEGAN, WAEMMD
from wae_lightning.lightning import EMAWeightAveraging
from wae_lightning.memory import CodeMemory
from wae_lightning.mixtures import Mixture, fit_mixture
from wae_lightning.networks import CouplingFlow, Critic, MixtureFlow
from wae_lightning.training import FitFlow, LastCheckpoint, distance_from_normal

IMAGES = torch.rand(240, 1, 4, 4, generator=torch.Generator().manual_seed(0))
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
         "enable_model_summary": False}  # fmt: skip


def random_mixture(k=4, d=3, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(k, d, d, generator=generator).double() + torch.eye(d)
    weights = torch.rand(k, generator=generator).double() + 0.2
    means = spread * torch.randn(k, d, generator=generator).double()
    return Mixture(weights / weights.sum(), means, roots @ roots.mT + 0.1 * torch.eye(d))


def draws(mixture, n, seed=0):
    torch.manual_seed(seed)
    chosen = torch.multinomial(mixture.weights, n, replacement=True)
    return mixture.means[chosen] + torch.stack([
        torch.linalg.cholesky(mixture.covariances[k]) @ torch.randn(mixture.means.shape[1]).double() for k in chosen
    ])  # fmt: skip


# ---- the mixture ----------------------------------------------------------------------------------------------------


def test_the_density_of_a_mixture():
    mixture, x = random_mixture(), torch.randn(20, 3).double()
    expected = sum(
        weight * multivariate_normal(mean, covariance).pdf(x)
        for weight, mean, covariance in zip(*(part.numpy() for part in mixture), strict=True)
    )
    np.testing.assert_allclose(mixture.log_prob(x), np.log(expected))


@pytest.mark.parametrize("k", [1, 5])
def test_a_fitted_mixture_is_nearly_as_good_as_the_one_that_drew(k):
    truth = random_mixture(k, spread=6)
    fitted = fit_mixture(draws(truth, 1500), draws(truth, 500, 1))
    test = draws(truth, 2000, 2)
    assert len(fitted.weights) == k
    assert fitted.log_prob(test).mean() == pytest.approx(truth.log_prob(test).mean().item(), abs=0.05)


def test_covariances_of_few_codes_are_drawn_together():
    """In 20 dimensions 60 codes of a cluster do not tell its covariance; scikit-learn's overfits."""
    truth = random_mixture(5, 20, spread=2)._replace(covariances=torch.eye(20).double().expand(5, 20, 20))
    codes, validation, test = draws(truth, 300), draws(truth, 100, 1), draws(truth, 1000, 2)
    theirs = max(GaussianMixture(k, random_state=0).fit(codes.numpy()).score(test.numpy()) for k in (1, 5))
    ours = fit_mixture(codes, validation).log_prob(test).mean().item()
    assert ours > theirs + 1
    assert ours == pytest.approx(truth.log_prob(test).mean().item(), abs=2.5)


@pytest.mark.parametrize("n", [20, 60, 100, 300])
def test_fewer_codes_than_dimensions_have_a_density_all_the_same(n):
    """As good as that of a Gaussian whose covariance scikit-learn draws towards a sphere."""
    spreads = torch.linspace(0.2, 2, 64).double()
    codes, validation, test = (
        torch.randn(m, 64, generator=torch.Generator().manual_seed(m)).double() * spreads for m in (n, 30, 1000)
    )
    expected = LedoitWolf().fit(codes.numpy())
    theirs = multivariate_normal(expected.location_, expected.covariance_).logpdf(test.numpy()).mean()
    assert fit_mixture(codes, validation).log_prob(test).mean() > theirs - 2


def test_fitting_goes_on_from_a_known_mixture():
    truth = random_mixture(30, 2, spread=10)
    codes, validation = draws(truth, 3000), draws(truth, 1000, 1)
    expected = truth.log_prob(validation).mean()
    assert fit_mixture(codes, validation, most=30, start=truth).log_prob(validation).mean() > expected - 0.05
    assert fit_mixture(codes, validation, most=1).log_prob(validation).mean() < expected - 1


def test_a_poor_known_mixture_does_not_end_the_search():
    """It is better than one Gaussian, and worse than the many that the codes need."""
    truth = random_mixture(20, 2, spread=10)
    codes, validation = draws(truth, 3000), draws(truth, 1000, 1)
    found, alone = (
        fit_mixture(codes, validation, most=20, start=start).log_prob(validation).mean()
        for start in (random_mixture(3, 2, seed=1), None)
    )
    assert found >= alone
    assert found > truth.log_prob(validation).mean() - 0.5


def test_a_flow_of_more_gaussians_than_codes_can_be_fitted():
    codes, validation = 5 + torch.randn(2, 12, 3).double()
    assert len(fit_mixture(codes, validation, start=random_mixture(13)).weights) == 1
    assert MixtureFlow(3, 200).double().fit(codes, validation)  # and is better than the one around 0 that it was


@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 0)])
def test_too_few_codes(n, m):
    with pytest.raises(ValueError, match=f"needs 2 codes and 1 to validate on, got {n} and {m}"):
        fit_mixture(torch.randn(n, 3), torch.randn(m, 3))


def test_codes_that_lie_in_a_plane_or_are_all_the_same_can_be_fitted():
    flat = torch.cat([torch.randn(200, 2), torch.zeros(200, 1)], dim=1)
    for codes in (flat, torch.zeros(50, 3)):
        assert all(part.isfinite().all() for part in fit_mixture(codes, codes))


@pytest.mark.parametrize("dim", [2, 8, 32])
@pytest.mark.parametrize("seed", range(5))
def test_codes_that_are_all_the_same_somewhere_can_be_fitted_from_any_mixture(dim, seed):
    codes = torch.randn(1, dim, generator=torch.Generator().manual_seed(seed)).expand(200, dim)
    fitted = fit_mixture(codes, codes, start=random_mixture(50, dim, seed=seed))
    assert all(part.isfinite().all() for part in fitted)


@pytest.mark.parametrize("components", [4, 5, 11])
def test_a_flow_takes_a_mixture_over_and_tells_it(components):
    mixture, flow = random_mixture(), MixtureFlow(3, components).double()
    flow.set_mixture(mixture)
    x = torch.randn(10, 3).double()
    torch.testing.assert_close(flow.log_prob(x), mixture.log_prob(x))
    torch.testing.assert_close(flow.mixture().log_prob(x), mixture.log_prob(x))
    # no Gaussian is left over without weight, so that all of them can learn
    assert flow.weight_logits.softmax(0).min() > 0.2 * mixture.weights.min()


@pytest.mark.parametrize(("k", "d"), [(6, 3), (2, 4)])
def test_a_mixture_of_another_size_is_refused(k, d):
    with pytest.raises(ValueError, match=f"{k} Gaussians in {d} dimensions do not fit into 5 in 3"):
        MixtureFlow(3, 5).set_mixture(random_mixture(k, d))


def test_the_better_one_stays():
    truth, flow = random_mixture(spread=5), MixtureFlow(3, 4).double()
    codes, validation = draws(truth, 500), draws(truth, 200, 1)
    assert flow.fit(codes, validation)
    fitted = copy.deepcopy(flow.state_dict())
    assert not flow.fit(torch.randn(500, 3), validation)
    assert all(torch.equal(flow.state_dict()[name], value) for name, value in fitted.items())


def test_each_label_has_a_mixture_of_its_own():
    truths = [random_mixture(2, seed=seed) for seed in range(3)]
    labels = torch.eye(3, dtype=torch.float64).repeat_interleave(400, 0)
    codes, validation = (torch.cat([draws(truth, 400, seed) for truth in truths]) for seed in (0, 1))
    flow = MixtureFlow(3, 2, condition_features=3).double()
    assert flow.fit(*(torch.cat([x, labels], 1)[:1199] for x in (codes, validation)))
    found = flow.log_prob(validation, labels).view(3, -1)
    z = flow(validation, labels)[0]
    torch.testing.assert_close(flow.inverse(z, labels), validation)
    for label, truth in enumerate(truths):
        known = truth.log_prob(validation[400 * label :][:400])
        assert found[label].mean() > known.mean() - 0.1
        alone = MixtureFlow(3, 2).double()
        alone.set_mixture(flow.mixture(label))
        torch.testing.assert_close(found[label], alone.log_prob(validation[400 * label :][:400]))
        assert distance_from_normal(z[400 * label :][:400]) < 0.1
    before = copy.deepcopy(flow.state_dict())
    # of labels without codes nothing is known
    flow.fit(torch.cat([codes, labels], 1)[:400], torch.cat([validation, labels], 1)[:400])
    assert all(torch.equal(flow.state_dict()[name][2:], value[2:]) for name, value in before.items())


def test_a_label_that_is_not_among_the_validation_codes_is_fitted_all_the_same():
    truth, labels = random_mixture(2), torch.eye(2, dtype=torch.float64)
    codes, validation = (torch.cat([draws(truth, 400, seed), labels[1].expand(400, 2)], 1) for seed in (0, 1))
    others = torch.cat([draws(truth, 400), labels[0].expand(400, 2)], 1)
    flow = MixtureFlow(3, 2, condition_features=2).double()
    assert flow.fit(torch.cat([codes, others]), others)
    known = truth.log_prob(validation[:, :3]).mean()
    assert flow.log_prob(validation[:, :3], validation[:, 3:]).mean() > known - 0.1


@pytest.mark.parametrize("value", [-800.0, -30.0, 800.0, float("nan")])
def test_a_flow_that_training_has_spoilt_is_replaced(value):
    truth, flow = random_mixture(spread=5), MixtureFlow(3, 4)
    codes, validation = draws(truth, 500), draws(truth, 200, 1)
    with torch.no_grad():
        flow.log_diagonal[:, 0] = value
    assert flow.fit(codes, validation)
    assert flow.log_prob(validation).mean() > truth.log_prob(validation).mean() - 0.5


# ---- in training ----------------------------------------------------------------------------------------------------


def model(cls=WAEMMD, fit_flow=None, flow=None, **arguments):
    torch.manual_seed(0)
    optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    flow = flow or MixtureFlow(2, 8)
    if cls is WAEGAN:
        arguments["critic"] = Critic(2, width=8)
    return cls(**perceptrons(), flow=flow, fit_flow=fit_flow, optimizer=optimizer, **arguments)


def fit(model, epochs=3, validated=True, ckpt_path=None, callbacks=(), **flags):
    torch.manual_seed(1)
    checkpoints = any(isinstance(callback, pl.callbacks.Checkpoint) for callback in callbacks)
    flags = {**QUIET, "enable_checkpointing": checkpoints, **flags}
    trainer = pl.Trainer(max_epochs=epochs, callbacks=list(callbacks), **flags)
    loaders = [DataLoader(IMAGES[:200], 20, shuffle=True), DataLoader(IMAGES[200:], 20) if validated else None]
    trainer.fit(model, *loaders, ckpt_path=ckpt_path)
    return trainer


@pytest.mark.parametrize("cls", [WAEMMD, WAEGAN])
@pytest.mark.parametrize("validated", [True, False])
def test_fitting_betters_the_flow_and_changes_nothing_else(cls, validated):
    models = [model(cls, fit_flow) for fit_flow in (None, 0, 2)]
    for one in models:
        fit(one, validated=validated)
    # the flow's own draws of noise and those of the encoder are the same: fitting leaves no trace
    weights = [{k: v for k, v in one.state_dict().items() if not k.startswith("flow")} for one in models]
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=0)
    codes = models[0].encoder(IMAGES[200:])
    trained, at_the_end, twice = (one.flow.log_prob(codes).mean() for one in models)
    assert at_the_end > trained + 0.1
    assert twice > trained + 0.1


def test_it_is_fitted_after_the_last_step_of_a_run_that_steps_limit():
    fitted, trained = model(fit_flow=0), model()
    for one in (fitted, trained):
        fit(one, epochs=-1, max_steps=13)
    codes = trained.encoder(IMAGES[200:])
    assert fitted.flow.log_prob(codes).mean() > trained.flow.log_prob(codes).mean() + 0.1


class Inverted(pl.LightningDataModule):
    """Augments in training only, and so differently that nothing is overlooked."""

    def train_dataloader(self):
        return DataLoader(IMAGES[:200], 20, shuffle=True)

    def val_dataloader(self):
        return DataLoader(IMAGES[200:], 20)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return 1 - batch if self.trainer.training else batch


@pytest.mark.parametrize("cls", [WAEMMD, WAEGAN])
def test_it_is_fitted_to_training_data_as_they_are_and_augmented(cls, monkeypatch):
    given, stages = [], []
    monkeypatch.setattr(MixtureFlow, "fit", lambda self, *codes: given.append([x.clone() for x in codes]))
    one = model(cls, fit_flow=0)
    watch = pl.callbacks.LambdaCallback(on_train_batch_end=lambda trainer, *_: stages.append(trainer.training))
    pl.Trainer(max_epochs=2, callbacks=[watch], **QUIET).fit(one, Inverted())
    (codes, validation), (more, the_same) = given
    assert torch.equal(more[:1000], codes.repeat(5, 1))
    assert torch.equal(the_same, validation)
    one.eval()
    passes = [(pass_, 1 - IMAGES[:200]) for pass_ in more[1000:].split(200)]
    assert len(passes) == 5
    for found, images in (codes, IMAGES[:200]), (validation, IMAGES[200:]), *passes:
        expected = one.encoder(images).detach()
        order, known = (x[:, 0].argsort() for x in (found, expected))
        torch.testing.assert_close(found[order], expected[known])
    assert stages == [True] * 20  # the trainer goes on as one that trains


def test_augmented_data_are_drawn_anew_and_many_need_no_augmented_codes(monkeypatch):
    given = []
    monkeypatch.setattr(MixtureFlow, "fit", lambda self, *codes: given.append(codes[0].clone()))
    data = Inverted()
    data.on_after_batch_transfer = lambda batch, _: batch * torch.rand(()) if data.trainer.training else batch
    pl.Trainer(max_epochs=1, **QUIET).fit(model(fit_flow=0), data)
    plain, more = given
    assert len(torch.cat([plain[:1], more[1000:]]).unique(dim=0)) == 1001  # no pass repeats another
    given.clear()
    monkeypatch.setattr("wae_lightning.training.fit_flow.MOST_CODES", 200)
    pl.Trainer(max_epochs=1, **QUIET).fit(model(fit_flow=0), Inverted())
    assert len(given) == 1


def test_codes_are_of_batches_as_the_hooks_before_the_transfer_make_them(monkeypatch):
    given = []
    monkeypatch.setattr(MixtureFlow, "fit", lambda self, *codes: given.append([x.clone() for x in codes]))
    data = pl.LightningDataModule()
    data.train_dataloader = lambda: DataLoader((255 * IMAGES[:200]).to(torch.uint8), 20)
    data.val_dataloader = lambda: DataLoader((255 * IMAGES[200:]).to(torch.uint8), 20)
    data.on_before_batch_transfer = lambda batch, _: batch.float() / 255
    one = model(fit_flow=0)
    pl.Trainer(max_epochs=1, **QUIET).fit(one, data)
    one.eval()
    for found, images in zip(given[0], (IMAGES[:200], IMAGES[200:]), strict=True):
        torch.testing.assert_close(found, one.encoder((255 * images).to(torch.uint8).float() / 255).detach())


@pytest.mark.parametrize("sampler", [
    lambda generator: RandomSampler(IMAGES, generator=generator),
    lambda generator: BatchSampler(WeightedRandomSampler([1.0] * 240, 240, generator=generator), 20, drop_last=False),
])  # fmt: skip
def test_fitting_leaves_the_order_of_a_sampler_of_ones_own_alone(sampler):
    seen = []
    for fit_flow in (1, None):
        generator = torch.Generator().manual_seed(0)
        chosen = sampler(generator)
        how = {"batch_sampler": chosen} if isinstance(chosen, BatchSampler) else {"sampler": chosen, "batch_size": 20}
        trainer = pl.Trainer(max_epochs=3, **QUIET)
        trainer.fit(model(fit_flow=fit_flow), DataLoader(IMAGES, **how), DataLoader(IMAGES, 20))
        seen.append(generator.get_state())
    assert torch.equal(*seen)


class Queue(IterableDataset):
    """Goes on where it was left, and is its own iterator."""

    def __init__(self, images):
        self.images = iter(images)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.images)


def test_a_stream_that_comes_once_is_left_to_training():
    steps = []
    for fit_flow in (1, None):
        trainer = pl.Trainer(max_epochs=3, limit_train_batches=2, **QUIET)
        trainer.fit(model(fit_flow=fit_flow), DataLoader(Queue(IMAGES[:200]), 20))
        steps.append(trainer.global_step)
    assert steps == [6, 6]


def test_of_an_endless_stream_no_more_is_read_where_codes_are_not_finite(monkeypatch):
    class Endless(IterableDataset):
        def __iter__(self):
            return itertools.repeat(IMAGES[0])

    monkeypatch.setattr("wae_lightning.training.fit_flow.MOST_CODES", 100)
    one = model(fit_flow=0)
    one.encoder.register_forward_hook(lambda module, _, codes: codes if module.training else codes / 0)
    trainer = pl.Trainer(max_epochs=1, limit_train_batches=2, **QUIET)
    trainer.fit(one, DataLoader(Endless(), 20))
    assert trainer.global_step == 2


@pytest.mark.parametrize("fit_flow", [False, True, 1.5, "0"])
def test_fit_flow_is_a_number_of_epochs(fit_flow):
    with pytest.raises(ValueError, match="fit_flow must be a whole number or None, got"):
        model(fit_flow=fit_flow)


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("cls", [WAEMMD, WAEGAN])
@pytest.mark.parametrize("form", ["once", "list", "dict"])
def test_data_that_cannot_be_read_again_leave_the_remembered_codes(form, cls, validated):
    loader = DataLoader(IMAGES[:200], 20)
    forms = {"once": lambda: iter(loader), "list": lambda: [loader] * 2, "dict": lambda: {"image": loader, "b": loader}}
    fitted, trained = model(cls, fit_flow=0), model(cls)
    for one in (fitted, trained):
        torch.manual_seed(1)
        pl.Trainer(max_epochs=1, **QUIET).fit(one, forms[form](), {"a": DataLoader(IMAGES, 20)} if validated else None)
    codes = trained.encoder(IMAGES[200:])
    assert fitted.flow.log_prob(codes).mean() > trained.flow.log_prob(codes).mean() + 0.1


def test_without_codes_a_flow_is_not_fitted_and_that_is_said():
    class Own(WAEMMD):
        def training_step(self, batch, batch_idx):
            return (self(batch) - batch).square().mean()

    once = model(Own, fit_flow=0)
    with pytest.warns(UserWarning, match="the flow is not fitted: there are fewer than two finite codes"):
        pl.Trainer(max_epochs=1, **QUIET).fit(once, iter(IMAGES[:200].split(20)))
    again, trained = model(Own, fit_flow=0), model(Own)
    for one in (again, trained):  # nothing is remembered, and all can be read
        fit(one)
    codes = trained.encoder(IMAGES[200:])
    assert again.flow.log_prob(codes).mean() > trained.flow.log_prob(codes).mean() + 0.1


@pytest.mark.parametrize("averaging", [
    lambda: EMAWeightAveraging(decay=0.9),
    lambda: pl.callbacks.StochasticWeightAveraging(1e-3, swa_epoch_start=1),
])  # fmt: skip
@pytest.mark.parametrize("norm", [False, True])
def test_a_flow_is_fitted_to_the_codes_of_averaged_weights(averaging, norm, tmp_path):
    models = [model(fit_flow=fit_flow) for fit_flow in (0, None)]
    for one in models:
        if norm:
            one.encoder.append(torch.nn.BatchNorm1d(2))
        trainer = fit(one, callbacks=[averaging(), LastCheckpoint(folder=tmp_path / str(one.fit_flow))])
        one.eval()
    codes = models[1].encoder(IMAGES[200:])
    torch.testing.assert_close(models[0].encoder(IMAGES[200:]), codes, rtol=0, atol=0)
    found, trained = (one.flow.log_prob(codes).mean() for one in models)
    assert found > trained + 0.1
    if isinstance(trainer.callbacks[0], EMAWeightAveraging):  # the other hands its weights over after the last one
        saved = torch.load(tmp_path / "0" / "last.ckpt", weights_only=False)["state_dict"]
        for name, value in models[0].flow.state_dict().items():
            assert torch.equal(saved[f"flow.{name}"], value)


@pytest.mark.parametrize("how", ["early", "time"])
def test_a_run_that_a_callback_stops_is_fitted_too(how, tmp_path):
    stops = {
        "early": lambda: pl.callbacks.EarlyStopping("val/loss", patience=0, min_delta=100),
        "time": lambda: pl.callbacks.LambdaCallback(  # as Lightning's Timer, which ends an epoch in its middle
            on_train_batch_end=lambda trainer, *_: setattr(trainer, "should_stop", trainer.global_step >= 15)
        ),
    }
    fitted, trained = model(fit_flow=0), model()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for one, folder in (fitted, tmp_path / "fitted"), (trained, tmp_path / "trained"):
            trainer = fit(one, epochs=50, callbacks=[stops[how](), LastCheckpoint(folder=folder)])
            assert trainer.global_step == (20 if how == "early" else 15)
    codes = trained.encoder(IMAGES[200:])
    assert fitted.flow.log_prob(codes).mean() > trained.flow.log_prob(codes).mean() + 0.1
    # what Lightning stops after the last chance to save it is said
    saved = torch.load(tmp_path / "fitted" / "last.ckpt", weights_only=False)["state_dict"]
    assert torch.equal(saved["flow.means"], fitted.flow.means) == (how == "time")
    assert sum("after the last checkpoint was written" in str(w.message) for w in caught) == (how == "early")


@pytest.mark.parametrize(("mode", "fit_flow", "too_early"), [("min", 0, True), ("min", 1, False), ("max", 0, False)])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_best_checkpoint_from_before_the_fit_is_said(mode, fit_flow, too_early, resumed, tmp_path):
    def callbacks():
        best = pl.callbacks.ModelCheckpoint(tmp_path, "best", monitor="epoch", mode=mode, enable_version_counter=False)
        return [best, EpochNumber(), LastCheckpoint(folder=tmp_path)]

    if resumed:
        with pytest.raises(InterruptedError):
            fit(model(fit_flow=fit_flow), callbacks=[*callbacks(), StopAt(2)])
    last = tmp_path / "last.ckpt" if resumed else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model(fit_flow=fit_flow), callbacks=callbacks(), ckpt_path=last)
    said = [str(w.message) for w in caught if "written before the flow was fitted" in str(w.message)]
    assert len(said) == too_early
    assert all(line.startswith(f"{tmp_path}/best.ckpt: ") for line in said)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model(fit_flow=fit_flow), epochs=4, callbacks=callbacks(), ckpt_path=tmp_path / "last.ckpt")
    # the run before has fitted: the best one may have its fit
    assert not [w for w in caught if "written before the flow was fitted" in str(w.message)]


class StopAt(pl.Callback):
    """Ends a run as its death would."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise InterruptedError


class EpochNumber(pl.Callback):
    """Logs the number of the epoch, of which the first one is the best."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("epoch", float(trainer.current_epoch))


@pytest.mark.parametrize(
    ("flags", "most"),
    [
        ({"fast_dev_run": True}, (20, 20)),
        ({"limit_train_batches": 2, "limit_val_batches": 1}, (40, 20)),
        ({"limit_train_batches": 0.1}, (20, 40)),
        ({"overfit_batches": 1}, (20, 20)),
        ({}, (200, 40)),
    ],
    ids=str,
)
def test_no_more_is_read_for_a_fit_than_the_trainer_takes(flags, most, monkeypatch):
    fits = []
    monkeypatch.setattr(MixtureFlow, "fit", lambda self, *codes: fits.append(tuple(map(len, codes))))
    fit(model(fit_flow=0), epochs=1, **flags)
    assert fits == [most, (5 * 2 * most[0], most[1])]


def test_labels_of_which_there_are_too_few_codes_are_said():
    flow = MixtureFlow(2, 4, condition_features=3)
    codes = torch.cat([torch.randn(40, 2), torch.eye(3)[torch.tensor([0] * 38 + [2] * 2)]], 1)
    callback = FitFlow(flow, CodeMemory(100), lambda batch: batch[0], every_n_epochs=0)
    loader = DataLoader(TensorDataset(codes), 20)
    with pytest.warns(UserWarning, match="not fitted for labels of which there are fewer than three codes: 1, 2$"):
        pl.Trainer(max_epochs=1, callbacks=[callback], **QUIET).fit(Still(), loader, loader)


class Still(pl.LightningModule):
    """Has one weight, and learns nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum()

    def validation_step(self, batch, batch_idx): ...

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("where", ["training", "validation"])
def test_numbers_that_are_not_finite_are_left_to_the_checks_of_the_run(where):
    one = model(fit_flow=0)
    bad = IMAGES.clone()
    bad[-1] = float("nan")
    good, bad = (DataLoader(images, 40) for images in (IMAGES, bad))
    loaders = (bad, good) if where == "training" else (good, bad)
    # what a limit leaves out is not looked at
    pl.Trainer(max_epochs=1, **QUIET, limit_train_batches=3, limit_val_batches=3).fit(one, *loaders)
    assert one.flow.log_prob(one.encoder(IMAGES)).isfinite().all()
    with pytest.raises(FloatingPointError, match=r"the batch itself|training step 6"):
        pl.Trainer(max_epochs=1, **QUIET).fit(model(fit_flow=0), *loaders)


def test_a_run_that_diverges_in_its_last_step_ends_in_a_sentence():
    one = model(fit_flow=0)
    one.make_optimizer = functools.partial(torch.optim.SGD, lr=1e38)
    loader = DataLoader(IMAGES, 120)
    with pytest.raises(FloatingPointError, match="validation after step 1: codes are not finite; first bad module"):
        pl.Trainer(max_epochs=1, limit_train_batches=1, **QUIET).fit(one, loader, loader)


class Drawn(torch.utils.data.Dataset):
    """Noise of NumPy's and Python's generators."""

    def __len__(self):
        return 200

    def __getitem__(self, index):
        return IMAGES[index] * (np.random.rand() + random.random()) / 2


def test_reading_the_data_again_changes_nothing_of_what_later_epochs_see():
    models = [model(fit_flow=fit_flow) for fit_flow in (None, 1)]
    for one in models:
        pl.seed_everything(3, verbose=False)
        order = torch.Generator().manual_seed(0)
        loaders = DataLoader(Drawn(), 20, shuffle=True, generator=order), DataLoader(IMAGES[200:], 20)
        pl.Trainer(max_epochs=3, **QUIET).fit(one, *loaders)
    expected, found = (dict(one.encoder.named_parameters()) for one in models)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_flow_that_is_judged_is_the_fitted_one():
    """The last epoch has no validation, and that of the epoch before saw the flow as it was."""
    one = model(flow=MixtureFlow(2, 1), fit_flow=0)
    with torch.no_grad():
        one.flow.means.fill_(30.0)
    loader = DataLoader(IMAGES.repeat(2, 1, 1, 1), 100)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl.Trainer(max_epochs=3, check_val_every_n_epoch=2, **QUIET).fit(one, loader, loader)
    assert not [w for w in caught if "does not make" in str(w.message)]


class Stream(IterableDataset):
    """Images that tell no number of theirs."""

    def __iter__(self):
        return iter(IMAGES[200:])


def test_validation_images_may_be_a_stream():
    fitted, streamed = model(fit_flow=0), model(fit_flow=0)
    fit(fitted)
    torch.manual_seed(1)
    trainer = pl.Trainer(max_epochs=3, **QUIET)
    trainer.fit(streamed, DataLoader(IMAGES[:200], 20, shuffle=True), DataLoader(Stream(), 20))
    torch.testing.assert_close(dict(streamed.named_parameters()), dict(fitted.named_parameters()), rtol=0, atol=0)


@pytest.mark.parametrize("cls", [WAEMMD, WAEGAN])
def test_a_run_goes_on_to_the_same_flow(cls, tmp_path):
    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "second.ckpt")

    whole, resumed = model(cls, 1), model(cls, 1)
    fit(whole, 4, callbacks=[Save()])
    fit(resumed, 4, ckpt_path=tmp_path / "second.ckpt")
    for (name, found), expected in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(found, expected), name


@pytest.mark.parametrize(("fit_flow", "flow", "message"), [
    (0, CouplingFlow(2, 2, 4), "fit_flow needs a MixtureFlow, got CouplingFlow"),
    (-1, None, "fit_flow must be 0 or more, got -1"),
])  # fmt: skip
def test_bad_arguments(fit_flow, flow, message):
    with pytest.raises(ValueError, match=message):
        model(fit_flow=fit_flow, flow=flow)


def test_only_mixtures_are_fitted():
    with pytest.raises(ValueError, match="only a MixtureFlow can be fitted, got CouplingFlow"):
        FitFlow(CouplingFlow(2, 2, 4), CodeMemory(10), lambda batch: batch, 0)


# ---- whether it fits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.3])
def test_the_distance_is_that_of_kolmogorov_and_smirnov(scale):
    z = scale * torch.randn(300, 7)
    lengths = z.double().square().sum(1).numpy()
    assert distance_from_normal(z) == pytest.approx(kstest(lengths, chi2(7).cdf).statistic, rel=1e-6)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_a_flow_that_does_not_fit_says_so_once(shift):
    """A mixture of one Gaussian fits codes of one cluster; moved away, it does not."""
    one = model(flow=MixtureFlow(2, 1), fit_flow=0)
    loaders = DataLoader(IMAGES.repeat(2, 1, 1, 1), 100)
    trainer = pl.Trainer(max_epochs=2, **QUIET)
    trainer.fit(one, loaders, loaders)
    with torch.no_grad():
        one.flow.means.add_(shift)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.validate(one, loaders, verbose=False)
    said = [str(w.message) for w in caught if "does not make validation codes normal" in str(w.message)]
    assert len(said) == bool(shift)
    if said:
        lengths = one.encode(IMAGES).square().sum(1).mean().item()
        assert f"length is {lengths:.3g} where 2 is normal" in said[0]
        assert "\n" not in said[0]


def test_a_fit_without_steps_enough_says_so_at_its_end_only():
    one = model(flow=MixtureFlow(2, 1))
    with torch.no_grad():
        one.flow.means.fill_(5.0)
    loader, trainer = DataLoader(IMAGES, 120), pl.Trainer(max_epochs=3, **QUIET)
    with pytest.warns(UserWarning, match="does not make validation codes normal") as caught:
        trainer.fit(one, loader, loader)
    assert sum("does not make" in str(w.message) for w in caught) == 1

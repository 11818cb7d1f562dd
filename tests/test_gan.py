"""The WAE-GAN: two optimizers by hand, and every flag of the trainer with its usual meaning."""

import copy
import functools
import math

import pytest
import torch
from helpers import ONE_CYCLE, perceptrons, pl, small, trainer, weights
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules import MNISTDataModule
from wae_lightning import WAE, WAEGAN, WAEMMD
from wae_lightning.networks import Critic
from wae_lightning.penalties import MMD
from wae_lightning.penalties.adversarial import Adversarial
from wae_lightning.priors import Normal, Sphere

SGD = functools.partial(torch.optim.SGD, lr=0.5)
IMAGES = torch.rand(48, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class FixedPrior(Normal):
    """Always the same draws, so that two ways of training meet the same ones."""

    def sample(self, n, generator=None, device=None):
        return torch.randn(48, self.latent_dim, generator=torch.Generator().manual_seed(n))[:n]


def gan(optimizer=SGD, **penalty):
    torch.manual_seed(1)
    networks = perceptrons()
    penalty = Adversarial(Critic(2, width=8), optimizer=functools.partial(torch.optim.SGD, lr=0.3), **penalty)
    return WAEGAN(**networks, prior=FixedPrior(2), penalty=penalty, penalty_weight=2.0, optimizer=optimizer)


def by_hand(model, batches, clip=None, accumulate=1, critic_steps=1):
    """Algorithm 1 written out: the critic first, then the auto-encoder against the updated critic."""
    model = copy.deepcopy(model)
    critic = model.penalty.critic
    networks = [*model.encoder.parameters(), *model.decoder.parameters()]
    first, second = torch.optim.SGD(networks, lr=0.5), torch.optim.SGD(critic.parameters(), lr=0.3)
    for group in [batches[i : i + accumulate] for i in range(0, len(batches), accumulate)]:
        codes = torch.cat([model.encoder(x) for x in group]).detach()
        for _ in range(critic_steps):
            draws = model.prior.sample(len(codes))
            real = F.binary_cross_entropy_with_logits(critic(draws), torch.ones(len(codes)))
            fake = F.binary_cross_entropy_with_logits(critic(codes), torch.zeros(len(codes)))
            gradients = torch.autograd.grad(2.0 * (real + fake), list(critic.parameters()))
            update(second, list(critic.parameters()), gradients, clip)
        loss = 0.0
        for x in group:
            z = model.encoder(x)
            cost = 0.05 * (x - model.decoder(z)).square().flatten(1).sum(1).mean()
            loss += (cost + 2.0 * F.binary_cross_entropy_with_logits(critic(z), torch.ones(len(z)))) / accumulate
        update(first, networks, torch.autograd.grad(loss, networks), clip)
    return weights(model)


def update(optimizer, parameters, gradients, clip):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    if clip and clip[1] == "norm":
        norm = math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))
        for parameter in parameters:
            parameter.grad *= min(1.0, clip[0] / (norm + 1e-6))
    elif clip:
        for parameter in parameters:
            parameter.grad.clamp_(-clip[0], clip[0])
    optimizer.step()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {}),
        ({"gradient_clip_val": 0.05}, {"clip": (0.05, "norm")}),
        ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, {"clip": (0.01, "value")}),
        ({"accumulate_grad_batches": 3}, {"accumulate": 3}),
        ({"accumulate_grad_batches": 3, "gradient_clip_val": 0.05}, {"accumulate": 3, "clip": (0.05, "norm")}),
        ({"deterministic": True}, {}),
    ],
    ids=str,
)
def test_training_equals_the_algorithm_written_out(tmp_path, flags, expected):
    model = gan()
    result = by_hand(model, IMAGES.split(8), **expected)
    assert not torch.allclose(result, weights(model))
    trainer(tmp_path, limit_train_batches=None, limit_val_batches=0, **flags).fit(model, DataLoader(IMAGES, 8))
    torch.testing.assert_close(weights(model), result, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_several_critic_steps_for_one_of_the_autoencoder(tmp_path, accumulate):
    model = gan(steps=3)
    result = by_hand(model, IMAGES.split(8), accumulate=accumulate, critic_steps=3)
    fitting = trainer(tmp_path, limit_train_batches=None, limit_val_batches=0, accumulate_grad_batches=accumulate)
    fitting.fit(model, DataLoader(IMAGES, 8))
    torch.testing.assert_close(weights(model), result, rtol=1e-4, atol=1e-6)
    assert fitting.global_step == 6 / accumulate


def test_the_trainer_keeps_its_settings(tmp_path):
    fitting = trainer(tmp_path, gradient_clip_val=0.5, accumulate_grad_batches=2)
    fitting.fit(gan(), DataLoader(IMAGES, 8))
    assert (fitting.gradient_clip_val, fitting.accumulate_grad_batches) == (0.5, 2)


def test_max_steps_counts_updates_of_the_autoencoder_as_with_one_optimizer(tmp_path):
    def batches(cls):
        seen = []

        class Counting(cls):
            def training_step(self, batch, batch_idx):
                seen.append(batch_idx)
                return super().training_step(batch, batch_idx)

        fitting = trainer(tmp_path, max_epochs=-1, max_steps=7, accumulate_grad_batches=2, limit_train_batches=None)
        fitting.fit(Counting(**perceptrons()), DataLoader(IMAGES, 8))
        return len(seen), fitting.global_step, fitting.current_epoch

    assert batches(WAEGAN) == batches(WAEMMD)


@pytest.mark.parametrize(("scaler", "clip"), [(None, None), (2.0**10, None), (2.0**10, 0.05)])
def test_gradients_are_unscaled_before_they_are_clipped_and_the_scale_changes_once(tmp_path, scaler, clip):
    """With a gradient scaler, in float32 arithmetic, training must be what it is without one."""
    results = []
    for scale in (None, scaler):
        model = gan()
        plugins = []
        if scale:
            # grows in every step: a second update between the two optimizers would halve the critic's gradients
            grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)
            plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", scaler=grad_scaler)
            plugin.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)
            plugins = [plugin]
        fitting = trainer(
            tmp_path, limit_train_batches=None, limit_val_batches=0, gradient_clip_val=clip, plugins=plugins
        )
        fitting.fit(model, DataLoader(IMAGES, 8))
        results.append(weights(model))
        if scale:
            assert grad_scaler.get_scale() == scale * 2**6
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_run(tmp_path, precision):
    fitting = trainer(tmp_path, precision=precision)
    fitting.fit(small(WAEGAN), MNISTDataModule())
    assert torch.isfinite(fitting.callback_metrics["train/penalty"])


def learning_rates(fitting):
    return [round(optimizer.param_groups[0]["lr"], 10) for optimizer in fitting.optimizers]


def test_schedulers_step_each_epoch_each_step_and_on_a_plateau(tmp_path):
    halve = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, factor=0.1, patience=0, threshold=0.999)

    def fit(scheduler, interval, critic_scheduler, critic_interval):
        critic = Adversarial(optimizer=SGD, lr_scheduler=critic_scheduler, lr_interval=critic_interval)
        model = WAEGAN(**perceptrons(), penalty=critic, optimizer=SGD, lr_scheduler=scheduler, lr_interval=interval)
        fitting = trainer(tmp_path, max_epochs=3, limit_train_batches=4, accumulate_grad_batches=2)
        fitting.fit(model, DataLoader(IMAGES, 8), DataLoader(IMAGES, 8))
        return learning_rates(fitting)

    assert fit(halve, "epoch", halve, "step") == [0.5 / 2**3, 0.5 / 2**6]
    # the first epoch is the best so far, the other two do not improve enough
    assert fit(plateau, "epoch", None, "epoch") == [0.5 / 100, 0.5]
    optimizer = SGD([torch.zeros(1, requires_grad=True)])
    expected = ONE_CYCLE(optimizer, total_steps=6)
    for _ in range(6):
        optimizer.step()
        expected.step()
    assert fit(ONE_CYCLE, "epoch", ONE_CYCLE, "epoch") == [round(optimizer.param_groups[0]["lr"], 10)] * 2


def test_a_plateau_scheduler_without_its_metric_is_an_error(tmp_path):
    plateau = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ValueError, match=r"ReduceLROnPlateau watches 'val/loss', but only .*train/cost"):
        trainer(tmp_path, limit_val_batches=0).fit(WAEGAN(**perceptrons(), lr_scheduler=plateau), DataLoader(IMAGES, 8))


def test_a_resumed_run_ends_with_the_weights_of_the_uninterrupted_one(tmp_path):
    def model():
        penalty = Adversarial(lr_scheduler=ONE_CYCLE, steps=2)
        return small(WAEGAN, penalty=penalty, lr_scheduler=ONE_CYCLE, standardize_codes=True)

    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    pl.seed_everything(5, verbose=False)
    whole = model()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[checkpoint]).fit(whole, MNISTDataModule())
    pl.seed_everything(77, verbose=False)
    resumed = model()
    trainer(tmp_path, max_epochs=2).fit(
        resumed, MNISTDataModule(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True
    )
    assert torch.equal(weights(whole), weights(resumed))


@pytest.mark.parametrize("flags", [{"fast_dev_run": True}, {"overfit_batches": 2}])
def test_short_runs(tmp_path, flags):
    fitting = trainer(tmp_path, **flags)
    fitting.fit(small(WAEGAN), MNISTDataModule())
    assert torch.isfinite(fitting.callback_metrics["train/critic_loss"])


def test_monitors_of_learning_rates_and_gradients(tmp_path):
    norms = []

    class GradientNorms(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            norms.append(sum(p.grad.norm() for group in optimizer.param_groups for p in group["params"]))

    monitor = pl.callbacks.LearningRateMonitor("step")
    logger = pl.loggers.CSVLogger(tmp_path)
    halve = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    model = WAEGAN(**perceptrons(), penalty=Adversarial(lr_scheduler=halve), lr_scheduler=halve)
    trainer(tmp_path, logger=logger, log_every_n_steps=1, callbacks=[monitor, GradientNorms()]).fit(
        model, DataLoader(IMAGES, 8)
    )
    assert len(norms) == 6
    assert min(norms) > 0
    assert {"lr-autoencoder", "lr-critic"} <= set(monitor.lrs)


def test_the_networks_do_not_touch_each_other():
    penalty = Adversarial(Critic(2, width=8))
    penalty.set_prior(Normal(2))
    z = torch.randn(10, 2, requires_grad=True)
    penalty(z, torch.randn(10, 2)).backward()
    assert z.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in penalty.parameters())
    assert all(parameter.requires_grad for parameter in penalty.parameters())


def test_losses_are_binary_cross_entropies_on_logits():
    penalty = Adversarial(Critic(2, width=8))
    penalty.set_prior(Normal(2))
    z, z_prior = torch.randn(10, 2) + 1, torch.randn(12, 2)
    codes, prior = penalty.critic(z).sigmoid(), penalty.critic(z_prior).sigmoid()
    torch.testing.assert_close(penalty(z, z_prior), -codes.log().mean())
    loss, accuracies = penalty.critic_loss(z, z_prior)
    torch.testing.assert_close(loss, -(1 - codes).log().mean() - prior.log().mean())
    assert accuracies["train/critic_accuracy_codes"] == (codes < 0.5).float().mean()


def test_the_log_prior_is_added_to_the_logits():
    penalty = Adversarial(Critic(3, width=8), log_prior=True)
    penalty.set_prior(Normal(3, scale=2.0))
    z = torch.randn(10, 3)
    expected = torch.distributions.Normal(0, 2.0).log_prob(z).sum(1)
    torch.testing.assert_close(penalty.logits(z) - penalty.critic(z), expected)
    with pytest.raises(ValueError, match="log_prior needs a Normal prior, got Sphere"):
        Adversarial(log_prior=True).set_prior(Sphere(3))


def test_the_gradient_penalty_is_the_mean_squared_gradient_at_the_prior():
    penalty = Adversarial(torch.nn.Sequential(torch.nn.Linear(2, 1)), gradient_penalty=3.0)
    penalty.set_prior(Normal(2))
    z, z_prior = torch.randn(10, 2), torch.randn(12, 2)
    with_penalty = penalty.critic_loss(z, z_prior)[0]
    penalty.gradient_penalty = 0.0
    # the gradient of a linear critic is its weight
    expected = 3.0 * penalty.critic[0].weight.square().sum()
    torch.testing.assert_close(with_penalty - penalty.critic_loss(z, z_prior)[0], expected)


def test_a_normalized_critic_is_lipschitz():
    critic = Critic(4, width=16, normalize=True)
    for _ in range(100):
        critic(torch.randn(8, 4))
    critic.eval()
    x, y = torch.randn(200, 4), torch.randn(200, 4)
    assert ((critic(x) - critic(y)).abs() <= 1.01 * (x - y).norm(dim=1)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WAEMMD(penalty=Adversarial()), "WAEMMD takes a penalty without a critic, got Adversarial: use WAEGAN"),
        (lambda: WAEGAN(penalty=MMD()), "WAEGAN needs an Adversarial penalty, got MMD: use WAEMMD"),
        (lambda: WAEGAN(critic=Critic(5), latent_dim=8), "the critic does not take codes of latent_dim 8"),
        (lambda: WAEGAN(critic=torch.nn.Linear(8, 3)), r"must map \(n, d\) to \(n,\) or \(n, 1\), got \(2, 3\)"),
        (lambda: WAEGAN(penalty_weight=-1.0), "penalty_weight must be 0 or more"),
        (lambda: WAEGAN(critic=Critic(8), penalty=Adversarial()), "to WAEGAN or to its penalty, not to both"),
        (lambda: WAE(penalty=Adversarial(), code_queue=5), "code_queue are for penalties that compare samples"),
        (lambda: Adversarial(steps=0), "steps of the critic must be at least 1, got 0"),
        (lambda: Adversarial(gradient_penalty=-1), "gradient_penalty must be 0 or more, got -1"),
        (lambda: Critic(0), "latent_dim of the critic must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_step_meets_draws_of_the_scale_of_the_prior(tmp_path, scale):
    seen = []

    class Look(Adversarial):
        def critic_loss(self, z, z_prior):
            seen.append(z_prior.std().item())
            return super().critic_loss(z, z_prior)

    model = WAEGAN(**perceptrons(), prior=Normal(2, scale), penalty=Look(Critic(2, width=8)))
    trainer(tmp_path, limit_val_batches=0).fit(model, DataLoader(torch.rand(3000, 1, 4, 4), 1000))
    assert seen == [pytest.approx(scale, rel=0.1)] * 3


def test_accuracies_count_codes_below_and_draws_above_zero():
    penalty = Adversarial(torch.nn.Linear(1, 1, bias=False), optimizer=SGD)
    penalty.set_prior(Normal(1))
    with torch.no_grad():
        penalty.critic.weight.fill_(1.0)
    _, shares = penalty.critic_loss(
        torch.tensor([[-1.0], [-2.0], [-3.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0], [4.0], [-1.0]])
    )
    assert shares["train/critic_accuracy_codes"] == 0.75
    assert shares["train/critic_accuracy_prior"] == pytest.approx(0.8)


def test_the_critic_s_own_optimizer_is_adam_with_the_paper_s_momentum():
    optimizer = Adversarial().make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (1e-3, (0.5, 0.999))


def test_the_encoder_s_loss_leaves_the_critic_trainable():
    penalty = Adversarial(Critic(2, width=8))
    penalty.set_prior(Normal(2))
    penalty(torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)).backward()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in penalty.parameters())

"""What a user's subclass, second loader or other mode must not change: steps are the model's, all else is callbacks."""

import functools
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from helpers import perceptrons, pl, small, trainer, weights
from torch.utils.data import DataLoader

from datamodules import HalfImageDataModule, MNISTDataModule
from datamodules.mnist import BUNDLED_DIGITS, read_digits
from wae_lightning import WAEGAN, WAEMMD, PointNetWAE
from wae_lightning.memory import CodeMemory
from wae_lightning.networks import ConvDecoder, PointNetEncoder
from wae_lightning.noise import GaussianNoise
from wae_lightning.penalties import Adversarial, MMDPlusPlus
from wae_lightning.priors import Normal

IMAGES = torch.rand(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SGD = functools.partial(torch.optim.SGD, lr=0.5)
# hooks whose very work is to fetch data or to compute; all others do nothing unless somebody fills them
WORKING = {
    "train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader", "transfer_batch_to_device",
    "on_before_batch_transfer", "on_after_batch_transfer", "on_before_zero_grad", "on_validation_model_eval",
    "on_validation_model_train", "on_validation_model_zero_grad", "on_test_model_eval", "on_test_model_train",
    "on_predict_model_eval", "on_predict_model_train",
}  # fmt: skip
OLD = {"configure_sharded_model"}  # Lightning wants one of two names for one hook
BASES = (pl.core.hooks.ModelHooks, pl.core.hooks.DataHooks, pl.core.hooks.CheckpointHooks)
HOOKS = ["configure_callbacks", *(name for base in BASES for name in vars(base) if name[0] != "_")]
HOOKS = [name for name in HOOKS if name not in WORKING | OLD]


def with_empty_hooks(cls, names):
    def nothing(self, *arguments, **named):
        return None

    return type(f"Their{cls.__name__}", (cls,), dict.fromkeys(names, nothing))


def fit(folder, cls, pretrain_steps=2, **flags):
    torch.manual_seed(1)
    model = cls(**perceptrons(), optimizer=SGD, pretrain_steps=pretrain_steps)
    before = weights(model)
    flags = {"gradient_clip_val": 1e-3, "accumulate_grad_batches": 3, "limit_train_batches": 6} | flags
    fitting = trainer(folder, **flags)
    torch.manual_seed(2)
    fitting.fit(model, DataLoader(IMAGES, 4), DataLoader(IMAGES, 4))
    return weights(model), weights(model) - before, fitting


@pytest.mark.parametrize("cls", [WAEMMD, WAEGAN])
def test_a_subclass_with_hooks_of_its_own_trains_as_the_original(tmp_path, cls):
    assert {"setup", "on_train_start", "on_before_optimizer_step", "on_save_checkpoint", "on_load_checkpoint"} <= {
        *HOOKS
    }
    expected, _, original = fit(tmp_path, cls)
    for names in (*([name] for name in ("setup", "on_before_optimizer_step", "configure_callbacks")), HOOKS):
        found, _, fitting = fit(tmp_path, with_empty_hooks(cls, names))
        assert torch.equal(found, expected), names
        assert fitting.global_step == original.global_step == 2


@pytest.mark.parametrize("cls", [WAEMMD, WAEGAN])
def test_clipping_bounds_each_network_s_step(tmp_path, cls):
    def step(clip):
        flags = {"gradient_clip_val": clip, "limit_train_batches": 3, "accumulate_grad_batches": 3}
        return fit(tmp_path, cls, pretrain_steps=0, **flags)[1][:200].abs().max().item()  # of the encoder

    assert step(1e-3) < 0.1 * step(None)


def test_a_subclass_s_own_callbacks_join_the_models(tmp_path):
    class Counts(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.types = [type(callback).__name__ for callback in trainer.callbacks]

    counts = Counts()

    class Theirs(WAEGAN):
        def configure_callbacks(self):
            return counts

    class TheirsOnce(WAEGAN):
        def configure_callbacks(self):
            return [counts, *super().configure_callbacks()]

    for cls in (Theirs, TheirsOnce):
        fit(tmp_path, cls)
        assert counts.types.count("BorrowedFlags") == counts.types.count("StopAtBadNumbers") == 1


def test_a_trainer_whose_fit_is_refused_has_its_flags_back(tmp_path):
    class Refuses(WAEGAN):
        def on_fit_start(self):
            raise RuntimeError("refused")

    fitting = trainer(tmp_path, gradient_clip_val=0.5, accumulate_grad_batches=2)
    with pytest.raises(RuntimeError, match="refused"):
        fitting.fit(Refuses(**perceptrons()), DataLoader(IMAGES, 4))
    assert (fitting.gradient_clip_val, fitting.accumulate_grad_batches) == (0.5, 2)


def test_the_first_steps_equal_those_of_version_0_1():
    """The losses as commit b8a0647 had them, in which only the order of hooks differed.

    The first three of 50: rounding differs between kinds of CPU, and grows many times with each step.
    """
    import wae_lightning

    recorded = json.loads((Path(__file__).parent / "data" / "steps_of_version_0_1.json").read_text())
    losses = []

    class Record(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            torch.manual_seed(5)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    for name, expected in recorded.items():
        torch.manual_seed(0)
        if name == "mnist_wae_mmd":  # what the configs had then
            then = {"noise": GaussianNoise(initial_std=0.3), "penalty_weight": 10.0, "flow": {"components": 100}}
        else:
            then = {"flow": "CouplingFlow", "encoder": {"box": False}, "decoder": {"box": False}}
        model, _ = wae_lightning.from_config(name, **then)
        torch.manual_seed(2)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.05)
        if name == "modelnet40_pointnet":
            generator = torch.Generator().manual_seed(3)
            batches = [
                torch.nn.functional.normalize(torch.randn(6, 256, 3, generator=generator), dim=2)
                * torch.rand(6, 1, 3, generator=generator)
                for _ in range(50)
            ]
        else:
            batches = read_digits(BUNDLED_DIGITS, "train")[0].float().div_(255).split(100)[:50]
        losses.clear()
        flags = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        pl.Trainer(max_epochs=1, limit_val_batches=0, callbacks=[Record()], **flags).fit(
            model, DataLoader(batches, batch_size=None)
        )
        assert losses[: len(expected)] == pytest.approx(expected, rel=2e-3), name


# ---- one memory -----------------------------------------------------------------------------------------------------


def test_the_memory_keeps_its_codes_through_a_state_dict():
    memory = CodeMemory(capacity=5)
    for value in range(4):
        memory.remember(torch.full((2, 1), float(value), requires_grad=True))
    assert len(memory) == 6
    again = CodeMemory(capacity=5)
    again.load_state_dict(memory.state_dict())
    assert again.latest(3).flatten().tolist() == memory.latest(3).flatten().tolist() == [3, 3, 2]
    assert again.all().flatten().tolist() == [1, 1, 2, 2, 3, 3]
    again.remember(torch.full((2, 1), 9.0))
    assert again.all().flatten().tolist() == [2, 2, 3, 3, 9, 9]
    assert not again.all().requires_grad
    assert CodeMemory(3).latest(2, like=torch.zeros(1, 4)).shape == (0, 4)


def sets(count=24):
    return torch.rand(count, 40, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("coupling", [{"coupling": 0.5}, {"coupling_weight": 1.0}, {}], ids=str)
def test_a_run_with_coupled_codes_is_resumed_exactly(tmp_path, coupling):
    def model():
        torch.manual_seed(0)
        return PointNetWAE(PointNetEncoder(8, (16, 32)), num_points=32, latent_dim=8, coupled_codes=20, **coupling)

    def run(epochs, path=None):
        trained = model()
        fitting = trainer(tmp_path, max_epochs=epochs, limit_train_batches=None, limit_val_batches=0)
        fitting.fit(trained, DataLoader(sets(), 8), ckpt_path=path, weights_only=True)
        fitting.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return weights(trained)

    run(1)
    torch.manual_seed(0)
    whole = run(2)
    torch.manual_seed(77)
    run(1)
    torch.manual_seed(0)
    assert torch.equal(whole, run(2))
    torch.manual_seed(0)
    run(1)
    torch.manual_seed(123)
    assert torch.equal(whole, run(2, tmp_path / "1.ckpt"))


def test_a_queue_holds_whole_inputs_for_a_penalty_of_several_codes(tmp_path):
    model = WAEMMD(
        **perceptrons(features=4), noise=GaussianNoise(), penalty=MMDPlusPlus(24, codes_per_input=3), code_queue=10
    )
    trainer(tmp_path, limit_train_batches=5).fit(model, DataLoader(IMAGES, 4))


# ---- terms ----------------------------------------------------------------------------------------------------------


def test_terms_have_one_name_and_one_meaning_in_training_and_validation(tmp_path):
    torch.manual_seed(0)
    model = PointNetWAE(
        PointNetEncoder(8, (16, 32), feature_transform=True), num_points=32, latent_dim=8, coupling_weight=3.0
    )
    with torch.no_grad():
        model.encoder.feature_transform.output[-1].bias.mul_(2)
    fitting = trainer(tmp_path, limit_val_batches=None)
    fitting.fit(model, DataLoader(sets(), 8), DataLoader(sets(), 8))
    logged = fitting.callback_metrics
    names = {"cost", "penalty", "loss", "orthogonality", "coupling"}
    assert {f"{stage}/{name}" for stage in ("train", "val") for name in names} <= set(logged)
    assert logged["train/cost"] < 1.5 * logged["val/cost"]
    for stage in ("train", "val"):
        terms = {name: logged[f"{stage}/{name}"].item() for name in names}
        expected = terms["cost"] + 0.01 * terms["penalty"] + 0.001 * terms["orthogonality"] + 3.0 * terms["coupling"]
        assert terms["loss"] == pytest.approx(expected, rel=1e-4)


def test_the_flow_s_loss_is_no_part_of_the_logged_loss(tmp_path):
    from wae_lightning.networks import MixtureFlow

    fitting = trainer(tmp_path)
    fitting.fit(WAEMMD(**perceptrons(), flow=MixtureFlow(2), penalty_weight=2.0), DataLoader(IMAGES, 8))
    logged = fitting.callback_metrics
    assert logged["train/loss"].item() == pytest.approx((logged["train/cost"] + 2 * logged["train/penalty"]).item())
    assert logged["train/flow_loss"] > 0


def test_what_is_logged_is_that_of_the_present_step(tmp_path):
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((trainer.callback_metrics["train/loss"].item(), outputs["loss"].item()))

    flags = {"limit_train_batches": 6, "log_every_n_steps": 50, "callbacks": [Look()]}
    trainer(tmp_path, **flags).fit(WAEMMD(**perceptrons()), DataLoader(IMAGES, 4))
    assert len(seen) == 6
    for logged, loss in seen:
        assert logged == pytest.approx(loss, rel=1e-6)


def test_several_validation_loaders(tmp_path):
    model = WAEMMD(**perceptrons())
    fitting = trainer(tmp_path, limit_val_batches=None)
    others = torch.rand(16, 1, 4, 4)
    fitting.fit(model, DataLoader(IMAGES, 8), [DataLoader(IMAGES, 8), DataLoader(others, 8)])
    with torch.no_grad():
        for name, x in (("val/cost", IMAGES), ("val/cost/dataloader_idx_1", others)):
            expected = model.eval().cost(x, model(x)).mean().item()
            assert fitting.callback_metrics[name].item() == pytest.approx(expected, rel=1e-4)
    fitting.test(model, [DataLoader(IMAGES, 8), DataLoader(others, 8)], verbose=False)
    assert len(trainer(tmp_path).predict(model, [DataLoader(IMAGES, 8), DataLoader(others, 8)])) == 2


# ---- modes ----------------------------------------------------------------------------------------------------------


def test_samples_and_lines_are_drawn_in_evaluation_mode():
    torch.manual_seed(0)
    model = small()
    model.encoder.convolutions[0].eval()  # somebody froze a part
    buffers = [buffer.clone() for buffer in model.buffers()]
    x = torch.rand(4, 1, 28, 28)
    drawn = model.sample(3, torch.Generator().manual_seed(1)), model.interpolate(x[:2], x[2:], 3)
    assert all(map(torch.equal, buffers, model.buffers()))
    assert model.training
    assert model.decoder.training
    assert not model.encoder.convolutions[0].training
    model.eval()
    expected = model.sample(3, torch.Generator().manual_seed(1)), model.interpolate(x[:2], x[2:], 3)
    assert all(map(torch.equal, drawn, expected))


def test_pretraining_leaves_no_gradient_to_the_first_step(tmp_path):
    gradients = []

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if optimizer is pl_module.optimizers()[0].optimizer:
                gradients.append(torch.cat([p.grad.flatten().clone() for p in pl_module.encoder.parameters()]))

    torch.manual_seed(0)
    critic = Adversarial(optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    model = WAEGAN(**perceptrons(), penalty=critic, pretrain_steps=3, penalty_weight=0.0)
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=0, callbacks=[Look()]).fit(model, DataLoader(IMAGES, 8))

    class Pretrained(WAEGAN):
        def on_train_start(self):
            self.at_start = {name: x.clone() for name, x in self.state_dict().items() if isinstance(x, torch.Tensor)}

    torch.manual_seed(0)
    again = Pretrained(**perceptrons(), penalty=Adversarial(), pretrain_steps=3, penalty_weight=0.0)
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=0).fit(again, DataLoader(IMAGES, 8))
    again.load_state_dict(again.at_start, strict=False)
    again.zero_grad()
    again.cost(IMAGES[:8], again(IMAGES[:8])).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in again.encoder.parameters()])
    torch.testing.assert_close(gradients[-1], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_codes_of_variance_one_take_the_scale_of_the_prior(scale):
    from wae_lightning import ConditionalWAE
    from wae_lightning.noise import FixedNoise

    torch.manual_seed(0)
    model = ConditionalWAE(prior=Normal(8, scale)).train()
    x, y = torch.rand(2, 400, 1, 14, 28)
    codes = model.draw_codes((x, y))
    torch.testing.assert_close(codes.std(0), torch.full((8,), scale), rtol=0.15, atol=0)
    standardized = WAEMMD(prior=Normal(8, scale), standardize_codes=True, noise=FixedNoise(0.3)).train()
    codes = standardized.draw_codes(torch.rand(400, 1, 28, 28))
    torch.testing.assert_close(codes.std(0), torch.full((8,), scale), rtol=0.15, atol=0)


# ---- inputs ---------------------------------------------------------------------------------------------------------


def test_batches_may_be_dictionaries(tmp_path):
    data = [{"image": x, "label": torch.tensor(0)} for x in IMAGES]
    model = WAEMMD(**perceptrons())
    trainer(tmp_path).fit(model, DataLoader(data, 8), DataLoader(data, 8))
    other = WAEMMD(**perceptrons(), input_key="pixels")
    with pytest.raises(ValueError, match="the batch has no 'pixels', only 'image', 'label': set the model's input_key"):
        trainer(tmp_path).fit(other, DataLoader(data, 8))


@pytest.mark.parametrize(
    ("input_range", "data", "message"),
    [
        ((-1.0, 1.0), 2 * IMAGES - 1, None),
        (None, 5 * torch.randn(24, 1, 4, 4), None),
        ((0.0, 1.0), 2 * IMAGES - 1, r"floats in \[0, 1\].* got torch.float32 in \[-"),
        ((-1.0, 1.0), 3 * IMAGES, r"floats in \[-1, 1\].* got torch.float32 in \[0\.\d+, [23]"),
        ((0.0, 1.0), (255 * IMAGES).byte(), r"floats in \[0, 1\].* got torch.uint8 of shape \(8, 1, 4, 4\)"),
    ],
)
def test_the_range_of_the_inputs_is_a_setting(tmp_path, input_range, data, message):
    model = WAEMMD(**perceptrons(), input_range=input_range)
    if message is None:
        trainer(tmp_path).fit(model, DataLoader(data, 8), DataLoader(data, 8))
        return
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(model, DataLoader(data, 8))


@pytest.mark.parametrize("stage", ["training", "validation"])
@pytest.mark.parametrize("bad", [7.0, torch.nan])
def test_a_later_batch_out_of_range_is_named(tmp_path, stage, bad):
    spoilt = IMAGES.clone()
    spoilt[20, 0, 1, 1] = bad
    good, other = DataLoader(IMAGES, 8), DataLoader(spoilt, 8)
    loaders = (other, good) if stage == "training" else (good, other)
    expected = f"{stage} step 3: the batch itself is bad" if bad != bad else rf"in \[0\.\d+, 7\] in {stage} step 3"
    with pytest.raises((ValueError, FloatingPointError), match=expected):
        trainer(tmp_path, limit_val_batches=None, num_sanity_val_steps=0).fit(WAEMMD(**perceptrons()), *loaders)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((8, 28, 28), "lacks the dimension of the channels"),
        ((8, 28, 28, 1), "channels must stand before"),
        ((8, 3, 28, 28), ""),
    ],
)
def test_images_of_another_shape_are_refused_before_any_convolution(tmp_path, shape, hint):
    message = rf"a batch of shape \({', '.join(map(str, shape))}\) does not fit image_shape \(1, 28, 28\).*{hint}"
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(small(), DataLoader(torch.rand(shape), 8))


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-3.0, 5.0)])
def test_the_default_decoder_keeps_to_the_range(low, high):
    limits = []
    for output_range in ((low, high), None):
        decoder = ConvDecoder(4, width=1 / 64, output_range=output_range)
        with torch.no_grad():
            decoder.convolutions[-1].weight.mul_(1000)
            limits.append(torch.stack(decoder(torch.randn(50, 4)).aminmax()).tolist())
    assert limits[0] == pytest.approx([low, high], abs=1e-5)
    assert limits[1][0] < -100
    assert limits[1][1] > 100
    assert WAEMMD(input_range=(low, high)).decoder.output_range == (low, high)


@pytest.mark.parametrize(
    "make", [WAEMMD, PointNetWAE, functools.partial(MNISTDataModule, num_workers=2), HalfImageDataModule]
)
def test_what_is_not_used_any_more_is_freed_at_once(make):
    """Without cycles of references: what waits for a garbage collection keeps memory, and workers for seconds."""

    def use():
        made, held = make(), torch.nn.Identity()
        if hasattr(made, "num_workers"):
            made.prepare_data()
            made.setup("fit")
            for loader in (made.train_dataloader(), made.val_dataloader()):
                next(iter(loader))
        return [weakref.ref(thing) for thing in (made, held)]

    gc.disable()
    try:
        assert [thing() for thing in use()] == [None, None]
    finally:
        gc.enable()

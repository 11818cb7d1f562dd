"""The digits-FID that is logged while training goes on."""

import pytest
import torch
from helpers import pl
from test_base import small, trainer, weights
from torchmetrics.image.fid import FrechetInceptionDistance

from datamodules import MNISTDataModule
from wae_lightning.callbacks import SampleQuality
from wae_lightning.metrics import DigitFeatures


def test_it_is_the_frechet_distance_of_samples_to_validation_images(tmp_path):
    model, data, quality = small(), MNISTDataModule(), SampleQuality(num_samples=300)
    fitting = trainer(tmp_path, callbacks=[quality], limit_val_batches=3)
    fitting.fit(model, data)
    model.eval()
    real = torch.cat([data.on_after_batch_transfer(batch, 0)[0] for batch in data.val_dataloader()][:3])
    generator = torch.Generator().manual_seed(0)
    samples = torch.cat([model.sample(250, generator), model.sample(50, generator)])
    features = [DigitFeatures()(x).double() for x in (real, samples)]
    # ‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½)
    (mean, cov), (mean2, cov2) = ((x.mean(0), x.T.cov()) for x in features)
    root = torch.linalg.eigvals(cov @ cov2).sqrt().real.sum()
    expected = (mean - mean2).square().sum() + cov.trace() + cov2.trace() - 2 * root
    found = fitting.callback_metrics["val/fid_digits_0.3k"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-2)


def test_training_goes_on_as_without_it(tmp_path):
    after = []
    for callbacks in ([], [SampleQuality(every_n_epochs=1, num_samples=20)]):
        torch.manual_seed(0)
        model = small()
        trainer(tmp_path, callbacks=callbacks, max_epochs=2).fit(model, MNISTDataModule())
        after.append((weights(model), torch.get_rng_state()))
        assert model.training
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_it_is_measured_first_and_then_after_every_so_many_epochs(tmp_path, monkeypatch):
    measured = []
    compute = FrechetInceptionDistance.compute
    monkeypatch.setattr(FrechetInceptionDistance, "compute", lambda self: measured.append(epoch()) or compute(self))
    stop = pl.callbacks.EarlyStopping("val/fid_digits_1k", patience=100)
    # the sanity check measures nothing, and EarlyStopping finds the value from the first epoch on
    fitting = trainer(tmp_path, callbacks=[SampleQuality(3), stop], max_epochs=6, num_sanity_val_steps=1)
    epoch = lambda: fitting.current_epoch  # noqa: E731
    fitting.fit(small(), MNISTDataModule())
    assert measured == [0, 2, 5]
    assert fitting.callback_metrics["val/fid_digits_1k"] > 1


def test_other_data_is_not_measured_and_that_is_said(tmp_path):
    loader = MNISTDataModule()
    loader.setup()
    images = torch.utils.data.DataLoader(torch.rand(8, 1, 28, 28), 4)
    fitting = trainer(tmp_path, callbacks=[SampleQuality()])
    with pytest.warns(UserWarning, match="this run's content is None: nothing is measured"):
        fitting.fit(small(), images, images)
    assert "val/fid_digits_1k" not in fitting.callback_metrics


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_samples at least 2, got 5 and 1"):
        SampleQuality(num_samples=1)

"""Plain values of a wrong kind are refused before anything is made of them, whichever class takes them."""

import numpy as np
import pytest
import torch

from datamodules import (
    CelebADataModule,
    HalfImageDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    ModelNet40DataModule,
)
from wae_lightning import WAEMMD, PointNetWAE
from wae_lightning.costs import SquaredError
from wae_lightning.kernels import RBF
from wae_lightning.networks import ConvEncoder
from wae_lightning.penalties import MMD
from wae_lightning.priors import Normal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelNet40DataModule(stretch=[1.25]), r"stretch must be a list of 2, each a number, got \[1.25\]"),
        (lambda: ModelNet40DataModule(scale=1.2), "scale must be a list of 2, each a number, got 1.2"),
        (lambda: ModelNet40DataModule(scale=(0.8, 1, 1.2)), "scale must be a list of 2"),
        (lambda: ModelNet40DataModule(jitter="0.1"), "jitter must be a number, got '0.1'"),
        (lambda: ModelNet40DataModule(flip="no"), "flip must be true or false, got 'no'"),
        (lambda: ModelNet40DataModule(rotate=1), "rotate must be true or false, got 1"),
        (lambda: ModelNet40DataModule(classes="chair"), "classes must be a list, each a text or None, got 'chair'"),
        (lambda: ModelNet40DataModule(batch_size=2.5), "batch_size must be a whole number, got 2.5"),
        (lambda: MNISTDataModule(batch_size=None), "batch_size must be a whole number, got None"),
        (lambda: MNISTDataModule(num_workers=True), "num_workers must be a whole number, got True"),
        (lambda: MNISTDataModule(val_fraction="half"), "val_fraction must be a number, got 'half'"),
        (lambda: ImageFolderDataModule(".", flip="no"), "flip must be true or false, got 'no'"),
        (lambda: ImageFolderDataModule(".", shift=1.5), "shift must be a whole number, got 1.5"),
        (lambda: ImageFolderDataModule(".", image_size=64.0), "image_size must be a whole number, got 64.0"),
        (lambda: CelebADataModule(".", memory_budget="2 GB"), "memory_budget must be a number, got '2 GB'"),
        (lambda: HalfImageDataModule(observed="middle"), "observed must be one of top, bottom, .*, got 'middle'"),
        (lambda: WAEMMD(latent_dim="8"), "latent_dim must be a whole number or None, got '8'"),
        (lambda: WAEMMD(penalty_weight="1"), "penalty_weight must be a number, got '1'"),
        (lambda: WAEMMD(image_shape=28), "image_shape must be a list, each a whole number, got 28"),
        (lambda: WAEMMD(cost="SquaredError"), "cost must be a Cost or None, got 'SquaredError'"),
        (lambda: WAEMMD(cost=SquaredError), "cost must be a Cost or None, got <class"),
        (lambda: WAEMMD(encoder=ConvEncoder), "encoder must be a Module or None, got <class"),
        (lambda: PointNetWAE(latent_dim=2.0), "latent_dim must be a whole number or None, got 2.0"),
        (lambda: Normal(2.0), "latent_dim must be a whole number, got 2.0"),
        (lambda: MMD(kernel="rbf"), "kernel must be a Kernel or None, got 'rbf'"),
        (lambda: RBF(bandwidth=[1]), r"bandwidth must be a number or None, got \[1\]"),
    ],
)
def test_wrong_kinds_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_of_numpy_and_torch_count_as_pythons():
    model = WAEMMD(latent_dim=np.int64(4), penalty_weight=torch.tensor(2), image_shape=[np.int64(1), 28, 28])
    assert model.prior.latent_dim == 4
    assert ModelNet40DataModule(scale=[np.float32(0.5), 1], jitter=np.float32(0.5)).jitter == 0.5


class Named(WAEMMD):
    """Somebody's own, in which an argument of ours means something else."""

    def __init__(self, latent_dim: str = "8", **kwargs):
        super().__init__(latent_dim=int(latent_dim), **kwargs)


def test_the_hints_of_other_peoples_classes_are_theirs_but_what_they_pass_on_is_ours():
    assert Named("4").prior.latent_dim == Named(4).prior.latent_dim == 4
    with pytest.raises(ValueError, match="penalty_weight must be a number, got 'x'"):
        Named(penalty_weight="x")

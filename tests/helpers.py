"""Models, trainers and comparisons that several test files use."""

import functools
import importlib
import struct

import numpy as np
import torch
from torch import nn

from wae_lightning import WAEMMD
from wae_lightning.lightning import PACKAGE
from wae_lightning.networks import ConvDecoder, ConvEncoder
from wae_lightning.noise import EncoderNoise

pl = importlib.import_module(PACKAGE)
"""The package of Lightning that the tests run under; WAE_LIGHTNING_PACKAGE chooses it."""

ONE_CYCLE = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2)


def perceptrons(d=2, features=None):
    """Networks without batch norm for 1 x 4 x 4 images."""
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, features or d))
    decoder = nn.Sequential(nn.Linear(d, 16), nn.Sigmoid(), nn.Unflatten(1, (1, 4, 4)))
    return {"encoder": encoder, "decoder": decoder, "latent_dim": d}


def small(cls=WAEMMD, **arguments):
    """A model of digits with the smallest networks."""
    noise = arguments.get("noise") or EncoderNoise()
    return cls(
        encoder=ConvEncoder(latent_dim=4 * noise.features_per_dimension, width=1 / 64),
        decoder=ConvDecoder(4, width=1 / 64),
        latent_dim=4,
        **arguments,
    )


def trainer(folder, **arguments):
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": folder, "limit_train_batches": 3, "limit_val_batches": 1,
        "max_epochs": 1,
    }  # fmt: skip
    return pl.Trainer(**defaults | arguments)


def weights(model):
    kept = (x for name, x in model.state_dict().items() if not name.endswith("_extra_state"))
    return torch.cat([x.detach().flatten() for x in kept])


def codes_and_loss(model, x):
    """What the penalty compares, and the weighted sum of all other terms."""
    code = model.draw_codes(x)
    terms = model.terms(x, code)
    return model.compared(x, code), model.objective(terms | {"penalty": torch.zeros(())})


def assert_equal(a, b):
    """Two state dicts, or what they hold, are equal bit by bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_equal(a[name], b[name])
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def write_idx(path, array):
    array = np.asarray(array, np.uint8)
    header = bytes((0, 0, 8, array.ndim)) + b"".join(struct.pack(">I", size) for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())

"""Run by test_distributed.py: trains small models in two CPU processes and saves what came out.

python tests/two_processes.py FILE
"""

import functools
import logging
import sys
import warnings

import torch
from helpers import perceptrons, pl
from torch.utils.data import DataLoader

import wae_lightning
from wae_lightning import WAE, WAEGAN, WAEMMD
from wae_lightning.networks import Critic, MixtureFlow
from wae_lightning.penalties import MMD
from wae_lightning.penalties.adversarial import Adversarial
from wae_lightning.priors import Normal

IMAGES = torch.rand(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SGD = functools.partial(torch.optim.SGD, lr=0.5)


class RepeatedPrior(Normal):
    """The same four draws again and again: two half batches meet on average what the whole one meets."""

    def sample(self, n, generator=None, device=None):
        return torch.randn(4, self.latent_dim, generator=torch.Generator().manual_seed(0)).repeat(n // 4, 1)


class TwoCodes(MMD):
    codes_per_input = 2


def gan(steps=1):
    torch.manual_seed(1)
    penalty = Adversarial(Critic(2, width=8), optimizer=SGD, steps=steps)
    return WAEGAN(**perceptrons(), prior=RepeatedPrior(2), penalty=penalty, optimizer=SGD)


def mmd(**arguments):
    torch.manual_seed(1)
    return WAEMMD(**perceptrons(), prior=RepeatedPrior(2), optimizer=SGD, **arguments)


MODELS = {
    "cost only": lambda: mmd(penalty_weight=0.0),
    "mmd of all codes": lambda: mmd(gather_codes=True),
    "mmd of each half": mmd,
    "a fitted flow": lambda: mmd(flow=MixtureFlow(2, 2), fit_flow=2),
    "gan": gan,
    "gan, three critic steps": lambda: gan(steps=3),
    "gan, accumulated": gan,
}


def fit(name, model, processes):
    """Each update sees the whole data set, in one batch or two, so that the order of the samplers does not matter."""
    accumulate = 2 if "accumulated" in name else 1
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", max_epochs=4, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(model, DataLoader(IMAGES, 32 // processes // accumulate))
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), trainer


def main():
    logging.getLogger(pl.__name__).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    results = {}
    for name, make in MODELS.items():
        model = make()
        weights, trainer = fit(name, model, processes=2)
        results[name] = trainer.strategy.all_gather(weights)
    draws = trainer.strategy.all_gather(torch.randn(3))
    try:
        from wae_lightning.noise import GaussianNoise

        several = WAE(**perceptrons(features=4), penalty=TwoCodes(), noise=GaussianNoise())
        fit("several codes", several, processes=2)
    except ValueError as error:
        results["error"] = str(error)
    if trainer.is_global_zero:
        torch.save(results | {"draws": draws, "file": wae_lightning.__file__}, sys.argv[1])


if __name__ == "__main__":
    main()

"""Measures completions of digits: ``python experiments/reproduce/completion_results.py --root DIR --observed top``.

Trains the conditional WAE in its variants, and as references a regression decoder and a CVAE on the same networks, each
for the same CPU time; measures all of them, the model that comes with the package ("bundled"), and halves of the
nearest training images ("donors"), on the test set; and adds each row to the JSON file as soon as it is known. The
joint critic and the CVAE have a second row, "crisp": the same model with the temperature of ``mnist_conditional``.
Beside the file lie pictures: of the first 1,000 test images those on whose digit ten answers differ most.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from records import write_json
from torch import Tensor, nn

from datamodules import HalfImageDataModule
from wae_lightning import ConditionalWAE, from_pretrained
from wae_lightning.callbacks import CompletionPictures, MeasureCompletions
from wae_lightning.callbacks.pictures import write_png
from wae_lightning.captions import Caption
from wae_lightning.costs import AbsoluteError, BinaryCrossEntropy
from wae_lightning.evaluation.completions import LabelNet
from wae_lightning.joint_mmd import JointMMD
from wae_lightning.kernels import squared_distances
from wae_lightning.lightning import Trainer, seed_everything
from wae_lightning.metrics import CodeDependence, CompletionMetrics, DigitClassifier
from wae_lightning.metrics.completion import entropy_of_labels, r_squared
from wae_lightning.networks import Critic
from wae_lightning.noise import EncoderNoise, GaussianNoise
from wae_lightning.penalties import MMD, Adversarial, NoPenalty
from wae_lightning.report import ReportWAE


class Regression(ConditionalWAE):
    """G(x): one completion, trained on the cost alone. The decoder has the WAE's shape, its code is always 0."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(penalty=NoPenalty(), match="marginal", noise=EncoderNoise(), **arguments)

    def draw_codes(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0].new_zeros(len(pair[0]), self.latent_dim)

    def complete(self, x: Tensor, n: int = 1, z: Tensor | None = None, generator: Any = None) -> Tensor:
        return super().complete(x, 1, z=x.new_zeros(1, self.latent_dim)).expand(-1, n, -1, -1, -1)


class CVAE(ConditionalWAE):
    """K. Sohn et al. (2015) with the prior N(0, I): minimises the negative evidence lower bound, times a scale.

    Unlike in Pyro's example the decoder sees the observed part, not the code alone.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(penalty=NoPenalty(), match="marginal", noise=GaussianNoise(), **arguments)

    def draw_codes(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        """Rows (z, mean, standard deviation)."""
        mean, std = self.posterior(*pair)
        return torch.cat([mean + std * torch.randn_like(mean), mean, std], dim=1)

    def terms(self, pair: tuple[Tensor, Tensor], code: Tensor) -> dict[str, Tensor]:
        z, mean, std = code.chunk(3, dim=1)
        divergence = 0.5 * (mean.square() + std.square() - 1).sum(1) - std.log().sum(1)
        return {**super().terms(pair, z), "divergence": divergence.mean()}

    def term_weights(self) -> dict[str, float]:
        return {**super().term_weights(), "divergence": self.cost.scale}


class CriticAndMMD(Adversarial):
    """The critic's loss plus a multiple of the joint MMD."""

    def __init__(self, mmd_weight: float) -> None:
        super().__init__(Critic(24, width=256))
        self.mmd_weight = mmd_weight
        self.mmd = JointMMD()

    def set_prior(self, prior: Any) -> None:
        super().set_prior(prior)
        self.mmd.set_prior(prior.prior)

    def forward(self, z: Tensor, z_prior: Tensor) -> Tensor:
        return super().forward(z, z_prior) + self.mmd_weight * self.mmd(z, z_prior)


MODELS: dict[str, Any] = {
    "report mode": functools.partial(ReportWAE, penalty_weight=10.0),
    "marginal MMD": functools.partial(ConditionalWAE, match="marginal", penalty_weight=10.0),
    "joint MMD": lambda **arguments: ConditionalWAE(penalty=MMD(), penalty_weight=40.0, **arguments),
    "joint critic": ConditionalWAE,
    "joint critic and MMD": lambda **arguments: ConditionalWAE(penalty=CriticAndMMD(10.0), **arguments),
    "joint critic, L1": lambda **arguments: ConditionalWAE(
        cost=AbsoluteError(scale=0.05), penalty_weight=1.0, **arguments
    ),
    "regression": Regression,
    "CVAE": CVAE,
    "bundled": lambda **arguments: from_pretrained("mnist_conditional"),
    "donors": None,
}
ALSO_CRISP = ("joint critic", "CVAE")
TEMPERATURE = 1.75


def train(model: ConditionalWAE, data: HalfImageDataModule, seconds: float) -> int:
    """Trains for about ``seconds`` of CPU time; returns the number of steps."""

    def fit(steps: int) -> float:
        trainer = Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        start = time.process_time()
        trainer.fit(model, data)
        return time.process_time() - start

    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first = fit(20)
    per_step = (fit(120) - fit(20)) / 100 if first else 0.0
    model.load_state_dict(weights)
    steps = max(int(seconds / per_step), 1)
    fit(steps)
    return steps


def measure_donors(data: HalfImageDataModule, label_net: nn.Module) -> dict[str, float]:
    """Completes each test image by the hidden parts of the ten training images with the nearest observed parts."""
    metrics = CompletionMetrics(data.mask, DigitClassifier.pretrained())
    pairs = [data.on_after_batch_transfer(batch, 0)[:2] for batch in data.train_dataloader()]
    observed, hidden = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    for batch in data.test_dataloader():
        x, y, labels = data.on_after_batch_transfer(batch, 0)
        near = squared_distances(x.flatten(1), observed.flatten(1)).topk(10, largest=False).indices
        # the nearest in a random place, since one of the ten stands for all in the Fréchet distance
        near = near[:, torch.randperm(10)]
        completed = data.join(x.unsqueeze(1), hidden[near])
        metrics.update(data.join(x, y), completed, labels, label_net(x).softmax(1))
    results = {name: float(value) for name, value in metrics.compute().items()}
    return {name: value for name, value in results.items() if not name.startswith("bce")}


@torch.no_grad()
def sharpen(model: ConditionalWAE) -> None:
    """Multiplies the logits of the decoder's pixels by the temperature, which its likelihood takes back."""
    assert isinstance(model.cost, BinaryCrossEntropy)
    model.cost.temperature = TEMPERATURE
    *_, last = (layer for layer in model.decoder.modules() if isinstance(layer, nn.Linear))
    for parameter in last.parameters():
        parameter.mul_(TEMPERATURE)


def measure(model: ConditionalWAE, data: Any, measures: MeasureCompletions, **flags: Any) -> dict[str, float]:
    """What the test finds; a regression has no codes to measure."""
    tester = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[measures],
        **flags,
    )  # fmt: skip
    (measured,) = tester.test(model, data, verbose=False)
    found = {name.removeprefix("test/"): float(value) for name, value in measured.items()}
    left_out = CodeDependence.names if isinstance(model, Regression) else ()
    return {name: value for name, value in found.items() if name not in left_out}


@torch.no_grad()
def find_disputed(model: ConditionalWAE, data: Any, images: int = 1000, count: int = 10) -> tuple[Tensor, Tensor]:
    """Those of the first test images whose ten completions are read as the most different digits, by entropy."""
    pairs = [data.on_after_batch_transfer(batch, 0)[:2] for batch in data.test_dataloader()]
    x, y = (torch.cat(parts)[:images] for parts in zip(*pairs, strict=True))
    classifier = DigitClassifier.pretrained()
    seen = [
        classifier(data.join(part.unsqueeze(1), model.complete(part, 10)).flatten(0, 1)).argmax(1).view(-1, 10)
        for part in torch.split(x, 100)
    ]
    chosen = entropy_of_labels(torch.cat(seen)).topk(min(count, len(x))).indices
    return x[chosen], y[chosen]


@torch.no_grad()
def measure_r_squared_of_pixels(model: ConditionalWAE, data: HalfImageDataModule) -> float:
    """Share of the variance of the test codes that a linear regression on all observed pixels explains."""
    pairs = [data.on_after_batch_transfer(batch, 0)[:2] for batch in data.test_dataloader()]
    observed, hidden = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return float(r_squared(observed.flatten(1), model.eval().encode(observed, hidden)))


def draw(model: ConditionalWAE, x: Tensor, y: Tensor, pairs: Any) -> tuple[Tensor, Caption]:
    """A picture of completions, and what stands above its columns."""
    drawn = CompletionPictures()
    columns = ["given", "digit", *map(str, range(1, drawn.columns + 1))]
    return drawn.draw(model, x, y, pairs), Caption(columns=columns)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder of MNIST; the bundled digits if left out")
    parser.add_argument("--observed", default="top", help="observed part (top)")
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU time of training for each model (120)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="rows of the table (all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("completions.json"), help="file to write (completions.json)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    torch.set_num_threads(1)  # process time is then the time of one core

    data = HalfImageDataModule(root=arguments.root, batch_size=200, observed=arguments.observed)
    data.prepare_data()
    data.setup("fit")
    seed_everything(arguments.seed)
    # what can be known is the same for all rows; the table takes it from these two
    known = {"regression", "donors"} & set(arguments.models)
    label_net = LabelNet(data.condition_shape).fit(data, epochs=8) if known else None
    settings = {name: getattr(arguments, name) for name in ("observed", "seconds", "seed")}
    table: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else settings
    if table | settings != table:
        raise SystemExit(f"{arguments.out} holds results for other settings than {settings}: name another file")
    for name in arguments.models:
        seed_everything(arguments.seed)
        if MODELS[name] is None:
            assert label_net is not None
            table[name] = measure_donors(data, label_net)
        else:
            model = MODELS[name](
                condition_shape=data.condition_shape,
                target_shape=data.target_shape,
                optimizer=functools.partial(torch.optim.AdamW, lr=3e-3, betas=(0.5, 0.999), fused=True),
                lr_scheduler=functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=3e-3, cycle_momentum=False),
            )
            steps = 0 if name == "bundled" else train(model, data, arguments.seconds)
            measures = MeasureCompletions(label_net=label_net)
            table[name] = ({"steps": steps} if steps else {}) | measure(model, data, measures)
            if isinstance(model, ReportWAE):
                table[name]["r_squared_of_pixels"] = measure_r_squared_of_pixels(model, data)
            picture = draw(model.eval(), *find_disputed(model, data), data.pairs)
            write_png(arguments.out.with_name(f"{arguments.out.stem}_{name}.png"), *picture)
            if name in ALSO_CRISP:
                sharpen(model)
                table[f"{name}, crisp"] = {"steps": steps} | measure(model, data, measures)
        print(name, {key: round(value, 4) for key, value in table[name].items()}, flush=True)
        write_json(arguments.out, table)


if __name__ == "__main__":
    main()

"""Measures what λ and other changes do to a WAE without a flow: ``python experiments/reproduce/sweep_results.py``.

Short trainings of ``mnist_wae_mmd_plain`` and ``mnist_wae_gan_plain``, one for each weight of the penalty and one for
each change in ``TRIED``, on the digits that come with the package: five minutes of one core. Writes ``sweep.json``;
--plot FILE draws its figure and stops.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from records import EXPERIMENTS, commit, hardware, write_json

from wae_lightning import from_config
from wae_lightning.evaluation.codes import noise_share
from wae_lightning.evaluation.images import Comparison, choose_features, format_count, read_test_images
from wae_lightning.kernels import InverseMultiquadric
from wae_lightning.lightning import Trainer
from wae_lightning.noise import FixedNoise
from wae_lightning.penalties import mmd_test

WEIGHTS = {"mnist_wae_mmd_plain": [0, 1, 10, 100], "mnist_wae_gan_plain": [0.1, 1, 10]}
# arguments of from_config beside the config's own
TRIED: dict[str, dict[str, dict[str, Any]]] = {
    "mnist_wae_mmd_plain": {
        "past codes join: code_queue 800": {"code_queue": 800},
        "fixed noise 0.2": {"noise": FixedNoise(0.2)},
    },
    "mnist_wae_gan_plain": {
        "three critic steps": {"penalty": {"steps": 3}},
        "fixed noise 0.2": {"noise": FixedNoise(0.2)},
    },
}


def rows_of(configs: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Config, name and changes of every row."""
    for config in configs:
        for weight in WEIGHTS[config]:
            yield config, f"λ = {weight:g}", {"penalty_weight": float(weight)}
        for name, changes in TRIED[config].items():
            yield config, name, changes


@torch.no_grad()
def measure(model: Any, data: Any, comparison: Comparison, num_samples: int) -> dict[str, float]:
    """Distances of samples and of reconstructions, and how far the codes of test images are from the prior."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.arange(num_samples).split(500)
    count = format_count(num_samples)
    samples = comparison.measure((model.sample(len(part), generator) for part in sizes), only_distances=True)
    found = {f"{key}_{count}": value for key, value in samples.items()}
    reconstructions = comparison.measure((model(x) for x in read_test_images(data)), only_distances=True)
    found |= {f"{key}_reconstructions": value for key, value in reconstructions.items()}
    first, second = (torch.cat([model.draw_codes(x) for x in read_test_images(data)]) for _ in range(2))
    kernel = InverseMultiquadric()
    kernel.set_expected_squared_distance(model.prior.expected_squared_distance)
    draws = model.prior.sample(2000, generator)
    found["test_codes_mmd"] = mmd_test(first[:2000], draws, kernel, permutations=1)[0]
    return found | {"noise_share_of_code_variance": noise_share(first, second)}


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draws digits-FID of samples and of reconstructions against λ, for each config."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, config in zip(figure.subplots(1, 2, sharey=True), WEIGHTS, strict=True):
        swept = [row for row in rows if row["config"] == config and row["change"].startswith("λ")]
        axes.set(title=config, xlabel="λ", yscale="log")
        axes.set_xscale("symlog", linthresh=min(row["penalty_weight"] for row in swept if row["penalty_weight"]))
        count = format_count(rows[0]["num_samples"])
        for end, label, style in ((count, "samples", "o-"), ("reconstructions", "reconstructions", "s--")):
            for name, by, color in (("digits", "", "tab:blue"), ("digits_twin", ", twin", "tab:orange")):
                values = sorted((row["penalty_weight"], row[f"fid_{name}_{end}"]) for row in swept)
                axes.plot(*zip(*values, strict=True), style, color=color, label=f"{label}{by}")
    figure.axes[0].set_ylabel("digits-FID")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize="small", loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=115)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder that holds MNIST/raw; the bundled digits if left out")
    parser.add_argument("--configs", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS), help="(both)")
    parser.add_argument("--changes", nargs="+", metavar="CHANGE", help="only these, such as 'λ = 1' (all)")
    parser.add_argument("--epochs", type=int, default=4, help="(4)")
    parser.add_argument("--num_samples", type=int, default=2000, help="samples to measure by (2000)")
    out = EXPERIMENTS / "results" / "sweep.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="draw the figure of what is in the JSON file, and stop")
    arguments = parser.parse_args(given)
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    if arguments.plot is not None:
        plot(rows, arguments.plot)
        return
    torch.set_num_threads(1)
    comparison = None
    for config, change, changes in rows_of(arguments.configs):
        if arguments.changes and change not in arguments.changes:
            continue
        where = {} if arguments.root is None else {"root": arguments.root}
        model, data = from_config(config, data=where, seed=0, **copy.deepcopy(changes))
        trainer = Trainer(
            max_epochs=arguments.epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip
        start = time.process_time()
        trainer.fit(model, data)
        seconds = time.process_time() - start
        data.batch_size = 500
        data.setup("test")
        comparison = comparison or Comparison(read_test_images(data), choose_features("digits", (1, 28, 28), None))
        row = {"config": config, "change": change, "penalty_weight": model.penalty_weight, "commit": commit()}
        row |= {"hardware": hardware(), "epochs": arguments.epochs, "num_samples": arguments.num_samples, "seed": 0}
        row |= {"cpu_seconds": seconds, **measure(model.eval(), data, comparison, arguments.num_samples)}
        rows = [other for other in rows if (other["config"], other["change"]) != (config, change)] + [row]
        write_json(arguments.out, rows)
        print(row, flush=True)


if __name__ == "__main__":
    main()

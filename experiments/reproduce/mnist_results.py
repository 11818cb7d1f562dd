"""Trains and measures the MNIST rows of RESULTS.md: ``python experiments/reproduce/mnist_results.py DIR``.

Each row is ``train.py`` and then ``evaluate.py``, once for each seed, on the full set; all rows of one call have the
same number of epochs. Writes every measure of every run into ``mnist_results.json``, under the row's name and number of
epochs, and prints means and standard deviations over the seeds. With --keep FOLDER the runs stay there, and those that
are there already are only measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from records import EXPERIMENTS, commit, hardware, write_json

# what the paper's code has where our default differs
ORIGINAL = [
    "--model.cost=SquaredError", "--model.cost.scale=0.05", "--model.noise=null", "--model.encoder.latent_dim=16",
    "--model.standardize_codes=false", "--model.flow=null",
    "--model.optimizer=Adam", "--model.optimizer.lr=1e-3", "--model.optimizer.betas=[0.5,0.999]",
    "--model.lr_scheduler=null", "--model.penalty_weight=10",
]  # fmt: skip
# the paper's latent units, for a Gaussian and for a deterministic encoder
EIGHT = ["--model.latent_dim=8", "--model.encoder.latent_dim=16", "--model.decoder.latent_dim=8"]
UNITS = {
    d: [f"--model.{name}={d}" for name in ("latent_dim", "encoder.latent_dim", "decoder.latent_dim", "flow.dim")]
    for d in (20, 24)
}
NOISE = ["--model.noise=FixedNoise", "--model.noise.std=0.1"]
TWICE_AS_WIDE = ["--model.encoder.width=0.25", "--model.decoder.width=0.25"]
EIGHT_DETERMINISTIC = ["--model.latent_dim=8", "--model.encoder.latent_dim=8", "--model.decoder.latent_dim=8"]
NO_FLOW = ["--model.flow=null"]
# the paper's networks have no fully connected layers next to the code
NO_HIDDEN = ["--model.encoder.hidden=[]", "--model.decoder.hidden=[]"]
# what keeps the critic from winning, one change at a time
STABILITY = {
    "default": [],
    "no standardised codes": ["--model.standardize_codes=false"],
    "no encoder noise": ["--model.noise=null", "--model.encoder.latent_dim=16"],
    "lambda 10": ["--model.penalty_weight=10"],
    "squared error, lambda 10": ["--model.penalty_weight=10", "--model.cost=SquaredError", "--model.cost.scale=0.05"],
    "squared error, lambda 10, no standardised codes": [
        "--model.penalty_weight=10", "--model.cost=SquaredError", "--model.cost.scale=0.05",
        "--model.standardize_codes=false",
    ],
    "critic 4 x 512": ["--model.penalty.critic.width=512"],
    "critic's learning rate 1e-2": ["--model.penalty.optimizer.lr=1e-2"],
    "spectral norm": ["--model.penalty.critic.normalize=true"],
    "gradient penalty 1": ["--model.penalty.gradient_penalty=1"],
    "log-prior trick": ["--model.penalty.log_prior=true"],
}  # fmt: skip
# what the configs had when the rows below were measured; the noise that is learned was learned away
LAMBDA_THEN = {
    "--config=mnist_wae_mmd": "--model.penalty_weight=10",
    "--config=mnist_wae_gan": "--model.penalty_weight=0.1",
}
GAUSSIANS_THEN = ["--model.flow.components=100"]
A_TENTH_TO_VALIDATE = ["--data.val_fraction=0.1"]
LEARNED_NOISE = ["--model.noise=GaussianNoise", "--model.noise.initial_std=0.3"]
BATCHES_OF_100 = [
    *A_TENTH_TO_VALIDATE,
    "--data.batch_size=100", "--model.optimizer.betas=[0.5,0.999]", "--model.lr_scheduler.max_lr=1e-2",
]  # fmt: skip
WITH_BATCHES_OF_100 = (
    {
        "auto-encoder": ["--config=mnist_ae"],
        "VAE": ["--config=mnist_vae"],
        "WAE-MMD": ["--config=mnist_wae_mmd"],
        "WAE-GAN": ["--config=mnist_wae_gan"],
        "WAE-MMD, the original's setting": ["--config=mnist_wae_mmd", *ORIGINAL],
        "WAE-MMD, the original's setting, 8 latent units": ["--config=mnist_wae_mmd", *ORIGINAL, *EIGHT_DETERMINISTIC],
        "WAE-MMD, the same and networks without hidden layers": [
            "--config=mnist_wae_mmd", *ORIGINAL, *EIGHT_DETERMINISTIC, *NO_HIDDEN
        ],
        "WAE-MMD, 8 latent units": ["--config=mnist_wae_mmd", *EIGHT, "--model.flow.dim=8"],
        "WAE-MMD, no flow": ["--config=mnist_wae_mmd", *NO_FLOW],
        "WAE-GAN, lambda 1": ["--config=mnist_wae_gan", "--model.penalty_weight=1"],
        "WAE-GAN, no flow": ["--config=mnist_wae_gan", *NO_FLOW],
        "WAE-MMD, no flow, 8 latent units": ["--config=mnist_wae_mmd", *EIGHT, *NO_FLOW],
        "WAE-GAN, no flow, 8 latent units": [
            "--config=mnist_wae_gan", "--model.penalty_weight=1", "--model.penalty.critic.latent_dim=8",
            *EIGHT, *NO_FLOW,
        ],
        "WAE-MMD, only the flow (lambda 0)": ["--config=mnist_wae_mmd", "--model.penalty_weight=0"],
        "WAE-GAN, no flow, lambda 1": ["--config=mnist_wae_gan", "--model.penalty_weight=1", *NO_FLOW],
        # a variance of half the latent units, which in 8 dimensions is a bandwidth of 2
        "WAE-MMD, RBF kernel, no flow": [
            "--config=mnist_wae_mmd", "--model.penalty.kernel=RBF", "--model.penalty.kernel.bandwidth=2.83", *NO_FLOW
        ],
    }
    | {
        f"WAE, {name}, no flow": ["--config=mnist_wae_mmd", f"--model.penalty={name}", *NO_FLOW]
        for name in ("EnergyDistance", "CramerWold", "SlicedWasserstein", "MaxSlicedWasserstein", "Sinkhorn")
    }
    | {f"WAE-GAN stability: {name}": ["--config=mnist_wae_gan", *flags] for name, flags in STABILITY.items()}
)  # fmt: skip
OF_TODAY = ("ae", "vae", "wae_mmd", "wae_gan", "wae_mmd_plain", "wae_gan_plain")


def earlier(flags: list[str], *more: str) -> list[str]:
    """The flags of a row with those that make its config what it was."""
    noise = LEARNED_NOISE if flags[0].startswith("--config=mnist_wae") else []
    weight = [LAMBDA_THEN[flags[0]]] if flags[0] in LAMBDA_THEN else []
    flow = GAUSSIANS_THEN if weight and NO_FLOW[0] not in flags else []
    return [flags[0], *noise, *weight, *flow, *more, *flags[1:]]


ROWS = (
    {f"mnist_{name}": [f"--config=mnist_{name}"] for name in OF_TODAY}
    | {f"{flag.removeprefix('--config=')}, no flow": [flag, then, *NO_FLOW] for flag, then in LAMBDA_THEN.items()}
    | {
        f"{flag.removeprefix('--config=')}, earlier lambda": [flag, then, *GAUSSIANS_THEN]
        for flag, then in LAMBDA_THEN.items()
    }
    | {
        f"mnist_wae_mmd, lambda {weight}": ["--config=mnist_wae_mmd", f"--model.penalty_weight={weight}"]
        for weight in ("0.1", "0.02")
    }
    | {
        f"mnist_wae_mmd, {d} units, lambda 0.1": ["--config=mnist_wae_mmd", "--model.penalty_weight=0.1", *flags]
        for d, flags in UNITS.items()
    }
    | {
        "mnist_wae_mmd, noise 0.1, lambda 0.1": ["--config=mnist_wae_mmd", "--model.penalty_weight=0.1", *NOISE],
        "mnist_wae_mmd, 24 units, noise 0.1, lambda 0.1": [
            "--config=mnist_wae_mmd",
            "--model.penalty_weight=0.1",
            *NOISE,
            *UNITS[24],
        ],
    }
    | {
        "mnist_wae_mmd, 24 units, twice as wide, lambda 0.1": [
            "--config=mnist_wae_mmd",
            "--model.penalty_weight=0.1",
            *UNITS[24],
            *TWICE_AS_WIDE,
            "--model.flow.components=500",
            "--precision=bf16-mixed",
        ]
    }
    | {"mnist_wae_gan, no flow, lambda 1": ["--config=mnist_wae_gan", "--model.penalty_weight=1", *NO_FLOW]}
    | {
        "mnist_wae_mmd, learned noise": [
            "--config=mnist_wae_mmd",
            LAMBDA_THEN["--config=mnist_wae_mmd"],
            *GAUSSIANS_THEN,
            *LEARNED_NOISE,
        ]
    }
    | {name: earlier(flags, *BATCHES_OF_100) for name, flags in WITH_BATCHES_OF_100.items()}
    | {
        f"{name}, batches of 200": earlier(WITH_BATCHES_OF_100[name], *A_TENTH_TO_VALIDATE)
        for name in ("WAE-MMD", "WAE-GAN", "VAE", "auto-encoder")
    }
)


def run(
    flags: list[str], root: Path, seed: int, epochs: int, num_samples: int, kept: Path | None = None
) -> dict[str, Any]:
    """Trains and evaluates one model in a folder of its own and returns what both wrote.

    A run that was ``kept`` is only evaluated.
    """
    common = [f"--data.root={root}", f"--seed_everything={seed}", f"--max_epochs={epochs}"]
    quiet = ["--enable_progress_bar=false", "--enable_model_summary=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with nullcontext(kept) if kept else tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        folder.mkdir(parents=True, exist_ok=True)
        if not list(folder.glob("runs/*/version_0/metrics.json")):
            train = [sys.executable, str(EXPERIMENTS / "train.py"), *flags, *common, *quiet]
            subprocess.run(train, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        (version,) = folder.glob("runs/*/version_0")
        out = folder / "evaluation.json"
        evaluate = [sys.executable, str(EXPERIMENTS / "evaluate.py"), str(version / "checkpoints" / "last.ckpt")]
        evaluate += [f"--data.root={root}", f"--out={out}", f"--num_samples={num_samples}"]
        subprocess.run(evaluate, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        trained = json.loads((version / "metrics.json").read_text())
        return {**trained, **json.loads(out.read_text()), "seed": seed}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of every number that all runs have."""
    names = [name for name, value in runs[0].items() if isinstance(value, int | float) and name != "seed"]
    values = {name: [float(run[name]) for run in runs] for name in names if all(name in run for run in runs)}
    return {
        name: {"mean": statistics.mean(v), "std": statistics.stdev(v) if len(v) > 1 else None}
        for name, v in values.items()
    }


def keep(out: Path, row: str, epochs: int, new: dict[str, Any]) -> None:
    """Adds a run to the file, in place of one of the same row, length and seed."""
    # read only now: another row may have been measured at the same time
    results: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    name = f"{row}, {epochs} epochs"
    known = results.get(name, {})
    comparable = known.get("flags") == ROWS[row] and known.get("epochs") == epochs
    others = [run for run in known.get("runs", []) if run["seed"] != new["seed"]] if comparable else []
    runs = sorted([*others, new], key=lambda run: run["seed"])
    results[name] = {"flags": ROWS[row], "epochs": epochs, "runs": runs}
    write_json(out, results)


def plot(results: dict[str, Any], pythae: list[dict[str, Any]], file: Path) -> None:
    """Draws digits-FID against training time of everything that was trained for several lengths."""
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, row in results.items():
        means = summary(row["runs"])
        seconds, fid = (means.get(key, {}).get("mean") for key in ("fit_cpu_seconds", "fid_digits_10k"))
        if "stability" not in name and None not in (seconds, fid):
            curves[name.removesuffix(f", {row['epochs']} epochs")].append((seconds, fid))
    for row in pythae:
        if row.get("sampler", "N(0, I)") != "N(0, I)":
            continue
        name = f"pythae WAE_MMD, reg_weight {row['reg_weight']:g}"
        curves[name].append((row["cpu_seconds"], row["fid_digits_10k"]))
    floors = [run["fid_digits_floor"] for row in results.values() for run in row["runs"] if "fid_digits_floor" in run]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        if len(points) > 1 or name.startswith("pythae"):
            axes.plot(*zip(*sorted(points), strict=True), "o-", markersize=4, label=name)
    axes.axhline(statistics.median(floors), color="black", linestyle=":", label="real training images")
    axes.set(xscale="log", yscale="log", xlabel="training, CPU seconds of one core", ylabel="digits-FID of samples")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(file, dpi=115)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path("data"), help="folder that holds MNIST/raw (data)")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help="(all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--epochs", type=int, default=9, help="(9)")
    parser.add_argument("--num_samples", type=int, default=10_000, help="samples to measure by (10000)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="see above")
    out = EXPERIMENTS / "results" / "mnist_results.json"
    parser.add_argument("--out", type=Path, default=out, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="draw FID against time of what is in the JSON files, and stop")
    arguments = parser.parse_args(given)
    if arguments.plot is not None:
        pythae = arguments.out.with_name("pythae.json")
        found = json.loads(pythae.read_text()) if pythae.exists() else []
        plot(json.loads(arguments.out.read_text()), found, arguments.plot)
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for row in arguments.rows:
        for seed in arguments.seeds:
            kept = arguments.keep and arguments.keep.resolve() / f"{row}, {arguments.epochs} epochs" / f"seed {seed}"
            how = arguments.root.resolve(), seed, arguments.epochs, arguments.num_samples, kept
            new = {"commit": commit(), "hardware": hardware(), **run(ROWS[row], *how)}
            keep(arguments.out, row, arguments.epochs, new)
            print(row, seed, {name: value for name, value in new.items() if "fid" in name}, flush=True)
        found = json.loads(arguments.out.read_text())[f"{row}, {arguments.epochs} epochs"]["runs"]
        print(row, {name: value for name, value in summary(found).items() if "fid" in name}, flush=True)


if __name__ == "__main__":
    main()

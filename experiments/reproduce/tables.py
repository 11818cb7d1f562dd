"""Writes the tables of RESULTS.md, README.md and pages of docs from the JSON files in experiments/results.

``python experiments/reproduce/tables.py`` replaces what stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "RESULTS.md", "docs/robustness.md", "docs/choosing.md", "docs/gpu.md")]
NOTHING = "–"


def load(name: str) -> Any:
    return json.loads((ROOT / "experiments" / "results" / f"{name}.json").read_text())


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return NOTHING if value is None else f"{factor * value:.{digits}f}"


# ---- digits -----------------------------------------------------------------------------------------------------


def over_seeds(runs: list[dict[str, Any]], key: str, digits: int = 2, factor: float = 1.0) -> str:
    """Mean ± standard deviation over the seeds."""
    values = [factor * run[key] for run in runs if run.get(key) is not None]
    if len(values) < len(runs):
        return NOTHING
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def whole_range(runs: list[dict[str, Any]], low: str, high: str | None = None, digits: int = 0) -> str:
    """Least and largest value over the seeds."""
    ends = min(run[low] for run in runs), max(run[high or low] for run in runs)
    return "-".join(dict.fromkeys(f"{end:.{digits}f}" for end in ends))


DIGITS = {
    "WAE-MMD": "WAE-MMD, batches of 200, 9 epochs",
    "WAE-GAN": "WAE-GAN, batches of 200, 8 epochs",
    "VAE": "VAE, batches of 200, 9 epochs",
    "plain auto-encoder": "auto-encoder, 9 epochs",
    "only the flow (λ = 0)": "WAE-MMD, only the flow (lambda 0), 8 epochs",
    "WAE-MMD, no flow": "WAE-MMD, no flow, 9 epochs",
    "WAE-GAN, no flow, λ = 1": "WAE-GAN, no flow, lambda 1, 8 epochs",
    "WAE-MMD, no flow, 8 units": "WAE-MMD, no flow, 8 latent units, 9 epochs",
    "WAE-GAN, no flow, 8 units": "WAE-GAN, no flow, 8 latent units, 8 epochs",
    "original's setting": "WAE-MMD, the original's setting, 9 epochs",
    "original's setting, 8 units": "WAE-MMD, the original's setting, 8 latent units, 9 epochs",
    "the same, no hidden layers": "WAE-MMD, the same and networks without hidden layers, 9 epochs",
}
PENALTIES = {
    "MMD, inverse multiquadric kernel": "WAE-MMD, no flow, 9 epochs",
    "MMD, RBF kernel": "WAE-MMD, RBF kernel, no flow, 9 epochs",
    **{
        name: f"WAE, {name}, no flow, 9 epochs"
        for name in ("EnergyDistance", "CramerWold", "SlicedWasserstein", "MaxSlicedWasserstein", "Sinkhorn")
    },
}
LONGER = {
    "`mnist_wae_mmd`": ("mnist_wae_mmd, 9 epochs", "mnist_wae_mmd, 155 epochs"),
    "`mnist_wae_mmd`, λ = 0.1": ("mnist_wae_mmd, lambda 0.1, 15 epochs", "mnist_wae_mmd, lambda 0.1, 155 epochs"),
    "`mnist_wae_mmd`, λ = 0.1, noise of 0.1": ("mnist_wae_mmd, noise 0.1, lambda 0.1, 15 epochs",),
    "`mnist_wae_mmd`, λ = 0.02": ("mnist_wae_mmd, lambda 0.02, 140 epochs",),
    "`mnist_wae_mmd`, λ = 0.1, 20 units": ("mnist_wae_mmd, 20 units, lambda 0.1, 120 epochs",),
    "`mnist_wae_mmd`, λ = 0.1, 24 units, noise of 0.1": ("mnist_wae_mmd, 24 units, noise 0.1, lambda 0.1, 15 epochs",),
    "`mnist_wae_mmd`, λ = 0.1, 24 units": ("mnist_wae_mmd, 24 units, lambda 0.1, 125 epochs",),
    "`mnist_wae_mmd`, λ = 0.1, 24 units, networks twice as wide, 500 Gaussians": (
        "mnist_wae_mmd, 24 units, twice as wide, lambda 0.1, 100 epochs",
    ),
    "`mnist_wae_gan`": ("mnist_wae_gan, 8 epochs", "mnist_wae_gan, 135 epochs"),
    "WAE-MMD": ("WAE-MMD, 2 epochs", "WAE-MMD, batches of 200, 9 epochs", "WAE-MMD, 120 epochs"),
    "WAE-GAN": ("WAE-GAN, 2 epochs", "WAE-GAN, batches of 200, 8 epochs", "WAE-GAN, 110 epochs"),
    "VAE": ("VAE, 2 epochs", "VAE, batches of 200, 9 epochs", "VAE, 27 epochs"),
}
STABILITY = {
    "none": "default",
    "no standardised codes": "no standardised codes",
    "no encoder noise": "no encoder noise",
    "λ = 10": "lambda 10",
    "λ = 10, squared error, no standardised codes": "squared error, lambda 10, no standardised codes",
}
FITTED = "_mixture_of_50_fitted_to_codes"
# rows of mnist_results.json, of which that of most seeds is shown, and where codes come from; or seconds and sampler of
# pythae's
COMPARED: dict[str, tuple[list[Any], str]] = {
    "auto-encoder, 50 Gaussians": (["mnist_ae, 9 epochs", "auto-encoder, 9 epochs"], FITTED),
    "VAE, 50 Gaussians": (["mnist_vae, 9 epochs", "VAE, batches of 200, 9 epochs"], FITTED),
    "VAE, N(0, I)": (["mnist_vae, 9 epochs", "VAE, batches of 200, 9 epochs"], ""),
    "pythae, N(0, I)": (["pythae", 270], "N(0, I)"),
    "pythae, its 10 Gaussians": (["pythae", 270], "mixture of 10"),
    "pythae, its MAF": (["pythae", 270], "MAF"),
    "pythae, its 50 Gaussians": (["pythae", 270], "mixture of 50"),
    "the same, longer": (["pythae", 400], "mixture of 50"),
    "WAE-MMD, 16 units": (["mnist_wae_mmd, no flow, 9 epochs", "WAE-MMD, no flow, 9 epochs"], ""),
    "WAE-GAN, 16 units": (["mnist_wae_gan, no flow, 8 epochs"], ""),
    "WAE-GAN, 16 units, λ = 1": (["mnist_wae_gan, no flow, lambda 1, 8 epochs"], ""),
    "WAE-MMD, 8 units": (["mnist_wae_mmd_plain, 9 epochs", "WAE-MMD, no flow, 8 latent units, 9 epochs"], ""),
    "WAE-GAN, 8 units": (["mnist_wae_gan_plain, 8 epochs", "WAE-GAN, no flow, 8 latent units, 8 epochs"], ""),
    "WAE-MMD + flow": (["mnist_wae_mmd, 9 epochs"], ""),
    "WAE-MMD + flow, λ = 10": (["mnist_wae_mmd, earlier lambda, 9 epochs"], ""),
    "WAE-MMD + flow, one seed": (["mnist_wae_mmd, learned noise, 9 epochs"], ""),
    "WAE-GAN + flow": (["mnist_wae_gan, 8 epochs"], ""),
    "WAE-GAN + flow, λ = 0.1": (["mnist_wae_gan, earlier lambda, 8 epochs"], ""),
}
README = [
    "auto-encoder, 50 Gaussians", "pythae, its 50 Gaussians", "WAE-MMD, 8 units", "WAE-GAN, 8 units", "WAE-MMD + flow",
    "WAE-GAN + flow",
]  # fmt: skip


def digit_row(name: str, record: dict[str, Any]) -> list[str]:
    runs = record["runs"]
    batch = "100" if "--data.batch_size=100" in record["flags"] or not record["flags"] else "200"
    fitted = "fid_digits_10k_mixture_of_50_fitted_to_codes"
    quality = (over_seeds(runs, key) for key in ("fid_digits_10k", fitted, "fid_digits_reconstructions"))
    precision = [over_seeds(runs, key).split(" ")[0] for key in ("precision_digits_10k", "recall_digits_10k")]
    precision = [NOTHING] if NOTHING in precision else precision
    seconds = whole_range(runs, "fit_cpu_seconds")
    return [name, str(record["epochs"]), batch, *quality, ", ".join(precision), seconds, str(len(runs))]


def digits(rows: dict[str, str]) -> str:
    header = ["model", "epochs", "batch", "prior", "50 Gaussians", "reconstructions"]
    results = load("mnist_results")
    header += ["precision, recall", "CPU s", "seeds"]
    first, width = floor(), len(header)
    real = [first[0], NOTHING, NOTHING, first[1], *[NOTHING] * (width - 4)]
    return markdown(header, [real, *(digit_row(name, results[key]) for name, key in rows.items())])


def yardsticks() -> str:
    """Real digits and pictures against others, as they are and blurred."""
    found = load("yardsticks")
    columns = [("digits", "fid_digits", 2, 1), ("digits", "fid_digits_twin", 2, 1)]
    columns += [("digits", f"patch_distance_{scale}", 0, 1000) for scale in ("28x28", "14x14", "mean")]
    columns += [("pictures", f"patch_distance_{scale}", 0, 1000) for scale in ("64x64", "mean")]
    rows = [
        [name, *(number(found[what]["rows"][name][key], *how) for what, key, *how in columns)]
        for name in found["digits"]["rows"]
    ]
    header = ["", "digits-FID", "twin", "patches of 28 pixels", "14", "mean", "pictures: 64 pixels", "mean"]
    return markdown(header, rows)


def sweep() -> str:
    """What λ and other changes do without a flow."""
    columns = [("fid_digits_2k", 0), ("fid_digits_twin_2k", 0), ("fid_digits_reconstructions", 1)]
    columns += [("fid_digits_twin_reconstructions", 1), ("test_codes_mmd", 4), ("noise_share_of_code_variance", 2)]
    rows = [
        [f"`{row['config']}`", row["change"], *(number(row[key], digits) for key, digits in columns)]
        for row in load("sweep")
    ]
    return markdown(["config", "change", "FID", "twin", "rec.", "rec., twin", "MMD of codes", "noise's share"], rows)


def longer() -> str:
    results = load("mnist_results")
    rows = [digit_row(name, results[key]) for name, keys in LONGER.items() for key in keys]
    return markdown(["model", "epochs", "prior", "50 Gaussians", "reconstructions", "CPU s", "seeds"],
                    [[*row[:2], *row[3:6], *row[7:]] for row in rows])  # fmt: skip


def pythae() -> str:
    rows = [
        [f"{row['reg_weight']:g}", str(row["epochs"]), number(row["fid_digits_10k"], 2),
         number(row["fid_digits_reconstructions"], 2), number(row["cpu_seconds"], 0)]
        for row in load("pythae")
        if "sampler" not in row
    ]  # fmt: skip
    return markdown(["reg_weight", "epochs", "prior", "reconstructions", "CPU s"], rows)


def floor() -> list[str]:
    """The digits-FID of real training digits, over all draws of them."""
    runs = [run for record in load("mnist_results").values() for run in record["runs"] if "fid_digits_floor" in run]
    return ["*real training digits*", whole_range(runs, "fid_digits_floor", digits=2)]


def compared(rows: Iterable[str], left_out: Sequence[str] = ()) -> str:
    """Samples and reconstructions of digits by every yardstick; rows that were not measured are left out."""
    ours, theirs = load("mnist_results"), load("pythae")
    found: list[dict[str, str]] = []
    for name in rows:
        keys, where = COMPARED[name]
        pythae = keys[0] == "pythae"
        if pythae:
            runs, where = [run for run in theirs if (run.get("seconds"), run.get("sampler")) == (keys[1], where)], ""
        else:
            runs = max((ours[key]["runs"] for key in keys if key in ours), key=len, default=[])
        if not runs:
            continue
        looks = [over_seeds(runs, f"{measure}_digits_10k{where}").split(" ")[0] for measure in ("precision", "recall")]
        found.append({
            "model": name,
            "FID": over_seeds(runs, f"fid_digits_10k{where}"),
            "twin": over_seeds(runs, f"fid_digits_twin_10k{where}"),
            "patches": over_seeds(runs, f"patch_distance_mean_10k{where}", 0, 1000),
            "precision, recall": NOTHING if NOTHING in looks else ", ".join(looks),
            "rec.": over_seeds(runs, "fid_digits_reconstructions"),
            "rec., twin": over_seeds(runs, "fid_digits_twin_reconstructions"),
            "CPU s": whole_range(runs, "cpu_seconds" if pythae else "fit_cpu_seconds"),
            "seeds": str(len(runs)),
        })  # fmt: skip
    real = load("yardsticks")["digits"]["rows"]["floor"]
    names = {"FID": ("fid_digits", 2), "twin": ("fid_digits_twin", 2), "patches": ("patch_distance_mean", 0, 1000)}
    floor = {name: number(real[key], *how) for name, (key, *how) in names.items()} | {"model": "*real digits*"}
    header = [name for name in found[0] if name not in left_out]
    return markdown(header, [[row.get(name, NOTHING) for name in header] for row in (floor, *found)])


def match() -> str:
    """How well the codes of the test images meet N(0, I)."""
    rows = []
    for name in ("WAE-MMD", "WAE-GAN"):
        runs = load("mnist_results")[DIGITS[name]]["runs"]
        spread = whole_range(runs, "test_codes_smallest_std_ratio", "test_codes_largest_std_ratio", digits=2)
        rows.append([
            name,
            number(max(run["test_codes_largest_mean_error"] for run in runs), 3),
            spread,
            number(max(run["test_codes_mean_absolute_covariance"] for run in runs), 3),
        ])  # fmt: skip
    return markdown(["model", "largest absolute mean", "standard deviations", "mean absolute covariance"], rows)


def stability() -> str:
    rows = []
    for name, key in STABILITY.items():
        runs = load("mnist_results")[f"WAE-GAN stability: {key}, 1 epochs"]["runs"]
        spread = whole_range(runs, "test_codes_smallest_std_ratio", "test_codes_largest_std_ratio", digits=2)
        rows.append(
            [name, over_seeds(runs, "fid_digits_10k", 0), over_seeds(runs, "test_codes_largest_mean_error"), spread]
        )
    return markdown(["change", "digits-FID", "largest absolute mean", "standard deviations"], rows)


def order() -> str:
    runs = load("update_order")["rows"]
    rows = []
    for name in dict.fromkeys(run["order"] for run in runs):
        of_name = [run for run in runs if run["order"] == name]
        keys = ("fid_digits_10k", "fid_digits_reconstructions")
        rows.append([name, *(over_seeds(of_name, key) for key in keys), str(len(of_name))])
    return markdown(["update", "digits-FID of samples", "of reconstructions", "seeds"], rows)


# ---- pictures, completions ------------------------------------------------------------------------------------------


EMOJI = {
    "`celeba_wae_mmd`": "emoji_wae_mmd",
    "the same model, reconstructions refined by 10 steps": "emoji_refined",
    "noise of 0.25": "emoji_noise",
    "96 units": "emoji_96_units",
    "192 units": "emoji_192_units",
    "20 Gaussians, 66 epochs": "emoji_66_epochs",
    "20 Gaussians, 60 epochs, fitted as before": "emoji_60_epochs",
    "up to 100 Gaussians, 60 epochs, fitted as before": "emoji_100_gaussians",
    "no patches in the cost, edges weighted 4, 80 epochs": "emoji_no_patches",
    "neither patches nor moved pictures": "emoji_not_moved",
    "the paper's networks at an eighth of their width, squared error, no flow": "emoji_eighth_of_paper",
}


def emoji() -> str:
    rows = []
    for name, file in EMOJI.items():
        row = load(file)
        sharpness = (number(row[f"sharpness_{of}"] / row["sharpness_real"], 2) for of in ("reconstructions", "samples"))
        patches = (number(row.get(f"patch_distance_mean_{of}"), 0, 1000) for of in ("reconstructions", "1k"))
        near = (number(row.get(f"nearest_training_{of}"), 3) for of in ("samples", "test"))
        rows.append([name, number(row["mse"], 4), number(row["ssim"], 3), *sharpness, *patches, *near,
                     number(row["fit_cpu_seconds"], 0)])  # fmt: skip
    header = ["model", "MSE", "SSIM", "sharpness: reconstructions", "samples", "patches: reconstructions", "samples"]
    return markdown([*header, "nearest training picture: samples", "test pictures", "CPU s"], rows)


def emoji_among_training() -> str:
    """Patch distances of equally many pictures from other training pictures."""
    row = load("emoji_wae_mmd")
    names = {"samples": "samples", "reconstructed training pictures": "reconstructions", "training pictures": "floor"}
    cells = [number(row.get(f"patch_distance_among_training_{name}"), 0, 1000) for name in names.values()]
    return markdown(list(names), [cells])


FLOWS = {
    "log-density": ("log_density", 1, 1), "distance": ("distance", 2, 1), "digits-FID": ("fid_digits", 1, 1),
    "patches ×10³": ("patch_distance_mean", 0, 1000), "1-NNA": ("1-NNA", 2, 1), "coverage": ("COV", 2, 1),
    "largest step %": ("z_largest_step", 1, 100), "path / line": ("z_length", 2, 1),
    "third digit %": ("z_third_class", 0, 100), "CPU s": ("cpu_seconds", 0, 1),
}  # fmt: skip


def flows(name: str, left_out: Sequence[str] = ()) -> str:
    """Flows on the codes of one model; columns that no row has are left out."""
    found = load("flow_results")[name]["rows"]
    columns = {
        title: column
        for title, column in FLOWS.items()
        if title not in left_out and any(column[0] in row for row in found.values())
    }
    rows = [[flow, *(number(row.get(key), n, f) for key, n, f in columns.values())] for flow, row in found.items()]
    lines = {key.replace("codes_", "z_"): x for key, x in next(iter(found.values())).items() if "codes_" in key}
    rows.append(["*lines through the codes*", *(number(lines.get(key), n, f) for key, n, f in columns.values())])
    return markdown(["flow", *columns], rows)


TRAVERSALS = {
    "largest step %": ("largest_step", 1, 100), "path / line": ("length", 2, 1),
    "commonest digit %": ("commonest_class", 0, 100),
}  # fmt: skip


def traversals() -> str:
    """Lines and traversals of the bundled model, through the codes and through z."""
    found = load("flow_results")["digits"]["rows"]["trained with the model"]
    rows = []
    for kind, before in (("lines", ""), ("traversals", "traversals_through_")):
        for way in ("z", "codes"):
            cells = (number(found.get(f"{before}{way}_{key}"), n, f) for key, n, f in TRAVERSALS.values())
            rows.append([f"{kind} through {'the codes' if way == 'codes' else 'z'}", *cells])
    return markdown(["", *TRAVERSALS], rows)


EVENNESS = ["digits-FID", "log-density", "largest step %", "path / line", "third digit %"]


def evenness() -> str:
    """Flows on the codes of models of other weights of the penalty."""
    rows = []
    for weight, found in load("evenness").items():
        for flow, row in found["rows"].items():
            cells = (number(row.get(FLOWS[title][0]), *FLOWS[title][1:]) for title in EVENNESS)
            rows.append([weight, flow, *cells])
    return markdown(["", "flow", *EVENNESS], rows)


COMPLETIONS = {
    "PSNR, mean of 10": ("psnr_of_mean", 1, 1), "PSNR, best of 10": ("psnr_best", 1, 1),
    "agreement %": ("agreement", 1, 100),
    "label entropy": ("label_entropy", 3, 1), "diversity": ("diversity", 2, 1), "-ELBO": ("negative_elbo", 1, 1),
    "NLL": ("nll", 1, 1), "HSIC / null": ("hsic_over_null", 2, 1), "FID": ("fid", 1, 1),
    "sharpness / real": ("sharpness_ratio", 2, 1),
}  # fmt: skip


def completions(observed: str) -> str:
    """Mean ± standard deviation where there are files of several seeds."""
    seeds = [load(f"completions_{observed}{seed}") for seed in ("", "_seed_1", "_seed_2")]
    rows = []
    for name in seeds[0]:
        runs = [found[name] for found in seeds if isinstance(found.get(name), dict)]
        if runs:
            cells = (over_seeds(runs, key, digits, factor) for key, digits, factor in COMPLETIONS.values())
            rows.append([name, *cells])
    seen = seeds[0]["regression"]
    known = {"agreement": seen["agreement_reference"], "label_entropy": seen["label_entropy_reference"]}
    rows.append(["*what can be known*", *(number(known.get(k), n, f) for k, n, f in COMPLETIONS.values())])
    return markdown(["model", *COMPLETIONS], rows)


TRIALS = {
    "FID": ("fid", 2, 1), "FID, crisp": ("fid_crisp", 2, 1), "sharpness / real, crisp": ("sharpness_ratio_crisp", 2, 1),
    "diversity": ("diversity", 2, 1), "agreement %": ("agreement", 1, 100), "label entropy": ("label_entropy", 3, 1),
    "NLL": ("nll_200", 1, 1), "HSIC / null": ("hsic_over_null", 2, 1),
}  # fmt: skip


def trials(part: str, columns: Sequence[str]) -> str:
    """Short trials from the bundled model."""
    rows = load("completion_trials")[part]
    cells = [[number(row.get(key), n, f) for key, n, f in (TRIALS[name] for name in columns)] for row in rows]
    return markdown([part, *columns], [[row["what"], *found] for row, found in zip(rows, cells, strict=True)])


def quadrants() -> str:
    found = [load(f"completions_{observed}") for observed in ("1_quadrant", "left", "3_quadrants")]
    rows = [[name, *(number(row[name]["negative_elbo"], 1) for row in found)] for name in ("joint critic", "CVAE")]
    return markdown(["model", "1 quadrant given", "2", "3"], rows)


def dependence() -> str:
    found = {observed: load(f"completions_{observed}")["report mode"] for observed in ("top", "left")}
    keys = ("r_squared", "r_squared_of_pixels")
    rows = [[part, *(number(row[key], 2) for key in keys)] for part, row in found.items()]
    return markdown(["half given", "from 16 principal components", "from its pixels"], rows)


RUNS = ROOT / "experiments" / "results" / "conditions.json"
LABELS = {
    "accuracy %": ("accuracy", 1, 100), "FID of a class": ("fid_digits_of_class", 1, 1),
    "of training images": ("fid_digits_of_class_floor", 1, 1),
    "label read from z, linear %": ("label_from_code_linear", 1, 100),
    "MLP %": ("label_from_code_mlp", 1, 100), "chance %": ("chance", 1, 100),
    "MLP, validation %": ("label_from_code_mlp_validation", 1, 100), "chance there %": ("chance_validation", 1, 100),
    "MSE ×10³": ("mse", 2, 1000),
}  # fmt: skip
PICTURES = {
    "MSE ×10³": ("mse", 1, 1000), "PSNR": ("psnr", 1, 1), "PSNR, best of 10": ("psnr_best", 1, 1),
    "FID": ("fid", 1, 1), "diversity": ("diversity", 2, 1), "sharpness / real": ("sharpness_ratio", 2, 1),
    "agreement %": ("agreement", 1, 100), "HSIC / null": ("hsic_over_null", 2, 1),
}  # fmt: skip


def conditions(condition: str, measures: dict[str, tuple[str, int, float]]) -> str:
    """Mean ± standard deviation over the seeds of ``condition_results.py``."""
    rows = []
    for name, seeds in (load("conditions").get(condition, {}) if RUNS.exists() else {}).items():
        runs = [
            {key: factor * row[key] for key, _, factor in measures.values() if key in row} for row in seeds.values()
        ]
        rows.append([name, *(over_seeds(runs, key, digits) for key, digits, _ in measures.values())])
    return markdown(["model", *measures], rows)


# ---- point clouds ---------------------------------------------------------------------------------------------------

RECONSTRUCTION = {
    "CD ×10³": ("CD x1e3", 2, 1), "refined, to other points": ("refined: CD x1e3 to other points", 2, 1),
    "EMD ×10²": ("EMD x1e2 (40 clouds, 512 points)", 1, 1), "judge's share": ("classifier share", 3, 1),
    "share, refined": ("refined: classifier share", 3, 1), "SVM": ("linear SVM on codes", 3, 1),
    "SVM, untrained encoder": ("linear SVM on codes, encoder untrained", 3, 1),
}  # fmt: skip
SAMPLES = {
    "1-NNA": ("1-NNA-CD", 2, 1), "samples' half": ("1-NNA-CD, samples' half", 2, 1),
    "real half": ("1-NNA-CD, real half", 2, 1),
    "coverage": ("COV-CD", 2, 1), "MMD-CD ×10³": ("MMD-CD x1e3", 1, 1),
    "to the nearest training cloud ×10³": ("CD to the nearest training cloud x1e3", 1, 1), "JSD": ("JSD", 3, 1),
}  # fmt: skip
TURNED = {
    "as it comes": ("linear SVM on codes of turned test clouds", 3, 1),
    "with `invariance: [rotation]`": ("the same, invariance=[rotation] switched on", 3, 1),
}


def clouds(columns: dict[str, tuple[str, int, float]], *parts: str) -> str:
    """Rows of point_clouds.json that have the columns; samples are kept in parts, by where they were drawn."""
    rows = []
    for name, row in load("point_clouds").items():
        row |= {f"refined: {key}": value for key, value in row.get("refined", {}).items()}
        found = {f"{name}, {part}": row.get(part) for part in parts} if any(p in row for p in parts) else {name: row}
        for label, values in found.items():
            cells = [number((values or {}).get(key), digits, factor) for key, digits, factor in columns.values()]
            if set(cells) != {NOTHING}:
                rows.append([label, *cells])
    return markdown(["model", *columns], rows)


def draws() -> str:
    """Means and standard deviations over draws from the prior of one model."""
    rows = []
    for name, row in load("point_clouds").items():
        if found := row.get("draws"):
            runs = [{"1-NNA": nna, "COV": cov} for nna, cov in zip(found["1-NNA"], found["COV"], strict=True)]
            rows.append([name, *(over_seeds(runs, key) for key in ("1-NNA", "COV")), str(len(runs))])
    return markdown(["model", "1-NNA", "coverage", "draws"], rows)


# ---- speed and robustness -------------------------------------------------------------------------------------------


def training() -> str:
    runs = [load(name)["training"] for name in ("benchmark", "benchmark_training")]
    columns = ("bare loop", "plain Lightning", "pythae WAE_MMD")

    def of_runs(row: str, key: str, digits: int) -> str:
        return ", ".join(number(run.get(row, {}).get(key), digits) for run in runs)

    rows = []
    for config in ("mnist_wae_mmd", "mnist_wae_gan", "mnist_wae_mmd without its flow"):
        ratios = (of_runs(f"{config}, {column}", "lightning/this", 2) for column in columns)
        rows.append([config, of_runs(f"{config}, lightning", "images/s", 0), *ratios])
    return markdown(["config", "images/s", "bare loop", "plain Lightning", "pythae's WAE_MMD"], rows)


def parts() -> str:
    found = load("benchmark")
    mmd, chamfer, loaders, start = (found[part] for part in ("mmd", "chamfer", "loaders", "startup"))
    rows = []
    for size in ("n 100, d 8", "n 1000, d 64", "n 4000, d 64"):
        ours, broadcasting = mmd[f"{size}, ours"]["ms"], mmd[f"{size}, broadcasting"]["times as long"]
        rows.append([f"MMD, {size}", f"{ours:.1f} ms", f"broadcasting: {broadcasting:.1f} times as long"])
    rows.append(["Chamfer distance, 32 clouds of 2,048 points", f"{chamfer['ours']['ms'] / 1e3:.2f} s",
                 f"full matrix: {chamfer['full matrix']['times as long']:.0f} times as long"])  # fmt: skip
    for name, other in (("MNIST", "torchvision, 0 workers"), ("CelebA from memory", "torchvision, 0 workers"),
                        ("CelebA from disk", "torchvision, 0 workers"),
                        ("ModelNet40 hdf5", "cloud by cloud, 0 workers")):  # fmt: skip
        times = loaders[f"{name}, {other}"]["ours is faster by"]
        rows.append(
            [f"loader: {name}", f"{loaders[name]['examples/s']:.0f} / s", f"{other}: {times:.0f} times as long"]
        )
    ours, theirs = (found["cache"][f"10000 pictures, {name}"]["s"] for name in ("ours, into the cache", "ImageFolder"))
    rows.append(
        ["cache of 10,000 pictures of 500 x 400 pixels", f"{ours:.1f} s", f"one pass of `ImageFolder`: {theirs:.1f} s"]
    )
    rows.append(["samples of `mnist_wae_mmd`", f"{found['sampling']['mnist_wae_mmd']['images/s']:.0f} / s", NOTHING])
    rows.append(["`train.py`, command to first step", f"{start['train.py, first step']['s']:.1f} s",
                 f"`import pytorch_lightning` alone: {start['import pytorch_lightning']['s']:.1f} s"])  # fmt: skip
    return markdown(["what", "ours", "beside"], rows)


def kills() -> str:
    keys = ("moments", "runs", "resumed", "equal", "lost")
    rows = [[name, *(str(row[key]) for key in keys)] for name, row in load("kill_runs")["summary"].items()]
    return markdown(["settings", *keys], rows)


def fuzz() -> str:
    keys = ("inputs", "accepted", "refused", "failures", "slowest_seconds", "peak_memory_mb")
    rows = [[name, *(str(row[key]) for key in keys)] for name, row in load("fuzz_readers")["readers"].items()]
    return markdown(["reader", "inputs", "accepted", "refused", "failures", "slowest (s)", "peak (MB)"], rows)


def hostile() -> str:
    readers = load("hostile_checkpoints")["readers"]
    rows = [
        [name, str(row["refused"]), str(row["accepted"]), str(row.get("crashed", 0))] for name, row in readers.items()
    ]
    return markdown(["opened by", "refused in one sentence", "accepted", "failures"], rows)


def anomalies() -> str:
    runs = sorted(load("anomalies")["runs"], key=lambda run: run["digit"])
    keys = {"auroc": "AUROC", "mean_cost_of_it": "mean cost of it", "mean_cost_of_others": "mean cost of the others"}
    rows = [[str(run["digit"]), *(number(run[key], 2) for key in keys)] for run in runs]
    rows += [["mean", *(over_seeds(runs, key) for key in keys)]]
    rows += [["without the 1", *(over_seeds([run for run in runs if run["digit"] != 1], key) for key in keys)]]
    return markdown(["digit left out", *keys.values()], rows)


def gpu_checks() -> str:
    rows: dict[str, Any] = load("gpu_check")["parts"]
    parts = [row for row in rows["parts"]["rows"].values() if "left out" not in row]
    waits = [row for title, row in rows.items() if title.startswith("waits")]
    runs = {title: row for title, row in rows.items() if title.startswith(("mnist", "modelnet40", "celeba"))}
    papers = [row for title, row in runs.items() if title.endswith("_paper")]
    others = [row for title, row in runs.items() if not title.endswith("_paper")]
    groups = {
        "parts and gradients against float64, with and without TF32": parts,
        "training steps of a model, in which nothing may wait for the GPU": waits,
        "runs of the four models": others,
        "`_paper` configs": papers,
    }
    passed = [
        [name, str(len(of_one)), str(sum("FAILED" not in row for row in of_one))] for name, of_one in groups.items()
    ]
    return markdown(["what", "rows", "passed"], passed)


def gpu_kernels() -> str:
    kinds = ("convolutions and matrix products", "batch norm", "optimizer")
    table = []
    for title, row in load("gpu_check")["parts"].items():
        if title.startswith("profile"):
            _, config, *flags = title.split()
            name = config + (", bf16" if "--precision=bf16-mixed" in flags else "")
            cells = [number(row[key], 0) for key in ("operators per step", "kernels per step")]
            times = [row["ms of kinds"][kind] for kind in kinds]
            total = row["GPU ms per step"]
            shown = [number(time, 1) for time in (total, *times, total - sum(times))]
            table.append([name, *cells, *shown, number(row["TFLOP/s of its products"], 0)])
    header = ["step of", "operators", "kernels", "GPU ms", "products", "batch norm", "optimizer", "the rest", "TFLOP/s"]
    return markdown(header, table)


def gpu_steps() -> str:
    keys = ("ms", "networks as graphs, ms", "one graph, ms")
    steps = load("gpu_check")["parts"]["benchmark graphs"]["graphs"]
    rows = [[name, *(number(row[key], 1) for key in keys)] for name, row in steps.items()]
    return markdown(["step of", "as it is", "networks as CUDA graphs", "all of it as one"], rows)


TABLES = {
    "readme": lambda: compared(README, ["precision, recall", "rec., twin"]).replace(" ± ", "±"),
    "compared": lambda: compared(COMPARED),
    "yardsticks": yardsticks, "sweep": sweep,
    "digits": lambda: digits(DIGITS), "penalties": lambda: digits(PENALTIES), "longer": longer,
    "pythae": pythae, "match": match, "stability": stability, "order": order, "emoji": emoji,
    "emoji among training": emoji_among_training,
    "flows": lambda: flows("digits", ["patches ×10³"]), "flows of emoji": lambda: flows("emoji"),
    "flows of clouds": lambda: flows("clouds"), "traversals": traversals, "evenness": evenness,
    "completions of the lower half": lambda: completions("top"),
    "completions of the right half": lambda: completions("left"),
    "labels": lambda: conditions("labels", LABELS),
    "inpainting": lambda: conditions("inpainting", PICTURES),
    "super-resolution": lambda: conditions("superresolution", PICTURES),
    "trained on": lambda: trials("trained", list(TRIALS)),
    "drawn otherwise": lambda: trials("drawn", ["FID", "FID, crisp", "diversity", "agreement %", "label entropy"]),
    "quadrants": quadrants, "dependence": dependence,
    "clouds": lambda: clouds(RECONSTRUCTION), "draws of clouds": draws,
    "samples of clouds": lambda: clouds(SAMPLES, "prior", "mixture of 32 fitted to the codes"),
    "turned clouds": lambda: clouds(TURNED), "training": training, "parts": parts, "kills": kills, "fuzz": fuzz,
    "hostile": hostile, "anomalies": anomalies, "gpu checks": gpu_checks, "gpu kernels": gpu_kernels,
    "gpu steps": gpu_steps,
}  # fmt: skip


def filled(page: str) -> str:
    """The page with its tables made anew."""
    return re.sub(
        r"(<!-- table: (.*?) -->\n).*?(<!-- end -->)",
        lambda m: m[1] + TABLES[m[2]]() + "\n" + m[3],
        page,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))

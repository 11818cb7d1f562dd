"""Measures trained models: ``evaluate.py CKPT``, or the folder of a run.

Images: Fréchet distance (FID), kernel distance (KID), improved precision and recall of samples from the prior and from
mixtures fitted to the training codes, reconstructions, sharpness, and whether the codes follow the prior. Point clouds:
reconstructions, samples and codes. Pairs: the completion metrics of the model's own test.

Features of digits are those of the digit classifier that comes with the package, of other images those of the Inception
network; keys say which, and how many samples (``fid_digits_10k``). Values compare only under one key. ``floor`` is what
real training images score against the test images. The data set is the one that the checkpoint was trained on;
``--data.root DIR`` and the like change its arguments. Prints a table and, with --out, writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.flags import ACCELERATOR_HELP, ACCELERATORS, IMPORT_HELP, find_checkpoint

__all__ = ["main"]


def main(arguments: list[str] | None = None, program: str = "evaluate.py") -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ckpt", type=Path, help="checkpoint written by train.py, or its run's folder")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="more checkpoints, a column of the table each"
    )
    parser.add_argument("--data.NAME", metavar="VALUE", help="another value for an argument of the data module")
    parser.add_argument("--num_samples", type=int, default=10_000, help="samples drawn from each sampler (10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (0)")
    parser.add_argument("--features", choices=("auto", "digits", "inception"), default="auto", help="see above (auto)")
    parser.add_argument("--inception_weights", type=Path, help="file of torch-fidelity's Inception weights")
    parser.add_argument("--classifier", type=Path, help="file of the judge of point clouds; trained if left out")
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="auto", help=ACCELERATOR_HELP)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--import", nargs="+", default=[], metavar="MODULE", dest="modules", help=IMPORT_HELP)
    known, rest = parser.parse_known_args(arguments)
    overrides: dict[str, str] = {}
    remaining = iter(rest)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--data."):
            parser.error(f"unknown argument {flag}")
        overrides[flag.removeprefix("--data.")] = value if equals else next(remaining, "")

    try:
        if known.num_samples < 2:
            raise UsageError(f"--num_samples must be at least 2, got {known.num_samples}")
        paths = [find_checkpoint(path) for path in (known.ckpt, *known.beside)]
        rows = measure(paths, overrides, known)
        if known.out:
            write_json(paths, rows, known.out)
    except (FileNotFoundError, ValueError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    if len(paths) > 1:
        for number, path in enumerate(paths, 1):
            print(f"column {number}: {path}")
    width = max(map(len, rows[0]))
    for name in rows[0]:
        values = [row.get(name) for row in rows]
        print(f"{name:{width}}", *("         -" if value is None else f"{value:10.4f}" for value in values))


def measure(paths: list[Path], overrides: dict[str, str], known: argparse.Namespace) -> list[dict[str, float]]:
    """Measures each checkpoint."""
    # they bring torch and Lightning, which take seconds: a mistake on the command line is answered before
    from wae_lightning.cli.device import choose_device
    from wae_lightning.cli.load import import_modules, load_data, load_model
    from wae_lightning.evaluation import evaluate

    # torchmetrics says that it keeps features in memory: a few megabytes
    warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
    import_modules(known.modules)
    device = choose_device(known.accelerator)
    options = known.num_samples, known.seed, known.features, known.inception_weights, known.classifier
    return [
        evaluate(load_model(path, known.modules).to(device), load_data(path, overrides, known.modules), *options)
        for path in paths
    ]


def write_json(paths: list[Path], rows: list[dict[str, float]], out: Path) -> None:
    """Writes the measures of the first checkpoint, and those of the others under ``beside``; never half a file.

    Raises:
        UsageError: If the file cannot be written.
    """
    beside = {str(path): row for path, row in zip(paths[1:], rows[1:], strict=True)}
    content = {"checkpoint": paths[0].name, **rows[0]} | ({"beside": beside} if beside else {})
    unfinished = out.with_name(f".{out.name}.part")
    try:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(unfinished, out)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror or error})") from None

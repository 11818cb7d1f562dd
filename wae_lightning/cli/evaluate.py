"""Measures trained models: ``evaluate.py CKPT``, or the folder of a run; several give a table, a column each.

Images: Fréchet distance (FID), kernel distance (KID), improved precision and recall, and patch distance of samples from
the prior and from mixtures fitted to the training codes, reconstructions, sharpness, whether the codes follow the
prior, and which share of their variance is noise. Point clouds: reconstructions, samples and codes. Labels: accuracy
and Fréchet distance of each class, and whether codes tell the label. Other pairs: completions.

Features of digits are those of two digit classifiers that come with the package (the twin sees blur), of other images
those of the Inception network; keys say which, and how many samples (``fid_digits_10k``). The patch distance needs no
network: the sliced Wasserstein distance of patches at each scale, for images from 16 pixels on. Values compare only
under one key. ``floor`` is what real training images score against the test images. The data set is the one that the
checkpoint was trained on; ``--data.root DIR`` and the like change its arguments. Prints a table, in which
arrows say what is better.

``evaluate.py --real DIR --samples DIR`` measures a folder of pictures from any source against one of real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.files import whole_file
from wae_lightning.cli.flags import ACCELERATOR_HELP, ACCELERATORS, IMPORT_HELP, find_checkpoint, read_overrides
from wae_lightning.cli.tables import FORMATS, PLOTS, format_table, plot_against_weight

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["main"]


def main(arguments: list[str] | None = None, program: str = "evaluate.py") -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    parser = argparse.ArgumentParser(
        prog=program, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ckpt", type=Path, nargs="*", help="checkpoint written by train.py, or its run's folder")
    parser.add_argument("--real", type=Path, metavar="DIR", help="without CKPT: folder of real pictures")
    parser.add_argument("--samples", type=Path, metavar="DIR", help="without CKPT: folder of generated pictures")
    parser.add_argument("--beside", type=Path, nargs="+", default=[], help="more checkpoints")
    parser.add_argument("--data.NAME", metavar="VALUE", help="another value for an argument of the data module")
    parser.add_argument("--num_samples", type=int, default=10_000, help="samples drawn from each sampler (10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples (0)")
    parser.add_argument("--features", choices=("auto", "digits", "inception"), default="auto", help="see above (auto)")
    parser.add_argument("--inception_weights", type=Path, help="file of torch-fidelity's Inception weights")
    parser.add_argument("--classifier", type=Path, help="file of the judge of point clouds; trained if left out")
    refine_help = "move each test code by N steps to where it reconstructs better; measures of reconstructions only (0)"
    parser.add_argument("--refine_steps", type=int, default=0, metavar="N", help=refine_help)
    parser.add_argument("--accelerator", choices=ACCELERATORS, default="auto", help=ACCELERATOR_HELP)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--table", type=Path, help="the table as a file: .md, .tex (LaTeX), .csv or .txt")
    parser.add_argument("--plot", type=Path, help="quality of the runs against penalty_weight: .png, .pdf or .svg")
    parser.add_argument("--import", nargs="+", default=[], metavar="MODULE", dest="modules", help=IMPORT_HELP)
    known, overrides = read_overrides(parser, arguments)
    try:
        for name, least in (("num_samples", 2), ("refine_steps", 0)):
            if getattr(known, name) < least:
                raise UsageError(f"--{name} must be at least {least}, got {getattr(known, name)}")
        files = (("--out", known.out, ()), ("--table", known.table, FORMATS), ("--plot", known.plot, PLOTS))
        for flag, path, endings in files:
            if path and endings and path.suffix not in endings:
                raise UsageError(f"{flag} {path}: expected a name that ends in {', '.join(endings)}")
            if path and not os.access(path.parent, os.W_OK):  # said before minutes of work, not after
                raise UsageError(
                    f"{flag} {path}: cannot be written (its folder is not there, or may not be written to)"
                )
        folders, checkpoints = (known.real, known.samples), [*known.ckpt, *known.beside]
        paths: list[Path] = []
        weights: list[float] = []
        if any(folders):
            if checkpoints or overrides or known.plot or known.refine_steps or not all(folders):
                not_with = "a checkpoint, --plot, --data or --refine_steps"
                raise UsageError(f"--real DIR and --samples DIR belong together, without {not_with}")
            rows = [measure_folders(*folders, known)]
        else:
            if not checkpoints:
                raise UsageError("expected a checkpoint, or --real DIR and --samples DIR")
            paths = [find_checkpoint(path) for path in checkpoints]
            rows, weights = measure(paths, overrides, known)
        columns = dict(zip(name_runs(paths) or [str(known.samples)], rows, strict=True))
        if known.out:
            with whole_file("--out", known.out) as part:
                part.write_bytes((json.dumps(as_json(paths, rows), indent=2) + "\n").encode())
        if known.table:
            with whole_file("--table", known.table) as part:
                part.write_bytes((format_table(columns, known.table.suffix) + "\n").encode())
        if known.plot:
            with whole_file("--plot", known.plot) as part:
                part.write_bytes(plot_against_weight(rows, weights, known.plot.suffix))
    except (OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    print(format_table(columns))


def name_runs(paths: list[Path]) -> list[str]:
    """What tells runs apart: ``config/version`` if that does, the whole path otherwise."""
    short = [
        "/".join(path.resolve().parts[-4:-2]) if path.parent.name == "checkpoints" else path.name for path in paths
    ]
    return short if len(set(short)) == len(short) else [f"{n}: {path}" for n, path in enumerate(paths, 1)]


def measure(
    paths: list[Path], overrides: dict[str, str], known: argparse.Namespace
) -> tuple[list[dict[str, float]], list[float]]:
    """The measures of each checkpoint, and λ of each."""
    # they bring torch and Lightning, which take seconds: a mistake on the command line is answered before
    from wae_lightning.cli.device import choose_device
    from wae_lightning.cli.load import import_modules, load_data, load_model
    from wae_lightning.evaluation import evaluate

    # torchmetrics says that it keeps features in memory: a few megabytes
    warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
    import_modules(known.modules)
    device = choose_device(known.accelerator)
    options = (
        known.num_samples, known.seed, known.features, known.inception_weights, known.classifier, known.refine_steps
    )  # fmt: skip
    rows, weights = [], []
    for path in paths:
        model = load_model(path, known.modules).to(device)
        rows.append(evaluate(model, load_data(path, overrides, known.modules), *options))
        weights.append(float(model.penalty_weight))
    return rows, weights


def measure_folders(real: Path, samples: Path, known: argparse.Namespace) -> dict[str, float]:
    """Measures a folder of generated pictures against one of real ones, which are read in the size of the former."""
    import torch
    from PIL import Image

    from datamodules.folder import find_files
    from datamodules.pictures import is_grey, read_picture
    from wae_lightning.cli.device import choose_device
    from wae_lightning.evaluation import compare_pictures

    warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")

    def listed(flag: str, folder: Path) -> tuple[list[Path], dict[tuple[int, int], Path], bool]:
        """The pictures of a folder, one of each size, and whether all are grey."""
        if not folder.is_dir():
            raise UsageError(f"{flag} {folder}: no such folder")
        paths = [folder / name for name, _ in find_files(folder, [])[0]]
        if len(paths) < 4:  # what precision and recall take
            raise UsageError(f"{flag} {folder}: expected at least 4 pictures, found {len(paths)}")
        sizes: dict[tuple[int, int], Path] = {}
        grey = True
        for path in paths:
            try:
                with Image.open(path) as picture:
                    sizes.setdefault(picture.size, path)
                    grey = grey and is_grey(picture)
            except OSError:
                read_picture(path, (3, 1, 1))  # says what is wrong with it
        return paths, sizes, grey

    of_real, real_sizes, real_is_grey = listed("--real", real)
    of_samples, sizes, grey = listed("--samples", samples)
    if len(sizes) > 1:
        first, second = (f"{path.name} of {size[0]} x {size[1]}" for size, path in list(sizes.items())[:2])
        raise UsageError(f"--samples {samples}: expected pictures of one size, found {first} and {second}")
    ((width, height),) = sizes
    shape = (1 if grey else 3, height, width)
    if grey and not real_is_grey:
        print("The samples are grey: real pictures in colour are turned grey.")
    if set(real_sizes) != {(width, height)}:
        print(f"Real pictures of other sizes are cut to the middle and resized to {width} x {height}, as for training.")

    def batches(paths: list[Path]) -> Iterator[Tensor]:
        for start in range(0, len(paths), 500):
            yield torch.stack([torch.tensor(read_picture(path, shape)) for path in paths[start : start + 500]]) / 255

    torch.manual_seed(known.seed)
    return compare_pictures(
        lambda: batches(of_real),
        lambda: batches(of_samples),
        known.features,
        known.inception_weights,
        device=choose_device(known.accelerator),
    )


def as_json(paths: list[Path], rows: list[dict[str, float]]) -> dict[str, Any]:
    """The measures of the first checkpoint, or of the folders, and those of the others under ``beside``."""
    beside = {str(path): row for path, row in zip(paths[1:], rows[1:], strict=False)}
    checkpoint = {"checkpoint": paths[0].name} if paths else {}
    return checkpoint | rows[0] | ({"beside": beside} if beside else {})

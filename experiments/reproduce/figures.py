"""Remakes figures 2, 3 and 5 of the course report of 2018: ``python experiments/reproduce/figures.py 2``.

2   WAE-MMD and WAE-GAN on digits: reconstructions, interpolations, samples
3   lower halves of digits completed from the upper ones: the report's model, and one that can give several answers
5   point clouds and their reconstructions: compared row by row, as the report's code did, and by the Chamfer distance

Without --ckpt the two models are trained first, by the configs of their names; flags that are not known here, such as
``--data.root DIR``, go to both trainings. ``2 --pictures`` is of pictures in CelebA's layout. ``5 --quick`` trains
small models of synthetic shapes by one config, a third as long where rows are compared.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from records import EXPERIMENTS
from torch import Tensor

from wae_lightning.callbacks import CompletionPictures, ImagePictures, draw_point_sets
from wae_lightning.cli.errors import UsageError
from wae_lightning.cli.load import load_data, load_model

CONFIGS = {
    2: ("mnist_wae_mmd", "mnist_wae_gan"),
    3: ("mnist_conditional_report", "mnist_conditional"),
    5: ("modelnet40_pointnet_report", "modelnet40_pointnet"),
}

OF_PICTURES = "celeba_wae_mmd", "celeba_wae_gan"
QUICK = "modelnet40_pointnet_quick"
# of 256 points the mean; the blob is there at once
ROW_BY_ROW = ["--model.cost=SquaredError", "--model.cost.scale=0.00390625", "--max_epochs=10"]


def trained(config: str, flags: list[str]) -> Path:
    """Trains a config in ``runs/figures`` and returns its last checkpoint."""
    folder = Path("runs/figures")
    runs = folder / config
    command = [sys.executable, str(EXPERIMENTS / "train.py"), f"--config={config}"]
    subprocess.run([*command, f"--default_root_dir={folder}", *flags], check=True)
    newest = max(runs.glob("version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    return newest


def test_batch(data: Any) -> Any:
    """The first batch of the test set as the model gets it."""
    data.prepare_data()
    data.setup("test")
    return data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)


def side_by_side(pictures: list[list[Tensor]], titles: list[str], rows: list[str]) -> Figure:
    """Draws one column for each model of images (3, height, width)."""
    heights = [max(column[i].shape[1] for column in pictures) for i in range(len(rows))]
    width = 5.0
    scale = width / pictures[0][0].shape[2]
    figure = Figure(figsize=(width * len(pictures), scale * sum(heights) + 0.3 * (len(rows) + 1)), layout="constrained")
    axes = figure.subplots(len(rows), len(pictures), squeeze=False, height_ratios=heights)
    for j, column in enumerate(pictures):
        for i, picture in enumerate(column):
            axes[i, j].imshow(picture.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes[i, j].set_axis_off()
            axes[i, j].set_title(f"{titles[j]}: {rows[i]}" if rows[i] else titles[j], fontsize=9)
    return figure


@torch.no_grad()
def draw(number: int, models: list[Any], data: Any) -> Figure:
    """Draws one figure of two models, on test data."""
    if number == 2:
        images = test_batch(data)[0][:20]
        names = ["reconstructions", "interpolations", "samples"]
        drawn = [ImagePictures(10).draw(model, images) for model in models]
        columns = [[one[name] for name in names] for one in drawn]
        return side_by_side(columns, ["WAE-MMD", "WAE-GAN"], names)
    if number == 3:
        x, y = test_batch(data)[:2]
        columns = [[CompletionPictures().draw(model, x[:500], y[:500], data.pairs)] for model in models]
        return side_by_side(columns, ["E(x) -> z -> y, as in the report", "E(x, y) -> z, G(x, z) -> y"], [""])
    return draw_clouds(models[1], data, models[0])


@torch.no_grad()
def draw_clouds(model: Any, data: Any, beside: Any = None) -> Figure:
    """Draws ten clouds from all over the test set, what two models, or one, make of them, and samples."""
    data.prepare_data()
    data.setup("test")
    chosen = torch.linspace(0, len(data.test_set.points) - 1, 10).long()
    inputs = data.test_set.points[chosen, : data.num_points]
    rows = {"input": inputs} | ({} if beside is None else {"row by row": beside(inputs)}) | {"Chamfer": model(inputs)}
    rows["sample"] = model.sample(len(inputs), torch.Generator().manual_seed(0))
    classes = [data.class_names[label] for label in data.test_set.labels[chosen].tolist()]
    return draw_point_sets(list(rows.values()), list(rows), columns=classes)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, choices=CONFIGS, help="number of the figure in the report")
    parser.add_argument("--ckpt", type=Path, nargs=2, help="checkpoints of the two models in the order above")
    parser.add_argument("--quick", action="store_true", help="of 5: three minutes of one core")
    parser.add_argument("--pictures", action="store_true", help="of 2: of pictures in CelebA's layout")
    parser.add_argument(
        "--out", type=Path, help="PNG file to write (docs/figure_NUMBER.png, figure_5_quick.png, figure_2_pictures.png)"
    )
    known, flags = parser.parse_known_args(arguments)
    if known.quick and (known.number != 5 or known.ckpt):
        parser.error("--quick is for figure 5, and trains its models")
    if known.pictures and known.number != 2:
        parser.error("--pictures is for figure 2")
    try:
        if known.quick:
            paths = [trained(QUICK, [*cost, *flags]) for cost in (ROW_BY_ROW, [])]
        else:
            configs = OF_PICTURES if known.pictures else CONFIGS[known.number]
            paths = known.ckpt or [trained(config, flags) for config in configs]
        models = [load_model(path) for path in paths]
        overrides = dict(flag.removeprefix("--data.").split("=", 1) for flag in flags if flag.startswith("--data."))
        data = load_data(paths[-1], overrides)
        if data is None:
            raise UsageError(f"{paths[-1]}: figures need its test data: --data.root=DIR")
        kind = "_quick" if known.quick else "_pictures" if known.pictures else ""
        name = f"figure_{known.number}{kind}.png"
        out = known.out or EXPERIMENTS.parent / "docs" / name
        torch.manual_seed(0)
        draw(known.number, models, data).savefig(out, dpi=90)
    except (UsageError, FileNotFoundError, ValueError) as error:
        print(f"figures.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    print(out)


if __name__ == "__main__":
    main()

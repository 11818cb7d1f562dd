"""Pictures of what an auto-encoder of point sets does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from wae_lightning.callbacks.pictures import Pictures, beside_training, step_of_scalars, tensorboard_writers
from wae_lightning.lightning import LightningModule, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PointCloudPictures", "draw_point_sets"]

_MESH = {"material": {"cls": "PointsMaterial", "size": 0.02}, "camera": {"cls": "PerspectiveCamera", "fov": 60}}


def draw_point_sets(
    rows: list[Tensor],
    names: list[str] | None = None,
    up_axis: Literal["x", "y", "z"] = "y",
    reach: float | None = None,
    columns: list[str] | None = None,
) -> Figure:
    """Draws point sets side by side, all from one viewpoint and with equal axes.

    Args:
        rows: For each row of the figure point sets (K, N, 3); N may differ between rows.
        names: A name for each row.
        up_axis: The axis that is drawn upright.
        reach: Half of the side of the cube that is shown around the origin. None: that of the first row.
        columns: A name for each column.

    Returns:
        A figure of its own, unknown to pyplot: save it with ``figure.savefig(path)``.
    """
    from matplotlib.figure import Figure

    reach = reach or float(rows[0].abs().max()) or 1.0
    width = max(len(row) for row in rows)
    figure = Figure(figsize=(1.5 * width + 0.2, 1.5 * len(rows)))
    figure.subplots_adjust(left=0.03, right=1, bottom=0, top=1, wspace=0, hspace=0)
    up = "xyz".index(up_axis)
    order = [(up + 1) % 3, (up + 2) % 3, up]  # a rotation, so that nothing is mirrored
    for i, row in enumerate(rows):
        for j, points in enumerate(row.detach().float().cpu()[:, :, order].numpy()):
            axes = figure.add_subplot(len(rows), width, i * width + j + 1, projection="3d")
            size = 1.5 * (1024 / len(points)) ** 0.5
            axes.scatter(*points.T, s=size, c=points[:, 2], cmap="viridis", linewidths=0, vmin=-reach, vmax=reach)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
            axes.set_box_aspect((1, 1, 1), zoom=1.4)
            axes.view_init(elev=25, azim=-60)
            axes.set_axis_off()
            if columns is not None and i == 0:
                axes.text2D(0.5, 0.93, columns[j], transform=axes.transAxes, ha="center", fontsize=8)
        if names is not None:
            height = 1 - (i + 0.5) / len(rows)
            figure.text(0.012, height, names[i], rotation=90, ha="center", va="center", fontsize=8)
    return figure


class PointCloudPictures(Pictures):
    """Draws samples, reconstructions and interpolations after each so many validations and after a test.

    They go to the loggers, and after a test to ``samples.png``, ``reconstructions.png`` and ``interpolations.png`` in
    the run's folder. The codes of the samples and the point sets that are reconstructed stay the same from epoch to
    epoch. TensorBoard shows the same sets in its mesh plugin, too, where they can be turned.

    Args:
        columns: Point sets in one row, at least 2.
        up_axis: The axis that is drawn upright.
        every_n_epochs: Draw after every so many epochs only, at least 1.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, columns: int = 8, up_axis: Literal["x", "y", "z"] = "y", every_n_epochs: int = 10) -> None:
        if columns < 2:
            raise ValueError(f"columns must be at least 2, got {columns}")
        super().__init__(8 * columns, every_n_epochs)
        self.columns = columns
        self.up_axis: Literal["x", "y", "z"] = up_axis

    @torch.no_grad()
    def point_sets(self, model: Any, inputs: Tensor) -> dict[str, list[Tensor]]:
        """Computes what is drawn: for each picture its rows of point sets.

        Args:
            model: A WAE of point sets, in evaluation mode.
            inputs: Point sets (B, N, 3), at least 2.
        """
        n = self.columns
        samples = model.sample(3 * n, torch.Generator().manual_seed(0))
        lines = model.interpolate(inputs[: min(3, len(inputs) // 2)], inputs[-min(3, len(inputs) // 2) :], n)
        return {
            "samples": list(samples.unflatten(0, (3, n))),
            "reconstructions": [inputs[:n], model(inputs[:n])],
            "interpolations": list(lines.transpose(0, 1)),
        }

    def _shown(self, examples: dict[str, Tensor]) -> Tensor:
        # from all over what was kept: test sets are often sorted by class
        x = examples["inputs"]
        return x[:: max(len(x) // self.columns, 1)][: self.columns]

    def pictures(self, model: Any, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draws figures of the point sets that were kept, at least 2."""
        shown = self._shown(examples)
        if len(shown) < 2:
            return {}
        names = {"reconstructions": ["input", "reconstruction"]}
        sets = self.point_sets(model, shown)
        return {name: _pixels(draw_point_sets(rows, names.get(name), self.up_axis)) for name, rows in sets.items()}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        writers = tensorboard_writers(trainer)
        if not writers or not self.due(trainer) or len(shown := self._shown(self.kept())) < 2:
            return
        with beside_training(trainer, pl_module):
            sets = self.point_sets(pl_module, shown)
        rows = {"inputs": sets["reconstructions"][0]} | {name: sets[name][-1] for name in sets}
        for name, row in rows.items():
            for writer in writers:
                # browsers draw few such sets at once
                points, step = row[:2].float(), step_of_scalars(trainer)
                writer.add_mesh(f"{name}/turnable", points, config_dict=_MESH, global_step=step)


def _pixels(figure: Figure) -> Tensor:
    """A figure as uint8 (3, height, width)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[:, :, :3]).permute(2, 0, 1)

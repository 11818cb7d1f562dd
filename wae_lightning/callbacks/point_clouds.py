"""Pictures of what an auto-encoder of point sets does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from wae_lightning.lightning import Callback, LightningModule, TensorBoardLogger, Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PointCloudPictures", "draw_point_sets"]

_MESH = {"material": {"cls": "PointsMaterial", "size": 0.02}, "camera": {"cls": "PerspectiveCamera", "fov": 60}}


def draw_point_sets(
    rows: list[Tensor],
    names: list[str] | None = None,
    up_axis: Literal["x", "y", "z"] = "y",
    reach: float | None = None,
) -> Figure:
    """Draws point sets side by side, all from one viewpoint and with equal axes.

    Args:
        rows: For each row of the figure point sets (K, N, 3); N may differ between rows.
        names: A name for each row.
        up_axis: The axis that is drawn upright.
        reach: Half of the side of the cube that is shown around the origin. None: that of the first row.

    Returns:
        A figure of its own, unknown to pyplot: save it with ``figure.savefig(path)``.
    """
    from matplotlib.figure import Figure

    reach = reach or float(rows[0].abs().max()) or 1.0
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(1.5 * columns + 0.2, 1.5 * len(rows)))
    figure.subplots_adjust(left=0.03, right=1, bottom=0, top=1, wspace=0, hspace=0)
    up = "xyz".index(up_axis)
    order = [(up + 1) % 3, (up + 2) % 3, up]  # a rotation, so that nothing is mirrored
    for i, row in enumerate(rows):
        for j, points in enumerate(row.detach().float().cpu()[:, :, order].numpy()):
            axes = figure.add_subplot(len(rows), columns, i * columns + j + 1, projection="3d")
            size = 1.5 * (1024 / len(points)) ** 0.5
            axes.scatter(*points.T, s=size, c=points[:, 2], cmap="viridis", linewidths=0, vmin=-reach, vmax=reach)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
            axes.set_box_aspect((1, 1, 1), zoom=1.4)
            axes.view_init(elev=25, azim=-60)
            axes.set_axis_off()
        if names is not None:
            height = 1 - (i + 0.5) / len(rows)
            figure.text(0.012, height, names[i], rotation=90, ha="center", va="center", fontsize=8)
    return figure


class PointCloudPictures(Callback):
    """Draws samples, reconstructions and interpolations: to TensorBoard after each validation, to PNG after a test.

    The codes of the samples and the point sets that are reconstructed stay the same from epoch to epoch. TensorBoard
    shows figures, and the same sets in its mesh plugin, where they can be turned. After a test ``samples.png``,
    ``reconstructions.png`` and ``interpolations.png`` are written into the log folder.

    Args:
        columns: Point sets in one row, at least 2.
        up_axis: The axis that is drawn upright.
        every_n_epochs: Draw after every so many validations only, at least 1.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, columns: int = 8, up_axis: Literal["x", "y", "z"] = "y", every_n_epochs: int = 10) -> None:
        if columns < 2 or every_n_epochs < 1:
            raise ValueError(
                f"columns must be at least 2 and every_n_epochs at least 1, got {columns} and {every_n_epochs}"
            )
        self.columns = columns
        self.up_axis: Literal["x", "y", "z"] = up_axis
        self.every_n_epochs = every_n_epochs
        self._inputs: Tensor | None = None

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

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._keep_first(batch, batch_idx)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._keep_first(batch, batch_idx)

    def _keep_first(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            x = batch[0] if isinstance(batch, list | tuple) else batch
            # from all over the batch: test sets are often sorted by class
            self._inputs = x[:: max(len(x) // self.columns, 1)][: self.columns]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if self._inputs is None or len(self._inputs) < 2 or trainer.sanity_checking or not due:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                writer, step = logger.experiment, trainer.global_step
                for name, rows in self.point_sets(pl_module, self._inputs).items():
                    writer.add_figure(name, self._draw(name, rows), step)
                    # browsers draw few such sets at once; two reconstructions stand after their inputs
                    shown = torch.cat([row[:2] for row in rows]) if name == "reconstructions" else torch.cat(rows)[:2]
                    writer.add_mesh(f"{name}/turnable", shown.float(), config_dict=_MESH, global_step=step)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_dir = trainer.log_dir  # asks the first process: all of them must take part
        if self._inputs is None or len(self._inputs) < 2 or log_dir is None or not trainer.is_global_zero:
            return
        folder = Path(log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in self.point_sets(pl_module, self._inputs).items():
            self._draw(name, rows).savefig(folder / f"{name}.png", dpi=100)

    def _draw(self, name: str, rows: list[Tensor]) -> Figure:
        names = ["input", "reconstruction"] if name == "reconstructions" else None
        return draw_point_sets(rows, names, self.up_axis)

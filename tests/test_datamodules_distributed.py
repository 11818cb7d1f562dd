"""All data modules under Lightning: two processes, the command line, and the wall to wae_lightning."""

from pathlib import Path

import pytest
import torch
from test_celeba import draw_celeba
from test_modelnet40 import POINTS, write_hdf5
from torch import Tensor

import datamodules
from datamodules import CelebADataModule, HalfImageDataModule, MNISTDataModule, ModelNet40DataModule
from wae_lightning.lightning import LightningCLI, LightningDataModule, LightningModule, Trainer, seed_everything


class Recorder(LightningModule):
    """A foreign module that trains nothing and writes down which examples its process saw in each epoch."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.folder = folder
        self.seen: list[Tensor] = []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        self.seen.append(batch[0].flatten(1).cpu())
        return self.weight * batch[0].mean()

    def validation_step(self, batch: list[Tensor]) -> None:
        pass

    def on_train_epoch_end(self) -> None:
        if self.folder is not None:
            torch.save(torch.cat(self.seen), self.folder / f"{self.current_epoch}_{self.global_rank}.pt")
        self.seen = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train_with_two_processes(data: LightningDataModule, folder: Path, seed: int) -> dict[tuple[int, int], Tensor]:
    """What each process saw, by (epoch, rank)."""
    folder.mkdir()
    seed_everything(seed)
    Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Recorder(folder), data)
    return {(epoch, rank): torch.load(folder / f"{epoch}_{rank}.pt") for epoch in range(2) for rank in range(2)}


@pytest.mark.parametrize("name", ["celeba", "halves", "modelnet40"])
def test_two_processes_see_disjoint_shards_whose_union_is_the_set(tmp_path: Path, name: str) -> None:
    def data() -> LightningDataModule:
        if name == "modelnet40":
            root = tmp_path / "set"
            return ModelNet40DataModule(
                root if root.exists() else write_hdf5(root), batch_size=3, num_points=POINTS, val_fraction=0.2
            )
        root = tmp_path / "set"
        images = CelebADataModule(root if root.exists() else draw_celeba(root, 32), batch_size=4)
        return images if name == "celeba" else HalfImageDataModule(images)

    seen = train_with_two_processes(data(), tmp_path / "first", seed=1)
    assert len(list(tmp_path.rglob("set/**/celeba_*"))) == (name != "modelnet40")  # one process built one cache
    alone = data()
    alone.setup("fit")
    expected = torch.cat([alone.on_after_batch_transfer(batch, 0)[0].flatten(1) for batch in alone.train_dataloader()])
    for epoch in range(2):
        shards = [{tuple(row.tolist()) for row in seen[epoch, rank]} for rank in range(2)]
        assert len(shards[0]) == len(shards[1]) == len(expected) // 2
        assert not shards[0] & shards[1]
        assert shards[0] | shards[1] == {tuple(row.tolist()) for row in expected}
    assert not torch.equal(seen[0, 0], seen[1, 0])
    again = train_with_two_processes(data(), tmp_path / "again", seed=1)
    assert all(torch.equal(seen[key], again[key]) for key in seen)
    other = train_with_two_processes(data(), tmp_path / "other", seed=2)
    assert not torch.equal(seen[0, 0], other[0, 0])


def from_command_line(datamodule: type[LightningDataModule], *arguments: str) -> LightningDataModule:
    cli = LightningCLI(Recorder, datamodule, args=list(arguments), run=False, save_config_callback=None)
    return cli.datamodule


def test_every_argument_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    celeba = from_command_line(
        CelebADataModule,
        f"--data.root={tmp_path}",
        "--data.crop=148",
        "--data.attributes=[Male, Smiling]",
        "--data.cache_dir=caches",
        "--data.on_error=skip",
    )
    assert (celeba.crop, celeba.attributes, celeba.on_error) == (148, ["Male", "Smiling"], "skip")
    assert from_command_line(CelebADataModule, "--data.crop=none", "--data.attributes=Male").crop is None
    halves = from_command_line(
        HalfImageDataModule,
        "--data.observed=1_quadrant",
        "--data.images=datamodules.CelebADataModule",
        "--data.images.image_size=32",
    )
    assert isinstance(halves.images, CelebADataModule)
    assert halves.image_shape == (3, 32, 32)
    assert isinstance(from_command_line(HalfImageDataModule, "--data.batch_size=7").images, MNISTDataModule)
    clouds = from_command_line(
        ModelNet40DataModule, "--data.classes=[chair]", "--data.scale=[0.8, 1.2]", "--data.rotate=true"
    )
    assert (clouds.classes, tuple(clouds.scale), clouds.rotate) == (["chair"], (0.8, 1.2), True)


# which wants images with colours, and has no default
@pytest.mark.parametrize("name", sorted({*datamodules.__all__} - {"GreyDataModule"}))
def test_all_take_root_batch_size_and_num_workers(name: str, tmp_path: Path) -> None:
    data = getattr(datamodules, name)(root=tmp_path, batch_size=3, num_workers=2)
    assert (data.batch_size, data.num_workers) == (3, 2)

"""ModelNet40DataModule against h5py's and NumPy's own reading of files in both real formats."""

import pickle
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import ModelNet40DataModule
from datamodules.clouds import normalize
from datamodules.modelnet40 import PointClouds, augment, turned
from datamodules.shapes import SHAPES
from wae_lightning.lightning import LightningModule, Trainer, seed_everything

NAMES = ["airplane", "bed", "chair"]
POINTS = 64


def write_hdf5(root: Path) -> Path:
    """Writes two training files and a test file as in modelnet40_ply_hdf5_2048, with fewer and smaller clouds."""
    folder = root / "modelnet40_ply_hdf5_2048"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in ("train0", 20), ("train1", 10), ("test0", 9):
        with h5py.File(folder / f"ply_data_{name}.h5", "w") as file:
            points = rng.normal(size=(count, POINTS, 3)).astype(np.float32) * (0.2, 0.5, 0.3) + 0.1
            file.create_dataset("data", data=points.astype(np.float32), compression="gzip")
            file.create_dataset("label", data=(np.arange(count) % 3).astype(np.uint8)[:, None])
    prefix = "data/modelnet40_ply_hdf5_2048/ply_data_"  # the original's paths; only the base name counts
    (folder / "train_files.txt").write_text(f"{prefix}train0.h5\n{prefix}train1.h5\n")
    (folder / "test_files.txt").write_text(f"{prefix}test0.h5\n")
    (folder / "shape_names.txt").write_text("\n".join(NAMES) + "\n")
    return root


def write_off(root: Path) -> Path:
    """Writes boxes of random size, z up and highest, as in ModelNet40's OFF tree; some with the header's quirk."""
    rng = np.random.default_rng(0)
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    for name in NAMES:
        for part, count in ("train", 6), ("test", 2):
            (root / "ModelNet40" / name / part).mkdir(parents=True)
            for number in range(count):
                vertices = corners * rng.uniform(0.1, 0.4, 3) + (0, 0, 2)
                vertices[corners[:, 2] > 0, 2] += 3
                lines = [f"OFF{'' if number % 2 else chr(10)}8 6 0"]
                lines += [" ".join(map(str, vertex)) for vertex in vertices]
                lines += [" ".join(map(str, (4, *face))) for face in faces]
                (root / "ModelNet40" / name / part / f"{name}_{number:04d}.off").write_text("\n".join(lines))
    return root


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    return write_hdf5(tmp_path / "set")


@pytest.fixture
def off(tmp_path: Path) -> Path:
    return write_off(tmp_path / "set")


def ready(root: Path | None, **arguments: object) -> ModelNet40DataModule:
    arguments = {"num_points": POINTS, "batch_size": 4, **arguments}
    data = ModelNet40DataModule(root, **arguments)
    data.prepare_data()
    data.setup("fit")
    return data


def as_sets(clouds: torch.Tensor) -> list[set[tuple[float, ...]]]:
    return [set(map(tuple, cloud.tolist())) for cloud in clouds]


# --- HDF5 ---


@pytest.mark.parametrize("below", ["", "modelnet40_ply_hdf5_2048"])
def test_hdf5_values_are_exact(hdf5: Path, below: str) -> None:
    data = ready(hdf5 / below, normalization="none")
    folder = hdf5 / "modelnet40_ply_hdf5_2048"
    parts = {}
    for part, files in ("train", ["train0", "train1"]), ("test", ["test0"]):
        opened = [h5py.File(folder / f"ply_data_{file}.h5") for file in files]
        parts[part] = [np.concatenate([file[key][:] for file in opened]) for key in ("data", "label")]
    assert data.class_names == NAMES
    points, labels = next(iter(ready(hdf5, normalization="none", batch_size=9).test_dataloader()))
    assert np.array_equal(points, parts["test"][0])
    assert np.array_equal(labels, parts["test"][1][:, 0])
    assert points.dtype == torch.float32
    assert labels.dtype == torch.int64
    rows = torch.cat([data.train_set.rows, data.val_set.rows])
    assert sorted(rows.tolist()) == list(range(30))
    assert len(data.val_set) == 3
    for index, row in enumerate(data.train_set.rows.tolist()):
        cloud, label = data.train_set[index]
        assert np.array_equal(cloud, parts["train"][0][row])
        assert label == parts["train"][1][row, 0]


def test_training_draws_fresh_subsets_and_testing_does_not(hdf5: Path) -> None:
    data = ready(hdf5, num_points=16, normalization="none")
    everything = {tuple(point) for point in data.train_set.points.flatten(0, 1).tolist()}
    seed_everything(0)
    first = [data.train_set[5][0] for _ in range(20)]
    assert all(cloud.shape == (16, 3) for cloud in first)
    assert all(len(points) == 16 and points <= everything for points in as_sets(torch.stack(first)))
    assert len({frozenset(points) for points in as_sets(torch.stack(first))}) > 15
    seed_everything(0)
    assert torch.equal(torch.stack(first), torch.stack([data.train_set[5][0] for _ in range(20)]))
    # every point has the same chance
    drawn = torch.zeros(POINTS)
    for _ in range(2000):
        cloud = data.train_set[5][0]
        drawn += (data.train_set.points[data.train_set.rows[5]][:, None] == cloud[None]).all(-1).any(1)
    assert (drawn / 2000 - 16 / POINTS).abs().max() < 0.05
    for dataset in data.val_set, data.test_set:
        row = dataset.rows[2]
        assert torch.equal(dataset[2][0], dataset.points[row, :16])
        assert torch.equal(dataset[2][0], dataset[2][0])


def test_epochs_differ_and_seeds_repeat(hdf5: Path) -> None:
    def epochs() -> list[torch.Tensor]:
        seed_everything(7)
        data = ready(hdf5, num_points=16)
        loader = data.train_dataloader()
        return [torch.cat([points for points, _ in loader]) for _ in range(2)]

    first, second = epochs()
    assert not torch.equal(first, second)
    again = epochs()
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])


def test_short_last_batch_is_dropped_in_training_only(hdf5: Path) -> None:
    data = ready(hdf5)  # 27 training clouds, 4 a batch
    assert [len(labels) for _, labels in data.train_dataloader()] == [4] * 6
    assert [len(labels) for _, labels in data.test_dataloader()] == [4, 4, 1]
    assert len(next(iter(ready(hdf5, batch_size=50).train_dataloader()))[1]) == 27


def test_sets_survive_pickling_for_workers(hdf5: Path) -> None:
    data = ready(hdf5)
    assert torch.equal(pickle.loads(pickle.dumps(data.test_set))[3][0], data.test_set[3][0])


def test_md5_is_reported(hdf5: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level("INFO")
    ready(hdf5)
    assert "the files are not ModelNet40's own, by their md5" in caplog.text
    files = (hdf5 / "modelnet40_ply_hdf5_2048").glob("*.h5")
    monkeypatch.setattr(
        "datamodules.modelnet40.MODELNET40_MD5", {file.name: md5(file.read_bytes()).hexdigest() for file in files}
    )
    ready(hdf5)
    assert "the files are ModelNet40's own, by their md5" in caplog.text


# --- OFF ---


@pytest.mark.parametrize("below", ["", "ModelNet40"])
def test_off_meshes_are_sampled_once_on_their_surface(off: Path, tmp_path: Path, below: str) -> None:
    data = ready(off / below, cache_dir=tmp_path / "caches", normalization="none", up_axis="z")
    [file] = (tmp_path / "caches").iterdir()
    written = file.stat().st_mtime_ns
    assert data.class_names == NAMES
    assert data.train_set.points.shape == (18, 2 * POINTS, 3)
    assert len(data.test_set) == 6
    for row, path in enumerate(sorted((off / "ModelNet40").glob("*/test/*.off"))):
        assert data.test_set.labels[row] == NAMES.index(path.parts[-3])
        corners = np.loadtxt(path.read_text().replace("OFF8", "OFF\n8").splitlines()[2:10])
        points = data.test_set.points[row].double().numpy()
        low, high = corners.min(0), corners.max(0)
        assert (points >= low - 1e-5).all()
        assert (points <= high + 1e-5).all()
        nearest = np.minimum(np.abs(points - low), np.abs(points - high)).min(axis=1)
        np.testing.assert_allclose(nearest, 0, atol=1e-6)
    again = ready(off / below, cache_dir=tmp_path / "caches", normalization="none", up_axis="z")
    assert file.stat().st_mtime_ns == written
    assert torch.equal(again.train_set.points, data.train_set.points)
    file.unlink()
    rebuilt = ready(off / below, cache_dir=tmp_path / "caches", normalization="none", up_axis="z")
    assert torch.equal(rebuilt.train_set.points, data.train_set.points)


def test_hdf5_comes_before_off_unless_asked(hdf5: Path) -> None:
    write_off(hdf5)
    assert ready(hdf5).train_set.points.shape[1] == POINTS
    assert ready(hdf5, source="off").train_set.points.shape[1] == 2 * POINTS


def test_off_is_turned_so_that_the_tall_axis_is_up(off: Path) -> None:
    for axis, place in ("y", 1), ("z", 2):
        spread = ready(off, up_axis=axis).test_set.points.std(dim=1)
        assert (spread.argmax(dim=1) == place).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"chair_0002.off: the file is empty"),
        ("OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n", r"chair_0002.off: the faces have no area"),
        ("OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 3\n", r"chair_0002.off: a face names vertex 3"),
    ],
)
def test_damaged_mesh_is_named_and_leaves_no_cache(off: Path, content: str, message: str) -> None:
    (off / "ModelNet40/chair/train/chair_0002.off").write_text(content)
    with pytest.raises(ValueError, match=message):
        ready(off)
    assert not [*off.rglob("*.h5"), *off.rglob("*.tmp")]


def test_training_meshes_only(off: Path) -> None:
    for file in off.rglob("test/*.off"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="expected test meshes at <class>/test"):
        ready(off)


# --- synthetic shapes ---


def test_without_data_the_shapes_are_used_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()  # all of them
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    data = ready(None)
    assert "synthetic shapes of 16 classes, made by formula; they are not ModelNet40" in caplog.text
    assert data.class_names == sorted(SHAPES)
    assert len(data.train_set) + len(data.val_set) == 1600
    assert len(data.test_set) == 400
    assert torch.equal(data.train_set.points, ready(None).train_set.points)
    write_hdf5(tmp_path / "data")
    assert ready(None).class_names == NAMES
    assert ready(None, source="shapes").class_names == sorted(SHAPES)


def test_a_class_has_the_same_shapes_whatever_the_filter() -> None:
    few = ready(None, source="shapes", classes=["table", "cone"])
    every = ready(None, source="shapes")
    assert few.class_names == ["table", "cone"]
    for label, name in enumerate(few.class_names):
        mine = few.test_set.points[few.test_set.labels == label]
        theirs = every.test_set.points[every.test_set.labels == every.class_names.index(name)]
        assert torch.equal(mine, theirs)
    assert not torch.equal(few.test_set.points, few.train_set.points[:50])


# --- what happens to the clouds ---


def test_classes_are_filtered_and_numbered_anew(hdf5: Path) -> None:
    every = ready(hdf5)
    data = ready(hdf5, classes=["chair", "airplane"])
    assert data.class_names == ["chair", "airplane"]
    for new, old in (0, 2), (1, 0):
        mine = data.test_set.points[data.test_set.labels == new]
        assert torch.equal(mine, every.test_set.points[every.test_set.labels == old])
    assert len(data.test_set) == 6


def test_unit_sphere_and_box_by_numpy(hdf5: Path) -> None:
    raw = ready(hdf5, normalization="none").test_set.points.double().numpy()
    sphere = raw - raw.mean(axis=1, keepdims=True)
    sphere /= np.sqrt((sphere**2).sum(-1).max(1))[:, None, None]
    np.testing.assert_allclose(ready(hdf5).test_set.points, sphere, atol=1e-6)
    low, high = raw.min(axis=1, keepdims=True), raw.max(axis=1, keepdims=True)
    box = (raw - (low + high) / 2) / (high - low).max(axis=2, keepdims=True)
    np.testing.assert_allclose(ready(hdf5, normalization="unit_box").test_set.points, box, atol=1e-6)


def test_whole_set_uses_the_training_points_only(hdf5: Path) -> None:
    raw = ready(hdf5, normalization="none")
    train = raw.train_set.points[raw.train_set.rows].double().numpy()
    mean = train.mean(axis=(0, 1))
    deviation = np.sqrt(((train - mean) ** 2).mean())
    data = ready(hdf5, normalization="whole_set")
    expected = (raw.test_set.points.double().numpy() - mean) / deviation
    np.testing.assert_allclose(data.test_set.points, expected, atol=1e-5)
    assert data.test_set.points.dtype == torch.float32


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    factor=st.floats(0.01, 100),
    move=st.floats(-10, 10),
    name=st.sampled_from(["unit_sphere", "unit_box"]),
)
def test_normalization_forgets_size_and_place(seed: int, factor: float, move: float, name: str) -> None:
    points = torch.randn(3, 20, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = normalize(points, name)
    torch.testing.assert_close(normalize(points * factor + move, name), expected, atol=1e-8, rtol=0)
    torch.testing.assert_close(normalize(expected, name), expected)


def test_cloud_of_one_place_stays_finite() -> None:
    assert torch.equal(normalize(torch.ones(1, 5, 3), "unit_sphere"), torch.zeros(1, 5, 3))
    assert torch.equal(normalize(torch.ones(1, 5, 3), "unit_box"), torch.zeros(1, 5, 3))


def test_turning_is_a_rotation_and_back() -> None:
    points = torch.randn(5, 7, 3)
    up = turned(points, "z", "y")
    assert torch.equal(up[..., 1], points[..., 2])
    assert torch.equal(turned(up, "y", "z"), points)
    matrix = turned(torch.eye(3), "z", "y")
    assert torch.det(matrix) == 1


@pytest.mark.parametrize(("axis", "place"), [("y", 1), ("z", 2)])
def test_rotation_keeps_height_and_shape(axis: str, place: int) -> None:
    points = torch.randn(50, 30, 3, dtype=torch.float64)
    out = augment(points.float(), axis, True, (1, 1), (1, 1), 0, 0).double()
    torch.testing.assert_close(out[..., place], points[..., place], atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cdist(out, out), torch.cdist(points, points), atol=1e-4, rtol=0)
    others = [other for other in range(3) if other != place]
    # no mirroring, and a different angle for each cloud, over the whole circle
    a, b = (
        cloud[:, 0, others] @ torch.tensor([1, 1j], dtype=torch.cdouble) for cloud in (points.cdouble(), out.cdouble())
    )
    angles = (b / a).angle()
    assert angles.min() < -2 < 2 < angles.max()
    second = out[:, 1, others].cdouble() @ torch.tensor([1, 1j], dtype=torch.cdouble)
    first = points[:, 1, others].cdouble() @ torch.tensor([1, 1j], dtype=torch.cdouble)
    torch.testing.assert_close((second / first).angle(), angles, atol=1e-3, rtol=0)


@pytest.mark.parametrize(("axis", "level"), [("y", [0, 2]), ("z", [0, 1])])
def test_clouds_are_mirrored_along_both_level_axes(axis: str, level: list[int]) -> None:
    points = torch.randn(500, 10, 3)
    signs = augment(points, axis, False, (1, 1), (1, 1), 0, 0, flip=True) / points
    torch.testing.assert_close(signs, signs[:, :1].expand_as(signs))
    assert signs[:, 0].abs().sub(1).abs().max() < 1e-6
    (up,) = {0, 1, 2} - set(level)
    assert (signs[:, 0, up] > 0).all()
    assert (signs[:, 0, level] > 0).float().mean(0).sub(0.5).abs().max() < 0.1
    assert signs[:, 0, level].T.corrcoef()[0, 1].abs() < 0.2


def test_only_training_clouds_are_mirrored() -> None:
    data = ModelNet40DataModule(num_points=64, batch_size=1600, source="shapes", flip=True)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    for training in (True, False):
        data.trainer = SimpleNamespace(training=training)
        given, labels = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(given, batch[0]) != training
        torch.testing.assert_close(given.abs(), batch[0].abs())
        assert torch.equal(labels, batch[1])


def test_scale_stretch_jitter_and_shift_have_their_ranges() -> None:
    points = torch.randn(500, 10, 3)
    factors = augment(points, "y", False, (0.5, 2.0), (1, 1), 0, 0) / points
    torch.testing.assert_close(factors, factors[:, :1, :1].expand_as(factors))
    assert 0.5 <= factors.min() < 0.6
    assert 1.9 < factors.max() <= 2.0001
    stretched = augment(points, "y", False, (1, 1), (0.5, 2.0), 0, 0) / points
    torch.testing.assert_close(stretched, stretched[:, :1].expand_as(stretched))
    assert 0.5 <= stretched.min() < 0.6
    assert 1.9 < stretched.max() <= 2.0001
    assert stretched[:, 0].T.corrcoef()[0, 1].abs() < 0.2
    noise = augment(points, "y", False, (1, 1), (1, 1), 0.01, 0) - points
    assert 0.007 < noise.std() < 0.01
    assert noise.abs().max() <= 0.02 + 1e-6
    moved = augment(points, "y", False, (1, 1), (1, 1), 0, 0.2) - points
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved), atol=1e-6, rtol=0)
    assert 0.19 < moved.abs().max() <= 0.2 + 1e-6
    assert torch.equal(augment(points, "y", False, (1, 1), (1, 1), 0, 0), points)


def test_parts_are_stretched_on_either_side_of_a_place_of_each_axis() -> None:
    points = torch.randn(200, 30, 3) + 5
    changed = augment(points, "y", False, (1, 1), (1, 1), 0, 0, stretch_parts=(0.5, 2.0))
    torch.testing.assert_close(changed.mean(1), points.mean(1))
    order = points.argsort(1)
    before, after = (x.gather(1, order).diff(dim=1) for x in (points, changed))
    slopes = after / before
    assert 0.5 - 1e-2 <= slopes.min() < 0.6
    assert 1.9 < slopes.max() <= 2 + 1e-2
    # two slopes along each axis, and one between the neighbours of the place
    jumps = (slopes.diff(dim=1).abs() > 0.02 * slopes[:, 1:]).sum(1)
    assert jumps.max() <= 2
    assert (jumps > 0).float().mean() > 0.8
    first, last = slopes[:, 0], slopes[:, -1]
    assert torch.corrcoef(torch.stack([*first.T, *last.T])).sub(torch.eye(6)).abs().max() < 0.3


def test_augmentation_is_for_training_only(hdf5: Path) -> None:
    data = ready(hdf5, shift=5.0)

    class Collect(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.reach: dict[str, float] = {}

        def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
            self.reach["train"] = float(batch[0].norm(dim=2).max())
            return self.weight

        def validation_step(self, batch: list[torch.Tensor]) -> None:
            self.reach["val"] = float(batch[0].norm(dim=2).max())

        def test_step(self, batch: list[torch.Tensor]) -> None:
            self.reach["test"] = float(batch[0].norm(dim=2).max())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Collect()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert module.reach["train"] > 1.5
    assert module.reach["val"] == pytest.approx(1)
    assert module.reach["test"] == pytest.approx(1)


def test_one_draw_for_a_batch_is_a_fair_draw_for_each_cloud() -> None:
    """The mean of a random subset of a random cloud has variance 1 / num_points, within and across batches."""
    clouds = PointClouds(torch.randn(4000, 64, 3), torch.zeros(4000, dtype=torch.int64), 16, fresh=True)
    means = torch.cat([clouds.__getitems__(range(at, at + 100))[0].mean(dim=1) for at in range(0, 4000, 100)])
    assert means.var() == pytest.approx(1 / 16, rel=0.1)


# --- bad input ---


@pytest.mark.parametrize("source", ["auto", "hdf5", "off"])
def test_missing_set_says_what_is_expected(tmp_path: Path, source: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no ModelNet40 here. Expected train_files.txt, .*<class>/train/\*.off"
    ):
        ModelNet40DataModule(tmp_path, source=source).prepare_data()


@pytest.mark.parametrize("name", ["shape_names.txt", "test_files.txt", "ply_data_train1.h5"])
def test_missing_files_are_named(hdf5: Path, name: str) -> None:
    (hdf5 / "modelnet40_ply_hdf5_2048" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: no such file"):
        ready(hdf5)


def test_empty_list_is_named(hdf5: Path) -> None:
    (hdf5 / "modelnet40_ply_hdf5_2048/test_files.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"test_files.txt: the list is empty"):
        ready(hdf5)


def test_truncated_and_foreign_files_are_named(hdf5: Path) -> None:
    file = hdf5 / "modelnet40_ply_hdf5_2048/ply_data_train1.h5"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"ply_data_train1.h5: not a complete HDF5 file \(.*truncated"):
        ready(hdf5)
    file.write_bytes(b"PK" + content[2:])
    with pytest.raises(ValueError, match=r"ply_data_train1.h5: not an HDF5 file"):
        ready(hdf5)


def with_nan(points: np.ndarray) -> np.ndarray:
    points[7, 3, 1] = np.nan
    return points


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("data", None, "expected a data set 'data', found label"),
        ("label", None, "expected a data set 'label', found data"),
        ("data", lambda points: (points * 100).astype(np.int16), "expected 'data' to be float .*found int16"),
        ("data", lambda points: points[:, :, :2], r"expected 'data' to be float of shape \(N, P, 3\), found .*64, 2"),
        ("data", lambda points: points[0], r"found float32 of shape \(64, 3\)"),
        ("data", lambda points: points[:, :32], "32 points a cloud; expected 64 as in ply_data_train0.h5"),
        ("data", with_nan, "cloud 7 has coordinates that are not finite"),
        ("label", lambda labels: labels.astype(np.float32), "expected 'label' to be integers .*found float32"),
        ("label", lambda labels: labels[:-1], r"integers of shape \(10, 1\), found uint8 of shape \(9, 1\)"),
        ("label", lambda labels: labels + 1, "found the label 3; shape_names.txt has 3 classes"),
        ("label", lambda labels: labels.astype(np.int8) - 1, "found the label -1; shape_names.txt has 3"),
    ],
)
def test_damaged_hdf5_is_named(hdf5: Path, key: str, change: object, message: str) -> None:
    path = hdf5 / "modelnet40_ply_hdf5_2048/ply_data_train1.h5"
    with h5py.File(path, "r+") as file:
        values = file[key][:]
        del file[key]
        if change is not None:
            file[key] = change(values)  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"ply_data_train1.h5: .*{message}"):
        ready(hdf5)


def test_hdf5_that_claims_a_terabyte_is_not_allocated(hdf5: Path) -> None:
    with h5py.File(hdf5 / "modelnet40_ply_hdf5_2048/ply_data_train1.h5", "w") as file:
        file.create_dataset("data", (10**8, 2048, 3), "f4", chunks=(1, 2048, 3))
        file.create_dataset("label", (10**8, 1), "u1", chunks=(1000, 1))
    with pytest.raises(
        ValueError, match=r"'data' claims the shape \(100000000, 2048, 3\), more than the file can hold"
    ):
        ready(hdf5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_points": POINTS + 1}, "num_points must be at most 64, the points of each cloud in .*, got 65"),
        ({"num_points": 0}, "num_points must be at least 1"),
        ({"classes": ["sofa"]}, "classes: 'sofa' is not one of airplane, bed, chair"),
        ({"classes": []}, "classes must name at least one class"),
        ({"classes": ["bed", "bed"]}, "classes must name at least one class, and each once"),
        ({"source": "ply"}, "source must be one of"),
        ({"normalization": "mean"}, "normalization must be one of"),
        ({"up_axis": "x"}, "up_axis must be one of y, z"),
        ({"scale": (2, 1)}, "scale must be an interval of positive factors"),
        ({"scale": (0, 1)}, "scale must be"),
        ({"stretch": (0, 1)}, "stretch must be"),
        ({"stretch_parts": (1, 0.5)}, "stretch_parts must be"),
        ({"jitter": -0.1}, "jitter must be 0 or more"),
        ({"shift": -0.1}, "shift must be 0 or more"),
        ({"val_fraction": 0.0}, "val_fraction must leave both parts"),
    ],
)
def test_bad_arguments(hdf5: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ready(hdf5, **arguments)


def test_class_without_clouds_is_named(hdf5: Path) -> None:
    with (hdf5 / "modelnet40_ply_hdf5_2048/shape_names.txt").open("a") as file:
        file.write("sofa\n")
    with pytest.raises(ValueError, match="classes: the training or the test set has no 'sofa'"):
        ready(hdf5, classes=["sofa"])


def test_checkpoint_of_another_normalization_warns() -> None:
    state = ModelNet40DataModule(normalization="unit_box").state_dict()
    with pytest.warns(UserWarning, match="normalization = 'unit_box'; this ModelNet40DataModule has 'unit_sphere'"):
        ModelNet40DataModule().load_state_dict(state)


def test_plot_is_upright_with_equal_axes(hdf5: Path, tmp_path: Path) -> None:
    data = ready(hdf5)
    points, labels = next(iter(data.test_dataloader()))
    figure = data.plot((points, labels), count=3)
    assert [axes.get_title() for axes in figure.axes] == [NAMES[label] for label in labels[:3]]
    axes = figure.axes[0]
    spans = [np.ptp(limits) for limits in (axes.get_xlim(), axes.get_ylim(), axes.get_zlim())]
    assert spans == pytest.approx([spans[0]] * 3)
    drawn = axes.collections[0]._offsets3d
    np.testing.assert_array_equal(drawn[2], points[0, :, 1])
    figure.savefig(tmp_path / "figure.png")


# --- the full sets ---


@pytest.mark.full_data
def test_kicad_clouds_are_exact(full_data: Path) -> None:
    folder = full_data / "kicad40_ply_hdf5_2048"
    data = ready(folder, num_points=2048, normalization="none")
    assert len(data.train_set) + len(data.val_set) == 1566
    assert len(data.test_set) == 394
    assert len(data.class_names) == 40
    train = np.concatenate([h5py.File(folder / f"ply_data_train{number}.h5")["data"][:] for number in range(4)])
    test = np.concatenate([h5py.File(folder / f"ply_data_test{number}.h5")["data"][:] for number in range(2)])
    assert np.array_equal(data.train_set.points, train)
    assert np.array_equal(data.test_set.points, test)


@pytest.mark.full_data
def test_kicad_meshes_look_like_their_clouds(full_data: Path, tmp_path: Path) -> None:
    """The OFF tree and the HDF5 files hold other models of the same classes: sizes must agree roughly, axis by axis."""
    clouds = ready(full_data / "kicad40_ply_hdf5_2048", num_points=2048, classes=["led", "relay"])
    meshes = ready(full_data / "kicad_off", num_points=1024, classes=["led", "relay"], cache_dir=tmp_path)
    for label in range(2):
        spreads = [data.train_set.points[data.train_set.labels == label].std(dim=(0, 1)) for data in (clouds, meshes)]
        torch.testing.assert_close(spreads[0], spreads[1], rtol=0.5, atol=0.1)


@pytest.mark.parametrize("flag", ["flip", "rotate"])
@pytest.mark.parametrize("value", ["false", "no", 2, ["x"]])
def test_yes_or_no_is_true_or_false(flag, value):
    with pytest.raises(ValueError, match=f"{flag} must be true or false, got"):
        ModelNet40DataModule(source="shapes", **{flag: value})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_clouds_of_any_precision_are_turned(dtype):
    points = torch.randn(2, 5, 3, dtype=dtype)
    turned = augment(points, "y", True, (1, 1), (1, 1), 0, 0)
    assert turned.dtype == dtype
    torch.testing.assert_close(turned[..., 1], points[..., 1])
    torch.testing.assert_close(turned.float().norm(dim=2), points.float().norm(dim=2), rtol=0.02, atol=0.02)

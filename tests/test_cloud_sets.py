"""ModelNet40DataModule on folders as archives, mirrors and other sets have them, against arrays known in advance."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from test_clouds import npy, npz, text
from test_modelnet40 import POINTS, ready, write_hdf5, write_off
from test_ply import XYZ, ply

FOLDER = "modelnet40_ply_hdf5_2048"


def cloud(number: int, count: int = 2 * POINTS) -> np.ndarray:
    return np.random.default_rng(number).normal(size=(count, 3)).astype(np.float32)


def points_of(data: object, part: str) -> list[set]:
    dataset = getattr(data, f"{part}_set")
    return [{tuple(point) for point in dataset.points[row].tolist()} for row in dataset.rows]


def labels_of(data: object, part: str) -> list[str]:
    dataset = getattr(data, f"{part}_set")
    return [data.class_names[label] for label in dataset.labels[dataset.rows].tolist()]


# --- HDF5 ---


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n \n",
        lambda text: text.replace("data/" + FOLDER + "/", f"C:\\data\\{FOLDER}\\"),
        lambda text: "\n".join(f"{line}\n._{line.split('/')[-1]}" for line in text.splitlines()),
    ],
)
def test_lists_of_other_systems(tmp_path: Path, change: object) -> None:
    expected, root = ready(write_hdf5(tmp_path / "usual")), write_hdf5(tmp_path / "theirs")
    names = ["airplane", "night stand", "range hood"]
    (root / FOLDER / "shape_names.txt").write_text("\n".join(names))
    for path in (root / FOLDER).glob("*.txt"):
        if path.name != "shape_names.txt" or "._" not in change("a\n"):
            path.write_text(change(path.read_text()), newline="", encoding="utf-8")
    (root / FOLDER / "._ply_data_train0.h5").write_bytes(b"what a Mac leaves")
    data = ready(root)
    assert data.class_names == names
    assert torch.equal(data.train_set.points, expected.train_set.points)
    assert torch.equal(data.train_set.labels, expected.train_set.labels)


@pytest.mark.parametrize("columns", [3, 6])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("lists", [True, False])
def test_normals_flat_labels_and_no_lists(tmp_path: Path, columns: int, flat: bool, dtype: str, lists: bool) -> None:
    expected, root = ready(write_hdf5(tmp_path / "usual")), write_hdf5(tmp_path / "theirs")
    for path in (root / FOLDER).glob("*.h5"):
        with h5py.File(path, "r+") as file:
            points, labels = file["data"][:], file["label"][:]
            del file["data"], file["label"]
            normals = np.ones_like(points)
            file["data"] = np.concatenate([points, normals], 2)[..., :columns].astype(dtype)
            file["label"] = labels[:, 0] if flat else labels
            file["normal"] = normals
    if not lists:
        for part in "train", "test":
            (root / FOLDER / f"{part}_files.txt").unlink()
        (root / FOLDER / "._ply_data_train0.h5").write_bytes(b"what a Mac leaves")
    data = ready(root)
    torch.testing.assert_close(data.train_set.points, expected.train_set.points, atol=1e-6, rtol=0)
    assert data.train_set.points.dtype == torch.float32
    assert torch.equal(data.test_set.labels, expected.test_set.labels)


def test_a_class_named_twice_is_refused(tmp_path: Path) -> None:
    root = write_hdf5(tmp_path)
    (root / FOLDER / "shape_names.txt").write_text("airplane\nchair\nchair\n")
    with pytest.raises(ValueError, match=r"shape_names.txt: expected each class once, found 'chair' more than once"):
        ready(root)


# --- modelnet40_normal_resampled ---


def write_resampled(folder: Path, names: str = "airplane\nnight_stand\n", line: str = "{}\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modelnet40_shape_names.txt").write_text(names)
    for part, numbers in ("train", range(1, 6)), ("test", range(6, 8)):
        lines = [f"{name}_{number:04d}" for name in ("airplane", "night_stand") for number in numbers]
        (folder / f"modelnet40_{part}.txt").write_text("".join(line.format(entry) for entry in lines))
        for seed, entry in enumerate(lines, 100 * len(numbers)):
            path = folder / entry.rpartition("_")[0] / f"{entry}.txt"
            path.parent.mkdir(exist_ok=True)
            rows = cloud(seed, 3 * POINTS)
            path.write_bytes(text(np.concatenate([rows, rows], 1), ","))
            (path.parent / f"._{path.name}").write_bytes(b"what a Mac leaves")
    return folder


@pytest.mark.parametrize("below", ["", "modelnet40_normal_resampled", "modelnet40_normal_resampled/" * 2])
@pytest.mark.parametrize("names", ["airplane\nnight_stand\n", "\ufeffairplane\r\nnight stand\r\n\r\n"])
@pytest.mark.parametrize("line", ["{}\n", "{}.txt\r\n"])
def test_resampled_modelnet40(tmp_path: Path, below: str, names: str, line: str) -> None:
    write_resampled(tmp_path / below, names, line)
    data = ready(tmp_path, normalization="none", val_fraction=0.2)
    assert len(data.class_names) == 2
    assert len(data.train_set) == 8
    assert [name.replace(" ", "_") for name in labels_of(data, "test")] == ["airplane"] * 2 + ["night_stand"] * 2
    assert data.test_set.points.shape == (4, 2 * POINTS, 3)
    for seed, found in enumerate(points_of(data, "test"), 200):
        assert len(found) == 2 * POINTS
        assert found < {tuple(point) for point in cloud(seed, 3 * POINTS).tolist()}


def test_what_the_lists_name_must_be_there(tmp_path: Path) -> None:
    folder = write_resampled(tmp_path / "modelnet40_normal_resampled")
    (folder / "night_stand" / "night_stand_0007.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"night_stand_0007.txt: no such file, though modelnet40_test"):
        ready(tmp_path)
    (folder / "modelnet40_test.txt").write_text("sofa_0001\n")
    with pytest.raises(ValueError, match=r"modelnet40_test.txt: expected CLASS_NUMBER .*, found 'sofa_0001'"):
        ready(tmp_path)


# --- folders of clouds ---


@pytest.mark.parametrize("layout", ["{name}/{part}/{i}", "{part}/{name}/{i}", "{part}/{name}_{i}"])
@pytest.mark.parametrize("ending", [".npy", ".npz", ".ply", ".xyz"])
def test_folders_with_parts(tmp_path: Path, layout: str, ending: str) -> None:
    """ShapeNet as PointFlow has it, and other orders of the levels."""
    one_class = "{name}/" not in layout
    for number, (name, part) in enumerate([(n, p) for n in ("02691156", "chair") for p in ("train", "val", "test")]):
        for i in range(2):
            points = cloud(10 * number + i)
            content = {
                ".npy": npy(points),
                ".npz": npz(points=points),
                ".ply": ply("binary_little_endian", [("vertex", XYZ, points.tolist())]),
                ".xyz": text(points),
            }[ending]
            path = tmp_path / "set" / layout.format(name=name, part=part, i=f"{i}{ending}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            mac = tmp_path / "set" / "__MACOSX" / path.relative_to(tmp_path / "set")
            mac.parent.mkdir(parents=True, exist_ok=True)
            mac.write_bytes(b"what a Mac leaves")
            (path.parent / ".DS_Store").write_bytes(b"what a Mac leaves")
    (tmp_path / "set" / "README.txt").write_text("no cloud")
    data = ready(tmp_path / "set", normalization="none")
    assert data.class_names == (["set"] if one_class else ["02691156", "chair"])
    for place, part in enumerate(("train", "val", "test")):
        expected = [
            {tuple(point) for point in cloud(10 * (place + 3 * k) + i).tolist()} for k in (0, 1) for i in (0, 1)
        ]
        assert points_of(data, part) == expected
        if not one_class:
            assert labels_of(data, part) == ["02691156"] * 2 + ["chair"] * 2


def test_a_folder_without_parts_is_divided_by_the_seed(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.npy").write_bytes(npy(cloud(number)))
    parts = {}
    for seed in 0, 0, 1:
        data = ready(tmp_path, split_seed=seed, val_fraction=0.2, normalization="none")
        new = [frozenset(points) for part in ("train", "val", "test") for points in points_of(data, part)]
        assert len(set(new)) == 20
        assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (13, 3, 4)
        parts.setdefault(seed, new)
        assert parts[seed] == new
    assert parts[0] != parts[1]


def test_text_is_taken_for_clouds_only_when_asked(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").write_bytes(text(cloud(number)))
    with pytest.raises(FileNotFoundError, match="no ModelNet40 here"):
        ready(tmp_path)
    assert len(ready(tmp_path, source="files", val_fraction=0.25).test_set) == 2


def test_clouds_of_few_points(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.npy").write_bytes(npy(cloud(number, POINTS if number else POINTS - 1)))
    with pytest.raises(ValueError, match=r"0.npy: expected one cloud of at least 64 points, found 1 of 63"):
        ready(tmp_path)
    with pytest.warns(UserWarning, match=r"1 of 8 files were skipped: .*0.npy: expected one cloud"):
        data = ready(tmp_path, on_error="skip", val_fraction=0.25)
    # the first of them, which validation and test take, are all different
    assert all(len({tuple(point) for point in points[:POINTS].tolist()}) == POINTS for points in data.test_set.points)


@pytest.mark.parametrize("count", [POINTS + POINTS // 2, 2 * POINTS - 1, 2 * POINTS, 3 * POINTS])
def test_points_that_a_file_has_in_order_are_validated_all_over(tmp_path: Path, count: int) -> None:
    """Files of points from the bottom to the top: the first ones are the lower part."""
    for number in range(12):
        points = cloud(number, count)
        (tmp_path / f"{number}.npy").write_bytes(npy(points[points[:, 1].argsort()]))
    data = ready(tmp_path, normalization="none", val_fraction=0.25)
    for part in data.val_set, data.test_set:
        for points, _ in (part[row] for row in range(len(part))):
            assert len({tuple(point) for point in points.tolist()}) == POINTS
    # of half or two thirds of the points at random, the means are near; of the lower ones they are far
    whole = data.test_set.points[data.test_set.rows][:, :, 1]
    taken = torch.stack([data.test_set[row][0][:, 1] for row in range(len(data.test_set))])
    assert (taken.mean(1) - whole.mean(1)).abs().max() < 0.5 * whole.std()
    assert (taken.amax(1) - whole.amax(1)).abs().max() < 1.5 * whole.std()


@pytest.mark.parametrize("lists", [True, False])
def test_hdf5_without_a_test_set(tmp_path: Path, lists: bool) -> None:
    root = write_hdf5(tmp_path)
    for path in (root / FOLDER).glob("*test*.h5"):
        path.unlink()
    if not lists:
        for part in "train", "test":
            (root / FOLDER / f"{part}_files.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"ply_data_test0.h5"):
        ready(root)


def test_hdf5_without_test_clouds(tmp_path: Path) -> None:
    root = write_hdf5(tmp_path)
    for path in (root / FOLDER).glob("*test*.h5"):
        with h5py.File(path, "r+") as file:
            points, labels = file["data"][:0], file["label"][:0]
            del file["data"], file["label"]
            file["data"], file["label"] = points, labels
    with pytest.raises(ValueError, match=r"ply_data_test0.h5.*: expected clouds, found none"):
        ready(root)


# --- one bad mesh ---


def test_a_bad_mesh_is_named_or_skipped(tmp_path: Path) -> None:
    root = write_off(tmp_path)
    expected = ready(root, normalization="none", cache_dir=tmp_path / "before")
    (root / "ModelNet40/bed/train/bed_0002.off").write_text("OFF\n")
    with pytest.raises(ValueError, match=r"bed_0002.off: expected 'OFF' and the numbers"):
        ready(root, cache_dir=tmp_path / "after")
    with pytest.warns(UserWarning, match=r"1 of 24 files were skipped: .*bed_0002.off: expected 'OFF'"):
        data = ready(root, on_error="skip", normalization="none", cache_dir=tmp_path / "after")
    kept = [row for row in range(18) if row != 8]
    assert torch.equal(data.train_set.points, expected.train_set.points[kept])
    assert torch.equal(data.train_set.labels, expected.train_set.labels[kept])
    assert torch.equal(data.test_set.points, expected.test_set.points)
    for path in (root / "ModelNet40").glob("*/test/*.off"):
        path.write_text("OFF\n")
    with (
        pytest.warns(UserWarning, match="7 of 24"),
        pytest.raises(ValueError, match="expected test clouds"),
    ):
        ready(root, on_error="skip", cache_dir=tmp_path / "after")
    with pytest.raises(ValueError, match="on_error must be one of raise, skip, got 'ignore'"):
        ready(root, on_error="ignore")


# --- coordinates far from 0 ---


def test_huge_coordinates_warn_and_normalization_keeps_their_details(tmp_path: Path) -> None:
    here = np.array([500_000.0, 5_000_000.0, 100.0])
    for number in range(8):
        (tmp_path / f"{number}.npy").write_bytes(npy(cloud(number).astype(np.float64) + here))
    with pytest.warns(UserWarning, match=r"normalization='none': found a point 5.025e\+06 from the origin"):
        ready(tmp_path, normalization="none", val_fraction=0.25)
    for how in "unit_sphere", "unit_box", "whole_set":
        data = ready(tmp_path, normalization=how, val_fraction=0.25)
        # every cloud is that of its file up to size and place, to float32's own precision
        for points in data.test_set.points.double().numpy():
            points = points - points.mean(0)
            points /= points.std()
            errors = []
            for number in range(8):
                original = cloud(number).astype(np.float64)
                original -= original.mean(0)
                original /= original.std()
                # the order of the points is lost: each coordinate by itself
                errors.append(np.abs(np.sort(points, 0) - np.sort(original, 0)).max())
            assert min(errors) < 1e-5, how


def test_the_moments_of_the_whole_set_are_in_the_checkpoint(tmp_path: Path) -> None:
    root = write_hdf5(tmp_path)
    raw, data = (ready(root, normalization=how) for how in ("none", "whole_set"))
    train = raw.train_set.points[raw.train_set.rows].double().numpy()
    state = data.state_dict()
    np.testing.assert_allclose(state["center"], train.mean((0, 1)), rtol=1e-6)
    assert state["size"] == pytest.approx(np.sqrt(((train - train.mean((0, 1))) ** 2).mean()))
    data.load_state_dict(state)

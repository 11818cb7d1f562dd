"""read_cloud and normalize against points that the tests wrote themselves."""

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ply import XYZ, ply

from datamodules.clouds import normalize, read_cloud

POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
NORMALS = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
BOTH = np.concatenate([POINTS, NORMALS], 1)


def text(rows: np.ndarray, separator: str = " ", newline: str = "\n", head: str = "") -> bytes:
    return (head + "".join(separator.join(map(repr, row)) + newline for row in rows.tolist())).encode()


def npy(array: np.ndarray, order: str = "C") -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array, order=order))
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


FILES = {
    "normals.txt": text(BOTH, ","),  # modelnet40_normal_resampled
    "blanks.xyz": text(POINTS, "  "),
    "tabs.TXT": text(BOTH, "\t"),
    "count.pts": text(POINTS, head="40\n"),
    "names.csv": text(BOTH, ",", head="x,y,z,nx,ny,nz\n"),
    "names.txt": text(BOTH, " ", head="//X Y Z Nx Ny Nz\n"),
    "mark.txt": "\ufeff".encode() + text(POINTS, ",", "\r\n", head="# made by hand\r\n"),
    "semicolons.csv": text(POINTS, "; "),
    "colours_first.csv": text(np.concatenate([255 * np.ones_like(POINTS), POINTS], 1), ",", head="r,g,b,x,y,z\n"),
    "ids.txt": text(np.concatenate([np.arange(len(POINTS))[:, None], POINTS], 1), " ", head='"id" "X" "Y" "Z"\n'),
    "numpy.txt": text(np.concatenate([255 * np.ones_like(POINTS), POINTS], 1), " ", head="# r g b x y z\n"),
    "cloudcompare.txt": text(np.concatenate([POINTS[:, :1], POINTS], 1), " ", head="//S X Y Z\n"),
    "units.csv": text(np.concatenate([POINTS[:, :1], POINTS], 1), ";", head='"point, id";x;y;z\n'),
    "two words.csv": text(np.concatenate([POINTS[:, :1], POINTS], 1), ",", head="point id,x,y,z\n"),
    "backwards.csv": text(POINTS[:, ::-1], ",", head="z,y,x\n"),
    "cloud.npy": npy(POINTS),
    "columns.npy": npy(BOTH, "F"),
    "big_endian.npy": npy(POINTS.astype(">f8")),
    "one.npy": npy(POINTS[None]),
    "samples.npz": npz(samples=POINTS[None], labels=np.zeros(1)),
    "points.npz": npz(points=BOTH, normals=NORMALS),
    "alone.npz": npz(cloud=POINTS),
    "unnamed.npz": npz(arr_0=POINTS, arr_1=NORMALS),
    "text.ply": ply("ascii", [("vertex", [*XYZ, ("r", "uchar")], [(*row, 9) for row in POINTS.tolist()])]),
    "binary.PLY": ply("binary_big_endian", [("vertex", XYZ, POINTS.tolist())]),
    "without_faces.off": b"OFF\n40 0 0\n" + text(POINTS),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_points(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    cloud = read_cloud(path, 40)
    assert cloud.dtype == torch.float32
    np.testing.assert_allclose(cloud, POINTS[None], rtol=1e-6)
    assert torch.equal(read_cloud(path, 1000), cloud)


def test_many_clouds_in_one_file(tmp_path: Path) -> None:
    for name, content in (
        ("a.npy", npy(np.stack([POINTS, NORMALS]))),
        ("a.npz", npz(samples=np.stack([POINTS, NORMALS]))),
    ):
        (tmp_path / name).write_bytes(content)
        assert np.array_equal(read_cloud(tmp_path / name, 40), np.stack([POINTS, NORMALS]))


def test_fewer_points_are_drawn_by_the_seed_and_normalized_by_all(tmp_path: Path) -> None:
    path = tmp_path / "cloud.npy"
    path.write_bytes(npy(POINTS))
    some = read_cloud(path, 10, seed=1)
    assert some.shape == (1, 10, 3)
    assert {tuple(point) for point in some[0].tolist()} < {tuple(point) for point in POINTS.tolist()}
    assert torch.equal(some, read_cloud(path, 10, seed=1))
    assert not torch.equal(some, read_cloud(path, 10, seed=2))
    sphere = POINTS - POINTS.mean(0)
    sphere /= np.linalg.norm(sphere, axis=1).max()
    whole = read_cloud(path, 40, normalization="unit_sphere")
    np.testing.assert_allclose(whole[0], sphere, atol=1e-6)
    drawn = read_cloud(path, 10, seed=1, normalization="unit_sphere")
    assert {tuple(point) for point in drawn[0].tolist()} < {tuple(point) for point in whole[0].tolist()}
    # the sphere of the ten alone is another one
    assert not torch.allclose(drawn, normalize(drawn, "unit_sphere"), atol=1e-3)
    low, high = POINTS.min(0), POINTS.max(0)
    box = read_cloud(path, 40, normalization="unit_box")
    np.testing.assert_allclose(box[0], (POINTS - (low + high) / 2) / (high - low).max(), atol=1e-6)
    moved = read_cloud(path, 40, normalization="whole_set", center=[1.0, 2.0, 3.0], size=2.0)
    np.testing.assert_allclose(moved[0], (POINTS - (1, 2, 3)) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ["cube.off", "cube.ply"])
def test_meshes_are_sampled(tmp_path: Path, name: str) -> None:
    corners = [(0, 0, 0), (1, 0, 0), (1, 2, 0), (0, 2, 0)]
    off = b"OFF 4 1 0\n" + b"".join(b"%d %d %d\n" % corner for corner in corners) + b"4 0 1 2 3\n"
    faces = [("face", [("vertex_indices", "uchar", "int")], [((0, 1, 2, 3),)])]
    (tmp_path / name).write_bytes(off if name.endswith("off") else ply("ascii", [("vertex", XYZ, corners), *faces]))
    cloud = read_cloud(tmp_path / name, 3000)
    assert cloud.shape == (1, 3000, 3)
    assert torch.equal(cloud[0, :, 2], torch.zeros(3000))
    torch.testing.assert_close(cloud[0].mean(0), torch.tensor([0.5, 1, 0]), atol=0.05, rtol=0)
    assert cloud[0].amax(0).tolist() == pytest.approx([1, 2, 0], abs=0.01)


@pytest.mark.parametrize("ending", [".txt", ".ply", ".npy"])
def test_details_of_a_map_survive(tmp_path: Path, ending: str) -> None:
    """float32 knows 5,000,000 to 0.5 only: what is near must be moved to 0 before."""
    points = POINTS.astype(np.float64) + np.array([500_000, 5_000_000, 100])
    path = tmp_path / f"map{ending}"
    rows = points.tolist()
    double = [(axis, "double") for axis in "xyz"]
    path.write_bytes(
        {".txt": text(points), ".npy": npy(points), ".ply": ply("ascii", [("vertex", double, rows)])}[ending]
    )
    here = POINTS.astype(np.float64) - POINTS.astype(np.float64).mean(0)
    for how, size in ("unit_sphere", np.linalg.norm(here, axis=1).max()), ("unit_box", np.ptp(POINTS, axis=0).max()):
        cloud = read_cloud(path, 40, normalization=how)[0]
        np.testing.assert_allclose(cloud - cloud.mean(0), here / size, atol=1e-6)


def header(shape: str) -> bytes:
    words = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.stl", b"solid", "expected a point cloud in one of .off, .ply"),
        ("a.txt", b"", "expected a point in each line, found none"),
        ("a.txt", b"x,y,z\n", "expected a point in each line, found none"),
        ("a.txt", b"1 2\n3 4\n", "expected numbers of shape P x 3 or N x P x 3, found float64 of 2 x 2"),
        ("a.txt", b"1 2 3\n3 4\n", "expected as many numbers in each line"),
        ("a.csv", b"x;y;z\n1,5;2,5;3,5\n", "lines with both , and ;: numbers with a decimal comma cannot be read"),
        ("a.csv", b"id,x,y,z\n1,2,3\n", "found 4 names of columns over lines of 3 numbers"),
        ("a.txt", b"1 2 3\n3 4 five\n", "expected as many numbers in each line .*five"),
        ("a.txt", b"1 2 3\n3 4 nan\n", "a point has a coordinate that is not finite"),
        ("a.npy", b"no", "not a complete NumPy array of numbers"),
        ("a.npy", npy(POINTS)[:-5], "its header promises 40 x 3 numbers, more than the file holds|not a complete"),
        ("a.npy", header("(1000000000, 1000, 3)") + bytes(50), "promises 1000000000 x 1000 x 3 numbers, more than"),
        ("a.npy", npy(np.array([POINTS, None], dtype=object)), "expected numbers, found object"),
        ("a.npy", npy(POINTS[0]), "expected numbers of shape P x 3 or N x P x 3, found float32 of 3"),
        ("a.npy", npy(POINTS[:0]), "expected numbers of shape"),
        ("a.npy", npy(POINTS > 0), "expected numbers, found bool"),
        ("a.npz", b"PK", "not an NPZ file of plain arrays"),
        ("a.npz", npz(x=POINTS, y=POINTS), "expected an array named samples, found x, y"),
        ("a.npz", zipped("samples.npy", header("(1000000000, 3)")), "promises 1000000000 x 3 numbers, more than"),
        ("a.npz", zipped("samples.npy", header("(100, 3)") + bytes(100)), "promises 100 x 3 numbers, more than"),
        ("a.npz", zipped("readme.txt", b"hello"), "expected an array named samples, found none"),
        ("a.off", b"OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n", "the faces have no area"),
        ("a.npy", npy(np.array([(0.0, 0, 0), (1e200, 0, 0)])), "coordinates whose squares are finite"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: .*({message})"):
        read_cloud(path, 100, normalization="unit_sphere")


def test_whole_set_needs_its_numbers_and_the_name_must_be_known() -> None:
    with pytest.raises(ValueError, match="needs the center and the size of the training set"):
        normalize(torch.rand(1, 4, 3), "whole_set")
    with pytest.raises(ValueError, match=r"normalization must be one of unit_sphere, .* got 'sphere'"):
        normalize(torch.rand(1, 4, 3), "sphere")

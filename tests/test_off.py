"""OFF files against what was written into them, and sampled points against the geometry of the mesh."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from datamodules.off import read_off, sample_surface

CUBE = np.array([(x, y, z) for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)])
SQUARES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]


def off_text(
    vertices: np.ndarray, faces: list[tuple[int, ...]], header: str = "OFF\n{v} {f} 0\n", tail: str = ""
) -> str:
    lines = [" ".join(map(repr, vertex)) for vertex in vertices.tolist()]
    lines += [" ".join(map(str, (len(face), *face))) + tail for face in faces]
    return header.format(v=len(vertices), f=len(faces)) + "\n".join(lines) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mesh.off"


TRIANGLES = [(a, b, c) for square in SQUARES for a, b, c in (square[:3], (square[0], *square[2:]))]


@pytest.mark.parametrize(
    "header",
    [
        "OFF\n{v} {f} 0\n",
        "OFF{v} {f} 0\n",
        "OFF {v} {f} 12\n",
        "# a cube\nOFF\n# counts\n{v} {f} 0 # no edges\n\n",
        "OFF\r\n{v} {f} 0\r\n",
    ],
)
@pytest.mark.parametrize("faces", [TRIANGLES, SQUARES])
@pytest.mark.parametrize("tail", ["", " 255 0 0", "  # red"])
def test_every_legal_form_gives_the_same_mesh(file: Path, header: str, faces: list[tuple[int, ...]], tail: str) -> None:
    file.write_text(off_text(CUBE, faces, header, tail), newline="")
    vertices, triangles = read_off(file)
    assert np.array_equal(vertices, CUBE)
    assert [tuple(row) for row in triangles.tolist()] == TRIANGLES


@pytest.mark.parametrize("faces", [TRIANGLES, SQUARES])
@pytest.mark.parametrize("tail", ["", " 255 0 0", " 0.5 0.5 0.5 1", " 3", "  # red"])
@pytest.mark.parametrize(
    ("word", "extra"),
    [
        ("OFF", ""),
        ("off", ""),
        ("\ufeffOFF", ""),
        ("# made by hand\n\n  OFF  # a cube", ""),
        ("", ""),
        ("OFF", " 255 0 0 255"),
        ("OFF", " 0.5 0.5 0.5"),
        ("OFF", " 0 0 1 255 0 0 255"),
        ("COFF", " 255 0 0 255"),
        ("COFF", " 1.0 0.0 0.0"),
        ("coff", " 255 0 0 255"),
        ("NOFF", " 0 0 1"),
        ("noff", " 0 0 1"),
        ("STOFF", " 0.5 0.25"),
        ("CNOFF", " 0 0 1 0.5 0.5 0.5 1"),
        ("NCOFF", " 0 0 1 255 0 0"),
        ("STCNOFF", " 0 0 1 0.5 0.5 0.5 1 0 0"),
    ],
)
def test_forms_of_the_geomview_manual(file: Path, word: str, extra: str, faces: list, tail: str) -> None:
    lines = [" ".join(map(repr, vertex)) + extra for vertex in CUBE.tolist()]
    lines.insert(3, "# between")
    lines.insert(6, "")
    lines += [" ".join(map(str, (len(face), *face))) + tail for face in faces]
    for header in (f"{word}\n8 {len(faces)} 0\n", f"{word} 8 {len(faces)} 12\n"):
        if "#" not in word or header.count("\n") > 3:
            file.write_text(header + "\n".join(lines))
            vertices, triangles = read_off(file)
            assert np.array_equal(vertices, CUBE)
            assert [tuple(row) for row in triangles.tolist()] == TRIANGLES


def test_coordinates_may_be_broken_into_lines_anywhere(file: Path) -> None:
    head, *lines = off_text(CUBE, SQUARES).removeprefix("OFF\n").splitlines()
    file.write_text("\n".join(["OFF", head, " ".join(lines[:5]), *" ".join(lines[5:8]).split(), *lines[8:]]))
    vertices, triangles = read_off(file)
    assert np.array_equal(vertices, CUBE)
    assert [tuple(row) for row in triangles.tolist()] == TRIANGLES


def test_polygons_become_fans_and_edges_nothing(file: Path) -> None:
    file.write_text(off_text(CUBE, [(0, 1, 2, 3, 4), (5, 6), (5, 6, 7)]))
    assert read_off(file)[1].tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4], [5, 6, 7]]


@settings(deadline=None, max_examples=25)
@given(
    vertices=st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 3), min_size=3, max_size=9),
    data=st.data(),
)
def test_written_meshes_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, vertices: list, data: st.DataObject
) -> None:
    index = st.integers(0, len(vertices) - 1)
    faces = data.draw(st.lists(st.tuples(index, index, index), min_size=1, max_size=9))
    file = tmp_path_factory.mktemp("mesh") / "mesh.off"
    file.write_text(off_text(np.array(vertices), faces))
    read_vertices, triangles = read_off(file)
    assert np.array_equal(read_vertices, np.array(vertices))
    assert np.array_equal(triangles, faces)


GOOD = off_text(CUBE, SQUARES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        (" \n ", "the file is empty"),
        ("solid cube\n", "expected 'OFF' and the numbers of vertices, faces and edges, found 'solid cube"),
        ("OFF\n", "expected 'OFF' and the numbers"),
        ("OFF\n8 6\n" + GOOD[10:], "expected 'OFF' and the numbers"),
        (GOOD.replace("8 6 0", "9 6 0"), r"promises 9 vertices .* and 6 faces, so 15 lines; found 14 lines"),
        (GOOD.replace("8 6 0", "8 5 0"), r"promises 8 vertices .* and 5 faces, so 13 lines; found 14 lines"),
        (GOOD.replace("8 6 0", "8 7 0"), r"so 15 lines; found 14 lines"),
        (GOOD[: len(GOOD) // 3], "promises 8 vertices and 6 faces, more than .*can hold|lines; found"),
        (GOOD.replace("4 0 1 3 2", "4 0 1 3"), "a face should list its number of corners"),
        (GOOD.replace("4 0 1 3 2", "0 0 1 3 2"), "a face should list its number of corners"),
        (GOOD.replace("4 0 1 3 2", "nan 0 1 3 2"), "a face should list its number of corners"),
        (GOOD.replace("4 0 1 3 2", "4 0 1 3 8"), "a face names vertex 8; expected 0 to 7"),
        (GOOD.replace("4 0 1 3 2", "4 0 1 3 -1"), "a face names vertex -1; expected 0 to 7"),
        (GOOD.replace("4 0 1 3 2", "4 0 1 3 1.5"), "a face names vertex 1.5; expected 0 to 7"),
        ("4" + GOOD, "expected a mesh in three dimensions, found 4OFF"),
        ("n" + GOOD.replace("OFF", "OFF\n5"), "expected a mesh in three dimensions, found nOFF"),
        ("4n" + GOOD, "expected a mesh in three dimensions, found 4nOFF"),
        ("X" + GOOD, "perhaps with the prefixes ST, C and N, found XOFF"),
        ("OFF BINARY\n\0\0\0\x08", "expected an OFF file in ASCII, found a binary one"),
        ("N" + GOOD, "expected 6 numbers for each vertex, .*found '0.0 0.0 0.0' for vertex 0"),
        (GOOD.replace("1.0 1.0 1.0", "1.0 1.0"), "expected .* numbers for each vertex, .*found '1.0 1.0' for vertex 7"),
        (GOOD.replace("1.0 1.0 1.0", "1 1 1 255 0 0"), "as many as for the first; found '1 1 1 255 0 0' for vertex 7"),
        (GOOD.replace("4 0 1 3 2", "4 zero 1 3 2"), "expected numbers only after the header"),
        (GOOD.replace("1.0 1.0 1.0", "1.0 1.0 one"), "expected numbers only after the header"),
        (GOOD.replace("1.0 1.0 1.0", "1.0 1.0 nan"), "a coordinate that is not finite"),
        (GOOD.replace("8 6 0", "8 1000000000000 0"), "promises 8 vertices and 1000000000000 faces, more than the"),
        (GOOD.replace("8 6 0", "1000000000000 6 0"), "promises 1000000000000 vertices and 6 faces, more than the"),
    ],
)
def test_damaged_files_are_named(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"mesh.off: .*({message})"):
        read_off(file)


def test_points_lie_on_the_surface_in_proportion_to_area() -> None:
    box = CUBE * (1, 2, 3)
    points = sample_surface(box, np.array(TRIANGLES), 20_000, np.random.default_rng(0))
    assert points.dtype == np.float32
    counts, areas = [], []
    for axis, size in enumerate((1, 2, 3)):
        for value in (0, size):
            on_face = points[:, axis] == value
            counts.append(on_face.sum())
            areas.append(6 / size)
            others = [other for other in range(3) if other != axis]
            for other in others:  # uniform along both edges of the face
                assert stats.kstest(points[on_face, other] / (other + 1), "uniform").pvalue > 1e-3
    assert sum(counts) == len(points)
    expected = np.array(areas) / sum(areas) * len(points)
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    # in random order: the first points are as good as the last
    assert abs((points[:10_000, 0] == 0).mean() - (points[10_000:, 0] == 0).mean()) < 0.02


def test_triangles_without_area_get_no_points() -> None:
    vertices = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (9, 9, 9)], dtype=float)
    triangles = np.array([(3, 3, 3), (0, 1, 2), (3, 3, 0)])
    points = sample_surface(vertices, triangles, 1000, np.random.default_rng(0))
    assert (points[:, 2] == 0).all()
    assert (points[:, 0] + points[:, 1] <= 1 + 1e-6).all()
    np.testing.assert_allclose(points.mean(0), (1 / 3, 1 / 3, 0), atol=0.03)


@pytest.mark.parametrize("triangles", [np.empty((0, 3), dtype=int), np.array([(0, 0, 1)])])
def test_mesh_without_area_is_an_error(triangles: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the faces have no area"):
        sample_surface(CUBE, triangles, 10, np.random.default_rng(0))


@pytest.mark.full_data
def test_every_mesh_of_the_full_set_is_read(full_data: Path) -> None:
    """Independent reference: the reader given with the data."""
    files = sorted((full_data / "kicad_off/ModelNet40").rglob("*.off"))
    assert len(files) == 32
    for file in files:
        words = file.read_text().lstrip()[3:].split()
        count = int(words[0])
        vertices, triangles = read_off(file)
        assert np.array_equal(vertices, np.array(words[3 : 3 + 3 * count], float).reshape(-1, 3))
        assert np.array_equal(triangles, np.array(words[3 + 3 * count :], int).reshape(-1, 4)[:, 1:])

"""PLY files against what was written into them, by a writer of the tests' own and by ours."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.ply import read_ply

CUBE = np.array([(x, y, z) for x in (0.0, 1.0) for y in (0.0, 1.5) for z in (-2.0, 1.0)])
SQUARES = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
TRIANGLES = [(a, b, c) for square in SQUARES for a, b, c in (square[:3], (square[0], *square[2:]))]
CODES = {"char": "b", "uchar": "B", "uint8": "B", "short": "h", "int": "i", "int32": "i", "uint": "I", "float": "f"}
CODES |= {"float32": "f", "double": "d", "float64": "d"}


def ply(form: str, elements: list, newline: str = "\n", comment: str = "") -> bytes:
    """Writes elements (name, properties, rows); a property is (name, type) or (name, count type, type) of a list."""
    lines = ["ply", f"format {form} 1.0", *([f"comment {comment}", "obj_info by hand"] if comment else [])]
    body = b""
    for name, properties, rows in elements:
        lines.append(f"element {name} {len(rows)}")
        for part in properties:
            lines.append(f"property {'list ' if len(part) == 3 else ''}{' '.join(part[1:])} {part[0]}")
        for row in rows:
            words = []
            for part, value in zip(properties, row, strict=True):
                for type_, number in [
                    *([(part[1], len(value))] if len(part) == 3 else []),
                    *((part[-1], number) for number in (value if len(part) == 3 else [value])),
                ]:
                    number = int(number) if CODES[type_] not in "fd" else float(number)
                    words.append(repr(number))
                    if form != "ascii":
                        body += struct.pack("<>"["big" in form] + CODES[type_], number)
            if form == "ascii":
                body += (" ".join(words) + newline).encode()
    return (newline.join([*lines, "end_header"]) + newline).encode() + body


XYZ = [("x", "float"), ("y", "float"), ("z", "float")]
FORMS = ["ascii", "binary_little_endian", "binary_big_endian"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cloud.ply"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("faces", [[], TRIANGLES, SQUARES, [*SQUARES[:2], *TRIANGLES[4:]]])
@pytest.mark.parametrize("extra", [False, True])
def test_every_form_gives_the_same_mesh(file: Path, form: str, newline: str, faces: list, extra: bool) -> None:
    vertices = [(*vertex, 255, 0.5, *vertex) if extra else vertex for vertex in CUBE.tolist()]
    more = [("red", "uchar"), ("nx", "double"), ("y2", "float64"), ("s", "short"), ("t", "int32")] if extra else []
    elements = [
        ("vertex", XYZ + more, vertices),
        ("edge", [("vertex1", "int"), ("vertex2", "int")], [(0, 1), (1, 2)] if extra else []),
        (
            "face",
            [*([("flags", "uint")] if extra else []), ("vertex_indices", "uchar", "int")]
            + ([("texcoord", "uint8", "float")] if extra else []),
            [(7, face, (0.5, 0.25)) if extra else (face,) for face in faces],
        ),
    ]
    if extra:  # and before the vertices what takes no fixed number of bytes
        elements.insert(0, ("material", [("list", "uchar", "double"), ("k", "int")], [((1.0, 2.0), 3), ((), 4)]))
    file.write_bytes(ply(form, elements, newline, "made by hand" if extra else ""))
    read_vertices, triangles = read_ply(file)
    assert np.array_equal(read_vertices, CUBE)
    assert [tuple(row) for row in triangles.tolist()] == (TRIANGLES if faces else [])


@pytest.mark.parametrize("type_", ["double", "float64", "int"])
@pytest.mark.parametrize("form", FORMS)
def test_coordinates_of_other_types_are_exact(file: Path, form: str, type_: str) -> None:
    points = np.array([(5_000_000, 1, 2), (5_000_001, -3, 4)], dtype=np.float64) + (0 if type_ == "int" else 1 / 3)
    file.write_bytes(ply(form, [("vertex", [("z", type_), ("x", type_), ("y", type_)], points.tolist())]))
    assert np.array_equal(read_ply(file)[0], points[:, [1, 2, 0]])


def test_what_we_write_is_read(file: Path) -> None:
    from wae_lightning.cli import generate

    points = torch.randn(50, 3)
    generate.write_ply(points, file)
    vertices, triangles = read_ply(file)
    assert np.array_equal(vertices, points.double())
    assert triangles.shape == (0, 3)


def test_a_binary_body_may_begin_with_an_end_of_line(file: Path) -> None:
    bytes_ = [("x", "uchar"), ("y", "uchar"), ("z", "uchar")]
    content = ply("binary_little_endian", [("vertex", bytes_, [(10, 13, 10)])])
    for newline in (b"\n", b"\r", b"\r\n"):
        header, body = content[:-3], content[-3:]
        file.write_bytes(header.replace(b"\n", newline) + body)
        assert read_ply(file)[0].tolist() == [[10, 13, 10]]


ELEMENTS = [("vertex", XYZ, CUBE.tolist()), ("face", [("vertex_index", "uchar", "int")], [(face,) for face in SQUARES])]
GOOD, BINARY = ply("ascii", ELEMENTS), ply("binary_little_endian", ELEMENTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected a PLY file, from 'ply' to 'end_header', found ''"),
        (b"OFF\n", "expected a PLY file"),
        (GOOD.replace(b"end_header", b"end"), "expected a PLY file"),
        (GOOD.replace(b"format ascii 1.0\n", b""), "expected a line 'format ascii 1.0'"),
        (GOOD.replace(b"ascii", b"binary_pdp_endian"), "found 'format binary_pdp_endian 1.0'"),
        (GOOD.replace(b"float x", b"half x"), "expected a format, an element or a property, found 'property half x'"),
        (GOOD.replace(b"vertex 8", b"vertex eight"), "found 'element vertex eight'"),
        (GOOD.replace(b"element vertex 8\n", b""), "found 'property float x'"),
        (GOOD.replace(b"float x", b"float u"), "expected the properties x, y and z, found u, y, z"),
        (
            ply("ascii", [("vertex", [*XYZ, ("nb", "uchar", "int")], [(0, 0, 0, (5,))])]),
            "with a list, nb, cannot be read",
        ),
        (GOOD.replace(b"vertex 8", b"vertex 1000000000000"), "promises 1000000000000 times 'vertex', more than"),
        (BINARY.replace(b"vertex 8", b"vertex 1000000000000"), "promises 1000000000000 times 'vertex', more than"),
        (GOOD.replace(b"face 6", b"face 1000000000000"), "promises 1000000000000 times 'face', more than"),
        (BINARY.replace(b"face 6", b"face 1000000000000"), "promises 1000000000000 times 'face', more than"),
        (GOOD[:-4], "promises 6 times 'face'"),
        (BINARY[:-4], "promises 6 times 'face'"),
        (GOOD.replace(b"vertex 8", b"vertex 0").replace(b"face 6", b"face 0"), "expected vertices, found none"),
        (GOOD.replace(b"1.5", b"nan", 1), "a coordinate that is not finite"),
        (GOOD.replace(b"1.5", b"one", 1), "expected numbers only after the header"),
        (GOOD.replace(b"4 0 1 3 2", b"4 0 1 3 8"), "a face names vertex 8; expected 0 to 7"),
        (GOOD.replace(b"4 0 1 3 2", b"4 0 1 3 -1"), "a face names vertex -1; expected 0 to 7"),
        (GOOD.replace(b"4 0 1 3 2", b"-4 0 1 3 2"), "expected the length of a list, found -4"),
        (GOOD.replace(b"4 0 1 3 2", b"nan 0 1 3 2"), "expected the length of a list, found nan"),
        (GOOD.replace(b"list uchar", b"list float"), "found 'property list float int vertex_index'"),
        (BINARY.replace(b"uchar int", b"int int"), "promises 6 times 'face'"),
    ],
)
def test_damaged_files_are_named(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"cloud.ply: .*{message}"):
        read_ply(file)

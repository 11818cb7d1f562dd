"""Gives damaged and hostile files to every reader: ``python tests/robustness/fuzz_readers.py --inputs 2000``.

Each input is a small real file with seeded damage: flipped, cut, inserted, swapped and repeated bytes, huge numbers in
headers, swapped fields and lines, arrays of a wrong type, shape or claimed size, hyper-parameters of a wrong kind. A
reader may accept it, or refuse it with an exception that its command line turns into one sentence, which names the
file. Anything else is a failure: another exception, a crash of the process (HDF5 is a C library), more than
--seconds, or more than --memory MB above what the process had before (a hard limit: what is beyond cannot be
allocated). ``--only READER --seed N`` repeats one input. Prints a table; --out adds it to a JSON file.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import json
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
from argparse import ArgumentError
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from PIL import Image

from datamodules import CelebADataModule
from datamodules.cache import Cache
from datamodules.cloud_sets import CloudSources, read_clouds
from datamodules.idx import read_idx
from datamodules.mnist import read_digits
from datamodules.pictures import read_picture
from wae_lightning import WAEMMD
from wae_lightning.cli import inputs
from wae_lightning.cli.errors import explain_mistake
from wae_lightning.cli.flags import complete_flags, config_file
from wae_lightning.cli.load import load_data, load_model
from wae_lightning.cli.train import Train
from wae_lightning.lightning import MisconfigurationException
from wae_lightning.networks import ConvDecoder, ConvEncoder

REFUSALS = (
    ValueError,
    FileNotFoundError,
    ArgumentError,
    MisconfigurationException,
)
WORDS = (
    "1000000000000",
    "-1",
    "0",
    "1",
    "2",
    "3",
    "65536",
    "1e308",
    "nan",
    "inf",
    "0.5",
    "OFF",
    "#",
    "x",
    "null",
    "true",
)
WORDS += ("[]", "{}", "'a", "\u2603", "torch.nn.Identity", "os")
NUMBERS = (0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1)


class Reader(NamedTuple):
    """How the files of one reader are made and read."""

    seed_files: Callable[[Path], list[Path]]
    """Writes small real files into a folder."""
    read: Callable[[Path], Any]
    """Reads a file as the command line does; a picture or a list is put beside what it belongs to."""
    structured: Callable[[Path, random.Random], None] | None = None
    """Writes a file that is whole, but not as it should be."""
    is_text: bool = False
    names_the_file: bool = True


# ---- damage ---------------------------------------------------------------------------------------------------------


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file's bytes with one to four kinds of damage."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, 64, 1024))
        # headers are at the front, and often at the end
        at = rng.choice((at, min(at, 128), max(0, len(data) - 128)))
        kind = rng.randrange(8)
        if kind == 0:
            for _ in range(rng.choice((1, 2, 8))):
                if data:
                    data[min(at + rng.randrange(length), len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = rng.randbytes(length)
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at : at + length] = bytes(length)
        elif kind == 5:
            number = struct.pack(rng.choice((">Q", "<Q")), rng.choice(NUMBERS))
            data[at : at + 8] = rng.choice((number, number[:4], number[4:]))
        elif kind == 6:
            data[at:at] = data[at : at + length] * rng.choice((1, 100))
        else:
            other = rng.randrange(len(data) + 1)
            data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    return bytes(data)


def damaged_text(content: bytes, rng: random.Random) -> bytes:
    """A text with words replaced and swapped, and lines swapped, left out, repeated or indented."""
    lines = [line.split(" ") for line in content.decode().split("\n")]
    for _ in range(rng.choice((1, 1, 2, 5))):
        line = lines[rng.choice((0, 1, rng.randrange(len(lines)))) % len(lines)]
        other = rng.randrange(len(lines))
        kind = rng.randrange(6)
        word = rng.randrange(len(line)) if line else 0
        if kind == 0 and line:
            line[word] = rng.choice(WORDS)
        elif kind == 1 and line:
            line[word], line[-1] = line[-1], line[word]
        elif kind == 2:
            lines[other], lines[0] = lines[0], lines[other]
        elif kind == 3 and len(lines) > 1:
            del lines[other]
        elif kind == 4:
            lines[other:other] = [list(lines[other])] * rng.choice((1, 50))
        else:
            line.insert(word, rng.choice(["", *WORDS]))
    return "\n".join(" ".join(line) for line in lines).encode()


# ---- small real files, and whole files that are wrong --------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path) -> list[Path]:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    plain, packed = folder / "images-idx3-ubyte", folder / "packed-idx3-ubyte.gz"
    plain.write_bytes(idx(images))
    import gzip

    packed.write_bytes(gzip.compress(idx(images), mtime=0))
    return [plain, packed]


def wrong_array(rng: random.Random) -> np.ndarray:
    shape = rng.choice(((), (0,), (3,), (3, 1), (3, 28, 28), (3, 8, 3), (2, 2, 2, 2), (3, 28, 28, 1), (0, 28, 28)))
    kind = rng.choice(("u1", "i8", "f4", "f8", "f2", "c8", "?", "S3", "O", "V", ">f4"))
    if kind == "O":
        return np.full(shape, "text", dtype=object)
    if kind == "V":
        return np.zeros(shape, dtype=[("a", "i4"), ("b", "f4")])
    if kind == "S3":
        return np.full(shape, b"abc")
    array = np.random.default_rng(rng.randrange(100)).uniform(-2, 300, shape).astype(kind)
    if array.dtype.kind in "fc" and array.size and rng.random() < 0.3:
        array.reshape(-1)[:1] = rng.choice((np.nan, np.inf, 1e38))
    return array


def wrong_hdf5(names: list[str]) -> Callable[[Path, random.Random], None]:
    """Data sets of a wrong kind: no numbers, claimed and never written, groups, links to nowhere, other files."""

    def write(path: Path, rng: random.Random) -> None:
        with h5py.File(path, "w") as file:
            for name in names:
                kind = rng.randrange(9)
                if kind == 0:
                    continue
                if kind == 1:
                    file.create_group(name)
                elif kind == 2:
                    shape = rng.choice(((10**12,), (10**9, 28, 28), (10**8, 2048, 3)))
                    file.create_dataset(name, shape, rng.choice(("u1", "f4", "i8")), chunks=(1, *shape[1:]))
                elif kind == 3:
                    file[name] = h5py.SoftLink("/nowhere")
                elif kind == 4:
                    file[name] = h5py.ExternalLink("nowhere.h5", "/data")
                elif kind == 5:
                    file[name] = h5py.Empty("f4")
                else:
                    array = wrong_array(rng)
                    if array.dtype.kind == "O":
                        file.create_dataset(name, data=array, dtype=h5py.string_dtype())
                    elif array.ndim and array.size and rng.random() < 0.3:
                        file.create_dataset(name, data=array, compression="gzip")
                    else:
                        file.create_dataset(name, data=array)

    return write


def write_digits(folder: Path) -> list[Path]:
    path = folder / "digits.h5"
    with h5py.File(path, "w") as file:
        for part in ("train", "test"):
            data = np.random.default_rng(0).integers(0, 10, (6, 28, 28), dtype=np.uint8)
            file.create_dataset(f"{part}_images", data=data, compression="gzip")
            file[f"{part}_labels"] = data[:, 0, 0]
    return [path]


def write_clouds(folder: Path) -> list[Path]:
    path, contiguous = folder / "ply_data_train0.h5", folder / "ply_data_test0.h5"
    points = np.random.default_rng(0).normal(size=(6, 16, 3)).astype(np.float32)
    for file_name, compression in (path, "gzip"), (contiguous, None):
        with h5py.File(file_name, "w") as file:
            file.create_dataset("data", data=points, compression=compression)
            file["label"] = np.arange(6, dtype=np.uint8).reshape(-1, 1)
    return [path, contiguous]


def write_meshes(folder: Path) -> list[Path]:
    corners = [(x, y, z) for x in (0.0, 1.0) for y in (0.0, 1.0) for z in (0.0, 1.0)]
    squares = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    triangles = [face for a, b, c, d in squares for face in ((a, b, c), (a, c, d))]
    paths = []
    for name, faces, header in ("squares", squares, "OFF\n"), ("triangles", triangles, "OFF"):
        paths.append(folder / f"{name}.off")
        lines = [" ".join(map(str, corner)) for corner in corners]
        lines += [" ".join(map(str, (len(face), *face))) for face in faces]
        paths[-1].write_text(f"{header}{len(corners)} {len(faces)} 0\n" + "\n".join(lines) + "\n")
    return paths


def write_pictures(folder: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    paths = [folder / f"000001.{ending}" for ending in ("jpg", "png", "gif", "bmp", "tif", "webp")]
    for path in paths:
        Image.fromarray(pixels).save(path)
    return paths


def write_celeba(folder: Path) -> list[Path]:
    (folder / "celeba" / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}.jpg" for number in range(1, 9)]
    for name in names:
        (folder / "celeba" / "img_align_celeba" / name).touch()
    rows = [f"{name}  1 -1 -1" for name in names]
    attributes, partition = folder / "list_attr_celeba.txt", folder / "list_eval_partition.txt"
    attributes.write_text("\n".join(["8", "Bald Male Smiling ", *rows, ""]))
    partition.write_text("".join(f"{name} {number % 3}\n" for number, name in enumerate(names)))
    for path in (attributes, partition):
        (folder / "celeba" / path.name).write_bytes(path.read_bytes())
    return [attributes, partition]


def read_celeba(path: Path) -> Any:
    folder = path.parent / "celeba"
    place = folder / path.name
    whole = place.read_bytes()
    try:
        place.write_bytes(path.read_bytes())
        data = CelebADataModule(path.parent, image_size=8)
        lists = [folder / "list_attr_celeba.txt", folder / "list_eval_partition.txt"]
        return data._sources(lists, folder / "img_align_celeba")
    finally:
        place.write_bytes(whole)


def write_cache(folder: Path) -> list[Path]:
    path = folder / "cache.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
        file["attributes"] = np.ones((6, 2), dtype=bool)
        file["attribute_names"] = np.array(["Bald", "Male"], dtype=h5py.string_dtype())
        file["skipped"] = np.array(["one picture"], dtype=h5py.string_dtype())
        file["good_rows"] = np.arange(5)
    return [path]


def read_cache(path: Path) -> Any:
    cache = Cache(path, (3, 8, 8), "uint8")
    mapped = cache.map()
    assert torch.equal(cache.read(cache.good_rows), mapped[cache.good_rows])
    return mapped.sum()


def write_checkpoint(folder: Path) -> list[Path]:
    path = folder / "model.ckpt"
    image_shape = [1, 16, 16]
    network = {"image_shape": image_shape, "latent_dim": 2, "width": 1.0, "channels": [4, 4]}
    optimizer = functools.partial(torch.optim.Adam, lr=0.001, betas=(0.5, 0.9))
    networks = {"encoder": ConvEncoder(**network), "decoder": ConvDecoder(**network)}  # type: ignore[arg-type]
    model = WAEMMD(**networks, optimizer=optimizer, latent_dim=2, image_shape=image_shape)
    model.memory.remember(torch.randn(9, 2))
    torch.save(
        {
            "state_dict": model.state_dict(),
            "pytorch-lightning_version": "2.6.6",
            "epoch": 1,
            "global_step": 3,
            "hyper_parameters": dict(model.hparams),
            "datamodule_hyper_parameters": {
                "_class_path": "datamodules.MNISTDataModule",
                "root": None,
                "batch_size": 100,
                "variant": "mnist",
                "val_fraction": 0.1,
            },
        },
        path,
    )
    return [path]


def wrong_checkpoint(path: Path, rng: random.Random) -> None:
    """A checkpoint with one to three fields removed, swapped or replaced, at any depth."""
    checkpoint = torch.load(path, weights_only=True)
    for _ in range(rng.randrange(1, 4)):
        place: Any = checkpoint
        for _ in range(rng.randrange(1, 5)):
            inner = [value for value in place.values() if isinstance(value, dict) and value]
            if inner:
                place = rng.choice(inner) if rng.random() < 0.8 else place
        name = rng.choice(list(place)) if place else "x"
        values = [None, 0, -1, 3, 10**5, 10**12, float("nan"), "text", "os.system", "a: 1", [], {}, [1, 2], True]
        values += [
            {"class_path": "subprocess.Popen", "init_args": {"args": ["true"]}},
            {"class_path": "torch.nn.Linear"},
        ]
        values += [torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), float("nan")), b"x", 2j]
        kind = rng.randrange(4)
        if kind == 0:
            place.pop(name, None)
        elif kind == 1:
            place[rng.choice([name, "", "x", 5, None, "class_path", "init_args"])] = place.get(name)
        else:
            place[name] = rng.choice(values)
    torch.save(checkpoint, path)


def read_checkpoint(path: Path) -> Any:
    model = load_model(path)
    return model, load_data(path, {})


def write_configs(folder: Path) -> list[Path]:
    paths = []
    for name in ("mnist_wae_mmd", "mnist_wae_gan", "modelnet40_pointnet"):
        paths.append(folder / f"{name}.yaml")
        paths[-1].write_bytes(config_file(name).read_bytes())
    return paths


def read_config(path: Path) -> Any:
    arguments, name = complete_flags([f"--config={path}"])
    return Train(arguments, name)


def write_npz(folder: Path) -> list[Path]:
    paths = [folder / "packed.npz", folder / "plain.npz"]
    samples = np.random.default_rng(0).random((3, 1, 28, 28), dtype=np.float32)
    np.savez_compressed(paths[0], samples=samples)
    np.savez(paths[1], samples=samples)
    return paths


def wrong_npz(path: Path, rng: random.Random) -> None:
    import io
    import zipfile

    kind = rng.randrange(4)
    if kind == 0:
        # a header that claims more than there is
        header = io.BytesIO()
        shape = rng.choice(((10**12,), (10**9, 1, 28, 28), (2**62, 4), (3, 1, 28, 28), (-1, 28), (1, 10**6, 10**6)))
        text = {"descr": rng.choice(("<f4", "|O", "<f8", "|u1", "<U9")), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, text)
        with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            archive.writestr("samples.npy", header.getvalue() + bytes(rng.randrange(10_000)))
    elif kind == 1:
        with zipfile.ZipFile(
            path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2))
        ) as archive:
            archive.writestr(rng.choice(("samples.npy", "samples", "../samples.npy")), rng.randbytes(100))
    elif kind == 2:
        np.save(path.with_suffix(".npy"), wrong_array(rng))
        os.replace(path.with_suffix(".npy"), path)
    else:
        np.savez(path, **{rng.choice(("samples", "sample")): wrong_array(rng)})


READERS = {
    "IDX": Reader(write_idx, lambda path: read_idx(path, 3)),
    "HDF5 digits": Reader(
        write_digits,
        lambda path: [read_digits(path, part) for part in ("train", "test")],
        wrong_hdf5([f"{part}_{name}" for part in ("train", "test") for name in ("images", "labels")]),
    ),
    "HDF5 point clouds": Reader(write_clouds, lambda path: read_clouds(path, 40), wrong_hdf5(["data", "label"])),
    "OFF": Reader(write_meshes, lambda path: CloudSources([path], 32).read(0), is_text=True),
    "CelebA lists": Reader(write_celeba, read_celeba, is_text=True),
    "CelebA pictures": Reader(write_pictures, lambda path: read_picture(path, (3, 16, 16), 40)),
    "cache": Reader(
        write_cache,
        read_cache,
        wrong_hdf5(["data", "attributes", "attribute_names", "skipped", "good_rows"]),
    ),
    "checkpoints": Reader(write_checkpoint, read_checkpoint, wrong_checkpoint),
    "YAML configs": Reader(write_configs, read_config, is_text=True, names_the_file=False),
    "NPZ": Reader(write_npz, lambda path: inputs.read_images(path, (1, 28, 28)), wrong_npz),
    "pictures": Reader(write_pictures, lambda path: inputs.read_images(path, (1, 28, 28))),
}


# ---- running them ---------------------------------------------------------------------------------------------------


def make_input(reader: Reader, files: dict[Path, bytes], seed: int) -> Path:
    """Writes one input into the place of a real file and returns its path."""
    rng = random.Random(seed)
    path = rng.choice(sorted(files))
    path.write_bytes(files[path])
    if reader.structured and rng.random() < 0.5:
        reader.structured(path, rng)
        if rng.random() < 0.8:
            return path
    damage = damaged_text if reader.is_text and rng.random() < 0.6 else damaged
    path.write_bytes(damage(path.read_bytes(), rng))
    return path


def judged(reader: Reader, path: Path) -> str:
    """``accepted``, ``refused``, or what is wrong."""
    try:
        reader.read(path)
    except REFUSALS as error:
        sentence = explain_mistake(str(error)) if not reader.names_the_file else str(error)
        if not sentence.strip() or "\n" in sentence or (reader.names_the_file and path.name not in sentence):
            return f"unclear: {type(error).__name__}: {sentence!r}"
        return "refused"
    except BaseException as error:  # SystemExit too is not what a reader should raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]!r} in {Path(where.filename).name}:{where.lineno}"
    return "accepted"


def resident() -> int:
    """Memory of this process now, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20


def work(name: str, folder: Path, seeds: range, memory: int, results: Connection) -> None:
    """Reads the inputs of ``seeds`` one after the other, in a process of its own."""
    reader = READERS[name]
    faulthandler.disable()
    torch.set_num_threads(1)  # those of OpenMP do not survive a fork: a child that waits for them hangs
    os.chdir(folder)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    warnings.simplefilter("ignore")
    files = {path: path.read_bytes() for path in reader.seed_files(folder)}
    for path in files:
        if (outcome := judged(reader, path)) != "accepted":
            results.send((seeds[0], f"the undamaged {path.name}: {outcome}", 0.0, 0))
            return
    results.send(None)
    start = resident()
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + memory * 2**20, resource.RLIM_INFINITY))
    for seed in seeds:
        try:
            path = make_input(reader, files, seed)
        except Exception:
            results.send((seed, f"this script: {traceback.format_exc()[-300:]}", 0.0, 0))
            continue
        # what making the input took does not count
        Path("/proc/self/clear_refs").write_text("5")
        before = time.perf_counter()
        outcome = judged(reader, path)
        seconds = time.perf_counter() - before
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) // 2**10
        results.send((seed, outcome, seconds, peak - start))
        path.write_bytes(files[path])


def fuzz(name: str, seeds: range, seconds: float, memory: int) -> dict[str, Any]:
    """Fuzzes one reader; its worker is started anew after a crash or a hang."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    slowest, peak = 0.0, 0
    context = multiprocessing.get_context("fork")
    while len(seeds):
        ours, theirs = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:
            worker = context.Process(target=work, args=(name, Path(folder), seeds, memory, theirs))
            worker.start()
            theirs.close()
            patience = seconds + 60  # until the real files are written and read
            try:
                while len(seeds):
                    if not ours.poll(patience):
                        raise TimeoutError
                    patience = seconds
                    answer = ours.recv()
                    if answer is None:
                        continue
                    seed, outcome, took, more = answer
                    counts[outcome if outcome in ("accepted", "refused") else "failures"] += 1
                    if outcome not in ("accepted", "refused"):
                        failures.append(f"seed {seed}: {outcome}")
                    slowest, peak = max(slowest, took), max(peak, more)
                    seeds = seeds[1:]
            except (EOFError, TimeoutError) as error:
                worker.kill()
                worker.join()
                what = f"no answer for {seconds} s" if isinstance(error, TimeoutError) else f"exit {worker.exitcode}"
                failures.append(f"seed {seeds[0]}: {what}")
                counts["failures"] += 1
                seeds = seeds[1:]
            worker.join()
    return {
        "inputs": counts.total(),
        "accepted": counts["accepted"],
        "refused": counts["refused"],
        "failures": counts["failures"],
        "slowest_seconds": round(slowest, 3),
        "peak_memory_mb": peak,
        "failed": failures,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="inputs for each reader (2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first input (0)")
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS), metavar="READER", help="readers")
    parser.add_argument("--seconds", type=float, default=30.0, help="limit for one input (30)")
    parser.add_argument("--memory", type=int, default=1024, help="limit of memory for one input, in MB (1024)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    known = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = {}
    for name in known.only:
        rows[name] = fuzz(name, range(known.seed, known.seed + known.inputs), known.seconds, known.memory)
        shown = {key: value for key, value in rows[name].items() if key != "failed"}
        print(f"{name:18}", *(f"{key} {value}" for key, value in shown.items()), flush=True)
        for failure in rows[name]["failed"][:20]:
            print(f"    {failure}")
    if known.out:
        limits = {"seconds_per_input": known.seconds, "memory_mb_per_input": known.memory, "first_seed": known.seed}
        # readers can be fuzzed one by one
        before = json.loads(known.out.read_text()) if known.out.exists() else {}
        rows = (before["readers"] if before.get("limits") == limits else {}) | rows
        ordered = {name: rows[name] for name in READERS if name in rows}
        known.out.write_text(json.dumps({"limits": limits, "readers": ordered}, indent=2) + "\n")
    if any(row["failures"] for row in rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()

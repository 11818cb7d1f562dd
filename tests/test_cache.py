"""The cache survives crashes, full disks and company. Its sources here are made of numbers, not files."""

import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from datamodules.cache import Cache, Sources, _end_with_parent, cache_key, open_or_build

SHAPE = (3, 8, 8)


class Numbers(Sources):
    """Row i is filled with i; the rows in ``broken`` cannot be read."""

    def __init__(self, count: int, broken: tuple[int, ...] = (), delay: float = 0.0) -> None:
        super().__init__([Path(f"{row}.jpg") for row in range(count)], SHAPE, "uint8")
        self.broken = broken
        self.delay = delay

    def read(self, index: int) -> np.ndarray:
        time.sleep(self.delay)
        if index in self.broken:
            raise ValueError(f"{self.files[index]}: broken")
        return np.full(SHAPE, index % 251, dtype=np.uint8)


def build(path: Path, sources: Sources, on_error: str = "raise") -> Cache:
    return open_or_build(path, SHAPE, "uint8", lambda: (sources, {"table": np.arange(3)}), on_error)


def holds_numbers(cache: Cache) -> bool:
    return bool((cache.map() == (torch.arange(cache.shape[0]) % 251)[:, None, None, None]).all())


fork = multiprocessing.get_context("fork")


def test_it_holds_what_the_sources_gave(tmp_path: Path) -> None:
    cache = build(tmp_path / "cache.h5", Numbers(100))
    assert holds_numbers(cache)
    assert cache.tables["table"].tolist() == [0, 1, 2]
    assert cache.bytes == 100 * 192
    with h5py.File(cache.path) as file:  # an ordinary HDF5 file, for everyone else
        assert file["data"].shape == (100, *SHAPE)
        assert file["data"][42].max() == file["data"][42].min() == 42
    rows = torch.tensor([7, 99, 0, 7])
    assert torch.equal(cache.read(rows), cache.map()[rows])


def test_many_sources_are_read_by_several_processes_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert holds_numbers(build(tmp_path / "cache.h5", Numbers(1000)))


def test_a_reader_ends_with_the_process_that_started_it() -> None:
    """That need not be the one that it works for: Python 3.14 has a server start them."""
    begun, has_begun = os.pipe()
    starter = os.fork()
    if starter == 0:
        if os.fork() == 0:
            _end_with_parent(0)
            os.write(has_begun, b"!")
            time.sleep(60)
        time.sleep(1.5)  # longer than it takes to look
        os._exit(0)
    os.close(has_begun)
    assert os.read(begun, 1) == b"!"
    os.waitpid(starter, 0)
    start = time.monotonic()
    assert os.read(begun, 1) == b""  # closed by its end
    os.close(begun)
    assert time.monotonic() - start < 30


def test_writing_to_the_map_leaves_the_file_alone(tmp_path: Path) -> None:
    cache = build(tmp_path / "cache.h5", Numbers(10))
    cache.map()[:] = 0
    assert holds_numbers(cache)


def test_broken_source_stops_or_is_skipped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^6\.jpg: broken$"):
        build(tmp_path / "cache.h5", Numbers(10, broken=(6, 8)))
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match=r"2 of 10 files were skipped: 6.jpg: broken; 8.jpg: broken"):
        cache = build(tmp_path / "cache.h5", Numbers(10, broken=(6, 8)), "skip")
    assert cache.good_rows.tolist() == [0, 1, 2, 3, 4, 5, 7, 9]


def test_no_room_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("usage", "free")(10**7))
    with pytest.raises(OSError, match=r"cache.h5: the cache cannot be written \(it needs 1.92e-05 GB, 0.01 GB are fr"):
        build(tmp_path / "cache.h5", Numbers(100, broken=(0,)))
    assert not list(tmp_path.iterdir())


class FillingDisk(Numbers):
    """Before row ``at`` is read, the system's limit on the size of a file falls: a disk that fills up meanwhile."""

    def __init__(self, at: int, limit: int) -> None:
        super().__init__(200)
        self.at = at
        self.limit = limit

    def read(self, index: int) -> np.ndarray:
        if index == self.at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, self.limit))
        return super().read(index)


@pytest.mark.parametrize(("at", "limit"), [(-1, 10**3), (-1, 2**24), (0, 10**3), (100, 10**4), (199, 50_000)])
def test_disk_that_fills_up_leaves_nothing(tmp_path: Path, at: int, limit: int) -> None:
    """In every phase: before (-1), during and after the data. Without care HDF5 crashes the process in the last."""

    def child() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sources = FillingDisk(at, limit)
        try:
            if at == -1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            build(tmp_path / "cache.h5", sources)
        except OSError as error:
            os._exit(17 if "the cache cannot be written (File too large); make room" in str(error) else 1)
        os._exit(2)

    process = fork.Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 17
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_folder_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("datamodules.cache._check_room", refuse)
    with pytest.raises(OSError, match=rf"cannot be written \({error.strerror}\); .* another folder with cache_dir"):
        build(tmp_path / "cache.h5", Numbers(10))


def test_cache_dir_that_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/cache.h5: the cache cannot be written"):
        build(tmp_path / "file" / "cache.h5", Numbers(10))


class Slow(Numbers):
    """Writes down which rows are read."""

    def __init__(self, notes: Path, count: int, delay: float = 0.0, broken: tuple[int, ...] = ()) -> None:
        super().__init__(count, broken, delay)
        self.notes = notes

    def read(self, index: int) -> np.ndarray:
        with self.notes.open("a") as notes:
            notes.write(f"{index}\n")
        return super().read(index)

    def noted(self) -> list[int]:
        rows = [int(row) for row in self.notes.read_text().split()]
        self.notes.unlink()
        return rows


def kill_build(path: Path, sources: Slow, rows: int) -> Path:
    """Kills a build after so many rows and returns what it leaves."""
    process = fork.Process(target=build, args=(path, sources, "skip"))
    process.start()
    while not sources.notes.exists() or sources.notes.read_text().count("\n") < rows:
        time.sleep(0.01)
    process.kill()
    process.join()
    [left] = path.parent.glob("*.tmp")
    return left


@pytest.mark.parametrize("count", [200, 600])
def test_killed_build_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Also with worker processes, which outlive the killed one for a second."""
    monkeypatch.setattr("datamodules.cache._SAVED_EVERY", 0.0)
    path, sources = tmp_path / "caches" / "cache.h5", Slow(tmp_path / "notes", count, 0.005, broken=(1, count - 1))
    left = kill_build(path, sources, count // 2)
    time.sleep(1.5 if count > 256 else 0)
    assert count // 2 <= len(sources.noted()) < count
    left_again = kill_build(path, sources, count // 8)
    assert left_again == left
    time.sleep(1.5 if count > 256 else 0)
    sources.noted()
    with pytest.warns(UserWarning, match=rf"2 of {count} files were skipped: 1.jpg: broken; {count - 1}.jpg: broken"):
        cache = build(path, sources, "skip")
    read = sources.noted()
    assert read[0] == 1  # what could not be read is tried again
    assert len(read) < 0.6 * count
    assert count - 1 in read
    assert list(path.parent.iterdir()) == [path]
    alone = tmp_path / "alone.h5"
    with pytest.warns(UserWarning, match="skipped"):
        expected = build(alone, Numbers(count, broken=(1, count - 1)), "skip")
    assert torch.equal(cache.map(), expected.map())
    assert torch.equal(cache.good_rows, expected.good_rows)
    assert cache.skipped == expected.skipped
    assert cache.tables.keys() == expected.tables.keys()


def test_interrupted_build_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.cache._SAVED_EVERY", 0.0)

    class Interrupted(Slow):
        def read(self, index: int) -> np.ndarray:
            if index == 150:
                raise KeyboardInterrupt
            return super().read(index)

    path = tmp_path / "cache.h5"
    with pytest.raises(KeyboardInterrupt):
        build(path, Interrupted(tmp_path / "notes", 200))
    assert len(list(tmp_path.glob("*.tmp"))) == 1
    sources = Slow(tmp_path / "notes", 200)
    sources.noted()
    assert holds_numbers(build(path, sources))
    assert 50 <= len(sources.noted()) <= 50 + 32
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "other rows"])
def test_useless_remains_are_left_alone_and_removed_later(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "caches" / "cache.h5"
    left = kill_build(path, Slow(tmp_path / "notes", 200, 0.005), 50)
    if damage == "other rows":
        with h5py.File(left, "r+") as file:
            del file["done"]
            file["done"] = np.zeros(3, np.uint8)
    else:
        left.write_bytes({"empty": b"", "text": b"Hello", "truncated": left.read_bytes()[:5000]}[damage])
    assert holds_numbers(build(path, Numbers(200)))
    assert left.exists()  # so young, it might be another process that begins
    path.unlink()
    os.utime(left, (0, time.time() - 7200))
    assert holds_numbers(build(path, Numbers(200)))
    assert list(path.parent.iterdir()) == [path]


def test_two_processes_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cache.h5"

    def child() -> None:
        os._exit(17 if holds_numbers(build(path, Numbers(100, delay=0.003))) else 1)

    processes = [fork.Process(target=child) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [17, 17]
    assert list(tmp_path.iterdir()) == [path]
    assert holds_numbers(Cache(path, SHAPE, "uint8"))


def test_cache_of_other_rows_is_refused(tmp_path: Path) -> None:
    build(tmp_path / "cache.h5", Numbers(10))
    with pytest.raises(ValueError, match=r"cache.h5: not a readable cache \(expected rows of float32 \(2,\), found ui"):
        Cache(tmp_path / "cache.h5", (2,), "float32")


def test_key_depends_on_every_files_name_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1")
    os.utime(file, ns=(1, 1))
    stat = file.stat()
    key = cache_key("settings", [("a", stat), ("b", stat)])
    assert key == cache_key("settings", [("b", stat), ("a", stat)])
    os.utime(file, ns=(1, 2))
    later = file.stat()
    file.write_text("12")
    os.utime(file, ns=(1, 1))
    others = [
        cache_key("other", [("a", stat), ("b", stat)]),
        cache_key("settings", [("a", stat), ("c", stat)]),
        cache_key("settings", [("a", stat), ("b", later)]),
        cache_key("settings", [("a", stat), ("b", file.stat())]),
        cache_key("settings", [("a", stat)]),
    ]
    assert len({key, *others}) == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"good_rows": np.array([0, 9])}, "good_rows does not number its rows"),
        ({"good_rows": np.array([-1])}, "good_rows does not number its rows"),
        ({"good_rows": np.array([0.0])}, "good_rows does not number its rows"),
        ({"labels": (10**12,)}, r"uint8 of shape \(4, 2\) and what lies beside it are more than its \d+ bytes"),
        ({"skipped": None}, "skipped"),
    ],
)
def test_cache_that_claims_what_it_does_not_hold_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "cache.h5"
    content = {
        "data": np.zeros((4, 2), np.uint8),
        "good_rows": np.arange(4),
        "skipped": np.array([], dtype="S1"),
    } | change
    with h5py.File(path, "w") as file:
        for name, value in content.items():
            if isinstance(value, tuple):  # claimed, never written
                file.create_dataset(name, value, np.uint8, chunks=(1000,))
            elif value is not None:
                file[name] = value
    with pytest.raises(ValueError, match=rf"cache.h5: not a readable cache \(.*{message}"):
        Cache(path, (2,), "uint8")


def test_finished_file_takes_the_place_of_another_at_once(tmp_path: Path) -> None:
    path, kept = tmp_path / "cache.h5", tmp_path / "kept"
    path.write_bytes(b"damaged")
    os.link(path, kept)  # whoever has the old file open still sees it
    with pytest.warns(UserWarning, match="building it again"):
        assert holds_numbers(build(path, Numbers(20)))
    assert kept.read_bytes() == b"damaged"

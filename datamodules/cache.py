"""One HDF5 file made from many source files, once: read in parallel, written atomically, mapped into memory."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing import current_process
from pathlib import Path
from threading import Thread
from typing import BinaryIO
from uuid import uuid4

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm  # type: ignore[import-untyped]

from wae_lightning.lightning import rank_zero_info, rank_zero_warn

try:
    import fcntl
except ImportError:  # Windows: a killed build starts again
    fcntl = None  # type: ignore[assignment]

__all__ = ["Cache", "Sources", "cache_key", "md5_of", "open_or_build"]

_SAVED_EVERY = 1.0  # seconds of a build that are lost when it is killed
_ABANDONED_AFTER = 3600  # seconds; a build writes many times a minute, so an older unfinished file was left by a crash


class Sources(Dataset["np.ndarray | ValueError"]):
    """The files that a cache is made of, each read into one array.

    Args:
        files: The files, one a row of the cache.
        shape: Shape of each array.
        dtype: ``uint8``, ``float32`` or ``float64``.
    """

    def __init__(self, files: list[Path], shape: tuple[int, ...], dtype: str) -> None:
        self.files = files
        self.shape = shape
        self.dtype = dtype

    def read(self, index: int) -> np.ndarray:
        """Returns the array of one file; raises ValueError or OSError if that cannot be done."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> np.ndarray | ValueError:
        # Errors are returned, not raised: the DataLoader would bury the one clear sentence in a worker's traceback.
        try:
            return self.read(index)
        except ValueError as error:
            return error
        except OSError as error:
            return ValueError(f"{self.files[index]}: cannot be read ({error.strerror or error})")


class Cache:
    """A finished cache file, checked when it is opened.

    Args:
        path: The file.
        shape: Shape that each row must have.
        dtype: Type that it must have: ``uint8``, ``float32`` or ``float64``.

    Raises:
        ValueError: If the file is not a finished cache of such rows.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path = path
        try:
            with h5py.File(path, "r") as file:
                data = file["data"]
                self.shape: tuple[int, ...] = data.shape
                self.offset: int = data.id.get_offset() or 0
                found = f"{data.dtype} of shape {data.shape}"
                size = path.stat().st_size
                if self.offset + data.nbytes > size or any(file[name].nbytes > size for name in file):
                    raise ValueError(f"{found} and what lies beside it are more than its {size} bytes")
                self.tables = {name: file[name][()] for name in file if name not in ("data", "skipped")}
                skipped = [error.decode() for error in file["skipped"][()]]
                rows = file["good_rows"][()]
                if rows.dtype != "int64" or rows.ndim != 1 or not ((rows >= 0) & (rows < self.shape[0])).all():
                    raise ValueError("good_rows does not number its rows")
                self.good_rows = torch.from_numpy(rows)
        except Exception as error:  # h5py has no common exception for damaged files
            raise ValueError(f"{path}: not a readable cache ({error})") from None
        self.skipped: list[str] = skipped
        """One sentence for each source file that could not be read when ``on_error`` was ``skip``."""
        self._dtype = getattr(torch, dtype)
        if self.shape[1:] != shape or not found.startswith(dtype) or not self.offset:
            raise ValueError(f"{path}: not a readable cache (expected rows of {dtype} {shape}, found {found})")

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * int(self._dtype.itemsize)

    def map(self) -> Tensor:
        """The whole array, mapped: the system reads it as needed, and all processes of a machine share the memory."""
        with self.path.open("rb") as file:
            # Copy on write: torch wants writable memory, the file must never change.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if hasattr(mmap, "MADV_WILLNEED"):
            mapped.madvise(mmap.MADV_WILLNEED)
        count = math.prod(self.shape)
        return torch.frombuffer(mapped, dtype=self._dtype, count=count, offset=self.offset).view(self.shape)

    def read(self, rows: Tensor) -> Tensor:
        """Reads rows from the disk, in the order in which they lie there; nothing stays in memory."""
        batch = torch.empty((len(rows), *self.shape[1:]), dtype=self._dtype)
        places = batch.numpy()
        size = places[0].nbytes
        with self.path.open("rb", buffering=0) as file:
            for place in rows.argsort().tolist():
                file.seek(self.offset + int(rows[place]) * size)
                if file.readinto(places[place]) != size:
                    raise ValueError(f"{self.path}: the cache ends early; was it changed while in use?")
        return batch


def cache_key(settings: object, files: Iterable[tuple[str, os.stat_result]]) -> str:
    """Sixteen hexadecimal digits that change with the settings and with any file's name, size or time of change."""
    lines = sorted(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
    return hashlib.blake2b(
        "\n".join([repr(settings), *lines]).encode(errors="surrogateescape"), digest_size=8
    ).hexdigest()


def md5_of(path: Path) -> str:
    """The md5 sum of a file, as 32 hexadecimal digits."""
    md5 = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**24):
            md5.update(block)
    return md5.hexdigest()


def open_or_build(
    path: Path,
    shape: tuple[int, ...],
    dtype: str,
    prepare: Callable[[], tuple[Sources, dict[str, np.ndarray]]],
    on_error: str = "raise",
) -> Cache:
    """Opens the cache ``path``; builds it first if it is missing or damaged.

    Args:
        path: The cache file; its name holds the ``cache_key``, so an existing file is the right one.
        shape: Shape of one row.
        dtype: ``uint8``, ``float32`` or ``float64``.
        prepare: Called only when the cache must be built: returns the source files and small arrays to keep beside
            the data (``Cache.tables``).
        on_error: ``raise`` stops at the first source file that cannot be read; ``skip`` leaves it out.

    Raises:
        ValueError: If a source file cannot be read, with its name.
        OSError: If the cache cannot be written, with the reason and the way out.
    """
    cache = None
    if path.exists():
        try:
            cache = Cache(path, shape, dtype)
        except ValueError as error:
            rank_zero_warn(f"{error}; building it again.")
    if cache is None:
        _build(path, *prepare(), on_error)
        cache = Cache(path, shape, dtype)
    if cache.skipped and on_error == "raise":
        raise ValueError(f"{cache.skipped[0]} (one of {len(cache.skipped)}; on_error='skip' leaves such files out)")
    if cache.skipped:
        rank_zero_warn(
            f"{len(cache.skipped)} of {len(cache.good_rows) + len(cache.skipped)} files were skipped: "
            f"{'; '.join(cache.skipped[:3])}{'; ...' if len(cache.skipped) > 3 else ''}"
        )
    return cache


def _build(path: Path, sources: Sources, tables: dict[str, np.ndarray], on_error: str) -> None:
    size = len(sources) * math.prod(sources.shape) * np.dtype(sources.dtype).itemsize
    lock = temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _adopt(path, sources)
        if temporary is None:
            # Whoever builds writes a file of its own; the last rename wins, and both files hold the same.
            temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
            free = shutil.disk_usage(path.parent).free
            if free < size * 1.01 + 2**25:
                raise OSError(f"it needs {size / 1e9:.3g} GB, {free / 1e9:.3g} GB are free")
            rank_zero_info(f"Reading {len(sources):,} files into the cache {path} ({size / 1e9:.3g} GB), once.")
            lock = temporary.open("ab")
            _lock(lock, wait=True)
            # HDF5 kills the process when the disk is full at the wrong moment. So it only lays out the file, while
            # there is room, and plain writes, whose failures are exceptions, fill in the data.
            _check_room(temporary, size)
            with h5py.File(temporary, "w", locking=False) as file:
                for name, table in tables.items():
                    file[name] = table
                for name, shape, dtype in (
                    ("done", (len(sources),), "uint8"),
                    ("data", (len(sources), *sources.shape), sources.dtype),
                ):
                    file.create_dataset(name, shape, dtype)[-1] = 0  # allocates the whole array
        good, skipped = _fill(temporary, sources, on_error)
        if not len(good):
            raise ValueError(f"not one of the {len(sources)} files can be read: {skipped[0]}")
        _check_room(temporary)
        with h5py.File(temporary, "r+", locking=False) as file:
            del file["done"]
            file["skipped"] = np.array([error.encode(errors="replace") for error in skipped], dtype=h5py.string_dtype())
            file["good_rows"] = good
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except (KeyboardInterrupt, SystemExit):
        temporary = None  # the next start goes on with it
        raise
    except OSError as error:
        raise OSError(
            f"{path}: the cache cannot be written ({error.strerror or error}); make room or leave to write there, "
            "or give another folder with cache_dir (--data.cache_dir DIR)"
        ) from error
    finally:
        with suppress(OSError):
            if temporary is not None:
                temporary.unlink()
        if lock is not None:
            lock.close()


def _adopt(path: Path, sources: Sources) -> tuple[Path, BinaryIO] | tuple[None, None]:
    """Finds what a killed build of the same cache left behind, and locks it; removes what is of no use any more."""
    for temporary in path.parent.glob(f"{path.name}.*.tmp"):
        with suppress(OSError):  # another process takes it, or ends it, meanwhile
            old = temporary.stat().st_mtime < time.time() - _ABANDONED_AFTER
            lock = temporary.open("r+b")
            try:
                is_ours = _lock(lock) and os.path.samestat(os.fstat(lock.fileno()), temporary.stat())
                if is_ours and _left_over(temporary, sources):
                    rank_zero_info(f"Going on with the cache {path}, whose building was stopped.")
                    return temporary, lock
            except BaseException:
                lock.close()
                raise
            lock.close()
            if old:
                temporary.unlink()
    return None, None


def _lock(file: BinaryIO, wait: bool = False) -> bool:
    """Keeps a file under construction from others, until it is closed; False if that cannot be done."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # someone is at work on it, or the file system knows no locks
        return False
    return True


def _left_over(temporary: Path, sources: Sources) -> bool:
    """Whether a file is laid out for these sources."""
    try:
        with h5py.File(temporary, "r", locking=False) as file:
            data, done = file["data"], file["done"]
            return (
                (data.shape, data.dtype) == ((len(sources), *sources.shape), sources.dtype)
                and (done.shape, done.dtype) == ((len(sources),), "uint8")
                and data.id.get_offset() + data.nbytes <= temporary.stat().st_size
            )
    except Exception:  # h5py has no common exception for damaged files
        return False


def _fill(temporary: Path, sources: Sources, on_error: str) -> tuple[np.ndarray, list[str]]:
    """Reads the sources that are not yet in the file; returns the rows that are good and a sentence for each other."""
    with h5py.File(temporary, "r", locking=False) as file:
        done = file["done"][()]
        offset, done_offset = (file[name].id.get_offset() for name in ("data", "done"))
    size = math.prod(sources.shape) * np.dtype(sources.dtype).itemsize
    blank = np.zeros(sources.shape, sources.dtype)
    skipped = []
    missing = np.flatnonzero(done == 0)
    with temporary.open("r+b") as raw:

        def save() -> None:
            """Notes what is done, once it is on the disk for certain."""
            raw.flush()
            os.fsync(raw.fileno())
            raw.seek(done_offset)
            raw.write(done.tobytes())

        saved = time.monotonic()
        for row, array in zip(missing.tolist(), _read_all(sources, missing.tolist()), strict=True):
            if isinstance(array, ValueError):
                if on_error == "raise":
                    raise array
                skipped.append(str(array))
            raw.seek(offset + row * size)
            raw.write((blank if isinstance(array, ValueError) else array).astype(sources.dtype, copy=False).tobytes())
            done[row] = not isinstance(array, ValueError)
            if time.monotonic() - saved > _SAVED_EVERY:
                save()
                saved = time.monotonic()
    return np.flatnonzero(done).astype(np.int64), skipped


def _check_room(path: Path, size: int = 0) -> None:
    """Raises OSError unless the file can grow by ``size`` bytes of data and a few megabytes of everything else."""
    with path.open("ab") as file:
        before = file.tell()
        file.write(bytes(2**24))
        file.flush()
        file.truncate(before + size + 2**24)
        file.truncate(before)


def _read_all(sources: Sources, rows: list[int]) -> Iterator[np.ndarray | ValueError]:
    """Yields the arrays of these rows in order, read by as many processes as pay, under a progress bar."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # a daemon, such as a worker of multiprocessing.Pool, may not have children
    workers = 0 if current_process().daemon else min(processors, len(rows) // 256)
    loader = DataLoader(
        Subset(sources, rows),
        batch_size=32,
        collate_fn=list,
        num_workers=workers,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # torch draws from it: a run must not depend on whether it had a cache to build
    )
    count = len(sources)
    with tqdm(
        total=count, initial=count - len(rows), unit="file", unit_scale=True, desc="Caching", mininterval=0.5
    ) as progress:
        for arrays in loader:
            yield from arrays
            progress.update(len(arrays))


def _end_with_parent(worker: int) -> None:
    """Ends a worker with the process that it works for; killed while arrays were on their way, it would leave it."""
    parent = os.getppid()  # or the server that starts processes for it, which ends with it

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()

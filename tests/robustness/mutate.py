"""Puts deliberate faults into the code and prints those that no test notices: ``python tests/robustness/mutate.py``.

The faults are those of ``faults.py``. Each is put into a copy of this checkout, alone, and the tests that concern it
run there until one fails; nothing here is touched, also if the run is stopped. The processes that run them are forked
from one that has imported the libraries already, which saves most of the time. Tests that fail without any fault, and
faults whose text is not found exactly once, are errors. Ends with status 1 if a fault survives.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 300  # seconds; a fault may also make the tests hang
_MOMENTS = itertools.count(10**9)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "h5py", "hypothesis", "jsonargparse", "matplotlib.figure", "PIL.Image", "pytest", "scipy.stats",
        "sklearn.mixture", "torch", "torch.utils.tensorboard", "torchmetrics.image", "torchvision", "yaml",
    ]
)  # fmt: skip


def libraries() -> list[str]:
    """Where Python finds what is not of this checkout; an environment may lie within it."""
    return [path for path in sys.path if "site-packages" in path or not Path(path or ".").is_relative_to(ROOT)]


class NotApplicable(Exception):
    """A fault that cannot be put in, or tests that say nothing."""


def faulty(text: str, fault: Fault) -> str:
    """The file's text with the fault in it.

    Raises:
        NotApplicable: If its place is not found exactly once, or it changes nothing.
    """
    found = text.count(fault.before)
    if found != 1:
        raise NotApplicable(f"{fault.file}: expected {fault.before!r} once, found it {found} times")
    if fault.before == fault.after:
        raise NotApplicable(f"{fault.file}: the fault at {fault.before!r} changes nothing")
    return text.replace(fault.before, fault.after)


@contextmanager
def applied(fault: Fault, root: Path) -> Iterator[None]:
    """Has the fault in the file as long as it lasts."""
    path = root / fault.file
    whole = path.read_text()
    try:
        _write(path, faulty(whole, fault))
        yield
    finally:
        _write(path, whole)


def _write(path: Path, text: str) -> None:
    """Gives each text a time of its own: by that, and the size, Python tells whether what it compiled is up to date."""
    path.write_text(text)
    os.utime(path, (moment := next(_MOMENTS), moment))


def copy(target: Path) -> Path:
    """Copies what git tracks or would track of this checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def places(tests: str) -> list[str]:
    """What pytest is given for tests named as in ``faults.py``."""
    return [re.sub(r"^(\w+)(::.*)?$", r"tests/test_\1.py\2", name) for name in tests.split()]


def _run_pytest(tests: list[str], root: Path, printed: Path) -> None:
    """What a forked process does: it ends with pytest's status."""
    file = printed.open("w")
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    sys.path[:] = [str(root), *libraries()]
    for name in ("faults", "mutate"):
        sys.modules.pop(name, None)
    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(root), *tests])))


def first_failure(tests: str, root: Path) -> str | None:
    """Runs tests until one fails and returns its name; None: all pass.

    Raises:
        NotApplicable: If there are no such tests.
    """
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "printed.txt"
        process = PROCESSES.Process(target=_run_pytest, args=(places(tests), root, printed))
        process.start()
        process.join(LONGEST)
        if process.is_alive():
            process.kill()
            process.join()
            return f"more than {LONGEST} s"
        text = printed.read_text(errors="replace")
    if process.exitcode == 0:
        return None
    if process.exitcode not in (1, 2) and process.exitcode >= 0:
        raise NotApplicable(f"{tests}: pytest ended with status {process.exitcode}: {text[-500:]}")
    failed = re.findall(r"^(?:FAILED|ERROR) (?:tests/)?(?:test_)?(\S+)", text, re.MULTILINE)
    return failed[0] if failed else f"status {process.exitcode}"


def noticed(
    faults: list[Fault], root: Path, run: Callable[[str, Path], str | None] = first_failure
) -> Iterator[tuple[Fault, str | None]]:
    """Yields each fault and the test that notices it; None: it survives. Tests run without any fault first.

    Raises:
        NotApplicable: If a fault cannot be put in, or the tests fail without any.
    """
    passed: set[str] = set()
    for fault in faults:
        for name in fault.tests.split():
            if name not in passed and (failed := run(name, root)) is not None:
                raise NotApplicable(f"{failed} fails without any fault")
            passed.add(name)
        with applied(fault, root):
            failed = run(fault.tests, root)
        yield fault, failed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose file or tests contain a word (all)")
    parser.add_argument("--out", type=Path, help="JSON file to write: how many faults, which survived, seconds")
    known = parser.parse_args(arguments)
    chosen = [fault for fault in FAULTS if any(word in f"{fault.file} {fault.tests}" for word in known.only)]
    survived: list[str] = []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begin = time.perf_counter()
    try:
        for fault in chosen:  # before the first test runs
            faulty((ROOT / fault.file).read_text(), fault)
        with tempfile.TemporaryDirectory() as folder:
            start = begin
            for fault, test in noticed(chosen, copy(Path(folder))):
                seconds, start = time.perf_counter() - start, time.perf_counter()
                what = f"{fault.file}: {fault.before!r} -> {fault.after!r}"
                print(f"{test or 'SURVIVED':40} {seconds:4.0f} s  {what}", flush=True)
                survived += [what] * (test is None)
    except NotApplicable as error:
        sys.exit(f"mutate.py: error: {error}")
    seconds = round(time.perf_counter() - begin)
    print(f"{len(survived)} of {len(chosen)} faults survived, {seconds} s")
    if known.out is not None:
        known.out.write_text(json.dumps({"faults": len(chosen), "survivors": survived, "seconds": seconds}) + "\n")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()

"""Puts deliberate faults into the code and prints those that no test notices: ``python tests/robustness/mutate.py``.

The faults are those of ``faults.py``. Each is put into a copy of this checkout, alone, and the test files that concern
it run there with ``pytest -x``; nothing here is touched, also if the run is stopped. Test files that fail without any
fault, and faults whose text is not found exactly once, are errors. Ends with status 1 if a fault survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]


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
        path.write_text(faulty(whole, fault))
        yield
    finally:
        path.write_text(whole)


def copy(target: Path) -> Path:
    """Copies what git tracks or would track of this checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def tests_pass(tests: str, root: Path) -> bool:
    """Runs test files and tells whether all of them pass.

    Raises:
        NotApplicable: If there are no such tests.
    """
    files = [f"tests/test_{name}.py" for name in tests.split()]
    # a compiled file could outlive the text it was made from
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if ended.returncode not in (0, 1, 2):
        raise NotApplicable(f"{' '.join(files)}: pytest ended with status {ended.returncode}: {ended.stdout[-500:]}")
    return ended.returncode == 0


def survivors(
    faults: list[Fault], root: Path, passing: Callable[[str, Path], bool] = tests_pass
) -> Iterator[tuple[Fault, bool]]:
    """Yields each fault and whether it survives.

    Raises:
        NotApplicable: If the fault cannot be put in, or its tests fail without it.
    """
    sound: set[str] = set()
    for fault in faults:
        if fault.tests not in sound and not passing(fault.tests, root):
            raise NotApplicable(f"the tests {fault.tests} fail without any fault")
        sound.add(fault.tests)
        with applied(fault, root):
            survives = passing(fault.tests, root)
        yield fault, survives


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="faults whose file or test files contain a word (all)")
    known = parser.parse_args(arguments)
    chosen = [fault for fault in FAULTS if any(word in f"{fault.file} {fault.tests}" for word in known.only)]
    survived = []
    try:
        for fault in chosen:  # before the first test runs
            faulty((ROOT / fault.file).read_text(), fault)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for fault, survives in survivors(chosen, copy(Path(folder))):
                seconds, start = time.perf_counter() - start, time.perf_counter()
                word = "SURVIVED" if survives else "noticed"
                print(f"{word:8} {seconds:4.0f} s  {fault.file}: {fault.before!r} -> {fault.after!r}", flush=True)
                survived += [fault] * survives
    except NotApplicable as error:
        sys.exit(f"mutate.py: error: {error}")
    print(f"{len(survived)} of {len(chosen)} faults survived")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()

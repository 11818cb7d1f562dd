"""A short form of tests/robustness/fuzz_readers.py, and that it would see what it looks for."""

import json
import os
import time

import fuzz_readers
import numpy as np
import pytest

SLOW = {"checkpoints": 30, "YAML configs": 6}


@pytest.mark.parametrize("name", fuzz_readers.READERS)
def test_damaged_files_are_refused_in_one_sentence(name):
    row = fuzz_readers.fuzz(name, range(10_000, 10_000 + SLOW.get(name, 100)), seconds=60, memory=1024)
    assert row["failed"] == []
    assert row["inputs"] == row["accepted"] + row["refused"] == SLOW.get(name, 100)
    assert row["refused"] > 0


def raises(path):
    raise KeyError("x")


def names_no_file(path):
    raise ValueError("bad")


def in_two_lines(path):
    raise ValueError(f"{path}\nis bad")


def crashes(path):
    os.abort()


def hangs(path):
    time.sleep(60)


def claims(path):
    np.ones(2**28)  # 2 GB


def leaves(path):
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("read", "failure"),
    [
        (raises, "KeyError: \"'x'\" in test_fuzz_readers.py"),
        (names_no_file, "unclear: ValueError: 'bad'"),
        (in_two_lines, "unclear: ValueError: "),
        (crashes, "exit -6"),
        (hangs, "no answer for 0.3 s"),
        (claims, "MemoryError: "),
        (leaves, "SystemExit: '0' in test_fuzz_readers.py"),
    ],
)
def test_failures_are_seen(read, failure, monkeypatch):
    """A reader that accepts its real file, and fails with a damaged one."""
    whole = b"a whole file of many bytes"

    def reads(path):
        if path.read_bytes() != whole:
            read(path)

    def write(folder):
        (folder / "whole.bin").write_bytes(whole)
        return [folder / "whole.bin"]

    monkeypatch.setitem(fuzz_readers.READERS, "broken", fuzz_readers.Reader(write, reads))
    row = fuzz_readers.fuzz("broken", range(3), seconds=0.3 if read is hangs else 10, memory=1024)
    assert row["failures"] == 3
    assert row["failed"][0].startswith(f"seed 0: {failure}")


def test_the_report_is_written_and_failures_end_in_status_1(tmp_path, monkeypatch, capsys):
    fuzz_readers.main(["--only", "IDX", "--inputs=5", f"--out={tmp_path / 'fuzz.json'}"])
    written = json.loads((tmp_path / "fuzz.json").read_text())
    assert written["readers"]["IDX"]["inputs"] == 5
    assert written["limits"] == {"seconds_per_input": 30.0, "memory_mb_per_input": 1024, "first_seed": 0}
    monkeypatch.setitem(fuzz_readers.READERS, "IDX", fuzz_readers.READERS["IDX"]._replace(read=raises))
    with pytest.raises(SystemExit):
        fuzz_readers.main(["--only", "IDX", "--inputs=5"])
    assert "the undamaged images-idx3-ubyte: KeyError" in capsys.readouterr().out

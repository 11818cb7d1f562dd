"""A share of the hostile checkpoints; the whole is ``hostile_checkpoints.py --count 2000``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import hostile_checkpoints


def test_hostile_checkpoints_are_refused_or_harmless(few_digits, quick_measures, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(few_digits)  # where a checkpoint names no folder
    monkeypatch.chdir(tmp_path)
    results = hostile_checkpoints.run(15)
    assert results["failures"] == []
    for name, counts in results["readers"].items():
        assert counts["refused"] > 3, name
        assert sum(counts.values()) == 15

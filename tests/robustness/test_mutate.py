"""The list of faults fits the code, and mutate.py tells survivors from what is noticed."""

import mutate
import pytest
from faults import FAULTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.before}")
def test_a_fault_can_be_put_in(fault):
    compile(mutate.faulty((mutate.ROOT / fault.file).read_text(), fault), fault.file, "exec")
    assert fault.tests
    for place in mutate.places(fault.tests):
        file, _, name = place.partition("::")
        assert f"def {name}(" in (mutate.ROOT / file).read_text() or not name, place


def test_no_fault_is_listed_twice():
    assert len(set(FAULTS)) == len(FAULTS) >= 120


@pytest.fixture
def project(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (tmp_path / "sums.py").write_text("def plus(a, b):\n    return a + b\n\n\ndef half(a):\n    return a / 2\n")
    (tmp_path / "tests" / "test_sums.py").write_text(
        "from sums import half, plus\n\n\ndef test_plus():\n    assert plus(2, 2) == 4\n\n\n"
        "def test_half():\n    assert half(4) > 1\n"
    )
    return tmp_path


def test_survivors_are_told_and_the_file_is_as_before(project):
    whole = (project / "sums.py").read_text()
    faults = [
        Fault("sums.py", "a + b", "a * b", "sums"),
        Fault("sums.py", "a + b", "a - b", "sums::test_half"),
        Fault("sums.py", "a / 2", "a / 4", "sums"),
        Fault("sums.py", "a / 2", "a +/ 2", "sums"),
    ]
    found = [test for _, test in mutate.noticed(faults, project)]
    assert found == [None, None, "sums.py::test_half", "sums.py"]
    assert (project / "sums.py").read_text() == whole


def test_tests_that_hang_have_noticed_something(project, monkeypatch):
    monkeypatch.setattr(mutate, "LONGEST", 0.1)
    assert mutate.first_failure("sums", project) == "more than 0.1 s"


def test_the_file_is_as_before_when_the_run_is_stopped(project):
    whole = (project / "sums.py").read_text()
    seen = []

    def stopped(tests, root):
        seen.append((root / "sums.py").read_text())
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(mutate.noticed([Fault("sums.py", "a + b", "a * b", "sums")], project, stopped))
    assert seen == [whole, whole.replace("a + b", "a * b")]
    assert (project / "sums.py").read_text() == whole


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("sums.py", "return a", "return b", "sums"), "expected 'return a' once, found it 2 times"),
        (Fault("sums.py", "c", "d", "sums"), "expected 'c' once, found it 0 times"),
        (Fault("sums.py", "a + b", "a + b", "sums"), "changes nothing"),
    ],
)
def test_faults_that_do_not_fit_are_refused(project, fault, message):
    with pytest.raises(mutate.NotApplicable, match=message):
        list(mutate.noticed([fault], project, lambda *_: None))


def test_tests_that_are_not_there_are_refused(project):
    with pytest.raises(mutate.NotApplicable, match="pytest ended with status 4"):
        mutate.first_failure("nothing", project)


def test_tests_that_fail_anyhow_say_nothing(project):
    with pytest.raises(mutate.NotApplicable, match=r"sums.py::test_half fails without any fault"):
        list(mutate.noticed([Fault("sums.py", "a + b", "a - b", "sums")], project, lambda *_: "sums.py::test_half"))


def test_a_copy_has_what_git_tracks(tmp_path):
    mutate.copy(tmp_path)
    assert (tmp_path / "wae_lightning" / "kernels.py").is_file()
    assert (tmp_path / "tests" / "robustness" / "mutate.py").is_file()
    assert not (tmp_path / ".git").exists()

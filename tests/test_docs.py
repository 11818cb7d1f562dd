"""The documentation: its examples run, its links lead somewhere, and everything public has a docstring."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import datamodules
import wae_lightning

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = [
    pytest.param(page, number, code, id=f"{page.stem}-{number}")
    for page in sorted(DOCS.glob("*.md"))
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize(("page", "number", "code"), EXAMPLES)
def test_an_example_runs(page, number, code, tmp_path, monkeypatch):
    if "onnxruntime" in code:
        if torch.__version__ < (2, 7):
            pytest.skip("PyTorch 2.6 exports to ONNX with no onnxscript that was tried")
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    if "torch.export.save" in code and torch.__version__ < (2, 7):
        pytest.skip("PyTorch 2.6 exports a graph with autocast and sizes of any length, but cannot save it")
    monkeypatch.chdir(tmp_path)
    name = f"{page.name}, example {number}"
    if ">>>" in code:
        example = doctest.DocTestParser().get_doctest(code, {}, name, str(page), 0)
        report: list[str] = []
        assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
    else:
        exec(compile(code, name, "exec"), {"__name__": "example"})


def test_each_part_of_the_extension_page_is_short():
    examples = [code for page, _, code in (example.values for example in EXAMPLES) if page.stem == "extending"]
    assert len(examples) == 5
    assert all(len([line for line in code.splitlines() if line.strip()]) < 30 for code in examples)


def anchors(page):
    """The anchors of a page's headings, as they are made on GitHub."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


MODULES = [
    name
    for package in (wae_lightning, datamodules)
    for name in [package.__name__, *(m.name for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))]
]


def documented(cls, name):
    """Whether a method tells what it does, or one that it overrides does, be it ours or a library's."""
    for base in cls.__mro__:
        if name in vars(base) and vars(base)[name].__doc__:
            ours = base.__module__.split(".")[0] in ("wae_lightning", "datamodules")
            # what forward does, PyTorch cannot know
            return ours or name != "forward"
    return False


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module):
    module = importlib.import_module(module)
    assert module.__doc__
    assert module.__all__
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        assert vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__, name
        if inspect.isclass(thing):
            methods = [
                key
                for key, value in vars(thing).items()
                if callable(value) or isinstance(value, property | classmethod)
            ]
            missing = [key for key in methods if not key.startswith("_") and not documented(thing, key)]
            assert not missing, f"{name}: {', '.join(missing)}"

"""The documentation: README is short, examples run, links lead somewhere, and figures are those of the result files.

The site builds without a warning, and everything public has a docstring.
"""

import doctest
import importlib
import inspect
import json
import pkgutil
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tables
import torch
import yaml
from forked import run_code
from PIL import Image

import datamodules
import wae_lightning

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))
EXAMPLES = [
    pytest.param(page, number, code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL))
]


def text_of(page):
    """A page, or what a notebook says, without its pictures."""
    if page.suffix == ".md":
        return page.read_text()
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(page.read_text())["cells"])


# ---- README ---------------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 900


def test_the_readme_gives_the_commands_that_ci_runs():
    text = (ROOT / "README.md").read_text()
    assert "\npip install -e . && python experiments/train.py\n" in text
    (tests,) = re.findall(r"^pip install -e \"\.\[test\]\" && (.*)$", text, re.MULTILINE)
    assert f'pip install --quiet -e ".[test]" && {tests}\n' in (ROOT / ".ci" / "run").read_text()


def test_one_version():
    version = wae_lightning.__version__
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == version
    assert f"version = {{{version}}}" in (ROOT / "README.md").read_text()


# ---- examples, commands, links --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "number", "code"), EXAMPLES)
def test_an_example_runs(page, number, code, tmp_path, monkeypatch):
    if "onnxruntime" in code:
        if torch.__version__ < (2, 7):
            pytest.skip("PyTorch 2.6 exports to ONNX with no onnxscript that was tried")
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    if "from_pretrained" in code and not (Path(wae_lightning.__file__).parent / "weights").is_dir():
        pytest.skip("no weights are bundled")
    if "torch.export.save" in code and torch.__version__ < (2, 7):
        pytest.skip("PyTorch 2.6 exports a graph with autocast and sizes of any length, but cannot save it")
    monkeypatch.chdir(tmp_path)
    # what takes a minute of a reader's time takes two steps here
    steps = "limit_train_batches=2, limit_val_batches=1, accelerator='cpu', enable_progress_bar=False"
    code = code.replace("Trainer(max_epochs=20)", f"Trainer(max_epochs=1, {steps})")
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


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_what_a_page_names_is_there(page):
    text = text_of(page)
    for path in re.findall(r"(?:python|pytest) ((?:experiments|tests)/\S+\.py)", text):
        assert (ROOT / path).is_file(), path
    configs = {path.stem for path in Path(wae_lightning.__file__).parent.glob("cli/configs/*.yaml")}
    for name in re.findall(r"(?:--config[ =]|from_config\(\")(\w+)", text):
        assert name in configs or name == "NAME", name


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.stem)
def test_in_colab_a_tutorial_asks_for_the_package_and_installs_it(page, monkeypatch):
    manager = pytest.importorskip("IPython.core.inputtransformer2").TransformerManager()
    cell = next(cell for cell in json.loads(page.read_text())["cells"] if cell["cell_type"] == "code")
    code = manager.transform_cell("".join(cell["source"]))
    run: list[tuple[str, str]] = []
    shell = SimpleNamespace(run_line_magic=lambda *words: run.append(words))
    exec(code, {"get_ipython": lambda: shell})
    assert not run, "elsewhere it is there"
    colab = SimpleNamespace(files=SimpleNamespace(upload=lambda: {"wae_lightning-0.2.0-py3-none-any.whl": b""}))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    exec(code, {"get_ipython": lambda: shell})
    assert run == [("pip", "install -q {wheel}")], "which IPython fills in"


def anchors(page):
    """The anchors of a page's headings, as they are made on GitHub."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    names = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    if page.parent == DOCS and "{include}" in text_of(page):
        names |= anchors(DOCS / re.search(r"{include} (\S+)", text_of(page))[1])
    return names


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.stem)
def test_the_tables_of_a_page_are_made_from_the_result_files(page):
    assert tables.filled(page.read_text()) == page.read_text(), "run python experiments/reproduce/tables.py"


@pytest.mark.parametrize("page", [*tables.PAGES, DOCS / "report.md"], ids=lambda page: page.stem)
def test_measured_figures_in_the_text_stand_in_a_table(page):
    """What is said in words is measured, and is what the table says: no figure of its own stands in the text."""
    known = "".join(make() for make in tables.TABLES.values())
    text = re.sub(r"```.*?```|`[^`]*`|^\|.*?$|\]\([^)]*\)", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    versions = re.findall(r"(?:pythae|PyTorch|Lightning|BY-SA|Apache|CC-BY) (\d[\d.]*\d)", text)
    figures = set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)|\d[\d.]*(?= %)", text)) - set(versions)
    stated = {"0.5", "0.05"}  # the best 1-NNA, the scale of a cost
    assert not [figure for figure in figures - stated if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", known)]


def test_seeds_are_averaged_and_lengths_looked_up(tmp_path, monkeypatch):
    folder = tmp_path / "experiments" / "results"
    folder.mkdir(parents=True)
    runs = [{"fid": value, "fit_cpu_seconds": seconds} for value, seconds in ((1.0, 9.6), (2.0, 11.0), (3.0, 10.0))]
    assert tables.over_seeds(runs, "fid") == "2.00 ± 1.00"
    assert tables.over_seeds(runs[:1], "fid") == "1.00"
    assert tables.over_seeds([*runs, {}], "fid") == tables.NOTHING
    assert tables.whole_range(runs, "fit_cpu_seconds") == "10-11"
    row = {"moments": 3, "runs": 4, "resumed": 2, "equal": 1, "lost": 1}
    (folder / "kill_runs.json").write_text(json.dumps({"summary": {"x": row}}))
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    page = "before\n<!-- table: kills -->\nold\n<!-- end -->\nafter"
    rows = "| settings | moments | runs | resumed | equal | lost |\n" + "| --- " * 6 + "|\n| x | 3 | 4 | 2 | 1 | 1 |\n"
    assert tables.filled(page) == f"before\n<!-- table: kills -->\n{rows}\n<!-- end -->\nafter"


def test_the_comparison_shows_the_row_of_most_seeds_and_nothing_that_was_not_measured(monkeypatch):
    def run(value, **more):
        return {"fid_digits_10k": value, "fid_digits_reconstructions": 0.5, "fit_cpu_seconds": 9.0} | more

    keys, where = tables.COMPARED["WAE-MMD, 8 units"]
    assert where == ""
    fitted = run(7.0) | {f"fid_digits_10k{tables.FITTED}": 2.0, f"patch_distance_mean_10k{tables.FITTED}": 0.0214}
    files = {
        "mnist_results": {keys[0]: {"runs": [run(3.0)]}, keys[1]: {"runs": [run(4.0), run(6.0)]},
                          tables.COMPARED["VAE, 50 Gaussians"][0][0]: {"runs": [fitted]}},
        "pythae": [run(8.0, sampler="MAF", seconds=270, cpu_seconds=12.0), run(5.0)],
        "yardsticks": {"digits": {"rows": {"floor": {
            "fid_digits": 1.0, "fid_digits_twin": 0.25, "patch_distance_mean": 0.011}}}},
    }  # fmt: skip
    monkeypatch.setattr(tables, "load", files.__getitem__)
    rows = [line.strip("| ").split(" | ") for line in tables.compared(tables.COMPARED).splitlines()[2:]]
    assert rows == [
        ["*real digits*", "1.00", "0.25", "11", *"–––––"],
        ["VAE, 50 Gaussians", "2.00", "–", "21", "–", "0.50", "–", "9", "1"],
        ["VAE, N(0, I)", "7.00", "–", "–", "–", "0.50", "–", "9", "1"],
        ["pythae, its MAF", "8.00", "–", "–", "–", "0.50", "–", "12", "1"],
        ["WAE-MMD, 8 units", "5.00 ± 1.41", "–", "–", "–", "0.50 ± 0.00", "–", "9", "2"],
    ]


# ---- the site -------------------------------------------------------------------------------------------------------


def test_pictures_are_large_enough_to_see_and_are_shown():
    pages = "".join(text_of(page) for page in [*PAGES, *NOTEBOOKS])
    for path in DOCS.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width >= 900, path.name
        assert f"{path.name})" in pages, f"{path.name} is on no page"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_tutorial_was_run_as_it_stands(notebook):
    """.ci/run runs them; here: from top to bottom, without an error, and one sees something."""
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert len(notebook.read_bytes()) < 600_000
    for cell in cells[1:]:  # the first is for Colab, see above
        compile("".join(cell["source"]), notebook.name, "exec")


def test_the_site_builds_without_a_warning_and_describes_every_public_name(tmp_path):
    """All but the writing of HTML, which .ci/run does."""
    for module in ("sphinx", "furo", "myst_nb"):
        pytest.importorskip(module)
    command = """
import sys
from sphinx.application import Sphinx
docs, out = sys.argv[1:]
site = Sphinx(docs, docs, out, out, "dummy", status=None, warningiserror=True)
site.build()
print(*site.env.get_domain("py").objects)
sys.exit(site.statuscode)
"""
    built = run_code(command, DOCS, tmp_path, cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    described = set(built.stdout.split())
    packages = ["", ".penalties", ".kernels", ".priors", ".costs", ".noise", ".networks", ".callbacks", ".metrics"]
    packages += [".evaluation", ".samplers", ".schedules", ".references", ".report", ".parts"]
    for package in [*(f"wae_lightning{name}" for name in packages), "datamodules"]:
        names = {f"{package}.{name}" for name in importlib.import_module(package).__all__ if not name.startswith("_")}
        missing = {name for name in names - described if not re.fullmatch(r".*\.[A-Z_]{4,}", name)}  # constants
        assert not missing, ", ".join(sorted(missing))


# ---- docstrings -----------------------------------------------------------------------------------------------------

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
    if module.__name__ == "wae_lightning.cli":  # a folder of commands
        return
    assert module.__all__
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        if thing.__module__.partition(".")[0] not in ("wae_lightning", "datamodules"):  # Lightning's
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

"""Sphinx: ``sphinx-build -W docs docs/_build`` builds the site."""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docutils import nodes  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

import wae_lightning  # noqa: E402

project = "wae-lightning"
copyright = "the wae-lightning authors, Apache-2.0"
release = version = wae_lightning.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_nb"]
exclude_patterns = ["_build"]
highlight_language = "text"  # of blocks that name none: commands
html_theme = "furo"
html_title = f"wae-lightning {release}"
html_show_sphinx = False

# the notebooks are run by .ci/run; the site shows the outputs that they were saved with
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # Lightning's own hooks are described there
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def escape_shapes_and_bars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written for the terminal: (B, *input) and |x| are what they look like."""
    for i, line in enumerate(lines):
        line = re.sub(r"(?<=, )\*(?=\w+\))", r"\*", line)
        lines[i] = line if any(mark in line for mark in ("`", "\\", ">>>")) else line.replace("|", r"\|")


def link_to_public_names(app: Sphinx, env: Any, node: Any, content: nodes.TextElement) -> nodes.Node | None:
    """Docstrings name where a class is defined, the API pages where one imports it from."""
    name = node.get("reftarget", "").rpartition(".")[2]
    found = [(full, entry) for full, entry in env.get_domain("py").objects.items() if full.rpartition(".")[2] == name]
    if node.get("refdomain") != "py" or len(found) != 1:
        return None
    ((full, entry),) = found
    page = app.builder.get_relative_uri(node["refdoc"], entry.docname)
    return nodes.reference("", "", content, internal=True, refuri=f"{page}#{entry.node_id}", reftitle=full)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", escape_shapes_and_bars, priority=100)  # before napoleon
    app.connect("missing-reference", link_to_public_names)

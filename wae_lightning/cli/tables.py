"""Tables of the measures of several models, and a plot of quality against λ."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import mean

__all__ = ["FORMATS", "PLOTS", "better", "format_table", "plot_against_weight"]

_LOWER = (
    "fid", "kid", "bce", "nll", "negative_elbo", "mse", "cost", "patch", "hsic", "rank_error", "CD", "EMD", "1-NNA",
)  # fmt: skip
_LOWER_ANYWHERE = ("MMD-", "JSD")
_HIGHER = (
    "accuracy", "precision", "recall", "psnr", "ssim", "agreement", "diversity", "COV", "classifier", "linear SVM",
)  # fmt: skip
_REFERENCES = ("floor", "_reference", "classifier on inputs", "untrained")

Rows = Mapping[str, Mapping[str, float]]
"""Name of a run -> its measures."""


def better(measure: str) -> str:
    """The direction in which a measure gets better: ``↓``, ``↑``, or an empty string where neither is, or for a floor.

    Example:
        >>> better("fid_digits_10k"), better("psnr"), better("fid_digits_floor")
        ('↓', '↑', '')
    """
    name = measure.rpartition(": ")[2]
    if any(word in name for word in _REFERENCES):
        return ""
    if name.startswith(_LOWER) or any(word in name for word in _LOWER_ANYWHERE):
        return "↓"
    return "↑" if name.startswith(_HIGHER) else ""


def _cells(rows: Rows) -> list[list[str]]:
    measures = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = [["", *rows]]
    for name in measures:
        values = [row.get(name) for row in rows.values()]
        shown = ["-" if value is None else f"{value:.4g}" for value in values]
        table.append([f"{name} {better(name)}".strip(), *shown])
    return table


def _text(table: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _markdown(table: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    rows = [[cell.replace("|", r"\|") for cell in row] for row in table]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def _latex(table: list[list[str]]) -> str:
    symbols = {"\\": r"\textbackslash{}", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "~": r"\textasciitilde{}"}
    symbols |= {symbol: f"\\{symbol}" for symbol in "_%&#${}"} | {"^": r"\textasciicircum{}"}
    rows = [" & ".join("".join(symbols.get(letter, letter) for letter in cell) for cell in row) for row in table]
    head, *body = (f"  {row} \\\\" for row in rows)
    columns = "l" + "r" * (len(table[0]) - 1)
    return "\n".join(
        [f"\\begin{{tabular}}{{{columns}}}", "  \\hline", head, "  \\hline", *body, "  \\hline", "\\end{tabular}"]
    )


def _csv(table: list[list[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(table)
    return file.getvalue().rstrip("\n")


FORMATS = {".txt": _text, ".md": _markdown, ".tex": _latex, ".csv": _csv}
"""Ending of a file -> how its table is written."""
PLOTS = (".png", ".pdf", ".svg")


def format_table(rows: Rows, ending: str = ".txt") -> str:
    """A table with a column for each run and a row for each measure, which says by an arrow what is better.

    Args:
        rows: Name of each run -> its measures.
        ending: ``.txt``, ``.md`` (Markdown), ``.tex`` (LaTeX, a ``tabular``) or ``.csv``.

    Raises:
        ValueError: If the ending is another one.

    Example:
        >>> print(format_table({"one": {"psnr": 20.5}, "two": {"psnr": 21.25}}, ".md"))
        |  | one | two |
        | --- | ---: | ---: |
        | psnr ↑ | 20.5 | 21.25 |
    """
    if ending not in FORMATS:
        raise ValueError(f"expected a table's file to end in {', '.join(FORMATS)}, got {ending or 'no ending'!r}")
    return FORMATS[ending](_cells(rows))


def plot_against_weight(rows: Sequence[Mapping[str, float]], weights: Sequence[float], ending: str = ".png") -> bytes:
    """Plots the first measures that say how good samples and reconstructions are against λ.

    Args:
        rows: Measures of each run; several runs of one λ (seeds) are points around a line through their means.
        weights: λ of each run.
        ending: One of ``PLOTS``.

    Returns:
        The content of the file.

    Raises:
        ValueError: If the runs have no measure with a direction in common.
    """
    from matplotlib.figure import Figure

    common = [name for name in rows[0] if better(name) and all(name in row for row in rows)]
    samples = next((name for name in common if "reconstructions" not in name and name.startswith(("fid", "kid"))), None)
    chosen = [samples or next((name for name in common if ": " in name), None)]
    chosen += [next((name for name in common if name != chosen[0] and "fid" in name), None)]
    names = [name for name in chosen if name] or common[:1]
    if not names:
        raise ValueError("the runs have no measure in common that says how good they are, so there is nothing to plot")
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained", dpi=200)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        means = {weight: mean(r[name] for r, w in zip(rows, weights, strict=True) if w == weight) for weight in weights}
        line = axes.plot(*zip(*sorted(means.items()), strict=True), "-")
        axes.plot(weights, [row[name] for row in rows], "o", color=line[0].get_color())
        if max(weights) > 10 * min(weights):  # 0 has a place on this axis, too
            axes.set_xscale("symlog", linthresh=min((w for w in weights if w > 0), default=1.0))
        axes.set_xticks(sorted(set(weights)), [f"{weight:g}" for weight in sorted(set(weights))], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("λ (penalty_weight)")
        axes.set_ylabel(f"{name} ({'less' if better(name) == '↓' else 'more'} is better)")
    file = io.BytesIO()
    figure.savefig(file, format=ending.removeprefix("."))
    return file.getvalue()

"""A comparison as a picture: one row a measure, the runs of each group on the left, the difference on the right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from stabilitylab.compare.sentences import DECIDED, DIFFERENCE, cells
from stabilitylab.phrasing import joined
from stabilitylab.plots import save
from stabilitylab.plots._style import GREY, INK, LIGHT, STYLE, color_of, headline
from stabilitylab.plots._words import short, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stabilitylab.compare import Comparison

__all__ = ["draw", "figure_of"]

UNITS = {"": "", "accuracy": " (%)", "x": "", "per 10,000 steps": "", "accuracy x steps": "", "steps": ""}

ROW = 0.95
"""Height of a row in inches."""


def draw(found: Comparison, path: Path) -> Path:
    """Write the picture of a comparison to a PNG, SVG or PDF file, and return its path."""
    return save(figure_of(found), path)


def figure_of(found: Comparison) -> Figure:
    """Return the picture of a comparison: runs as dots, pairs joined by lines, means as bars, intervals at 95 %."""
    names = list(dict.fromkeys(found.runs["group"]))
    measures = list(dict.fromkeys(found.table["measure"]))
    height = ROW * len(measures) * max(1.0, len(names) / 3)
    with matplotlib.style.context(dict(STYLE), after_reset=True):
        figure = Figure(figsize=(10.0, height + 1.3), facecolor="white", layout="constrained")
        rows = figure.subplots(len(measures), 2, squeeze=False, width_ratios=[1.25, 1])
        for name, (runs, difference) in zip(measures, rows, strict=True):
            _runs(runs, found, name, names)
            _differences(difference, found, name)
        rows[0, 0].set_title("runs (line: pair, bar: mean)", fontsize=9, color=GREY)
        rows[0, 1].set_title(f"difference from {shorten(names[0], 24)}, 95 % interval", fontsize=9, color=GREY)
        marks = [Line2D([], [], marker="o", linestyle="", color=color_of(at), label=shorten(name, 30))
                 for at, name in enumerate(names)]  # fmt: skip
        decided = int(found.table["verdict"].isin(DECIDED).sum())
        sentence = f"{decided} of {len(found.table)} differences decided: {_names(names[1:])} against {names[0]}"
        runs_of = ", ".join(f"{(found.runs['group'] == name).sum()} in {name}" for name in names)
        headline(figure, shorten(sentence, 100), f"runs: {shorten(runs_of, 110)}")
        figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 4))
    return figure


def _names(names: list[str]) -> str:
    return joined([shorten(name, 30) for name in names], 3)


def _runs(axes: Axes, found: Comparison, name: str, groups: list[str]) -> None:
    """Draw the values of all runs, a line of dots for each group, the first on top."""
    factor, unit, table = _factor(found, name), _unit(found, name), found.runs
    for at, group in enumerate(groups):
        mine = table[table["group"] == group]
        values = factor * mine[name].to_numpy(dtype=float)
        shown = values[np.isfinite(values)]
        if len(shown):
            axes.plot(shown, np.full(len(shown), at), "o", color=color_of(at), markersize=5.5, alpha=0.8, zorder=3,
                      markeredgecolor="white", markeredgewidth=0.6, clip_on=False, gid="runs")  # fmt: skip
            middle = np.exp(np.log(shown).mean()) if unit == "x" else shown.mean()
            axes.plot([middle], [at], "|", color=color_of(at), markersize=15, markeredgewidth=2, gid="mean")
        beyond = int(np.isinf(values).sum())
        if beyond:
            axes.annotate(f"{beyond} not finite →", (1, at), xycoords=("axes fraction", "data"), ha="right",
                          va="center", fontsize=8, color=color_of(at))  # fmt: skip
        if at:
            _join(axes, table[table["group"] == groups[0]], mine, name, factor, at)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    if not axes.lines:
        axes.set_xticks([])  # no value, no scale
    elif unit == "x":
        axes.set_xscale("log")
        alike = np.unique(np.concatenate([np.asarray(line.get_xdata()) for line in axes.lines]))
        if len(alike) == 1:
            axes.set_xlim(alike[0] / 2, alike[0] * 2)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=9))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=unit == "" and not name.startswith(("rank", "final"))))
    axes.margins(x=0.06)
    axes.set_ylabel(name.replace("_", " ") + UNITS[unit], rotation=0, ha="right", va="center")


def _join(axes: Axes, first: Any, second: Any, name: str, factor: float, at: int) -> None:
    for row in second.itertuples():
        partner = first[first["pair"] == row.pair] if row.pair >= 0 else first[:0]
        if len(partner) == 1:
            ends = factor * np.array([partner[name].iloc[0], getattr(row, name)], dtype=float)
            if not np.isfinite(ends).all():
                continue
            axes.plot(ends, [0, at], color=LIGHT, linewidth=1, zorder=1, gid="pair")


def _unit(found: Comparison, name: str) -> str:
    return str(found.table.loc[found.table["measure"] == name, "unit"].iloc[0])


def _factor(found: Comparison, name: str) -> float:
    return 100.0 if _unit(found, name) == "accuracy" else 1.0


def _differences(axes: Axes, found: Comparison, name: str) -> None:
    """Draw the difference of each later group from the first, with its interval and verdict."""
    rows = found.table[found.table["measure"] == name].reset_index(drop=True)
    factor = _factor(found, name)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
    reach = 0.0
    for at, row in enumerate(rows.to_dict("records")):
        values = factor * np.array([row["difference"], row["low"], row["high"]], dtype=float)
        decided = row["verdict"] in DECIDED
        color = color_of(at + 1)
        if np.isfinite(values).all():
            axes.hlines(at, values[1], values[2], color=color, linewidth=2.2 if decided else 1.2, gid="interval")
        if np.isfinite(values[0]):
            axes.plot(values[0], at, "o", color=color, markersize=7, markerfacecolor=color if decided else "white",
                      zorder=3, gid="difference")  # fmt: skip
        reach = max([reach, *np.abs(values[np.isfinite(values)])])
        said = cells(row)[DIFFERENCE] if decided else str(row["verdict"])
        axes.annotate(said, (1.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=8.5,
                      color=INK if decided else GREY, fontweight="bold" if decided else "normal")  # fmt: skip
    axes.set_xlim(-1.1 * (reach or 1.0), 1.1 * (reach or 1.0))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    if not np.isfinite(rows["difference"].astype(float)).any():
        axes.set_xticks([])
    elif rows["scale"].iloc[0] == "ratio":
        axes.xaxis.set_major_locator(MaxNLocator(4, symmetric=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{short(float(np.exp(value)))}x")

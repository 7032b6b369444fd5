"""What every signal does around the gradient spikes of the first layer: the median course, and that around chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from stabilitylab.couplings import onsets
from stabilitylab.errors import InputError
from stabilitylab.phrasing import joined
from stabilitylab.plots._axes import log_axis, within
from stabilitylab.plots._choice import events_of, first_middle_last, require
from stabilitylab.plots._style import BLUE, DEPTH, GREEN, GREY, INK, LIGHT, ORANGE, Sheet, headline, house_style
from stabilitylab.plots._words import count, shorten, title_of
from stabilitylab.sampling import spacing
from stabilitylab.signals import SIGNALS, curve_of, leading_layer
from stabilitylab.stats.triggered import Course, course

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis
    from stabilitylab.run import Run

__all__ = ["CAPTION", "SIZE", "draw"]

SIZE = (11.0, 7.6)
CAPTION = (
    "What each signal does from 50 steps before to 150 after the gradient spikes of the first layer: the median over "
    "spikes, relative to the level before, with its 95 % interval. Gray is where such a median lies around as many "
    "moved times: only what leaves the gray is coupled, left of the line before the spike, right of it after. Below "
    "each name stands the verdict on the events of that signal."
)
BEFORE, AFTER = 50, 150
MOST = 300
"""Spikes that are averaged at most; of more, as many evenly chosen."""

FEW = 6
"""Of fewer spikes each is drawn: a median of five has no interval."""

LONGEST = 100
"""Letters of a title at most; the panels say the same."""

COLORS = {"update": ORANGE, "adam": "#7a4fa3", "loss": "#b5489a", "accuracy": BLUE, "rank": GREEN}
NAMES = {"update": "update / weight norm", "adam": "Adam's RMS", "loss": "loss", "accuracy": "kNN accuracy"}
SHORT = {"update": "updates", "adam": "Adam's RMS", "loss": "loss", "accuracy": "accuracy"}


class Panel(NamedTuple):
    """One curve and its course around the spikes."""

    name: str
    color: str
    signal: str
    every: int
    course: Course


@house_style
def draw(figure: Sheet, analyses: Sequence[Analysis]) -> None:
    """Draw the first analysis: a panel for each signal, the same steps around a spike in all.

    Raises:
        InputError: if the run has no gradients, or no spike of the first layer that has them.
    """
    analysis = analyses[0]
    run = analysis.run
    require(run, "gradients.norm")
    layer = leading_layer(run)
    spikes = events_of(analysis, "gradients.norm", ["spike"], [layer]) if layer else []
    times = onsets([each for each in spikes if np.isfinite(each.height)], analysis.parameters.get("episode_gap", 20))
    if layer is None or not len(times):
        where = layer or "any layer"
        raise InputError(
            f"series gradients.norm of {run.path} has no finite spike of {where}, which this picture shows"
        )
    panels, missing = _panels(run, layer, times)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _panel(axes, panel, len(times), _said(analysis.couplings, panel, layer, len(times)))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid.flat[max(len(panels) - columns, 0) : len(panels)]:
        axes.set_xlabel("steps after the onset of the spike")
    _legend(figure, len(times))
    absent = f" · not recorded: {joined(missing)}" if missing else ""
    headline(figure, _sentence(analysis.couplings, layer, len(times)), title_of(run) + absent)


def _panels(run: Run, layer: str, times: np.ndarray) -> tuple[list[Panel], list[str]]:
    """Return what can be drawn, and the names of what was not recorded; one curve is in memory at a time."""
    chosen = times[np.unique(np.linspace(0, len(times) - 1, min(len(times), MOST)).astype(int))]
    labels = set(run.about("gradients.norm")["labels"])
    layers = run.layers
    measured = [name for name in layers.names if any(each in labels for each in layers.parameters(name))]
    depth = [layer, *first_middle_last(layers, [layer, *measured[measured.index(layer) + 1 :]])[1:]]
    wanted = [("gradient", name, color) for name, color in zip(depth, DEPTH, strict=False)]
    wanted += [(name, layer, COLORS[name.split(" ")[0]]) for name in SIGNALS if name != "gradient"]
    panels: list[Panel] = []
    missing = []
    for signal, name, color in wanted:
        curve = curve_of(run, signal, name)
        title = name if signal == "gradient" else _name(signal)
        values = np.empty(0) if curve is None else curve.to_numpy(dtype=float)
        if curve is None or not np.isfinite(values).any():
            missing.append(title)
            continue
        if signal != "accuracy":
            values = np.log(values, out=np.full(len(values), np.nan), where=values > 0)
        steps = curve.index.to_numpy()
        rng = np.random.default_rng(len(panels))
        found = course(steps, values, chosen, rng, before=BEFORE, after=AFTER, every=spacing(steps))
        panels.append(Panel(title, color, signal, spacing(steps), found))
    return panels, missing


def _name(signal: str) -> str:
    return NAMES.get(signal, f"effective {signal}")


def _panel(axes: Axes, panel: Panel, number: int, said: str) -> None:
    """Draw a course, relative (log axis) or, of an accuracy, in points."""
    found, points = panel.course, panel.signal == "accuracy"
    shown = Course(found.offsets, *(100 * each if points else np.exp(each) for each in found[1:]))
    mark = "o" if panel.every > 4 else ""
    axes.axvline(0, color=INK, linewidth=0.9, zorder=1, gid="spike")
    axes.axhline(0 if points else 1, color=GREY, linewidth=0.6, zorder=1)
    axes.fill_between(shown.offsets, shown.chance_low, shown.chance_high, color=LIGHT, linewidth=0, gid="chance")
    if number < FEW:
        for each in shown.each:
            axes.plot(shown.offsets, each, color=panel.color, linewidth=0.6, alpha=0.5, gid="each")
    else:
        axes.fill_between(
            shown.offsets, shown.low, shown.high, color=panel.color, alpha=0.25, linewidth=0, gid="interval"
        )
    axes.plot(shown.offsets, shown.median, marker=mark, color=panel.color, markersize=3, gid="median")
    parts = [shown.median, shown.chance_low, shown.chance_high]
    parts += [shown.low, shown.high] if number >= FEW else list(shown.each)
    if points:
        axes.set_ylim(*within(parts, least=1.0))
        axes.set_ylabel("points against before", fontsize=8)
    else:
        low, high = (float(np.exp(each)) for each in within([np.log(each) for each in parts], least=0.2))
        log_axis(axes, low, high, times=True)
        axes.set_ylabel("ratio to before", fontsize=8)
    axes.set_xlim(-BEFORE, AFTER)
    axes.set_xticks([-50, 0, 50, 100, 150])
    axes.set_title(shorten(panel.name, 34), color=panel.color, fontweight="bold", pad=17)
    often = f"every {panel.every} steps" if panel.every > 1 else ""
    below = " · ".join(each for each in (often, said) if each)
    note = axes.text(0, 1.02, below, transform=axes.transAxes, fontsize=7.5, color=GREY, va="bottom")
    note.set_in_layout(False)  # it is shorter than its panel is wide


def _pair(table: pd.DataFrame, signal: str) -> tuple[pd.Series | None, bool]:
    """Return the row of the coupling of a signal with gradient spikes, and whether the signal is the warning."""
    for side, other in (("warning", "target"), ("target", "warning")):
        rows = table[(table[side] == signal) & (table[other] == "gradient")] if len(table) else table
        if len(rows):
            return rows.iloc[0], side == "warning"
    return None, False


def _place(table: pd.DataFrame, signal: str) -> tuple[str, pd.Series | None]:
    """Return where a signal's events stand to the spikes: ``before``, ``with``, ``after``, or why they do not."""
    row, warning = _pair(table, signal)
    verdict = "" if row is None else str(row["verdict"])
    if verdict in ("warns", "follows"):
        return "before" if (verdict == "warns") == warning else "after", row
    return "with" if verdict == "together" else verdict, row


def _said(table: pd.DataFrame, panel: Panel, layer: str, number: int) -> str:
    """Say in a few words what became of the coupling of a signal with the spikes."""
    if panel.signal == "gradient":
        return "the spikes themselves" if panel.name == layer else ""
    place, row = _place(table, panel.signal)
    if row is not None and place == "too few events":
        _, warning = _pair(table, panel.signal)
        return f"{place} ({int(row['warnings' if warning else 'targets'])} here, {count(number, 'spike')})"
    if row is None or place not in ("before", "with", "after"):
        return place
    when = "with the spikes" if place == "with" else f"{abs(float(row['lead'])):.0f} steps {place}"
    return f"{when} ({int(row['matched'])} of {number})"


def _sentence(table: pd.DataFrame, layer: str, number: int) -> str:
    """Return the title: what comes before, with and after the spikes."""
    groups: dict[str, list[str]] = {"before": [], "with": [], "after": []}
    for signal in SIGNALS:
        place, _ = _place(table, signal)
        if place in groups:
            groups[place].append(SHORT.get(signal, "rank"))
    said = " ".join(f"{where.title()}: {', '.join(dict.fromkeys(names))}." for where, names in groups.items() if names)
    spikes = f"{count(number, 'gradient spike')} of {shorten(layer, 20)}"
    whole = f"{spikes}. {said}"
    return whole if said and len(whole) <= LONGEST else f"Around {spikes}"


def _legend(figure: Sheet, number: int) -> None:
    marks: list[Line2D | Patch] = [Line2D([], [], color=INK, label=f"median over {count(number, 'spike')}")]
    if number < FEW:
        marks.append(Line2D([], [], color=INK, linewidth=0.6, alpha=0.5, label="each spike"))
    else:
        marks.append(Patch(color=INK, alpha=0.25, linewidth=0, label="its 95 % interval"))
    marks.append(Patch(color=LIGHT, linewidth=0, label="95 % of such medians around moved times"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))

"""Gradient magnitudes of the first, the middle and the last layer, above the kNN curve on the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.typing import ColorType, LineStyleType

from stabilitylab.episodes import layer_magnitudes
from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.plots._axes import (
    DOWN,
    TIMES,
    has_marks,
    line,
    log_axis,
    mark_peaks,
    mark_planted,
    settled,
    shade,
    step_axis,
    within,
)
from stabilitylab.plots._choice import events_of, first_middle_last, has_rows, judged, require, separate
from stabilitylab.plots._level import relative
from stabilitylab.plots._style import DEPTH, GREY, INK, ORANGE, Sheet, headline, house_style, lighter
from stabilitylab.plots._words import count, num_spikes, of_accuracy, shorten, title_of

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["CAPTION", "SIZE", "draw"]

SIZE = (10.0, 6.5)
CAPTION = (
    "Each layer's gradient magnitude over its own recent level: 1 is usual. Triangles mark the peaks of spikes, ticks "
    "at the lower edge their onsets, crosses at the top values that are not finite; orange bands are dips of the kNN "
    "accuracy. Look whether spikes come before dips, and, in the close-up of the tallest one, which layer's line "
    "rises first."
)


@house_style
def draw(figure: Sheet, analyses: Sequence[Analysis]) -> None:
    """Draw the first analysis: a panel per layer, the kNN curve, and a close-up of the tallest spike beside them.

    Raises:
        InputError: if the run has no gradient norms.
    """
    analysis = analyses[0]
    run = analysis.run
    require(run, "gradients.norm")
    magnitudes = layer_magnitudes(run)
    measured = [str(name) for name in magnitudes.columns if (magnitudes[name] > 0).any()]
    chosen = first_middle_last(run.layers, measured)
    if not chosen:
        raise InputError(f"gradients.norm of {run.path} holds no gradient above zero to draw")
    steps = magnitudes.index.to_numpy()
    knn = run["knn.accuracy"] if has_rows(run, "knn.accuracy") else None
    spikes = events_of(analysis, "gradients.norm", ["spike"], chosen)
    lines = {
        name: relative(steps, magnitudes[name].to_numpy(), [event for event in spikes if event.label == name])
        for name in chosen
    }
    everywhere = events_of(analysis, "gradients.norm", ["spike"])
    tallest = max(everywhere, key=lambda event: (event.height, -event.peak), default=None)

    num_rows = len(chosen) + (knn is not None)
    heights = [1.0] * len(chosen) + [1.15] * (knn is not None)
    spans = [(int(steps[0]), int(steps[-1]))]
    if tallest is not None and 2 * np.ptp(_close_up(tallest, steps)) < np.ptp(spans[0]):
        spans.append(_close_up(tallest, steps))
    panels = figure.subplots(
        num_rows, len(spans), squeeze=False, width_ratios=[3.2, 1][: len(spans)], height_ratios=heights, sharex="col"
    )
    for column, span in enumerate(spans):
        _column(panels[:, column], analysis, steps, lines, knn, span, detailed=column == 1)
    if len(spans) > 1:
        what = "the tallest spike" if tallest is not None and np.isfinite(tallest.height) else "a value not finite"
        panels[0, 1].set_title(f"close-up of {what}", pad=7)
        onset = min(event.onset for event in everywhere if spans[1][0] <= event.onset <= spans[1][1])
        for axes in panels[:, 1]:
            axes.axvline(onset, color=GREY, linewidth=0.9, linestyle=":", zorder=1, gid="first onset")
    _legend(figure, spikes, _dips(analysis, knn))
    headline(figure, _sentence(analysis, measured, knn), title_of(run) + _untrained(analysis, measured))


def _close_up(event: Event, steps: np.ndarray) -> tuple[int, int]:
    """Return the steps around an event: a little before it, and what follows, so near that a lead can be seen."""
    spacing = max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else 1
    before, after = 15 * spacing, int(np.clip(1.2 * (event.stop - event.start), 40 * spacing, 80 * spacing))
    return max(int(steps[0]), event.start - before), min(int(steps[-1]), event.start + after)


def _column(
    panels: np.ndarray, analysis: Analysis, steps: np.ndarray, lines: dict[str, np.ndarray],
    knn: pd.DataFrame | None, span: tuple[int, int], detailed: bool,
) -> None:  # fmt: skip
    inside = (steps >= span[0]) & (steps <= span[1])
    shown = {name: values[inside] for name, values in lines.items()}
    limits = _limits(list(lines.values()))
    dips = _dips(analysis, knn)
    for axes, (name, values), color in zip(panels, shown.items(), _colors(len(shown)), strict=False):
        step_axis(axes, *span, label=knn is None and axes is panels[-1], ticks=_ticks(span, detailed))
        log_axis(axes, *limits, times=True)
        axes.axhline(1, color=GREY, linewidth=0.8, zorder=1)
        shade(axes, [(dip.start, dip.stop) for dip in dips], ORANGE, 0.22, "dips")
        mark_planted(axes, analysis.run)
        line(axes, steps[inside], values, color, begun=True, linewidth=1.2 if detailed else 0.9)
        mark_peaks(axes, events_of(analysis, "gradients.norm", ["spike"], [name]), steps[inside], values, color)
        if detailed:
            axes.tick_params(labelleft=False)
        else:
            axes.set_title(shorten(name, 60), color=color, fontweight="bold", pad=7)
    if not detailed and len(lines) > 2:
        panels[len(lines) // 2].set_ylabel(f"gradient magnitude ({TIMES} its own level)")
    elif not detailed:  # no panel is as high as the longer words
        for axes in panels[: len(lines)]:
            axes.set_ylabel(f"gradient\n({TIMES} its level)")
    if knn is not None:
        _knn(panels[-1], knn, span, dips, detailed)
        mark_planted(panels[-1], analysis.run)


def _ticks(span: tuple[int, int], detailed: bool) -> int:
    """Return how many step labels fit: long numbers need more room."""
    return 8 if not detailed else 4 if span[1] < 100_000 else 3 if span[1] < 10_000_000 else 2


def _colors(number: int) -> tuple[str, ...]:
    return DEPTH if number > 2 else DEPTH[::2]


def _limits(values: list[np.ndarray]) -> tuple[float, float]:
    """Return limits that hold every peak; tiny values may leave below, as only what rises is looked for."""
    finite = np.concatenate([each[np.isfinite(each) & (each > 0)] for each in values])
    if len(finite) == 0:
        return 0.5, 2.0
    low, high = min(float(np.quantile(finite, 0.001)) / 1.15, 0.7), float(finite.max())
    return low, float(max(high * 1.15 * (high / low) ** 0.07, 1.5))


def _knn(axes: Axes, knn: pd.DataFrame, span: tuple[int, int], dips: list[Event], detailed: bool) -> None:
    inside = knn[(knn.index >= span[0]) & (knn.index <= span[1])]
    step_axis(axes, *span, ticks=_ticks(span, detailed))
    columns = [name for name in knn if np.isfinite(knn[name]).any()]
    values = [100 * inside[name].to_numpy() for name in columns]
    axes.set_ylim(*within([each if detailed else settled(inside.index.to_numpy(), each) for each in values], least=2.0))
    shade(axes, [(dip.start, dip.stop) for dip in dips], ORANGE, 0.22, "dips")
    looks: list[tuple[LineStyleType, ColorType]] = [("-", INK), ((0, (3, 1.5)), lighter(INK)), (":", lighter(INK))]
    for name, series, (style, color) in list(zip(columns, values, looks, strict=False))[::-1]:  # the first on top
        line(axes, inside.index.to_numpy(), series, color, linestyle=style, linewidth=1.1, label=name)
    if not detailed:
        axes.set_ylabel("kNN accuracy (%)")
        if len(columns) > 1:
            axes.legend(
                loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, handlelength=2.2, reverse=True, borderpad=0
            )


def _legend(figure: Sheet, spikes: list[Event], dips: list[Event]) -> None:
    marks = [Line2D([], [], color=GREY, linewidth=0.8, label="usual level")]
    if spikes:
        marks.append(Line2D([], [], linestyle="", marker=DOWN, color=GREY, markersize=7, label="peak of a spike"))
        marks.append(Line2D([], [], linestyle="", marker="|", color=GREY, markersize=9, label="its onset"))
    if dips:
        what = "kNN dip" if {each.kind for each in dips} == {"dip"} else "fall of the kNN accuracy"
        marks.append(Line2D([], [], color=ORANGE, alpha=0.35, linewidth=7, label=what))
    if has_marks(figure, "planted"):
        marks.append(Line2D([], [], color=INK, linewidth=0.7, linestyle=":", label="planted disturbance"))
    if has_marks(figure, "not finite"):
        marks.append(Line2D([], [], linestyle="", marker="x", color=INK, label="not finite"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))


def _dips(analysis: Analysis, knn: pd.DataFrame | None) -> list[Event]:
    """Return the falls of the first accuracy that was recorded, the one that the findings speak of."""
    recorded = [] if knn is None else [str(name) for name in knn.columns if knn[name].notna().any()]
    return events_of(analysis, "knn.accuracy", ["dip", "step", "drop"], recorded[:1]) if recorded else []


def _sentence(analysis: Analysis, measured: list[str], knn: pd.DataFrame | None) -> str:
    spikes = events_of(analysis, "gradients.norm", ["spike"])
    where = f" in {len({event.label for event in spikes})} of {len(measured)} layers" if spikes else ""
    dips = _dips(analysis, knn)
    fell = of_accuracy(separate(dips), [each.kind for each in dips], judged(analysis, "dips"))
    found = count(num_spikes(analysis, spikes), "gradient spike") if judged(analysis, "spikes") else "spikes not judged"
    text = f"{found}{where}, {'kNN not recorded' if knn is None else fell}"
    return text[0].upper() + text[1:]


def _untrained(analysis: Analysis, measured: list[str]) -> str:
    first = analysis.run.layers.first
    return "" if first in measured else f" · {first} has no gradient (frozen)"

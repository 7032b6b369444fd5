"""What the pictures share: the step axis, lines that hide no spike, marks of events and of what is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.typing import ColorType

from stabilitylab.findings import Event
from stabilitylab.plots._style import GREY, INK, Sheet
from stabilitylab.plots._thinning import tallest, thin, widen
from stabilitylab.plots._words import ordinal, short, shorten
from stabilitylab.run import Run

__all__ = [
    "DOWN", "TIMES", "UP", "has_marks", "line", "log_axis", "mark_not_finite",
    "mark_peaks", "mark_planted", "name_rows", "nothing_here", "settled", "shade", "step_axis", "within",
]  # fmt: skip


TIMES = "\N{MULTIPLICATION SIGN}"

DOWN: Final = 7
"""The marker whose tip, at its lower end, touches a peak (matplotlib's CARETDOWN)."""

UP: Final = 6
"""The marker whose tip touches a dip from below (CARETUP)."""


BREAK = 20
"""A line is broken where so many usual gaps lie between two of its rows."""


def line(
    axes: Axes, steps: np.ndarray, values: np.ndarray, color: ColorType, *, begun: bool = False, **style: Any
) -> Line2D:
    """Draw a thinned line; it has a gap where a value is not finite, and a mark at the top edge there.

    NaN before the first number is not a gap, for it was not measured yet, unless it had ``begun``. Where nothing was
    recorded for far longer than usual there is a gap too.
    """
    finite = np.isfinite(values)
    first = np.argmax(finite | np.isinf(values)) if finite.any() and not begun else 0
    steps, values = steps[first:], values[first:]
    breaks = steps[1:][_breaks(steps)]
    rows = thin(values)
    steps, values = steps[rows], values[rows]
    finite = np.isfinite(values)
    kept = np.where(finite, values, np.nan)
    at = np.searchsorted(steps, breaks)
    shown, kept = np.insert(steps, at, breaks), np.insert(kept, at, np.nan)
    (drawn,) = axes.plot(shown, kept, color=color, **({"solid_joinstyle": "round"} | style))
    there = np.isfinite(kept)
    alone = there & ~np.r_[False, there[:-1]] & ~np.r_[there[1:], False]
    if alone.any():  # a number between two gaps would be a line of no length
        axes.plot(shown[alone], kept[alone], ".", color=color, markersize=3)
    mark_not_finite(axes, steps[~finite])
    return drawn


def _breaks(steps: np.ndarray) -> np.ndarray:
    """Return after which rows nothing was recorded for `BREAK` times as long as after nearly all others."""
    gaps = np.diff(steps)
    if len(gaps) < 3:
        return np.empty(0, dtype=int)
    return np.flatnonzero(gaps > BREAK * np.quantile(gaps, 0.95))


def mark_not_finite(axes: Axes, steps: np.ndarray) -> None:
    """Mark the steps whose value is NaN or infinite with crosses at the top edge."""
    if len(steps) == 0:
        return
    steps = steps[tallest(steps, np.zeros(len(steps)))]
    axes.plot(
        steps,
        np.ones(len(steps)),
        "x",
        color=INK,
        markersize=5,
        markeredgewidth=1.3,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        zorder=6,
        label="not finite",
        gid="not finite",
    )


def mark_peaks(axes: Axes, events: Sequence[Event], steps: np.ndarray, values: np.ndarray, color: str) -> None:
    """Mark the peak of each event on its line, and its onset by a tick at the lower edge; the tallest where crowded."""
    inside = [event for event in events if len(steps) and steps[0] <= event.peak <= steps[-1]]
    if not inside:
        return
    peaks = np.array([event.peak for event in inside])
    chosen = tallest(peaks, np.array([event.score for event in inside]))
    heights = values[np.minimum(np.searchsorted(steps, peaks[chosen]), len(steps) - 1)]
    seen = np.isfinite(heights)
    axes.plot(
        peaks[chosen][seen],
        heights[seen],
        marker=DOWN,
        linestyle="",
        color=color,
        markeredgecolor="white",
        markeredgewidth=0.6,
        markersize=7,
        zorder=5,
        gid="peaks",
    )
    onsets = np.array([inside[each].onset for each in chosen])
    axes.plot(
        onsets,
        np.zeros(len(onsets)),
        "|",
        color=color,
        markersize=9,
        markeredgewidth=1.4,
        transform=axes.get_xaxis_transform(),
        zorder=5,
        gid="onsets",
    )


def has_marks(figure: Sheet, gid: str) -> bool:
    """Tell whether something of a kind was drawn, so that the legend names what is there."""
    return bool(figure.findobj(lambda artist: artist.get_gid() == gid))


def shade(axes: Axes, spans: Sequence[tuple[int, int]], color: str, alpha: float, gid: str) -> None:
    """Shade intervals of steps from top to bottom, each wide enough to be seen."""
    low, high = axes.get_xlim()
    inside = [span for span in spans if span[1] >= low and span[0] <= high]
    wide = widen(np.array(inside, dtype=float).reshape(-1, 2), (high - low) / 250)
    if len(wide) == 0:
        return
    corners = [[(left, 0), (left, 1), (right, 1), (right, 0)] for left, right in wide.tolist()]
    patches = PolyCollection(
        corners, facecolor=color, edgecolor="none", alpha=alpha, transform=axes.get_xaxis_transform(), zorder=0.5
    )
    patches.set_gid(gid)
    axes.add_collection(patches, autolim=False)


def mark_planted(axes: Axes, run: Run) -> None:
    """Mark the first step of each disturbance that was planted in a run with a thin dotted line."""
    steps = sorted({first for each in run.planted for first, _ in each["spans"]})
    low, high = axes.get_xlim()
    shown = [step for step in steps if low <= step <= high]
    if shown:
        top = axes.get_xaxis_transform()
        axes.vlines(shown, 0, 1, colors=INK, linewidth=0.7, linestyles=":", transform=top, zorder=0.8, gid="planted")


def step_axis(axes: Axes, first: float, last: float, label: bool = True, ticks: int = 8) -> None:
    """Give an axes the step axis: limits with a small margin, whole steps with thousands separators."""
    margin = max((last - first) * 0.015, 0.5)
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if last == first:
        axes.set_xticks([first])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if label:
        axes.set_xlabel("training step")
    else:
        axes.tick_params(labelbottom=False)


def log_axis(axes: Axes, low: float, high: float, times: bool = False) -> None:
    """Give an axes a logarithmic y axis whose ticks are plain numbers, as few or as many as its range needs."""
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = np.log10(high / low)
    if decades < 0.35:  # hardly a power of two: the ticks of a linear axis
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    elif decades < 2.5:
        subs: tuple[float, ...] = (1.0, 2.0, 5.0) if decades > 0.8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
    else:
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    suffix = TIMES if times else ""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{short(value)}{suffix}"))


def name_rows(axes: Axes, names: Sequence[str], figure: Sheet, label: str) -> None:
    """Write as many row names as fit, evenly, the first and the last among them, and close the label's bracket."""
    height = figure.bbox.height / figure.dpi_scale_trans.transform((1, 1))[1] - 1.6  # inches left for the rows
    size = 8.5 if len(names) <= 24 else 7.0
    every = -(-len(names) // max(int(height * 72 / (size * 1.35)), 2))
    rows = list(range(0, len(names), every))
    if rows[-1] != len(names) - 1:
        rows[-1:] = [rows[0], len(names) - 1] if len(rows) == 1 else [len(names) - 1]
    axes.set_yticks(rows, [shorten(names[row], 24) for row in rows], fontsize=size)
    axes.tick_params(axis="y", length=2.5 if every > 1 else 0)
    axes.set_ylabel(label + (f", every {ordinal(every)} named)" if every > 1 else ")"))


def within(values: Sequence[np.ndarray], least: float = 1.0) -> tuple[float, float]:
    """Return limits that hold every finite value with some air; ``least`` is the smallest range."""
    finite = np.concatenate([each[np.isfinite(each)] for each in values] or [np.empty(0)])
    if len(finite) == 0:
        return 0.0, least
    low, high = float(finite.min()), float(finite.max())
    missing = max(least - (high - low), 0.0) / 2
    air = 0.06 * max(high - low, least)
    return low - missing - air, high + missing + air


def settled(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the values, without those of the first tenth of the steps if their rise would flatten what comes later."""
    later = values[steps >= steps[0] + 0.1 * (steps[-1] - steps[0])] if len(steps) else values
    if not np.isfinite(later).any():
        return values
    whole, rest = (np.ptp(each[np.isfinite(each)]) for each in (values, later))
    return later if whole > 2 * rest else values


def nothing_here(axes: Axes, sentence: str) -> None:
    """Say in the middle of an empty axes why it is empty."""
    paper = {"facecolor": "white", "linewidth": 0}
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center", color=GREY, bbox=paper, zorder=4)

"""Lag of each layer behind the first over depth, with its confidence interval, its number of events and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from stabilitylab.errors import InputError
from stabilitylab.plots._axes import name_rows, nothing_here
from stabilitylab.plots._style import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, RED, Sheet, headline, house_style
from stabilitylab.plots._words import count, shorten, title_of

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["CAPTION", "SIZE", "draw"]

SIZE = (9.0, 6.0)
CAPTION = (
    "How many steps after the first layer each later layer spikes, as the median over matched events with its "
    "confidence interval; to the right of zero the later layer follows. An interval that crosses zero or runs to the "
    "edge, or a grey cross, decides nothing; the bars on the right say on how many events each row stands. The small "
    "tick is a second opinion, the lag at which the curves themselves look most alike; it is dark where it disagrees."
)
VERDICTS = MappingProxyType(
    {
        "leads": (">", RED, "first layer leads"),
        "follows": ("<", BLUE, "first layer follows"),
        "together": ("o", GREEN, "together"),
        "inconclusive": ("D", ORANGE, "inconclusive"),
        "too few events": ("x", GREY, "too few events"),
    }
)
"""Marker, color and words of each verdict, which is about the first layer."""


@house_style
def draw(figure: Sheet, analyses: Sequence[Analysis]) -> None:
    """Draw the first analysis: layers in depth order down, lag across, matched events at the right.

    Raises:
        InputError: if there is no later layer to compare with the first.
    """
    analysis = analyses[0]
    lags = analysis.lags.sort_values("depth") if "depth" in analysis.lags else analysis.lags
    if len(lags) == 0:
        raise InputError(
            f"{analysis.run.path} has no lags: they need the series 'gradients.norm' of two layers or more"
        )
    axes, bars = figure.subplots(1, 2, sharey=True, width_ratios=[4, 1])
    rows = np.arange(len(lags))
    first = str(lags["first"].iloc[0])
    limit = _limit(lags)
    axes.set_xlim(-limit, limit)
    axes.axvline(0, color=INK, linewidth=0.9, zorder=1)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    second = _second_opinion(axes, lags, rows)
    for verdict, (marker, color, _) in VERDICTS.items():
        _rows(axes, lags, rows, verdict, marker, color)
    _sign(axes, first)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("median lag of the onset behind the first layer (steps), with confidence interval")
    axes.set_ylim(len(lags) - 0.5, -0.5)
    name_rows(axes, [str(name) for name in lags["layer"]], figure, "later layer (nearest the input at the top")
    _counts(bars, lags, rows)
    if not np.isfinite(lags["lag"].to_numpy(dtype=float)).any():
        nothing_here(axes, "no event of the first layer has a match in a later one")
    present = [VERDICTS[name] for name in VERDICTS if (lags["verdict"] == name).any()]
    marks = [Line2D([], [], marker=marker, color=color, linestyle="", label=words) for marker, color, words in present]
    marks += second
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    headline(figure, _sentence(lags, first), title_of(analysis.run))


def _rows(axes: Axes, lags: pd.DataFrame, rows: np.ndarray, verdict: str, marker: str, color: str) -> None:
    known = (lags["verdict"] == verdict).to_numpy() & np.isfinite(lags["lag"].to_numpy(dtype=float))
    if not known.any():
        return
    numbers = lags[["lag", "low", "high"]].to_numpy(dtype=float)[known]
    small = len(lags) > 40
    bounded = ~np.isnan(numbers).any(axis=1)
    numbers = np.clip(numbers, *axes.get_xlim())  # an interval without an end runs to the edge
    axes.hlines(
        rows[known][bounded], numbers[bounded, 1], numbers[bounded, 2], color=color, linewidth=1.0 if small else 1.8,
        alpha=0.75, gid="intervals",
    )  # fmt: skip
    axes.plot(
        numbers[:, 0], rows[known], marker, color=color, linestyle="", markersize=4.5 if small else 8,
        markeredgecolor=color if marker == "x" else "white", markeredgewidth=1.5 if marker == "x" else 0.6,
        gid=verdict, zorder=3, clip_on=False,
    )  # fmt: skip


def _sign(axes: Axes, first: str) -> None:
    """Draw what either side of zero means: above the axis, the first layer and a later one, each with its spike."""
    axes.set_title(f"← later layer leads {shorten(first)}", color=GREY, loc="left", fontsize=8.5)
    axes.set_title(f"later layer follows {shorten(first)} →", color=GREY, loc="right", fontsize=8.5)
    for left, shift in ((0.02, -0.05), (0.86, 0.05)):
        for height, at, color in ((0.07, 0.06, INK), (0.02, 0.06 + shift, GREY)):
            x = left + np.array([0, at - 0.01, at, at + 0.01, 0.12])
            y = 1.075 + height + np.array([0, 0, 0.032, 0, 0])
            axes.plot(x, y, color=color, linewidth=1.0, transform=axes.transAxes, clip_on=False, gid="sign")


def _second_opinion(axes: Axes, lags: pd.DataFrame, rows: np.ndarray) -> list[Line2D]:
    """Draw the lag of the cross-correlation as a small tick, dark where it disagrees; return what the legend says."""
    if not {"lag_alike", "agrees"} <= set(lags):
        return []
    alike, agrees = (lags[name].to_numpy(dtype=float) for name in ("lag_alike", "agrees"))
    handles = []
    for part, color, width, words in (
        (agrees == 1, GREY, 1.0, "curves agree"),
        (agrees == 0, INK, 2.2, "curves disagree"),
    ):
        if part.any():
            shown = np.clip(alike[part], *axes.get_xlim())
            axes.plot(
                shown, rows[part], "|", color=color, markersize=min(13, max(200 / len(rows), 3)), markeredgewidth=width,
                zorder=2, clip_on=False, gid=words,
            )  # fmt: skip
            handles.append(
                Line2D([], [], marker="|", color=color, linestyle="", markersize=9, markeredgewidth=width, label=words)
            )
    return handles


def _limit(lags: pd.DataFrame) -> float:
    """Return where the lag axis ends on both sides, so that zero stands in the middle."""
    numbers = lags[["lag", "low", "high"]].to_numpy(dtype=float)
    return float(np.abs(numbers[np.isfinite(numbers)]).max(initial=4.5)) * 1.12


def _counts(bars: Axes, lags: pd.DataFrame, rows: np.ndarray) -> None:
    matched = lags["matched"].to_numpy(dtype=float)
    bars.barh(rows, matched, color=LIGHT, height=0.7)
    bars.set_xlim(0, max(matched.max(initial=0), 5) * 1.3)
    bars.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    bars.set_xlabel("matched events")
    bars.tick_params(axis="y", length=0, labelleft=False)
    bars.grid(visible=False)
    if len(rows) <= 40:
        for row, number in zip(rows, matched, strict=True):
            bars.text(number, row, f" {number:.0f}", va="center", fontsize=8, color=INK)


def _sentence(lags: pd.DataFrame, first: str) -> str:
    number = {name: int((lags["verdict"] == name).sum()) for name in VERDICTS}
    later = count(len(lags), "later layer")
    if number["too few events"] == len(lags):
        return f"Too few events to say whether {first} leads"
    ordered = [f"{name} {number[name]}" for name in ("leads", "follows") if number[name]]
    if ordered:
        return f"{first} {' and '.join(ordered)} of {later}"
    others = ", ".join(f"{name} {each}" for name, each in number.items() if each)
    return f"No order between {first} and {later}: {others}"

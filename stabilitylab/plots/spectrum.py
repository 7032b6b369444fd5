"""Singular values of the representation and the projection over time, on a log axis, with effective rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from stabilitylab.detectors.collapse import Parameters
from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.plots._axes import has_marks, line, log_axis, nothing_here, shade, step_axis, within
from stabilitylab.plots._choice import events_of, has_rows
from stabilitylab.plots._style import BLUE, INK, PALE, RED, Sheet, headline, house_style, sequential
from stabilitylab.plots._words import title_of
from stabilitylab.run import Run
from stabilitylab.stats.spectrum import dead_directions

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["CAPTION", "SIZE", "draw"]

SIZE = (10.0, 6.0)
LIMITS = Parameters()
"""What the collapse detector calls a dead direction; the picture calls it the same."""
LINES = 14
CAPTION = (
    "Singular values of the covariance of held-out features, largest first, dark early and light late in training. A "
    "line that falls off a cliff has collapsed: red crosses are dead directions of the last spectrum, zeros stand on "
    "the lower edge. Below, the effective rank: how many directions carry the features."
)


@house_style
def draw(figure: Sheet, analyses: Sequence[Analysis]) -> None:
    """Draw the first analysis: spectra of representation and projection side by side, effective rank below.

    Raises:
        InputError: if the run has neither spectrum.
    """
    run = analyses[0].run
    kinds = [kind for kind in ("representation", "projection") if has_rows(run, f"spectrum.{kind}")]
    if not kinds:
        raise InputError(f"{run.path} has no series 'spectrum.representation' or 'spectrum.projection' to show")
    frames = {kind: run[f"spectrum.{kind}"] for kind in kinds}
    ranks = run["spectrum.rank"] if has_rows(run, "spectrum.rank") else None
    panels = figure.subplots(
        1 + (ranks is not None), len(kinds), squeeze=False, height_ratios=[2.2, 1][: 1 + (ranks is not None)]
    )
    first = min(int(frame.index[0]) for frame in frames.values())
    last = max(int(frame.index[-1]) for frame in frames.values())
    times = Normalize(first, max(last, first + 1))
    sentences = []
    for axes, (kind, frame) in zip(panels[0], frames.items(), strict=True):
        values = -np.sort(-frame.to_numpy(dtype=np.float64), axis=1)
        axes.set_title(kind, fontweight="bold")
        samples = run.about(f"spectrum.{kind}").get("samples")
        said, dead = _spectra(axes, frame.index.to_numpy(), values, times, kind, samples)
        if dead and not events_of(analyses[0], f"spectrum.{kind}", ["collapse"]):
            said += " and no collapse"
        sentences.append(said)
        complete = events_of(analyses[0], f"spectrum.{kind}", ["collapse"], ["0"])
        if complete:
            sentences[-1] = f"{kind}: complete collapse at step {complete[0].start:,}"
    panels[0, 0].set_ylabel(f"singular value of the covariance{_unit(run, kinds[0])}")
    bar = figure.colorbar(ScalarMappable(times, sequential()), ax=list(panels[0]), pad=0.015, aspect=28)
    bar.set_label("training step")
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if ranks is not None:
        for axes, kind in zip(panels[1], kinds, strict=True):
            collapses = events_of(analyses[0], f"spectrum.{kind}", ["collapse"])
            column = ranks[kind] if kind in ranks else pd.Series(dtype=float)
            _rank(axes, column, frames[kind].shape[1], collapses, (first, last))
        panels[1, 0].set_ylabel("effective rank\n(directions)")
    _legend(figure)
    text = "; ".join(sentences)
    headline(figure, text[0].upper() + text[1:], title_of(run))


def _unit(run: Run, kind: str) -> str:
    unit = run.about(f"spectrum.{kind}").get("unit")
    return f" ({unit})" if unit else " (feature unit²)"


def _spectra(
    axes: Axes, steps: np.ndarray, values: np.ndarray, times: Normalize, kind: str, samples: int | None
) -> tuple[str, int]:
    """Draw some spectra, evenly spaced in time; return what the last one says, and how many directions are dead."""
    whole = np.flatnonzero(np.isfinite(values).all(axis=1))
    axes.set_xlabel("direction (largest first)")
    if len(whole) == 0 or values[whole].max() <= 0:
        log_axis(axes, 1e-3, 1)
        nothing_here(axes, "no finite spectrum above zero")
        return f"{kind}: no finite spectrum above zero", 0
    rows = whole[np.unique(np.linspace(0, len(whole) - 1, LINES).round().astype(int))]
    shown = values[rows]
    top = shown.max()
    lowest = shown[shown > top * 1e-16].min()
    floor = 10.0 ** (np.floor(np.log10(lowest)) - 1)
    directions = np.arange(1, values.shape[1] + 1)
    for row, spectrum in zip(rows, shown, strict=True):
        height = np.maximum(spectrum, floor)
        color = sequential()(times(steps[row]))
        width = 1.9 if row == rows[-1] else 1.0
        axes.plot(directions, height, color=color, linewidth=width, zorder=2 + row / len(values), gid="spectrum")
        sunk = spectrum <= floor
        axes.plot(directions[sunk], height[sunk], "_", color=color, markersize=4, gid="floor")
    log_axis(axes, floor / 3, top * 2.5)
    axes.set_xlim(0.5, len(directions) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _decades(axes, floor, top, zeros=bool((shown <= floor).any()))
    if (shown <= floor).any():
        axes.axhspan(floor / 3, floor * 3, color=PALE, zorder=0.5, linewidth=0)
    last = shown[-1:]
    dead = int(dead_directions(last, samples, LIMITS.dead, LIMITS.below_law)[0])
    end = min(len(directions), samples - 1) if samples else len(directions)
    if dead:
        fallen = slice(end - dead, end)
        heights = np.maximum(last[0, fallen], floor)
        axes.plot(directions[fallen], heights, "x", color=RED, markersize=4.5, zorder=5, gid="dead")
    said = f"step {steps[rows[-1]]:,}: {dead or 'none'} of {len(directions)} dead"
    if len(whole) < len(values):
        said += f"\n{len(values) - len(whole):,} of {len(values):,} spectra not finite"
    paper = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "boxstyle": "square,pad=0.15"}
    axes.text(0.03, 0.12, said, transform=axes.transAxes, fontsize=8.5, color=INK, bbox=paper, zorder=4)
    return f"{kind}: {f'{dead} of {len(directions)} directions dead' if dead else 'no dead directions'}", dead


def _decades(axes: Axes, floor: float, top: float, zeros: bool) -> None:
    """Put at most seven ticks at powers of ten, and one at the floor where zeros stand on it."""
    lowest, highest = np.floor(np.log10(floor)) + zeros, np.ceil(np.log10(top * 2.5))
    every = max(int(np.ceil((highest - lowest) / 7)), 1)
    exponents = np.arange(np.ceil(highest / every) * every, lowest, -every)[::-1]
    ticks = [(10.0**each, f"$10^{{{each:.0f}}}$") for each in exponents if floor < 10.0**each <= top * 2.5]
    ticks = [(floor, "0"), *[tick for tick in ticks if tick[0] > 10 * floor]] if zeros else ticks
    axes.set_yticks([height for height, _ in ticks], [words for _, words in ticks], parse_math=True)


def _rank(axes: Axes, ranks: pd.Series, dimension: int, collapses: list[Event], span: tuple[int, int]) -> None:
    """Draw the effective rank over all steps, collapses shaded, and say the last value."""
    values = ranks.to_numpy(dtype=np.float64)
    step_axis(axes, *span, ticks=5)
    axes.set_ylim(0, max(within([values])[1], 1.0))
    shade(axes, [(event.start, event.stop) for event in collapses], RED, 0.18, "collapse")
    line(axes, ranks.index.to_numpy(), values, BLUE)
    finite = values[np.isfinite(values)]
    if len(finite):
        low = finite[-1] > 0.5 * axes.get_ylim()[1]
        height, side = (0.08, "bottom") if low else (0.95, "top")
        said = f"last {finite[-1]:.1f} of {dimension}"
        axes.text(0.97, height, said, transform=axes.transAxes, ha="right", va=side, fontsize=8.5)


def _legend(figure: Sheet) -> None:
    marks: list[Line2D | Patch] = []
    if has_marks(figure, "dead"):
        marks.append(Line2D([], [], linestyle="", marker="x", color=RED, label="dead direction of the last spectrum"))
    if has_marks(figure, "collapse"):
        marks.append(Patch(color=RED, alpha=0.18, linewidth=0, label="collapse"))
    if has_marks(figure, "not finite"):
        marks.append(Line2D([], [], linestyle="", marker="x", color=INK, label="not finite"))
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))

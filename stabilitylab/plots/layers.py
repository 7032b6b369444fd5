"""Heat map of layers and steps: where and when a gradient leaves its usual level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from stabilitylab.episodes import layer_magnitudes
from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.plots._axes import TIMES, name_rows, step_axis
from stabilitylab.plots._choice import events_of, judged, require
from stabilitylab.plots._level import relative
from stabilitylab.plots._style import INK, LIGHT, Sheet, diverging, headline, house_style
from stabilitylab.plots._thinning import pool_max
from stabilitylab.plots._words import count, num_spikes, title_of

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["CAPTION", "SIZE", "draw"]

SIZE = (10.0, 6.0)
CAPTION = (
    "One row per layer, the input at the top; red is above the layer's own recent level, blue below it, black holds a "
    "value that is not finite. Where steps share a cell it shows the largest of them. Look for red streaks: does a "
    "streak begin in the top rows and reach the lower ones later, or all at once?"
)
COLUMNS = 320
"""So many columns at most: each stays wider than a pixel of a screen."""


CIRCLES = 300
"""So many spikes are circled at most."""


@house_style
def draw(figure: Sheet, analyses: Sequence[Analysis]) -> None:
    """Draw the first analysis as a heat map of log2(magnitude / own level), layers by steps.

    Raises:
        InputError: if the run has no gradient norms.
    """
    analysis = analyses[0]
    require(analysis.run, "gradients.norm")
    magnitudes = layer_magnitudes(analysis.run)
    if len(magnitudes) == 0:
        raise InputError(f"gradients.norm of {analysis.run.path} holds no step yet")
    steps = magnitudes.index.to_numpy()
    first, last = int(steps[0]), int(steps[-1]) + 1
    num_columns = min(COLUMNS, last - first)
    places = (steps - first) * num_columns // (last - first)
    cells = np.full((magnitudes.shape[1], num_columns), np.nan)
    broken = np.zeros_like(cells, dtype=bool)
    spikes = events_of(analysis, "gradients.norm", ["spike"])
    names = [str(name) for name in magnitudes.columns]
    for row, name in enumerate(names):
        values = magnitudes[name].to_numpy()
        raised = relative(steps, values, [event for event in spikes if event.label == name])
        cells[row], broken[row] = _row(values, raised, places, num_columns)

    axes = figure.subplots()
    edges = (first - 0.5, last - 0.5, len(cells) - 0.5, -0.5)
    limit = _limit(cells)
    shown = axes.imshow(
        np.clip(cells, -limit, limit), cmap=diverging(), vmin=-limit, vmax=limit, aspect="auto", extent=edges,
        interpolation="nearest", gid="cells",
    )  # fmt: skip
    black = ListedColormap([INK])
    axes.imshow(np.ma.masked_array(broken, ~broken), cmap=black, aspect="auto", extent=edges, interpolation="nearest")
    step_axis(axes, first, last - 1)
    axes.set_xlim(edges[:2])
    axes.grid(visible=False)
    name_rows(axes, names, figure, "layer (input at the top")
    _scale(figure, axes, shown, limit)
    circled = _circle(axes, spikes, names) if len(cells) > 40 else ""
    _legend(figure, cells, broken, circled)
    touched = len({event.label for event in spikes})
    where = f" in {touched} of {count(len(cells), 'layer')}"
    if not spikes:
        where = f" in any of {count(len(cells), 'layer')}" if len(cells) > 1 else " in the one layer"
    text = f"{count(num_spikes(analysis, spikes), 'gradient spike')}{where}"
    if not judged(analysis, "spikes"):
        text = f"gradient spikes not judged{where}"
    headline(figure, text[0].upper() + text[1:], f"{title_of(analysis.run)}{_per_cell(last - first, num_columns)}")


def _row(values: np.ndarray, raised: np.ndarray, places: np.ndarray, num_columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest log2(value / level) of each cell of one layer, and which cells hold what is not finite."""
    finite = np.isfinite(values)
    with np.errstate(divide="ignore"):
        cells = np.log2(pool_max(np.where(finite, raised, np.nan), places, num_columns))
    broken = np.zeros(num_columns, dtype=bool)
    broken[places[~finite]] = True
    return cells, broken


def _limit(cells: np.ndarray) -> float:
    """Return the end of the color scale: the largest rise, between 4 x and 64 x, so that noise stays pale."""
    finite = cells[np.isfinite(cells)]
    return float(np.clip(np.ceil(finite.max(initial=0.0)), 2, 6))


def _circle(axes: Axes, spikes: list[Event], names: list[str]) -> str:
    """Circle the spikes where rows are too thin to find them by color, the clearest `CIRCLES`; say which in words."""
    every = [event for event in sorted(spikes, key=lambda event: -event.score) if event.label in names]
    known = every[:CIRCLES]
    rows = {name: row for row, name in enumerate(names)}
    axes.plot(
        [event.peak for event in known],
        [rows[event.label] for event in known],
        "o",
        markerfacecolor="none",
        markeredgecolor=INK,
        markeredgewidth=0.8,
        markersize=9,
        clip_on=False,
        gid="peaks",
    )
    return f"spike (the {CIRCLES} clearest of {len(every):,})" if len(every) > CIRCLES else "spike" if known else ""


def _scale(figure: Sheet, axes: Axes, shown: AxesImage, limit: float) -> None:
    ticks = np.arange(-limit, limit + 1, 1 if limit <= 3 else 2)
    ticks = ticks if 0 in ticks else np.union1d(ticks[np.abs(ticks) == limit], [0])
    bar = figure.colorbar(shown, ax=axes, ticks=ticks, pad=0.015, aspect=30, extend="both")
    bar.ax.set_yticklabels([f"{2**tick:.0f}{TIMES}" if tick >= 0 else f"1/{2**-tick:.0f}{TIMES}" for tick in ticks])
    bar.set_label(f"gradient magnitude ({TIMES} its own level, log scale)")
    bar.outline.set_visible(False)


def _legend(figure: Sheet, cells: np.ndarray, broken: np.ndarray, circled: str) -> None:
    marks: list[Artist] = []
    if circled:
        marks.append(Line2D([], [], linestyle="", marker="o", markerfacecolor="none", color=INK, label=circled))
    if broken.any():
        marks.append(Patch(color=INK, label="not finite"))
    if (np.isnan(cells) & ~broken).any():
        marks.append(Patch(color=LIGHT, label="no gradient"))
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))


def _per_cell(num_steps: int, num_columns: int) -> str:
    return f" · each cell: the largest of {-(-num_steps // num_columns):,} steps" if num_steps > num_columns else ""

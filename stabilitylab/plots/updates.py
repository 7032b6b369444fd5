"""Size of each update over the size of the weights, for the first, the middle and the last layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from stabilitylab.errors import InputError
from stabilitylab.plots._axes import has_marks, line, log_axis, shade, step_axis
from stabilitylab.plots._choice import events_of, first_middle_last, require
from stabilitylab.plots._style import DEPTH, INK, RED, Sheet, headline, house_style
from stabilitylab.plots._words import shorten, title_of
from stabilitylab.run import Run

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["CAPTION", "SIZE", "draw"]

SIZE = (9.0, 5.5)
CAPTION = (
    "How far one step moves a layer: the norm of its update over the norm of its weights, the median over the layer's "
    "tensors. Around 1e-3 is usual; a rise before a gradient spike says that the optimizer, not the data, started it."
)


@house_style
def draw(figure: Sheet, analyses: Sequence[Analysis]) -> None:
    """Draw the first analysis: a panel per layer with its gradient spikes.

    Raises:
        InputError: if the run has no update ratios.
    """
    analysis = analyses[0]
    run = analysis.run
    require(run, "updates.ratio")
    steps, lines = _medians(run)
    if len(steps) == 0 or not lines:
        raise InputError(f"updates.ratio of {run.path} holds no update above zero to draw")
    panels = figure.subplots(len(lines), 1, squeeze=False, sharex=True)[:, 0]
    finite = np.concatenate([values[np.isfinite(values) & (values > 0)] for values in lines.values()])
    if not len(finite):
        raise InputError("updates.ratio has no finite value to draw")
    low, high = float(np.quantile(finite, 0.001)), float(finite.max())
    if high / low < 4:  # a constant would fill the axes with its rounding
        low, high = low / 2, high * 2
    colors = DEPTH if len(lines) > 2 else DEPTH[::2]
    for axes, (name, values), color in zip(panels, lines.items(), colors, strict=False):
        step_axis(axes, int(steps[0]), int(steps[-1]), label=axes is panels[-1])
        log_axis(axes, low / 1.25, high * 1.4)
        spikes = events_of(analysis, "gradients.norm", ["spike"], [name])
        shade(axes, [(event.start, event.stop) for event in spikes], RED, 0.22, "spikes")
        line(axes, steps, values, color, linewidth=0.9)
        axes.set_title(name, color=color, fontweight="bold", pad=7)
    panels[len(panels) // 2].set_ylabel("update norm / weight norm (dimensionless, per step)")
    marks: list[Patch | Line2D] = []
    if has_marks(figure, "spikes"):
        marks.append(Patch(color=RED, alpha=0.22, linewidth=0, label="gradient spike of this layer"))
    if has_marks(figure, "not finite"):
        marks.append(Line2D([], [], linestyle="", marker="x", color=INK, label="not finite"))
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    headline(figure, _sentence(lines), title_of(run))


def _medians(run: Run) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the steps, and for the chosen layers the median over their tensors; only these columns are read."""
    labels = [str(label) for label in run.about("updates.ratio")["labels"]]
    layers = run.layers
    tensors = {name: [label for label in labels if layers.of.get(label) == name] for name in layers.names}
    candidates = [name for name in layers.names if tensors[name]]
    lines: dict[str, np.ndarray] = {}
    steps = np.empty(0, dtype=np.int64)
    while candidates:  # a frozen layer is replaced by its neighbor
        chosen = first_middle_last(layers, candidates)
        for name in (each for each in chosen if each not in lines):
            frame = run.read("updates.ratio", tensors[name])
            steps = frame.index.to_numpy()
            lines[name] = _median(frame.to_numpy())
        still = [name for name in chosen if not (lines[name] > 0).any()]
        if not still:
            return steps, {name: lines[name] for name in chosen}
        candidates = [name for name in candidates if name not in still]
    return steps, {}


def _median(ratios: np.ndarray) -> np.ndarray:
    """Return the median over tensors, shape (T,): inf and NaN count as large, so that they show when most are."""
    ordered = np.sort(np.where(np.isnan(ratios), np.inf, ratios).astype(np.float64), axis=1)
    return ordered[:, (ratios.shape[1] - 1) // 2]


def _sentence(lines: dict[str, np.ndarray]) -> str:
    usual = {name: float(np.median(values[np.isfinite(values)])) for name, values in lines.items()}
    said = ", ".join(f"{value:.1e} in {shorten(name, 16)}".replace("e-0", "e-") for name, value in usual.items())
    return f"Usual update over weights: {said}"

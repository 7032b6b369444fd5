"""Loss, learning rate and momentum over the steps, one panel each, with gradient spikes behind them."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from stabilitylab.errors import InputError
from stabilitylab.plots._axes import has_marks, line, log_axis, shade, step_axis, within
from stabilitylab.plots._choice import events_of, has_rows
from stabilitylab.plots._style import BLUE, GREEN, INK, RED, Sheet, headline, house_style
from stabilitylab.plots._words import count, num_spikes, short, title_of

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["CAPTION", "SIZE", "draw"]

SIZE = (9.0, 5.5)
CAPTION = (
    "What the training did at each step. Light red bands are steps at which some layer's gradient spiked: look "
    "whether the loss moved there, and at which learning rate spikes begin."
)
PANELS = MappingProxyType(
    {
        "training.loss": ("loss", BLUE),
        "training.lr": ("learning rate\n(per step)", GREEN),
        "training.momentum": ("momentum of\nthe key encoder", INK),
    }
)


@house_style
def draw(figure: Sheet, analyses: Sequence[Analysis]) -> None:
    """Draw the first analysis: a panel for each of loss, learning rate and momentum that the run has.

    Raises:
        InputError: if it has none of them.
    """
    analysis = analyses[0]
    run = analysis.run
    frames = {name: run[name] for name in PANELS if has_rows(run, name)}
    if not frames:
        raise InputError(f"{run.path} has none of the series {', '.join(PANELS)}, which this picture shows")
    first = min(int(frame.index[0]) for frame in frames.values())
    last = max(int(frame.index[-1]) for frame in frames.values())
    heights = [2.0 if name == "training.loss" else 1.0 for name in frames]
    panels = figure.subplots(len(frames), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    spikes = events_of(analysis, "gradients.norm", ["spike"])
    for axes, (name, frame) in zip(panels, frames.items(), strict=True):
        step_axis(axes, first, last, label=axes is panels[-1])
        _panel(axes, name, frame)
        shade(axes, [(event.start, event.stop) for event in spikes], RED, 0.22, "spikes")
    diverged = [event.start for event in analysis.events if event.kind == "divergence"]
    if diverged:
        for axes in panels:
            axes.axvline(min(diverged), color=INK, linestyle="--", linewidth=1.1, gid="divergence")
    figure.align_ylabels(list(panels))
    marks: list[Patch | Line2D] = (
        [Patch(color=RED, alpha=0.22, linewidth=0, label="gradient spike in some layer")] if spikes else []
    )
    if diverged:
        marks.append(Line2D([], [], color=INK, linestyle="--", linewidth=1.1, label="divergence begins"))
    if has_marks(figure, "not finite"):
        marks.append(Line2D([], [], linestyle="", marker="x", color=INK, label="not finite"))
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    loss = [each for each in analysis.companions if (each.series, each.kind) == ("training.loss", "spike")]
    headline(figure, _sentence(frames, num_spikes(analysis, spikes), len(loss)), title_of(run))


def _panel(axes: Axes, name: str, frame: pd.DataFrame) -> None:
    words, color = PANELS[name]
    steps = frame.index.to_numpy()
    columns = [frame[column].to_numpy(dtype=np.float64) for column in frame]
    finite = np.concatenate([values[np.isfinite(values)] for values in columns])
    positive = len(finite) > 0 and finite.min() > 0
    if name == "training.loss" and positive and finite.max() > 30 * np.median(finite):
        log_axis(axes, finite.min() / 1.2, finite.max() * 1.5)
        words += " (log scale)"
    else:
        size = float(np.abs(finite).max(initial=0.0)) or 1.0
        axes.set_ylim(*within(columns, least=0.02 * size if name != "training.momentum" else 1e-3))
        axes.yaxis.set_major_locator(MaxNLocator(6 if name == "training.loss" else 3))
        axes.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 4))
    for position, (label, values) in enumerate(zip(frame, columns, strict=True)):
        line(axes, steps, values, color, linestyle=("-", "--", ":", "-.")[position % 4], label=str(label))
    if len(columns) > 1:
        axes.legend(loc="upper right", ncols=4)
    axes.set_ylabel(words)


def _sentence(frames: dict[str, pd.DataFrame], spikes: int, in_loss: int) -> str:
    with_spikes = f", {count(in_loss, 'loss spike')}" * (in_loss > 0) + f", {count(spikes, 'gradient spike')}"
    if "training.loss" not in frames:
        return f"Schedule of the training{with_spikes}"
    loss = frames["training.loss"].iloc[:, 0].to_numpy(dtype=np.float64)
    finite = np.isfinite(loss)
    lost = int((~finite).sum())
    if lost:
        return f"Loss not finite at {count(lost, 'step')}, first at {frames['training.loss'].index[~finite][0]:,}"
    tenth = max(len(loss) // 10, 1)
    early, late = short(float(np.median(loss[:tenth]))), short(float(np.median(loss[-tenth:])))
    return (f"Loss from {early} to {late}" if early != late else f"Loss stays at {late}") + with_spikes

"""kNN accuracy of one or more runs with its binomial uncertainty, dips marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.typing import LineStyleType, MarkerType

from stabilitylab.errors import InputError
from stabilitylab.plots._axes import UP, has_marks, line, settled, step_axis, within
from stabilitylab.plots._choice import events_of, has_rows, judged, separate
from stabilitylab.plots._style import GREY, INK, Sheet, color_of, headline, house_style, lighter
from stabilitylab.plots._thinning import spread, tallest, thin
from stabilitylab.plots._words import of_accuracy, shorten, title_of
from stabilitylab.run import Run

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["CAPTION", "OVERLAYS", "SIZE", "draw"]

OVERLAYS = True
SIZE = (9.5, 5.5)
CAPTION = (
    "Accuracy of a nearest-neighbor vote on held-out images; bands are 95 % binomial intervals of one measurement, so "
    "a change within the band says little. Solid lines vote with the fixed bank, dashed ones with the queue of "
    "training features. Triangles mark dips, which recover, squares steps, which do not, diamonds falls that "
    "are still open at the end."
)
STYLES: tuple[LineStyleType, ...] = ("-", (0, (4, 1.8)), ":", (0, (5, 1, 1, 1)))
MARKS: dict[str, tuple[MarkerType, str]] = {
    "dip": (UP, "dip (recovers)"), "step": ("s", "step (does not)"), "drop": ("D", "still open at the end"),
}  # fmt: skip


class Curve(NamedTuple):
    """One column of one run, in percent."""

    analysis: Analysis
    column: str
    steps: np.ndarray
    accuracy: np.ndarray
    error: np.ndarray
    color: str
    style: int
    band: bool
    """Only the first curve of a run shows its band: a second one would lie on it."""


@house_style
def draw(figure: Sheet, analyses: Sequence[Analysis]) -> None:
    """Draw the kNN curves of all runs in one axes, each named at its end.

    Raises:
        InputError: if none of the runs has a kNN accuracy.
    """
    columns = _columns(analyses)
    groups = [(each, _curves(each, color_of(place), columns)) for place, each in enumerate(analyses)]
    measured = [each for each, curves in groups if curves]
    curves = [curve for _, group in groups for curve in group]
    if not curves:
        paths = ", ".join(str(each.run.path) for each in analyses)
        raise InputError(f"{paths}: no series 'knn.accuracy' with a number in it, which this picture shows")
    axes = figure.subplots()
    step_axis(axes, min(curve.steps[0] for curve in curves), max(curve.steps[-1] for curve in curves))
    axes.set_ylim(*_limits(curves))
    axes.set_ylabel("kNN accuracy on held-out images (%)")
    for curve in curves:
        _draw(axes, curve, crowded=len(measured) > 3)
    if len(measured) == 1:
        _name_ends(axes, curves, [curve.column for curve in curves])
    else:
        _name_ends(axes, [curve for curve in curves if curve.band], _names([each.run for each in measured]))
    kinds = {event.kind for each in measured for event in events_of(each, "knn.accuracy", ["dip", "step", "drop"])}
    _legend(figure, [column for column in columns if any(curve.column == column for curve in curves)], kinds)
    dips = sum(separate(events_of(each, "knn.accuracy", ["dip", "step", "drop"])) for each in measured)
    text = of_accuracy(dips, kinds, any(judged(each, "dips") for each in measured))
    text += f" in {len(measured)} runs" if len(measured) > 1 else ""
    missing = f" · {len(analyses) - len(measured)} without kNN" if len(analyses) > len(measured) else ""
    below = title_of(measured[0].run) if len(measured) == 1 else f"{len(measured)} runs{missing}"
    headline(figure, text[0].upper() + text[1:], below)


def _names(runs: list[Run]) -> list[str]:
    """Return a name for each run; those of equal names get their folder's too."""
    names = [run.name for run in runs]
    longer = [f"{run.path.resolve().parent.name}/{run.name}" for run in runs]
    return [shorten(name if names.count(name) == 1 else long, 26) for name, long in zip(names, longer, strict=True)]


def _columns(analyses: Sequence[Analysis]) -> list[str]:
    """Return the columns of all runs, each once: equal columns get equal lines."""
    declared = [each.run.about("knn.accuracy")["labels"] for each in analyses if "knn.accuracy" in each.run]
    return list(dict.fromkeys(str(label) for labels in declared for label in labels))


def _curves(analysis: Analysis, color: str, columns: list[str]) -> list[Curve]:
    run = analysis.run
    if not has_rows(run, "knn.accuracy"):
        return []
    frame = run["knn.accuracy"]
    errors = run["knn.standard_error"].reindex(frame.index) if has_rows(run, "knn.standard_error") else None
    samples = run.about("knn.accuracy").get("samples")
    curves: list[Curve] = []
    for column in map(str, frame.columns):
        accuracy = frame[column].to_numpy(dtype=np.float64)
        if errors is not None and column in errors:
            error = errors[column].to_numpy(dtype=np.float64)
        else:  # binomial, or unknown where nobody said of how many images
            error = np.sqrt(np.clip(accuracy * (1 - accuracy), 0, None) / (samples or np.nan))
        if np.isfinite(accuracy).any():
            steps = frame.index.to_numpy()
            style = columns.index(column)
            curves.append(Curve(analysis, column, steps, 100 * accuracy, 100 * error, color, style, not curves))
    return curves


def _band(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval around each measurement; it is the measurement alone where nobody knows its error."""
    error = 1.96 * np.nan_to_num(curve.error)
    return np.clip(curve.accuracy - error, 0, 100), np.clip(curve.accuracy + error, 0, 100)


def _limits(curves: list[Curve]) -> tuple[float, float]:
    shown = [settled(curve.steps, curve.accuracy) for curve in curves]
    shown += [settled(curve.steps, bound) for curve in curves if curve.band for bound in _band(curve)]
    return within(shown, least=2.0)


def _draw(axes: Axes, curve: Curve, crowded: bool) -> None:
    rows = thin(curve.accuracy)
    if curve.band and np.isfinite(curve.error).any():
        low, high = _band(curve)
        axes.fill_between(
            curve.steps[rows], low[rows], high[rows], color=curve.color, alpha=0.08 if crowded else 0.2, linewidth=0,
            zorder=1.5, gid="band",
        )  # fmt: skip
    look: dict[str, Any] = (
        {"linewidth": 1.3, "zorder": 2.2} if curve.band else {"linewidth": 0.7 if crowded else 1.2, "zorder": 2.0}
    )
    color = curve.color if curve.band else lighter(curve.color)
    line(axes, curve.steps, curve.accuracy, color, linestyle=STYLES[curve.style % len(STYLES)], **look)
    for kind, (marker, _) in MARKS.items():
        events = events_of(curve.analysis, "knn.accuracy", [kind], [curve.column])
        if not events:
            continue
        peaks = np.array([event.peak for event in events])
        peaks = peaks[tallest(peaks, np.array([event.score for event in events]))]
        at = curve.accuracy[np.minimum(np.searchsorted(curve.steps, peaks), len(curve.steps) - 1)]
        axes.plot(
            peaks, at, linestyle="", marker=marker, color=curve.color, markeredgecolor="white", markeredgewidth=0.7,
            markersize=9, zorder=5, gid=kind,
        )  # fmt: skip


def _name_ends(axes: Axes, curves: list[Curve], names: list[str]) -> None:
    """Write each name and last accuracy beside the end of its curve, apart from each other."""
    whole = [np.flatnonzero(np.isfinite(curve.accuracy))[-1] for curve in curves]
    last = np.array([curve.accuracy[row] for curve, row in zip(curves, whole, strict=True)])
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    places = spread(np.clip(last, low, high), 0.055 * (high - low), low, high)
    for curve, row, name, place in zip(curves, whole, names, places, strict=True):
        axes.annotate(
            f"{name}  {curve.accuracy[row]:.1f} %",
            xy=(curve.steps[row], float(np.clip(curve.accuracy[row], low, high))),
            xytext=(right + 0.04 * (right - left), place),
            annotation_clip=False,
            color=curve.color,
            va="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": curve.color, "linewidth": 0.6, "relpos": (0, 0.5), "shrinkB": 2},
        )


def _legend(figure: Sheet, columns: list[str], kinds: set[str]) -> None:
    marks: list[Line2D | Patch] = []
    styles = {column: STYLES[place % len(STYLES)] for place, column in enumerate(columns)}
    if len(columns) > 1:
        marks += [Line2D([], [], color=INK, linestyle=style, label=column) for column, style in styles.items()]
    if has_marks(figure, "band"):
        of = f" ({columns[0]})" if len(columns) > 1 else ""
        marks.append(Patch(color=GREY, alpha=0.3, linewidth=0, label=f"95 % binomial interval{of}"))
    for kind, (marker, words) in MARKS.items():
        if kind in kinds:
            marks.append(Line2D([], [], linestyle="", marker=marker, color=GREY, label=words))
    if has_marks(figure, "not finite"):
        marks.append(Line2D([], [], linestyle="", marker="x", color=INK, label="not finite"))
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), handlelength=2.6)

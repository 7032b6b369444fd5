"""What the linked charts show: series on the training step, thinned, with every value kept around what happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stabilitylab.episodes import layer_magnitudes
from stabilitylab.findings import Event
from stabilitylab.phrasing import rounded
from stabilitylab.plots._choice import events_of, first_middle_last, has_rows
from stabilitylab.plots._level import relative
from stabilitylab.plots._style import DEPTH
from stabilitylab.plots._thinning import tallest, thin, widen
from stabilitylab.stats.robust import runs_of

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis
    from stabilitylab.run import Run

__all__ = ["Curve", "Panel", "panels", "rows_to_draw"]

OVERVIEW = 3000
"""Points of a whole curve: two for each pixel of a wide screen."""

DETAIL = 12_000
"""Further points of a curve, all of them near what happened."""

MARKS = 2000
"""Most marks of events in a panel."""

LOSS, KNN, RANK = "#767676", "#a2559f", "#8a6d00"
"""Colors that stand out on light and on dark ground, as those of the layers do."""


@dataclass(frozen=True)
class Curve:
    """One line."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    """As drawn; NaN where the series was not measured or is not finite."""
    raw: np.ndarray | None
    """As recorded, where what is drawn is relative."""
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    logarithmic: bool = False
    peaks: tuple[tuple[int, float], ...] = ()
    """Step and value of the peak of each event."""
    bands: tuple[tuple[int, int], ...] = ()
    """First and last step of each fall."""
    not_finite: tuple[tuple[int, int], ...] = ()
    """First and last step of each stretch of values that are NaN or infinite."""

    @property
    def said(self) -> str:
        """What the panel holds, for those who cannot see it."""
        finite = [each.values[np.isfinite(each.values)] for each in self.curves]
        steps = [each.steps for each in self.curves if len(each.steps)]
        if not steps or not any(len(each) for each in finite):
            return f"{self.title}: no finite value"
        low, high = (min(float(each.min()) for each in finite if len(each)),
                     max(float(each.max()) for each in finite if len(each)))  # fmt: skip
        first, last = min(int(each[0]) for each in steps), max(int(each[-1]) for each in steps)
        text = f"{self.title} ({self.unit}) over steps {first:,} to {last:,}: "
        text += f"between {rounded(low)} and {rounded(high)}"
        return text + (f", {len(self.peaks)} peaks of spikes marked" if self.peaks else "")


def panels(analysis: Analysis, windows: np.ndarray) -> list[Panel]:
    """Return the charts that a run has the series for, from the gradients of the first layer down to the rank.

    Args:
        analysis: of the run.
        windows: steps around what happened, where every value is kept, shape (N, 2), as `rows_to_draw` takes them.
    """
    run = analysis.run
    made = list(_gradients(analysis, windows)) if has_columns(run, "gradients.norm") else []
    accuracy, rank = "knn.accuracy", "spectrum.rank"
    if has_rows(run, "training.loss"):
        made.append(_plain(analysis, "training.loss", "Loss", "as recorded", LOSS, windows))
    if has_rows(run, accuracy):
        made.append(_plain(analysis, accuracy, "kNN accuracy", "percent of held-out images", KNN, windows, 100.0))
    if has_rows(run, rank):
        made.append(_plain(analysis, rank, "Effective rank", "directions", RANK, windows))
    return [each for each in made if each.curves]


def has_columns(run: Run, series: str) -> bool:
    """Tell whether a run has a series with a label, without reading it."""
    return series in run and len(run.about(series)["labels"]) > 0


def rows_to_draw(
    steps: np.ndarray, values: np.ndarray, windows: np.ndarray, num_points: int = OVERVIEW, detail: int = DETAIL
) -> np.ndarray:
    """Return the rows of a curve to draw: its extremes everywhere, and every row within the windows.

    Where the windows hold more rows than there is room for, each is cut to the same number around its middle.

    Args:
        steps: increasing, shape (T,).
        values: shape (T,).
        windows: first and last step of each, shape (N, 2), in any order.
        num_points: the most rows kept for the whole.
        detail: the most further rows kept in all windows together.

    Returns:
        Row numbers, increasing; all of them where T is at most ``num_points + detail``.
    """
    if len(steps) <= num_points + detail:
        return np.arange(len(steps))
    kept = [thin(values, num_points)]
    joined = widen(np.asarray(windows, dtype=float).reshape(-1, 2), 0)
    low = np.searchsorted(steps, joined[:, 0])
    high = np.searchsorted(steps, joined[:, 1], side="right")
    sizes = high - low
    if sizes.sum() > detail:  # the largest size at which all fit, small windows whole
        order = np.sort(sizes)
        whole = np.cumsum(order) + order * (len(order) - 1 - np.arange(len(order)))
        fits = int((whole <= detail).sum())
        most = (detail - int(order[:fits].sum())) // max(len(order) - fits, 1)
        middle = (low + high) // 2
        low, high = np.maximum(low, middle - most // 2), np.minimum(high, middle + (most + 1) // 2)
    kept += [np.arange(first, last) for first, last in zip(low.tolist(), high.tolist(), strict=True)]
    return np.unique(np.concatenate(kept))


def _gradients(analysis: Analysis, windows: np.ndarray) -> Iterator[Panel]:
    magnitudes = _chosen(analysis.run)
    colors = DEPTH if len(magnitudes) > 2 else DEPTH[::2]
    for color, (name, (steps, values)) in zip(colors, magnitudes.items(), strict=False):
        spikes = events_of(analysis, "gradients.norm", ["spike"], [name])
        level = relative(steps, values, spikes)
        rows = rows_to_draw(steps, level, windows)
        drawn = np.where(np.isfinite(level) & (level > 0), level, np.nan)
        curve = Curve(name, steps[rows], drawn[rows], values[rows], color)
        title = f"Gradient of {name}"
        broken = _not_finite(steps, values)
        yield Panel(title, "times its own level", (curve,), True, _peaks(spikes, steps, drawn), (), broken)


def _chosen(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return steps and magnitudes of the first, the middle and the last layer that have a gradient."""
    recorded = set(run.about("gradients.norm")["labels"])
    layers = run.layers
    names = [each for each in layers.names if recorded & set(layers.parameters(each))]
    read: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    while names:
        chosen = first_middle_last(layers, names)
        new = [each for each in chosen if each not in read]
        frame = layer_magnitudes(run, names=new) if new else None
        if frame is not None:
            read |= {each: (frame.index.to_numpy(), frame[each].to_numpy(dtype=np.float64)) for each in map(str, frame)}
        dead = [each for each in chosen if each not in read or not (read[each][1] > 0).any()]
        if not dead:
            return {each: read[each] for each in chosen}
        names = [each for each in names if each not in dead]
    return {}


def _plain(
    analysis: Analysis, series: str, title: str, unit: str, color: str, windows: np.ndarray, factor: float = 1.0
) -> Panel:
    """Return a panel of the columns of a series as they were recorded, at most two of them."""
    frame = analysis.run[series]
    steps = frame.index.to_numpy()
    curves: list[Curve] = []
    broken: tuple[tuple[int, int], ...] = ()
    columns = [str(name) for name in frame.columns if not frame[name].isna().all() or series == "training.loss"][:2]
    for place, name in enumerate(columns):
        values = factor * frame[name].to_numpy(dtype=np.float64)
        rows = rows_to_draw(steps, values, windows)
        drawn = np.where(np.isfinite(values), values, np.nan)
        curves.append(Curve(name, steps[rows], drawn[rows], None, color, dashed=place > 0))
        if series == "training.loss":
            broken += _not_finite(steps, values)
    falls = events_of(analysis, series, ["dip", "step", "drop"], columns[:1])
    bands = tuple((each.start, each.stop) for each in falls)
    return Panel(title, unit, tuple(curves), False, (), bands, broken)


def _not_finite(steps: np.ndarray, values: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the first and the last step of stretches of rows to mark, the longest where they are many."""
    first, last = runs_of(~np.isfinite(values))
    chosen = tallest(steps[first], last - first + 1.0, MARKS)
    return tuple(zip(steps[first[chosen]].tolist(), steps[last[chosen]].tolist(), strict=True))


def _peaks(spikes: Sequence[Event], steps: np.ndarray, values: np.ndarray) -> tuple[tuple[int, float], ...]:
    inside = [each for each in spikes if steps[0] <= each.peak <= steps[-1]]
    if not inside:
        return ()
    at = np.array([each.peak for each in inside])
    at = at[tallest(at, np.array([each.score for each in inside]), MARKS)]
    heights = values[np.minimum(np.searchsorted(steps, at), len(steps) - 1)]
    return tuple((int(step), float(height)) for step, height in zip(at, heights, strict=True) if np.isfinite(height))

"""Gradients layer by layer, and the events of many layers joined into episodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stabilitylab.findings import Episode, Event
from stabilitylab.run import Run
from stabilitylab.stats.lag import cluster

__all__ = ["CELLS", "WIDTHS", "Aftermath", "aftermath", "expected_followers", "follow", "group", "layer_magnitudes"]

CELLS = 4_000_000
"""So many are read at once, but for a single layer that has more."""

WIDTHS = (150, 500)
"""Steps by which events are moved at most, by chance: the narrow one keeps them within an unstable phase, the wide one
away from what they follow; the larger p counts."""

DELAYS = 10
"""So many delays after an episode at most are looked at for the largest fall."""

SAFE = 1e-280
"""Sums of squares below it have lost digits, or all."""


def layer_magnitudes(run: Run, series: str = "gradients.norm", names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the gradient norm of each layer: the root of the sum of squares over its parameters.

    A parameter that was not recorded at a step, as before it was thawed, has no gradient there: it counts as 0.
    Few layers of a long run are read at a time, so that the memory is that of the result, and many of a short one, as
    every reading costs time for each column of the run.

    Args:
        run: holds the series, a column per parameter.
        series: its name.
        names: which layers; all if not given.

    Returns:
        Index ``step``, a column per layer that has recorded parameters, in depth order; NaN if a member is NaN,
        inf if one is inf, 0 where the layer had no gradient.
    """
    recorded = set(run.about(series)["labels"])
    layers = [layer for layer in run.layers.names if names is None or layer in names]
    members = {layer: [name for name in run.layers.parameters(layer) if name in recorded] for layer in layers}
    waiting = [layer for layer in layers if members[layer]]
    columns: dict[str, np.ndarray] = {}
    index: pd.Index | None = None
    while waiting:
        ends = np.cumsum([len(members[layer]) for layer in waiting])
        fitting = 1 if index is None else max(1, int((ends * max(len(index), 1) <= CELLS).sum()))
        together, waiting = waiting[:fitting], waiting[fitting:]
        frame = run.read(series, [name for layer in together for name in members[layer]], absent=0.0)
        index = frame.index if index is None else index
        shared = frame.index if len(frame) <= len(index) else index  # a run that is being written may have grown
        index = shared
        for layer in together:
            columns[layer] = _root_of_squares([frame[name].to_numpy(dtype=float) for name in members[layer]])
    if index is None:
        return pd.DataFrame(index=pd.Index([], dtype="int64", name="step"))
    return pd.DataFrame({layer: values[: len(index)] for layer, values in columns.items()}, index=index)


def _root_of_squares(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return the root of the sum of squares over columns, each of shape (T,), also where a square leaves the range."""
    total = np.zeros(len(columns[0]))
    with np.errstate(over="ignore", under="ignore"):
        for each in columns:
            total += each**2
        root = np.sqrt(total)
        beyond = np.flatnonzero(~((total > SAFE) & (total < np.inf)))
        if len(beyond):
            rows = np.abs([each[beyond] for each in columns])
            largest = rows.max(axis=0)
            known = (largest > 0) & (largest < np.inf)
            rows, largest = rows[:, known], largest[known]
            root[beyond[known]] = largest * np.sqrt(((rows / largest) ** 2).sum(axis=0))
    return root


def group(spikes: Iterable[Event], layers: Sequence[str], gap: int) -> list[Episode]:
    """Join the spikes of all layers whose onsets lie within a gap of each other into episodes.

    Where a layer has several spikes in one episode, the tallest stands for them, and the first says when the layer
    was hit.

    Args:
        spikes: of any layers.
        layers: names in depth order; equal onsets are ordered by it.
        gap: steps without any onset after which a new episode begins.
    """
    depth = {name: at for at, name in enumerate(layers)}
    ordered = sorted(spikes, key=lambda each: (each.onset, depth.get(each.label, len(depth))))
    if not ordered:
        return []
    number = cluster(np.array([each.onset for each in ordered]), gap)
    episodes = []
    for members in np.split(np.arange(len(ordered)), np.flatnonzero(np.diff(number)) + 1):
        joint = [ordered[at] for at in members]
        tallest: dict[str, Event] = {}
        for each in joint:
            if each.label not in tallest or each.height > tallest[each.label].height:
                tallest[each.label] = each
        kept = tuple(sorted(tallest.values(), key=lambda each: (each.onset, depth.get(each.label, len(depth)))))
        first = tuple(dict.fromkeys(each.label for each in joint if each.onset == joint[0].onset))
        episodes.append(Episode(min(e.start for e in joint), max(e.stop for e in joint), kept, first))
    return episodes


def follow(episodes: Iterable[Episode], others: Iterable[Event], horizon: int) -> list[Episode]:
    """Return the episodes with the other events that begin from their start to a horizon after it."""
    others = sorted(others)
    return [
        Episode(
            each.start,
            each.stop,
            each.events,
            each.first_layers,
            tuple(event for event in others if each.start <= event.start <= each.start + horizon),
        )
        for each in episodes
    ]


def expected_followers(
    episodes: Sequence[Episode],
    others: Sequence[Event],
    horizon: int,
    span: tuple[int, int],
    widths: Sequence[int] = WIDTHS,
) -> tuple[int, float, float]:
    """Return how many events follow an episode within the horizon, how many would by chance, and the p-value.

    By chance: each event is moved uniformly within a width on both sides, inside the span of the run; of several
    widths that with the larger p counts, so that a phase in which everything is unstable is no evidence. Exact,
    without simulation.

    Args:
        episodes: any order.
        others: the events that may follow.
        horizon: steps.
        span: first and last recorded step.
        widths: steps by which an event is moved at most.
    """
    starts = np.sort(np.array([each.start for each in episodes], dtype=float))
    seen = sum(bool(np.any((starts <= each.start) & (each.start <= starts + horizon))) for each in others)
    by_width = (_followers(starts, others, horizon, span, seen, width) for width in widths)
    p, expected = max((p, expected) for expected, p in by_width)
    return seen, expected, p


def _followers(
    starts: np.ndarray, others: Sequence[Event], horizon: int, span: tuple[int, int], seen: int, width: int
) -> tuple[float, float]:
    """Return how many events follow by chance, and how likely so many as were seen are."""
    chances = []
    for event in others:
        low, high = max(span[0], event.start - width), min(span[1], event.start + width)
        begin, end = np.clip(starts, low, high), np.clip(starts + horizon, low, high)
        end[:-1] = np.minimum(end[:-1], begin[1:])  # overlapping windows count once
        chances.append(float((end - begin).sum()) / max(high - low, 1))
    number = np.ones(1)
    for chance in chances:
        number = np.convolve(number, [1 - chance, chance])
    return float(np.sum(chances)), min(1.0, float(number[seen:].sum()))


class Aftermath(NamedTuple):
    """How a curve fell after episodes, on average."""

    episodes: int
    """Number of episodes, at least a horizon apart, that have measurements before and after."""
    fall: float
    """Mean fall in the unit of the curve, at the delay where it is largest; NaN without an episode."""
    by_chance: float
    """Mean of the same after the episodes moved at random."""
    p: float
    """Share of such moves with a fall at least as large; the larger of two widths."""
    delay: int = 0
    """Usual number of steps from the start of an episode to the first of the two measurements of the fall."""


def aftermath(
    episodes: Iterable[Episode],
    curve: pd.Series,
    rng: np.random.Generator,
    horizon: int = 100,
    widths: Sequence[int] = WIDTHS,
    draws: int = 2000,
) -> Aftermath:
    """Return the largest mean fall of a curve after episodes: of five measurements before against two of those after.

    One small fall drowns in the fluctuation of the curve; the mean over episodes need not. Of the two neighbors among
    the measurements within the horizon those with the largest mean fall count, after true episodes and moved ones
    alike. By chance: each episode is moved uniformly within a width on both sides, and of several widths that with the
    larger p counts, as in `expected_followers`.

    Args:
        episodes: any order; of several whose starts lie within the horizon the first counts.
        curve: index ``step``; NaN is left out.
        rng: for the moves.
        horizon: steps after the start within which the measurements must lie.
        widths: steps by which an episode is moved at most.
        draws: number of moves within each.
    """
    curve = curve.dropna()
    steps, values = curve.index.to_numpy(), curve.to_numpy(dtype=float)
    starts: list[int] = []
    for each in sorted(each.start for each in episodes):
        if not starts or each > starts[-1] + horizon:
            starts.append(each)
    if len(steps) < 7 or not starts:
        return Aftermath(0, float("nan"), float("nan"), 1.0)
    falls = _Falls(steps, values, horizon)
    known = np.isfinite(falls.after(np.array(starts), 0))
    used = np.array(starts)[known]
    if len(used) == 0:
        return Aftermath(0, float("nan"), float("nan"), 1.0)
    fall, later = (each[0] for each in falls.largest(used[None, :]))
    by_width = []
    for width in widths:
        low, high = np.maximum(used - width, steps[5]), np.minimum(used + width, steps[-2])
        chance, _ = falls.largest(rng.integers(low, np.maximum(high, low) + 1, size=(draws, len(used))))
        by_width.append(((1 + int((chance >= fall - 1e-12).sum())) / (1 + draws), float(chance.mean())))
    p, by_chance = max(by_width)
    delay = int(np.median(steps[np.minimum(falls.following(used) + later, len(steps) - 1)] - used))
    return Aftermath(len(used), float(fall), by_chance, p, delay)


class _Falls:
    """The falls of a curve after times: the median of five measurements before less the mean of two after it."""

    def __init__(self, steps: np.ndarray, values: np.ndarray, horizon: int) -> None:
        self._steps, self._horizon = steps, horizon
        self._before = np.full(len(steps) + 1, np.nan)
        self._before[5:] = np.median(np.lib.stride_tricks.sliding_window_view(values, 5), axis=1)
        self._after = np.append((values[:-1] + values[1:]) / 2, [np.nan, np.nan])
        self._soon = np.append(steps[1:], [np.iinfo(steps.dtype).max] * 2)  # step of the second measurement
        pairs = max(int(horizon / np.median(np.diff(steps))) - 1, 1)
        self._laters = np.unique(np.linspace(0, pairs - 1, min(pairs, DELAYS)).round().astype(int))

    def following(self, times: np.ndarray) -> np.ndarray:
        """Return the first measurement after each time; one at the very step sees the weights before its update."""
        at = np.searchsorted(self._steps, times)
        here = (at < len(self._steps)) & (self._steps[np.minimum(at, len(self._steps) - 1)] == times)
        return np.where(here, at + 1, at)

    def after(self, times: np.ndarray, later: int) -> np.ndarray:
        """Return the fall so many measurements later than the next one; NaN where it is not known in time."""
        at = self.following(times)
        then = np.minimum(at + later, len(self._steps))
        return np.where(self._soon[then] <= times + self._horizon, self._before[at] - self._after[then], np.nan)

    def largest(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest mean fall over the delays, and where it is: times of shape (N, episodes)."""
        means: list[np.ndarray] = []
        for later in self._laters:
            falls = self.after(times, int(later))
            known = np.isfinite(falls)
            number = known.sum(axis=1)
            mean = np.where(known, falls, 0.0).sum(axis=1) / np.maximum(number, 1)
            means.append(np.where(2 * number >= times.shape[1], mean, -np.inf if len(means) else 0.0))
        best = np.argmax(means, axis=0)
        return np.max(means, axis=0), self._laters[best]

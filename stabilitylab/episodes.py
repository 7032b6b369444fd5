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

STRETCHES = 10
"""In so many stretches after an episode the largest fall is sought, and in as many between their middles."""

SAFE = 1e-280
"""Sums of squares below it have lost digits, or all."""


def layer_magnitudes(run: Run, series: str = "gradients.norm", names: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the gradient norm of each layer: the root of the sum of squares over its parameters.

    A parameter that was not recorded at a step, as before it was thawed, has no gradient there, which counts as 0; of
    another series it counts as NaN.
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
        absent = 0.0 if series.startswith("gradients.") else None
        frame = run.read(series, [name for layer in together for name in members[layer]], absent=absent)
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
    """Mean fall in the unit of the curve, where it is clearest; NaN without an episode."""
    by_chance: float
    """Mean of the same after the episodes moved at random."""
    p: float
    """Share of such moves with a fall at least as large; the larger of two widths."""
    delay: int = 0
    """Usual number of steps from the start of an episode to the first measurement of the fall."""


def aftermath(
    episodes: Iterable[Episode],
    curve: pd.Series,
    rng: np.random.Generator,
    horizon: int = 100,
    widths: Sequence[int] = WIDTHS,
    draws: int = 2000,
) -> Aftermath:
    """Return the mean fall of a curve after episodes: of five measurements before against some of those after.

    One small fall drowns in the fluctuation of the curve; the mean over episodes need not. Two questions are asked,
    and the smaller p counts twice: whether the next two measurements are lower, and, as a fall may come late, whether
    any stretch within the horizon is, the one with the largest fall after true episodes and moved ones alike. By
    chance: each episode is moved uniformly within a width on both sides, and of several widths that with the larger p
    counts, as in `expected_followers`.

    Args:
        episodes: any order; of several whose starts lie within the horizon the first counts.
        curve: index ``step``; NaN is left out.
        rng: for the moves.
        horizon: steps after the start within which the measurements must lie.
        widths: steps by which an episode is moved at most.
        draws: number of moves within each; fewer of very many episodes, at least 200.
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
    used = np.array(starts)[falls.known(np.array(starts))]
    if len(used) == 0:
        return Aftermath(0, float("nan"), float("nan"), 1.0)
    seen = falls.mean(used[None, :])
    draws = min(draws, max(CELLS // len(used), 200))
    by_width = []
    for width in widths:
        low, high = np.maximum(used - width, steps[5]), np.minimum(used + width, steps[-2])
        moved = falls.mean(rng.integers(low, np.maximum(high, low) + 1, size=(draws, len(used))))
        by_width.append([_beyond(moved[0], seen[0, 0]), _beyond(np.fmax.reduce(moved), np.nanmax(seen[:, 0]))])
    (p_next, by_next), (p_late, by_late) = (max(each) for each in zip(*by_width, strict=True))
    at = 0 if p_next <= p_late else int(np.nanargmax(seen[:, 0]))
    delay = int(np.median(steps[np.minimum(falls.following(used) + falls.begins[at], len(steps) - 1)] - used))
    by_chance = by_next if p_next <= p_late else by_late
    questions = 2 if len(falls.begins) > 2 else 1  # a horizon of two measurements has one answer
    return Aftermath(len(used), float(seen[at, 0]), by_chance, min(1.0, questions * min(p_next, p_late)), delay)


def _beyond(chance: np.ndarray, fall: float) -> tuple[float, float]:
    """Return the share of draws with a fall at least as large, and their mean; 1 where most draws tell of no fall."""
    known = chance[np.isfinite(chance)]
    if 2 * len(known) < len(chance):
        return 1.0, float("nan")
    return (1 + int((known >= fall - 1e-12).sum())) / (1 + len(known)), float(known.mean())


class _Falls:
    """The falls of a curve after times: the median of five measurements before less the mean of a stretch after it.

    The first stretch is of the next two measurements; the others, each half over the one before it, cover the horizon.
    """

    def __init__(self, steps: np.ndarray, values: np.ndarray, horizon: int) -> None:
        self._steps, self._horizon = steps, horizon
        self._before = np.full(len(steps) + 1, np.nan)
        self._before[5:] = np.median(np.lib.stride_tricks.sliding_window_view(values, 5), axis=1)
        self._total = np.concatenate([[0.0], np.cumsum(values - values.mean())])
        self._mean = values.mean()
        number = max(int(horizon / np.median(np.diff(steps))), 2)
        self._width = max(2, -(-number // STRETCHES))
        self.begins = np.concatenate([[0], np.arange(0, number - self._width + 1, max(1, self._width // 2))])
        """Measurements from the next one to the first of each stretch."""

    def following(self, times: np.ndarray) -> np.ndarray:
        """Return the first measurement after each time; one at the very step sees the weights before its update."""
        at = np.searchsorted(self._steps, times)
        here = (at < len(self._steps)) & (self._steps[np.minimum(at, len(self._steps) - 1)] == times)
        return np.where(here, at + 1, at)

    def mean(self, times: np.ndarray) -> np.ndarray:
        """Return the mean fall in each stretch over the times at which it is known, shape (stretches, N).

        Args:
            times: shape (N, number of times).
        """
        at = self.following(times)
        found = []
        for place, begin in enumerate(self.begins.tolist()):
            falls = self._in_stretch(times, at, begin, 2 if place == 0 else self._width)
            known = np.isfinite(falls)
            number = known.sum(axis=1)
            with np.errstate(invalid="ignore"):
                found.append(np.where(known, falls, 0.0).sum(axis=1) / np.where(number > 0, number, np.nan))
        return np.array(found)

    def known(self, times: np.ndarray) -> np.ndarray:
        """Return after which times the next two measurements lie within the horizon, with five before."""
        return np.isfinite(self._in_stretch(times, self.following(times), 0, 2))

    def _in_stretch(self, times: np.ndarray, at: np.ndarray, begin: int, width: int) -> np.ndarray:
        last = at + begin + width
        inside = last <= len(self._steps)
        last = np.minimum(last, len(self._steps))
        inside &= self._steps[last - 1] <= times + self._horizon
        after = self._mean + (self._total[last] - self._total[np.maximum(last - width, 0)]) / width
        return np.where(inside, self._before[at] - after, np.nan)

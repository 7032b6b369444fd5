"""How a run responds to disturbances whose steps are known: which were found, and what every series does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stabilitylab.episodes import layer_magnitudes
from stabilitylab.findings import Event
from stabilitylab.phrasing import count, ratio
from stabilitylab.sampling import spacing as spacing_of
from stabilitylab.stats.response import LEAST, Response, respond
from stabilitylab.telling.evidence import Evidence

__all__ = ["LONGEST", "Row", "Told", "frames_of", "late", "look", "responses_of", "touches"]

LONGEST = 100
"""Of a disturbance that lasts longer, so many steps are looked at."""

LATE = 2
"""A spike that begins so many rows after a disturbance may be its work: a rate acts on the step after it."""

VANISHED = 1e-9
"""A direction of the projection has vanished when its variance is under this part of the largest."""

TRACES = {
    "batch": "training.loss",
    "learning_rate": "updates.ratio",
    "momentum_encoder": "teacher.distance",
    "gradient": "gradients.norm",
}
"""Where the effect of a kind must be seen, if anywhere."""

DIRECT = ("learning_rate",)
"""Kinds whose trace is nearer to what was done than a spike of the gradients, which may follow it."""

WITHIN_LAYERS = ("gradients.norm", "updates.ratio", "teacher.distance")


class Row(NamedTuple):
    """How one column responds."""

    series: str
    label: str
    change: float
    """Ratio to the level before; of an accuracy, the difference."""
    lag: float
    """Steps from the beginning to the first half of the way, the median over all times."""
    p: float
    responds: bool | None
    """None where the run holds too little without disturbances to tell."""


class Told(NamedTuple):
    """One time that a disturbance was there."""

    start: int
    stop: int
    found: bool | None
    """None where the record does not allow to say."""
    at: int | None
    by: str


def frames_of(evidence: Evidence) -> dict[str, pd.DataFrame]:
    """Return the series that may respond, on a scale on which differences count: logarithms, or an accuracy itself."""
    run = evidence.run
    found = {}
    for series in (*WITHIN_LAYERS, "training.loss", "spectrum.rank", "knn.accuracy"):
        if series not in run:
            continue
        frame = evidence.frames.get(series)
        if frame is None:
            frame = layer_magnitudes(run, series) if series in WITHIN_LAYERS else run[series]
        if series == "spectrum.rank":
            frame = frame[[name for name in ("representation", "projection") if name in frame]]
        if series != "knn.accuracy":
            if series in ("gradients.norm", "training.loss"):
                frame = frame.fillna(np.inf)  # not finite: the farthest from its level that can be
            with np.errstate(divide="ignore"):
                frame = frame.abs().apply(np.log)
        if len(frame) > LEAST and len(frame.columns):
            found[series] = frame
    return found


def _responses(
    frame: pd.DataFrame, spans: Sequence[Sequence[int]], busy: Sequence[Sequence[int]], near: int, behind: bool = True
) -> dict[str, Response]:
    """Return how each column responds from the start of each time to its end, and so many steps behind if asked."""
    steps, spacing = frame.index.to_numpy(), spacing_of(frame.index.to_numpy())
    reach = max(near, 2 * spacing)
    starts = [int(np.searchsorted(steps, first)) for first, _ in spans]
    length = max(behind * reach, *(min(last - first, LONGEST) for first, last in spans)) // spacing + 1
    taken = np.zeros(len(steps), dtype=bool)
    for first, last in busy:
        taken[np.searchsorted(steps, first) : np.searchsorted(steps, last + reach, "right")] = True
    return {str(label): respond(frame[label].to_numpy(dtype=float), starts, length, taken) for label in frame}


def responses_of(
    evidence: Evidence, series: str, frame: pd.DataFrame, spans: Sequence[Sequence[int]], busy: Sequence[Sequence[int]]
) -> list[Row]:
    """Return how each column of a series responds, those that could be measured.

    Args:
        evidence: gives the parameters.
        series: its name.
        frame: on a scale on which differences count.
        spans: first and last step of each time; those within which another disturbance begins are left out.
        busy: the same of all disturbances of the run.
    """
    limit, steps = evidence.parameters["alpha"] / len(frame.columns), frame.index.to_numpy()
    spans = [each for each in spans if each[0] <= steps[-1]]  # the others are still to come
    reach = max(evidence.parameters["near"], 2 * spacing_of(steps))
    spans = [
        each for each in spans  # what another disturbance does is not the work of this one
        if not any(each[0] < first <= min(each[1], each[0] + LONGEST) + reach for first, _ in busy)
    ]  # fmt: skip
    if not spans:
        return []
    return [
        _row(series, label, found, steps, spans, limit)
        for label, found in _responses(frame, spans, busy, evidence.parameters["near"]).items()
        if np.isfinite(found.deviation).any()
    ]


def _row(
    series: str, label: str, found: Response, steps: np.ndarray, spans: Sequence[Sequence[int]], limit: float
) -> Row:
    known = np.isfinite(found.delay)
    starts = np.array([first for first, _ in spans])
    at = np.searchsorted(steps, starts) + np.where(known, found.delay, 0).astype(int)
    lags = steps[np.minimum(at, len(steps) - 1)] - starts
    middle = float(np.median(found.deviation[known])) if known.any() else float("nan")
    change = middle if series == "knn.accuracy" else float(np.exp(middle))
    lag = float(np.median(lags[known])) if known.any() else float("nan")
    responds = bool(found.p_all <= limit) if found.p_smallest <= limit else None
    return Row(series, label, change, lag, found.p_all, responds)


def late(evidence: Evidence) -> int:
    """Return the steps after a disturbance within which an event may be its work."""
    frame, near = evidence.frames.get("gradients.norm"), int(evidence.parameters["near"])
    return near if frame is None or frame.empty else min(near, LATE * spacing_of(frame.index.to_numpy()))


def touches(event: Event, span: Sequence[int], near: int, busy: Sequence[Sequence[int]] = ()) -> bool:
    """Tell whether an event begins within a time, or so many steps after it, and no other time begins in between."""
    inside = span[0] <= event.onset <= min(span[1], span[0] + LONGEST) + near
    return inside and not any(span[0] < first <= event.onset for first, _ in busy)


def look(
    evidence: Evidence, frames: Mapping[str, pd.DataFrame], entry: Mapping[str, Any], at: int,
    busy: Sequence[Sequence[int]],
) -> Told:  # fmt: skip
    """Say whether one time was found, at which step, and by what."""
    kind, layer, span = entry["kind"], entry.get("layer"), entry["spans"][at]
    if kind == "projection":
        return _vanished(evidence, entry, span)
    if kind == "momentum_encoder" and "training.momentum" in evidence.run:
        return _stopped(evidence.run["training.momentum"].max(axis=1), span)
    behind = late(evidence)
    spikes = [each for each in evidence.of("spike", series="gradients.norm") if touches(each, span, behind, busy)]
    if kind == "gradient":
        spikes = [each for each in spikes if each.label == layer and each.start <= span[1]]
    series = TRACES.get(kind, "")
    known = series in frames and (kind != "gradient" or layer in frames[series])
    traced = Told(span[0], span[1], None, None, "")
    if known:
        column = frames[series][layer] if kind == "gradient" else frames[series].mean(axis=1)
        traced = _traced(column.to_frame(series), span, busy, evidence)
    if spikes and kind != "momentum_encoder" and not (kind in DIRECT and traced.found):
        first = min(spikes, key=lambda each: each.onset)
        tall = "a value that is not finite" if np.isinf(first.height) else f"a spike of {ratio(first.height)}"
        return Told(span[0], span[1], True, first.onset, f"{tall} in {first.label}")
    return traced


def _traced(frame: pd.DataFrame, span: Sequence[int], busy: Sequence[Sequence[int]], evidence: Evidence) -> Told:
    """Say whether the one column of a frame leaves its level as long as a disturbance lasts."""
    alpha, steps = evidence.parameters["alpha"], frame.index.to_numpy()
    begin = int(np.searchsorted(steps, span[0]))
    if begin == len(steps) or steps[begin] > span[1]:  # nothing was recorded while it lasted
        return Told(span[0], span[1], None, None, "")
    ((series, trace),) = _responses(frame, [span], busy, evidence.parameters["near"], behind=False).items()
    if not np.isfinite(trace.p_all) or trace.p_smallest > alpha:
        return Told(span[0], span[1], None, None, "")
    if trace.p_all > alpha:
        return Told(span[0], span[1], False, None, "")
    step = int(steps[begin + int(trace.delay[0])])
    return Told(span[0], span[1], True, step, f"{series}, {ratio(float(np.exp(trace.deviation[0])))}")


def _stopped(momentum: pd.Series, span: Sequence[int]) -> Told:
    """Say whether the momentum is exactly 1 while the encoder is frozen, and is not before."""
    before, inside = momentum[momentum.index < span[0]], momentum.loc[span[0] : span[1]].dropna()
    if before.empty or before.iloc[-1] == 1 or inside.empty:
        return Told(span[0], span[1], None, None, "")
    found = bool((inside == 1).all())
    return Told(span[0], span[1], found, int(inside.index[0]) if found else None, "a momentum of 1" if found else "")


def _vanished(evidence: Evidence, entry: Mapping[str, Any], span: Sequence[int]) -> Told:
    """Count the directions of the projection without any variance, before and at the first spectrum after."""
    frame = evidence.frames.get("spectrum.projection")
    dimensions = entry.get("dimensions")
    if frame is None or frame.empty or not isinstance(dimensions, list):
        return Told(span[0], span[1], None, None, "")
    values = frame.to_numpy(dtype=float)
    gone = pd.Series((values <= VANISHED * values.max(axis=1, keepdims=True)).sum(axis=1), frame.index)
    gone = gone[np.isfinite(values).all(axis=1)]
    before, inside = gone[gone.index < span[0]], gone[(gone.index >= span[0]) & (gone.index <= span[1])]
    if before.empty or inside.empty:
        return Told(span[0], span[1], None, None, "")
    lost = int(inside.iloc[0] - before.iloc[-1])
    found = lost >= len(set(dimensions))
    if not found and before.iloc[-1]:  # a linear map of fewer dimensions: one of its outputs is a mixture of others
        return Told(span[0], span[1], None, None, "")
    said = f"{count(lost, 'direction')} without variance in spectrum.projection" if found else ""
    return Told(span[0], span[1], found, int(inside.index[0]) if found else None, said)

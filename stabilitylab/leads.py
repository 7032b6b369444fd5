r"""Does the first layer lead? One row of evidence and one verdict for each later layer.

The sign of a lag, everywhere::

    first layer   ____|\_________        lag = time in the later layer - time in the first layer
    later layer   _________|\____
                      |----|  lag > 0: the later layer follows, the first layer leads
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.findings import Event
from stabilitylab.stats.lag import (
    association,
    cluster,
    jitter,
    match,
    max_sign_p,
    median_interval,
    shift_blocks,
    sign_p,
    signs_of,
)

__all__ = ["COLUMNS", "FEWEST", "lags"]

FEWEST = 5
"""With fewer matched events nothing is said."""

COLUMNS = (
    "first", "layer", "depth", "events_first", "events_layer", "matched", "later", "ties", "sooner",
    "lag", "low", "high", "lag_peak", "low_peak", "high_peak", "p", "p_adjusted", "p_smallest",
    "near", "near_by_chance", "p_near_jitter", "p_near_shift", "verdict", "reason",
)  # fmt: skip


def lags(
    spikes: Iterable[Event],
    layers: Sequence[str],
    first: str,
    *,
    window: int = 100,
    near: int = 10,
    gap: int = 20,
    alpha: float = 0.05,
    thresholds: Sequence[float] = (6.0, 8.0, 10.0),
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row for each layer other than the first: matched events, lag with its interval, and a verdict.

    Args:
        spikes: events of all layers; the label is the layer. What is not finite is left out: one NaN reaches every
            layer in the same backward pass and says nothing of their order.
        layers: names in depth order.
        first: the layer that sees the input.
        window: steps within which events are matched one to one.
        near: steps within which events count as associated.
        gap: steps that separate clusters of events, the units of bootstrap and sign flips.
        alpha: level of the tests, corrected over layers.
        thresholds: scores from which on the sign of the lag must not turn.
        draws: number of bootstrap samples and surrogates.
        seed: of the random draws.

    Returns:
        Columns `COLUMNS`: ``lag``, ``low``, ``high`` in steps between onsets (half-rise), ``*_peak`` between peaks;
        ``p`` of the sign test, ``p_adjusted`` over layers by its largest statistic, ``p_smallest`` that so many
        events could reach; ``near`` events of the first layer with one of this layer within ``near`` steps.
        Verdicts, said of the first layer: leads, follows, together, inconclusive, too few events.
    """
    of: dict[str, list[Event]] = {name: [] for name in layers}
    for each in spikes:
        if each.label in of and np.isfinite(each.height):
            of[each.label].append(each)
    lead = sorted(of.get(first, []), key=lambda each: each.onset)
    clusters = cluster(np.array([each.onset for each in lead], dtype=float), gap) if lead else np.empty(0, dtype=int)
    others = [name for name in layers if name != first]
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    all_lags, members = [], []
    for name in others:
        row, onset_lags, member = _row(lead, of[name], clusters, window, rng, draws)
        row |= _association(lead, of[name], near, rng, draws)
        row["turns"] = _turns(lead, of[name], window, thresholds)
        rows.append({"first": first, "layer": name, "depth": list(layers).index(name)} | row)
        all_lags.append(onset_lags)
        members.append(member)
    if not rows:
        return pd.DataFrame(columns=list(COLUMNS))
    judged = [at for at, row in enumerate(rows) if row["matched"] >= FEWEST]
    adjusted = np.full(len(rows), np.nan)
    if judged:
        signs = signs_of([all_lags[at] for at in judged], [members[at] for at in judged], int(clusters.max()) + 1)
        adjusted[judged] = max_sign_p(signs, rng)
    for row, p in zip(rows, adjusted.tolist(), strict=True):
        row["p_adjusted"] = p
        row["verdict"], row["reason"] = _verdict(row, alpha)
    return pd.DataFrame(rows)[list(COLUMNS)]


def _row(
    lead: list[Event], events: list[Event], clusters: np.ndarray, window: int, rng: np.random.Generator, draws: int
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    events = sorted(events, key=lambda each: each.onset)
    pairs = match(_times(lead, "onset"), _times(events, "onset"), window)
    onset = _times(events, "onset")[pairs[:, 1]] - _times(lead, "onset")[pairs[:, 0]]
    peak = _times(events, "peak")[pairs[:, 1]] - _times(lead, "peak")[pairs[:, 0]]
    member = clusters[pairs[:, 0]]
    row: dict[str, Any] = {
        "events_first": len(lead),
        "events_layer": len(events),
        "matched": len(pairs),
        "later": int((onset > 0).sum()),
        "ties": int((onset == 0).sum()),
        "sooner": int((onset < 0).sum()),
        "p": sign_p(onset) if len(pairs) else np.nan,
        "p_smallest": min(1.0, 2.0 ** (1 - len(np.unique(member)))) if len(pairs) else np.nan,
    }
    for suffix, values in (("", onset), ("_peak", peak)):
        low, high = median_interval(values, member, rng, draws=draws) if len(values) >= FEWEST else (np.nan, np.nan)
        row |= {
            f"lag{suffix}": float(np.median(values)) if len(values) else np.nan,
            f"low{suffix}": low,
            f"high{suffix}": high,
        }
    return row, onset, member


def _times(events: list[Event], which: str) -> np.ndarray:
    return np.array([getattr(each, which) for each in events], dtype=float)


def _association(
    lead: list[Event], events: list[Event], near: int, rng: np.random.Generator, draws: int
) -> dict[str, Any]:
    if not lead or not events:
        return {"near": 0, "near_by_chance": 0.0, "p_near_jitter": np.nan, "p_near_shift": np.nan}
    first, later = _times(lead, "onset"), np.sort(_times(events, "onset"))
    moved = association(first, later, jitter(later, 200, draws, rng), near)
    shifted = association(first, later, shift_blocks(later, 500, draws, rng), near)
    return {
        "near": moved.together,
        "near_by_chance": max(moved.expected, shifted.expected),
        "p_near_jitter": moved.p,
        "p_near_shift": shifted.p,
    }


def _turns(lead: list[Event], events: list[Event], window: int, thresholds: Sequence[float]) -> bool:
    """Return whether the median lag has both signs over the thresholds that leave enough events."""
    signs = set()
    for threshold in (0.0, *thresholds):
        first = np.sort(_times([each for each in lead if each.score >= threshold], "onset"))
        later = np.sort(_times([each for each in events if each.score >= threshold], "onset"))
        pairs = match(first, later, window)
        if len(pairs) >= FEWEST:
            signs.add(float(np.sign(np.median(later[pairs[:, 1]] - first[pairs[:, 0]]))))
    return {-1.0, 1.0} <= signs


def _verdict(row: dict[str, Any], alpha: float) -> tuple[str, str]:
    if row["matched"] < FEWEST:
        return "too few events", f"{row['matched']} matched events, {FEWEST} needed"
    if row["turns"]:
        return "inconclusive", "the sign of the lag turns with the detection threshold"
    if row["lag"] * row["lag_peak"] < 0:
        return "inconclusive", "onsets and peaks disagree in sign"
    significant = row["p_adjusted"] <= alpha
    if significant and row["low"] > 0 and row["lag_peak"] > 0:
        return "leads", "the lag is above zero by onset and by peak"
    if significant and row["high"] < 0 and row["lag_peak"] < 0:
        return "follows", "the lag is below zero by onset and by peak"
    if row["low"] >= -1 and row["high"] <= 1 and abs(row["lag_peak"]) <= 1:
        return "together", "the interval of the lag lies within one step of zero, as one backward pass would make it"
    if row["p_smallest"] > alpha:
        return "inconclusive", f"so few separate episodes cannot reach p = {alpha:g}"
    if row["low"] > 0 or row["high"] < 0:
        return "inconclusive", "the lag does not stand the correction over layers, or the peaks do not confirm it"
    return "inconclusive", "the interval of the lag includes zero and is wider than one step"

r"""Does the first layer lead? One row of evidence and one verdict for each later layer.

The sign of a lag, everywhere::

    first layer   ____|\_________        lag = time in the later layer - time in the first layer
    later layer   _________|\____
                      |----|  lag > 0: the later layer follows, the first layer leads
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from stabilitylab.findings import Episode, Event
from stabilitylab.second_opinion import Curves
from stabilitylab.stats.correlation import Alike
from stabilitylab.stats.lag import (
    FEWEST,
    ambiguous,
    by_cluster,
    cluster,
    match,
    max_flip_p,
    median_interval,
    medians_of,
    sign_p,
    signed_ranks,
)
from stabilitylab.stats.page import Trend, page_trend
from stabilitylab.stats.surrogates import association, jitter, shift_blocks

__all__ = ["AGAINST", "AMBIGUOUS", "COLUMNS", "FEWEST", "WIDTHS", "depth_trend", "lags", "side_by_side"]

WIDTHS = (25, 50, 100, 200, 400)
"""Steps by which clusters of the first layer are moved at most: the p-value of an association for each of them."""

USUAL_WIDTH = 200
"""The width whose p-value is corrected over layers; so is that of the smallest one of twice what counts as near, which
hardly leaves a short phase."""

BLOCK = 500
"""Steps of a block whose events are shifted together."""

LARGEST = 4_000_000
"""Draws times spikes at most; with very many spikes there are fewer draws, at least 200."""

SIMILAR = 1.5
"""Events whose heights differ by no more than this factor cannot differ in time because of their heights."""

AMBIGUOUS = "spikes come so regularly that those on the other side may as well be the partners"
AGAINST = "in one of the runs, taken alone, the order is the other way around"

COLUMNS = (
    "first", "layer", "depth", "events_first", "events_layer", "matched", "clusters", "later", "ties", "sooner",
    "lag", "low", "high", "lag_peak", "low_peak", "high_peak", "p", "p_adjusted", "p_wilcoxon", "p_smallest",
    "lag_least", "lag_most", "ambiguous", "similar", "lag_similar", "lag_alike", "low_alike", "high_alike", "agrees",
    "near", "near_by_chance", *(f"p_near_{width}" for width in WIDTHS), "p_near_shift", "p_near_adjusted",
    "runs", "runs_agree", "most_of_one_run", "verdict", "reason",
)  # fmt: skip
"""The columns of a table of lags.

``lag``, ``low``, ``high``: median over ``clusters`` in steps between onsets (half-rise), ``*_peak`` between peaks.
``p``: sign test over clusters; ``p_adjusted``: of onsets or of peaks, whichever is larger, corrected over layers by the
largest statistic; ``p_wilcoxon``: likewise by signed ranks of onsets; ``p_smallest``: what so many clusters without a
tie could reach. ``lag_least``, ``lag_most``: over thresholds. ``ambiguous``: whether the events on the other side may
as well be the partners, as of regular spikes with a long lag. ``lag_similar``: of the ``similar`` pairs whose heights
differ by a factor of at most `SIMILAR`. ``*_alike``: lag of the largest cross-correlation of the log magnitudes, and
``agrees``: 1 if its interval meets that of the lag, else 0. ``near``: events of the first layer with one of this layer
nearby; ``p_near_*``: against clusters of the first layer moved by so many steps at most, or shifted in blocks of
`BLOCK`; ``p_near_adjusted``: over layers, the largest of three. ``runs``: those with a match; in ``runs_agree`` of them
the lag has the sign of the whole; ``most_of_one_run``: matches in the run with most. ``verdict``: leads, follows,
together, inconclusive, or too few events.
"""


class Spikes(NamedTuple):
    """The spikes of one layer, ordered by onset; each of shape (N,)."""

    onset: np.ndarray
    peak: np.ndarray
    height: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, events: Iterable[Event]) -> Spikes:
        rows = sorted((each.onset, each.peak, each.height, each.score) for each in events)
        return cls(*np.array(rows, dtype=float).reshape(-1, 4).T)


class _Matched(NamedTuple):
    """The matched events of a layer: lags of onsets and of peaks, and the cluster; each of shape (number of pairs,)."""

    onset: np.ndarray
    peak: np.ndarray
    cluster: np.ndarray


def lags(
    spikes: Iterable[Event] | Iterable[Iterable[Event]],
    layers: Sequence[str],
    first: str,
    *,
    window: int = 100,
    near: int = 10,
    gap: int = 20,
    alpha: float = 0.05,
    thresholds: Sequence[float] = (4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0),
    draws: int = 2000,
    seed: int = 0,
    magnitudes: pd.DataFrame | Sequence[pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Return one row for each layer other than the first: matched events, lag with its interval, and a verdict.

    Args:
        spikes: events of all layers, the label is the layer; or a list of these, one for each run, which are pooled
            so that nothing reaches from one run into another. What is not finite is left out: one NaN reaches every
            layer in the same backward pass and says nothing of their order.
        layers: names in depth order.
        first: the layer that sees the input.
        window: steps within which events are matched one to one.
        near: steps within which events count as associated.
        gap: steps that separate clusters of events, the units of intervals, sign flips and surrogates.
        alpha: level of the tests, corrected over layers.
        thresholds: scores from which on the sign of the lag must not turn.
        draws: number of bootstrap samples and surrogates.
        seed: of the random draws.
        magnitudes: gradient norm of each layer, index ``step``, for the second opinion; of several runs a list.

    Returns:
        Columns `COLUMNS`; the verdicts are said of the first layer.
    """
    runs = _runs(spikes)
    together, shifts = side_by_side(runs, 2 * (window + BLOCK + max(WIDTHS)))
    of = _by_layer(together, [first, *layers])
    lead = of.pop(first)
    clusters = cluster(lead.onset, gap)
    rng = np.random.default_rng(seed)
    near_by = _associations(lead, clusters, list(of.values()), near, draws, rng)
    frames = [magnitudes] if isinstance(magnitudes, pd.DataFrame) else list(magnitudes or ())
    begins = np.unique(clusters, return_index=True)[1]
    curves = Curves.around(frames, shifts, first, lead.onset[begins], window)
    starts = np.array([min(each.start for each in run) + by for run, by in zip(runs, shifts, strict=True) if run])
    found = [_row(lead, own, clusters, starts, window, thresholds) for own in of.values()]
    rows = [row for row, _ in found]
    for name, row, around in zip(of, rows, near_by, strict=True):
        alike = curves.compare(name, np.random.default_rng([seed, 1]), draws)
        row |= {"first": first, "layer": name, "depth": list(layers).index(name)} | around
        row |= _second_opinion(row, alike)
    _judge(rows, [matched for _, matched in found], alpha, rng)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _by_layer(events: Iterable[Event], layers: Sequence[str]) -> dict[str, Spikes]:
    """Return the finite spikes of each layer, in the order of the layers."""
    of: dict[str, list[Event]] = {name: [] for name in layers}
    for each in events:
        if each.label in of and np.isfinite(each.height):
            of[each.label].append(each)
    return {name: Spikes.of(each) for name, each in of.items()}


def _runs(spikes: Iterable[Event] | Iterable[Iterable[Event]]) -> list[list[Event]]:
    given: list[Event | Iterable[Event]] = list(spikes)
    events = [each for each in given if isinstance(each, Event)]
    if len(events) == len(given):
        return [events]
    return [list(each) for each in given if not isinstance(each, Event)]


def side_by_side(runs: Sequence[Sequence[Event]], apart: int) -> tuple[list[Event], list[int]]:
    """Return the events of several runs on one line of time, so far apart that none is near one of another run.

    Args:
        runs: the events of each.
        apart: steps between runs, at least.

    Returns:
        The events, and by how many steps those of each run were moved: whole blocks, 0 for the first that has any.
    """
    line: list[Event] = []
    moves: list[int] = []
    end: int | None = None
    for events in runs:
        begin = min((each.start for each in events), default=0)
        move = 0 if end is None else -(-(end + apart - begin) // BLOCK) * BLOCK
        line += [
            replace(
                each, start=each.start + move, onset=each.onset + move, peak=each.peak + move, stop=each.stop + move
            )
            for each in events
        ]
        moves.append(move)
        if events:
            end = max(each.stop for each in events) + move
    return line, moves


def _row(
    lead: Spikes, later: Spikes, clusters: np.ndarray, starts: np.ndarray, window: int, thresholds: Sequence[float]
) -> tuple[dict[str, Any], _Matched]:
    """Return what follows from the matched events of one layer, and their lags."""
    pairs = match(lead.onset, later.onset, window)
    ours, theirs = pairs.T
    onset = later.onset[theirs] - lead.onset[ours]
    member = clusters[ours]
    middles = by_cluster(onset, member)
    untied = int((middles != 0).sum())
    similar = onset[np.abs(np.log(later.height[theirs] / lead.height[ours])) <= np.log(SIMILAR)]
    over = _over_thresholds(lead, later, window, thresholds)
    row: dict[str, Any] = {
        "events_first": len(lead.onset),
        "events_layer": len(later.onset),
        "matched": len(pairs),
        "clusters": len(middles),
        "later": int((onset > 0).sum()),
        "ties": int((onset == 0).sum()),
        "sooner": int((onset < 0).sum()),
        "p": sign_p(middles) if len(pairs) else np.nan,
        "p_smallest": min(1.0, 2.0 ** (1 - untied)) if len(pairs) else np.nan,
        "lag_least": min(over, default=np.nan),
        "lag_most": max(over, default=np.nan),
        "ambiguous": ambiguous(lead.onset, later.onset, pairs),
        "similar": len(similar),
        "lag_similar": float(np.median(similar)) if len(similar) >= FEWEST else np.nan,
    }
    peak = later.peak[theirs] - lead.peak[ours]
    for suffix, values in (("", onset), ("_peak", peak)):
        row[f"lag{suffix}"] = float(np.median(by_cluster(values, member))) if len(values) else np.nan
        row[f"low{suffix}"], row[f"high{suffix}"] = median_interval(values, member)
    row |= _by_run(onset, member, np.searchsorted(starts, lead.onset[ours], side="right"), float(row["lag"]))
    return row, _Matched(onset, peak, member)


def _by_run(lags: np.ndarray, member: np.ndarray, run: np.ndarray, lag: float) -> dict[str, Any]:
    """Return how many runs have a match, how many of them have the sign of the lag, and whether one contradicts it."""
    numbers, counts = np.unique(run, return_counts=True)
    middles = [by_cluster(lags[run == each], member[run == each]) for each in numbers]
    agree = [float(np.median(each)) * lag > 0 for each in middles]
    against = [sign_p(each) for each, same in zip(middles, agree, strict=True) if not same and np.median(each) != 0]
    return {
        "runs": len(numbers),
        "runs_agree": sum(agree),
        "most_of_one_run": int(counts.max(initial=0)),
        "p_against": min(min(against, default=1.0) * len(numbers), 1.0),
    }


def _over_thresholds(lead: Spikes, later: Spikes, window: int, thresholds: Sequence[float]) -> list[float]:
    """Return the median lag for each threshold that leaves enough events."""
    found = []
    for threshold in (0.0, *thresholds):
        first, others = lead.onset[lead.score >= threshold], later.onset[later.score >= threshold]
        ours, theirs = match(first, others, window).T
        if len(ours) >= FEWEST:
            found.append(float(np.median(others[theirs] - first[ours])))
    return found


def _associations(
    lead: Spikes, clusters: np.ndarray, later: Sequence[Spikes], near: int, draws: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return how many spikes of the first layer have one of each other nearby, by chance too, and the p-values."""
    others = [each.onset for each in later]
    draws = min(draws, max(LARGEST // max(len(lead.onset), 1), 200))
    moved = {
        f"p_near_{width}": association(lead.onset, others, jitter(lead.onset, width, draws, rng, clusters), near)
        for width in WIDTHS
    }
    moved["p_near_shift"] = association(lead.onset, others, shift_blocks(lead.onset, BLOCK, draws, rng), near)
    narrow = next((width for width in WIDTHS if width >= 2 * near), WIDTHS[-1])
    tests = [moved[f"p_near_{width}"] for width in (narrow, USUAL_WIDTH)] + [moved["p_near_shift"]]
    usual, blocks = moved[f"p_near_{USUAL_WIDTH}"], moved["p_near_shift"]
    rows = []
    for at, each in enumerate(others):
        known = len(lead.onset) > 0 and len(each) > 0
        p = {name: float(found.p[at]) if known else np.nan for name, found in moved.items()}
        p["p_near_adjusted"] = max(float(each.p_adjusted[at]) for each in tests) if known else np.nan
        chance = max(float(usual.expected[at]), float(blocks.expected[at]))
        rows.append({"near": int(usual.together[at]), "near_by_chance": chance} | p)
    return rows


def _second_opinion(row: Mapping[str, Any], alike: Alike) -> dict[str, float]:
    """Return the lag of the cross-correlation and whether it agrees: intervals that meet, or miss by a step."""
    known = not np.isnan(alike.lag + row["low"])
    agrees = float(alike.low <= row["high"] + 1 and alike.high >= row["low"] - 1) if known else np.nan
    return {"lag_alike": alike.lag, "low_alike": alike.low, "high_alike": alike.high, "agrees": agrees}


def _judge(rows: Sequence[dict[str, Any]], matched: Sequence[_Matched], alpha: float, rng: np.random.Generator) -> None:
    """Add the p-values that are corrected over the layers that have enough matched events, and the verdicts."""
    judged = [at for at, row in enumerate(rows) if row["matched"] >= FEWEST]
    adjusted = np.full((3, len(rows)), np.nan)
    if judged:
        members = [matched[at].cluster for at in judged]
        episodes = 1 + max(int(each.max()) for each in members)
        onsets = medians_of([matched[at].onset for at in judged], members, episodes)
        peaks = medians_of([matched[at].peak for at in judged], members, episodes)
        scores = (np.sign(np.nan_to_num(onsets)), np.sign(np.nan_to_num(peaks)), signed_ranks(onsets))
        for line, each in zip(adjusted, scores, strict=True):
            line[judged] = max_flip_p(each, rng)
    for row, (by_onset, by_peak, by_rank) in zip(rows, adjusted.T.tolist(), strict=True):
        # heights that differ over layers can shift either onsets or peaks: a lead is one of both
        row["p_adjusted"], row["p_wilcoxon"] = max(by_onset, by_peak), by_rank
        row["verdict"], row["reason"] = _verdict(row, alpha)


def _verdict(row: Mapping[str, Any], alpha: float) -> tuple[str, str]:
    if row["matched"] < FEWEST:
        return "too few events", f"{row['matched']} matched events, {FEWEST} needed"
    doubt = _doubt(row, alpha)
    above, below = (row["low"] > 0 and row["low_peak"] > 0), (row["high"] < 0 and row["high_peak"] < 0)
    if row["p_adjusted"] <= alpha and (above or below) and not doubt:
        heights = "and among events of similar height" if row["similar"] >= FEWEST else "of any heights"
        word = "above" if above else "below"
        return (
            "leads" if above else "follows",
            f"the lag is {word} zero by onset and by peak, at all thresholds {heights}",
        )
    # whole steps: a lag of one is anything up to one and a half
    if max(abs(row["low"]), abs(row["high"])) < 1.5 and all(
        abs(row[name]) <= 1 for name in ("lag", "lag_peak", "lag_least", "lag_most")
    ):
        return "together", "the interval of the lag lies within one step of zero, as one backward pass would make it"
    if doubt:
        return "inconclusive", doubt
    if row["p_smallest"] > alpha:
        return "inconclusive", f"so few separate episodes ({row['clusters']}) with an order cannot reach p = {alpha:g}"
    if row["low"] > 0 or row["high"] < 0:
        return "inconclusive", "the lag does not stand the correction over layers, or the peaks do not confirm it"
    return "inconclusive", "the interval of the lag includes zero and is wider than one step"


def _doubt(row: Mapping[str, Any], alpha: float) -> str:
    """Return why the sign of a lag is not believed; nothing if it is."""
    if row["ambiguous"]:
        return AMBIGUOUS
    if row["p_against"] <= alpha:
        return AGAINST
    if row["lag_least"] * row["lag_most"] < 0:
        return "the sign of the lag turns with the detection threshold"
    if row["lag"] * row["lag_similar"] < 0:
        return "the sign of the lag turns among events of similar height"
    if row["lag"] * row["lag_peak"] < 0:
        return "onsets and peaks disagree in sign"
    return ""


def depth_trend(
    episodes: Iterable[Episode], layers: Sequence[str], seed: int = 0, time: Literal["onset", "peak"] = "onset"
) -> Trend:
    """Return Page's test of the onsets, or peaks, within episodes over the layers in depth order.

    A layer without a finite spike in an episode is left out of it; see `stabilitylab.stats.page.page_trend`.
    """
    place = {name: at for at, name in enumerate(layers)}
    rows = []
    for each in episodes:
        row = np.full(len(layers), np.nan)
        for event in each.events:
            if event.label in place and np.isfinite(event.height):
                row[place[event.label]] = getattr(event, time)
        rows.append(row)
    return page_trend(np.array(rows).reshape(-1, len(layers)), np.random.default_rng(seed))

"""What is told of where spikes begin, whether the first layer leads, and whether they run through the depth."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.findings import Episode, Event, Finding
from stabilitylab.leads import AGAINST, AMBIGUOUS, FEWEST, WIDTHS, depth_trend
from stabilitylab.phrasing import count, ending, equals, joined, signed
from stabilitylab.sampling import spacing
from stabilitylab.stats.precedence import Precedence, precedence
from stabilitylab.telling.evidence import Evidence

__all__ = ["say_depth", "say_lead", "tell_lead", "tell_origin"]


def tell_origin(evidence: Evidence) -> list[Finding]:
    """Say which layers are hit first and tallest."""
    episodes = [each for each in evidence.episodes if len(each.events) > 1]
    if not episodes:
        return []
    first = evidence.run.layers.first
    begin = Counter(name for each in episodes for name in each.first_layers)
    alone = Counter(each.first_layers[0] for each in episodes if len(each.first_layers) == 1)
    tallest = Counter(each.tallest[0] for each in episodes if len(each.tallest) == 1)
    number, lone = len(episodes), alone.total()
    together = number - lone
    every = spacing(evidence.frames["gradients.norm"].index.to_numpy())
    same = "the same step" if every == 1 else f"the same row, {every:,} steps from the next"
    if number == 1:
        sentence = f"The one spike that hits more than one layer begins in {joined(episodes[0].first_layers)}"
        sentence += f" at {same}" if together else ""
    else:
        sentence = f"Of {number} spikes that hit more than one layer, {alone[first]} begin{ending(alone[first])} in "
        sentence += f"the first layer ({first}) alone and {lone - alone[first]} in another layer alone"
        often = [f"{name} ({times})" for name, times in alone.most_common() if name != first]
        sentence += f": {joined(often, 3)}" if often else ""
        sentence += f"; in {together} several layers begin at {same}"
    sentence += "."
    (top, most), (_, next_most) = [*tallest.most_common(2), ("", 0), ("", 0)][:2]
    if most > next_most and (most > 1 or number == 1):
        sentence += f" Tallest{' most often' if number > 1 else ''}: {top} ({most} of {number})."
    by_onset, by_peak = _precedence(
        episodes, evidence.of("spike", series="gradients.norm"), first, evidence.parameters["seed"]
    )
    p_first = max(by_onset.p_sooner, by_peak.p_sooner)
    p_other = max(by_onset.p_later, by_peak.p_later)
    elsewhere = sum(first not in each.first_layers for each in episodes)
    numbers = {
        "episodes": number,
        "begin_in": dict(begin),
        "begin_alone_in": dict(alone),
        "tallest_in": dict(tallest),
        "several_begin_together": together,
        "first_layer_sooner": by_onset.sooner,
        "first_layer_later": by_onset.later,
        "p_first_layer": p_first,
        "p_other_layers": p_other,
    }
    alpha = evidence.parameters["alpha"]
    if number < 3:
        verdict = "too few events"
    elif 2 * together > number:
        verdict = "together" if every == 1 else "no single layer"
    elif p_first <= alpha and alone[first] > elsewhere:
        verdict = "first layer"
    elif p_other <= alpha and alone[first] < elsewhere:
        verdict = "other layers"
    else:
        verdict = "no single layer"
    events = tuple(sorted(event for each in episodes for event in each.events))
    method = (
        "earliest onset (half-rise on the log scale) and largest ratio within each episode; one-sided sign test of "
        "whether the first layer comes before most of the others that were hit or after, against any order of the "
        "spikes of an episode, in which a layer of many comes early more often; of onsets and of peaks the larger p"
    )
    parameters = {"episode_gap": evidence.parameters["episode_gap"], "alpha": alpha}
    return [Finding("where spikes begin", sentence, verdict, numbers, method, parameters, events)]


def _precedence(episodes: Sequence[Episode], spikes: Sequence[Event], first: str, seed: int) -> list[Precedence]:
    """Return how often the first layer comes sooner than most of those that an episode hits, by onset and by peak.

    Args:
        episodes: any order; each keeps the tallest spike of a layer alone.
        spikes: of all layers, ordered by start.
        first: layer.
        seed: of the random orders.
    """
    hits = []
    for each in episodes:
        hit = [event.label for event in each.events]
        names = [first, *(name for name in hit if name != first)]
        since = bisect_left(spikes, each.start, key=lambda one: one.start)
        until = bisect_right(spikes, each.stop, key=lambda one: one.start)
        own = [(names.index(one.label), one.onset, one.peak) for one in spikes[since:until] if one.label in names]
        if first in hit:
            hits.append(np.array(own).T)
    layers, onsets, peaks = zip(*hits, strict=True) if hits else ((), (), ())
    return [precedence(layers, onsets, times, np.random.default_rng(seed)) for times in (onsets, peaks)]


LEAD_METHOD = (
    "one-to-one matched events; median lag of onsets over clusters, with an interval of interpolated order statistics; "
    "exact sign test over clusters, corrected over layers by the largest statistic when clusters are mirrored in time "
    "(beside it Wilcoxon's); test and interval of onsets and of peaks must both hold, and the sign must not turn "
    "over thresholds, among events of similar height or in a run of several, nor may the events on the other side keep "
    "a steadier distance; association against clusters of the first layer moved at "
    "random within several widths, and shifted in blocks; second opinion: cross-correlation of the log magnitudes"
)

ALIKE = {"lag_alike": "lag", "low_alike": "low", "high_alike": "high"}

DEPTH_METHOD = (
    "Page's test of the ranks of onsets (half-rise) within each spike over the layers in depth order, equal onsets at "
    "their mean rank, layers without a spike left out; and the same statistic when spikes are mirrored in time; "
    "peaks must confirm it, because heights that differ over layers can shift onsets"
)


def tell_lead(evidence: Evidence) -> list[Finding]:
    """Say of which layers the first one rises before, with, or after, and whether spikes run through the depth."""
    if not evidence.episodes or evidence.lags.empty:
        return []
    layers = evidence.run.layers.names
    return [
        say_lead(evidence.lags, evidence.parameters, spacing(evidence.frames["gradients.norm"].index.to_numpy())),
        *say_depth(evidence.episodes, layers, evidence.parameters),
    ]


def say_lead(table: pd.DataFrame, parameters: Mapping[str, Any], every: int = 1) -> Finding:
    """Return what a table of lags says, see `stabilitylab.leads.lags`; it has a row or more.

    Args:
        table: of lags.
        parameters: of the analysis.
        every: steps between the rows of the gradients.
    """
    counts = {name: int((table["verdict"] == name).sum()) for name in dict.fromkeys(table["verdict"])}
    judged = table[table["verdict"] != "too few events"]
    claimed = [name for name in ("leads", "follows") if name in counts]
    if judged.empty:
        verdict = "too few events"
    elif len(claimed) == 1:
        verdict = claimed[0] + (" some layers" if 2 * counts[claimed[0]] <= len(judged) else "")
    elif claimed:
        verdict = "in between"
    else:
        verdict = "together" if counts.get("together") == len(judged) else "inconclusive"
    apart = judged[judged["agrees"] == 0]
    numbers = {
        "verdicts": counts,
        "judged": len(judged),
        "matched": dict(zip(table["layer"], table["matched"], strict=True)),
        "clusters": dict(zip(table["layer"], table["clusters"], strict=True)),
        "ties": dict(zip(table["layer"], table["ties"], strict=True)),
        "p_smallest": float(judged["p_smallest"].min()),
        "associated": int((judged["p_near_adjusted"] <= parameters["alpha"]).sum()),
        "p_near_by_width": {str(width): float(judged[f"p_near_{width}"].max()) for width in WIDTHS},
        "other_by_correlation": dict(zip(apart["layer"], apart["lag_alike"], strict=True)),
    }
    used = {name: parameters[name] for name in ("window", "near", "alpha", "thresholds", "draws", "seed")}
    sentence = _too_few(table) if judged.empty else _order(table, judged, parameters, every)
    return Finding("lead", sentence, verdict, numbers, LEAD_METHOD, used)


def _too_few(table: pd.DataFrame) -> str:
    most = int(table["matched"].max())
    return (
        f"Whether {table['first'].iloc[0]} leads cannot be said: at most {count(most, 'spike')} of it "
        f"{'is' if most == 1 else 'are'} matched in any later layer, and at least {FEWEST} are needed."
    )


def _order(table: pd.DataFrame, judged: pd.DataFrame, parameters: Mapping[str, Any], every: int) -> str:
    """Say the order of the layers that could be judged, on how much it stands, and what speaks against it."""
    first = table["first"].iloc[0]
    groups = dict(iter(judged.groupby("verdict", sort=False)))
    if "follows" in groups:  # told as how much later it is itself
        turned = groups["follows"]
        groups["follows"] = turned.assign(lag=-turned["lag"], low=-turned["high"], high=-turned["low"])
    parts = [f"{verb} {joined(_lags(groups[verb]))}" for verb in ("leads", "follows") if verb in groups]
    if "together" in groups:
        names = joined(list(groups["together"]["layer"]))
        parts.append(f"rises within one step of {names} (all layers share one backward pass)")
    if "inconclusive" in groups:
        parts.append(f"has no clear order with {joined(list(groups['inconclusive']['layer']))}")
    said = [f"By spike onsets, {first} {'; '.join(parts)}"]
    if len(judged) < len(table):
        said.append(f"Too few events for {count(len(table) - len(judged), 'layer')}")
    ties = _between(judged["ties"]) if judged["ties"].any() else "none"
    least = judged["p_smallest"].min()
    reach = f"p could not fall below {least:.2g}" if least < 1 else "ties alone tell of no order"
    said.append(
        f"This stands on {_between(judged['matched'])} matched spikes a layer, {ties} of them at the same "
        f"{'step' if every == 1 else 'row'}; {reach}"
    )
    if judged["runs"].max() > 1:
        said.append(
            f"They come from {_between(judged['runs'])} runs, in which the order is the same in "
            f"{_between(judged['runs_agree'])}; one run has {_between(judged['most_of_one_run'])} of them"
        )
    near = parameters["near"]
    longer = (judged["low"] > near) | (judged["high"] < -near)  # a lag beyond what counts as near
    alone = judged[~(judged["p_near_adjusted"] <= parameters["alpha"]) & ~longer]
    if len(alone):
        within = f"within {near} steps of a spike of {first}"
        said.append(f"Not clearly more often than by chance {within}: {joined(list(alone['layer']))}")
    for reason in (AMBIGUOUS, AGAINST):
        doubted = judged[judged["reason"] == reason]
        if len(doubted):
            said.append(f"{reason[:1].upper()}{reason[1:]}: {joined(list(doubted['layer']))}")
    apart = judged[judged["agrees"] == 0]
    if len(apart):
        other = apart.drop(columns=["lag", "low", "high"]).rename(columns=ALIKE)
        said.append(f"The cross-correlation of the curves disagrees: {joined(_lags(other, ''), 3)}")
    return ". ".join(said) + "."


def _lags(rows: pd.DataFrame, by: str = "by ") -> list[str]:
    """Return layer and lag, with its interval where there is one, of each row."""
    said = []
    for layer, lag, low, high in zip(rows["layer"], rows["lag"], rows["low"], rows["high"], strict=True):
        interval = f" [{signed(low)}, {signed(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
        said.append(f"{layer} {by}{signed(lag)} step{'' if abs(lag) == 1 else 's'}{interval}")
    return said


def _between(numbers: pd.Series) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def say_depth(episodes: Sequence[Episode], layers: Sequence[str], parameters: Mapping[str, Any]) -> list[Finding]:
    """Say whether onsets come later, or sooner, the deeper the layer; nothing of fewer than three layers."""
    if len(layers) < 3:
        return []
    trend, peaks = (depth_trend(episodes, layers, parameters["seed"], time) for time in ("onset", "peak"))
    p_peak = max(peaks.p, peaks.p_mirror) if peaks.z * trend.z > 0 else 1.0
    sure = max(trend.p, trend.p_mirror, p_peak) <= parameters["alpha"]
    if trend.rows < FEWEST:
        verdict = "too few events"
        sentence = (
            f"Whether spikes run through the depth cannot be said: {count(trend.rows, 'spike')} "
            f"hit{ending(trend.rows)} three layers or more at different steps, and at least {FEWEST} are needed."
        )
    else:
        verdict = ("deeper later" if trend.z > 0 else "deeper sooner") if sure else "none"
        way = "later" if trend.z > 0 else "sooner"
        claim = "no order is seen" if verdict == "none" else f"the deeper the layer, the {way} it spikes"
        sentence = (
            f"Over depth {claim}: mean rank correlation of onset and depth {trend.correlation:+.2f} in "
            f"{count(trend.rows, 'spike')} (Page's test p {equals(trend.p)}, mirrored in time p "
            f"{equals(trend.p_mirror)}; of peaks p {equals(p_peak)})."
        )
    used = {name: parameters[name] for name in ("episode_gap", "alpha", "seed")}
    return [Finding("order over depth", sentence, verdict, trend._asdict() | {"p_peak": p_peak}, DEPTH_METHOD, used)]

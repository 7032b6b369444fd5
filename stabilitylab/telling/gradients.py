"""What is told of gradient spikes: how many, where they begin, and whether the first layer leads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from stabilitylab.detectors.spike import Resolution
from stabilitylab.findings import Finding
from stabilitylab.phrasing import count, ending, joined, ratio, signed, span
from stabilitylab.stats.proportion import binomial_p
from stabilitylab.telling.evidence import Evidence

__all__ = ["tell_lead", "tell_origin", "tell_spikes"]


SPIKE_METHOD = (
    "log magnitude of each layer against a robust level and scale of its past, frozen during events; "
    "threshold from the tails of the whitened noise; events of all layers joined into episodes"
)


def tell_spikes(evidence: Evidence) -> list[Finding]:
    """Say how many gradient spikes there are, or what could have been seen."""
    frame = evidence.frames.get("gradients.norm")
    judged = {name: each for name, each in evidence.resolution.items() if each.judged > 0}
    if frame is None or frame.empty:
        return []
    where = f"{span(frame)} of {count(len(judged), 'layer')}"
    parameters = evidence.parameters["spike"]
    episodes, shifts = evidence.episodes, evidence.of("shift", series="gradients.norm")
    chance = sum(each.chance for each in judged.values())
    several = sum(len(each.events) > 1 for each in episodes)
    numbers: dict[str, Any] = {
        "episodes": len(episodes),
        "episodes_in_several_layers": several,
        "events": sum(len(each.events) for each in episodes),
        "false_alarms_expected": chance,
        "shifts": len(shifts),
        "samples": len(frame),
        "layers": len(judged),
        "resolution": {name: each.ratio for name, each in judged.items()},
    }
    if not judged and not episodes:
        sentence = f"The record of {span(frame)} is too short, or without any gradient, to look for spikes."
        return [Finding("spikes", sentence, "not judged", numbers, SPIKE_METHOD, parameters)]
    if not episodes:
        sentence = f"No gradient spike found in {where}; {_reach(judged)}."
    else:
        events = [event for each in episodes for event in each.events]
        top = max(events, key=lambda each: each.height)
        size = "not finite" if np.isinf(top.height) else ratio(top.height)
        numbers |= {"tallest": top.height, "tallest_layer": top.label, "tallest_step": top.peak}
        in_several = f"{several} of them" if len(episodes) > 1 else ("seen" if several else "not seen")
        sentence = (
            f"{count(len(episodes), 'gradient spike')} in {where}, {in_several} in more than one layer at once; "
            f"the largest: {top.label} at step {top.peak:,}, {size}. "
            f"By chance {'fewer than 0.1' if chance < 0.1 else f'up to about {chance:,.1f}'} would be seen, "
            "each in a single layer."
        )
    if shifts:
        sentence += f" The level of {joined([each.label for each in shifts])} rose for good, "
        sentence += f"first at step {shifts[0].start:,}; this is not counted as a spike."
    events_of = tuple(sorted([event for each in episodes for event in each.events] + shifts))
    verdict = "spikes" if episodes else "none"
    return [Finding("spikes", sentence, verdict, numbers, SPIKE_METHOD, parameters, events_of)]


def _reach(judged: Mapping[str, Resolution]) -> str:
    """Say what could have been seen."""
    ratios = {name: each.ratio for name, each in judged.items()}
    usual, worst = float(np.median(list(ratios.values()))), max(ratios, key=lambda name: ratios[name])
    said = f"a spike of at least {ratio(usual)} would usually have been seen"
    if ratios[worst] > 1.3 * usual:
        said += f" (in the noisiest layer, {worst}, only from {ratio(ratios[worst])})"
    return said


def tell_origin(evidence: Evidence) -> list[Finding]:
    """Say which layers are hit first and tallest."""
    episodes = [each for each in evidence.episodes if len(each.events) > 1]
    if not episodes:
        return []
    first = evidence.run.layers.first
    begin = Counter(name for each in episodes for name in each.first_layers)
    alone = Counter(each.first_layers[0] for each in episodes if len(each.first_layers) == 1)
    tallest = Counter(max(each.events, key=lambda event: event.height).label for each in episodes)
    number, lone = len(episodes), alone.total()
    together = number - lone
    top, top_count = tallest.most_common(1)[0]
    if number == 1:
        sentence = f"The one spike that hits more than one layer begins in {joined(episodes[0].first_layers)}"
        sentence += " at the same step" if together else ""
    else:
        sentence = f"Of {number} spikes that hit more than one layer, {alone[first]} begin{ending(alone[first])} in "
        sentence += f"the first layer ({first}) alone and {lone - alone[first]} in another layer alone"
        often = [f"{name} ({times})" for name, times in alone.most_common() if name != first]
        sentence += f": {joined(often, 3)}" if often else ""
        sentence += f"; in {together} several layers begin at the same step"
    sentence += f". Tallest{' most often' if number > 1 else ''}: {top} ({top_count} of {number})."
    p_first, p_other = binomial_p(alone[first], lone), binomial_p(lone - alone[first], lone)
    numbers = {
        "episodes": number,
        "begin_in": dict(begin),
        "begin_alone_in": dict(alone),
        "tallest_in": dict(tallest),
        "several_begin_together": together,
        "p_first_layer": p_first,
    }
    alpha = evidence.parameters["alpha"]
    if number < 3:
        verdict = "too few events"
    elif 2 * together > number:
        verdict = "together"
    elif p_first <= alpha:
        verdict = "first layer"
    elif p_other <= alpha:
        verdict = "other layers"
    else:
        verdict = "no single layer"
    events = tuple(sorted(event for each in episodes for event in each.events))
    method = (
        "earliest onset (half-rise on the log scale) and largest ratio within each episode; one-sided binomial test of "
        "the episodes that begin in one layer alone"
    )
    parameters = {"episode_gap": evidence.parameters["episode_gap"], "alpha": alpha}
    return [Finding("where spikes begin", sentence, verdict, numbers, method, parameters, events)]


LEAD_METHOD = (
    "one-to-one matched events; median lag of onsets with an interval over episodes; exact sign test, corrected over "
    "layers by the largest statistic under flips of whole episodes; onsets and peaks must agree, and so must the "
    "sign over detection thresholds"
)


def tell_lead(evidence: Evidence) -> list[Finding]:
    """Say of which layers the first one rises before, with, or after."""
    table = evidence.lags
    if not evidence.episodes or table.empty:
        return []
    first = evidence.run.layers.first
    groups = {name: table[table["verdict"] == name] for name in dict.fromkeys(table["verdict"])}
    counts = {name: len(rows) for name, rows in groups.items()}
    parts = []
    for verdict, verb in (("leads", "leads"), ("follows", "follows")):
        if verdict in groups:
            said = [
                f"{row.layer} by {signed(row.lag)} steps [{signed(row.low)}, {signed(row.high)}]"
                for row in groups[verdict].itertuples()
            ]
            parts.append(f"{verb} {joined(said)}")
    if "together" in groups:
        names = joined(list(groups["together"]["layer"]))
        parts.append(f"rises within one step of {names} (all layers share one backward pass)")
    if "inconclusive" in groups:
        parts.append(f"has no clear order with {joined(list(groups['inconclusive']['layer']))}")
    few = groups.get("too few events")
    if few is not None and len(few) == len(table):
        most = int(table["matched"].max())
        sentence = (
            f"Whether {first} leads cannot be said: at most {count(most, 'spike')} of it "
            f"{'is' if most == 1 else 'are'} matched in any later layer, and at least 5 are needed."
        )
    else:
        sentence = f"By spike onsets, {first} {'; '.join(parts)}."
        if few is not None:
            sentence += f" Too few events for {count(len(few), 'layer')}."
    judged = len(table) - counts.get("too few events", 0)
    claimed = [name for name in ("leads", "follows") if name in counts]
    if not judged:
        verdict = "too few events"
    elif len(claimed) == 1:
        verdict = claimed[0] + (" some layers" if 2 * counts[claimed[0]] <= judged else "")
    else:
        verdict = "together" if counts.get("together") == judged else "inconclusive"
    numbers = {
        "verdicts": counts,
        "judged": judged,
        "matched": dict(zip(table["layer"], table["matched"], strict=True)),
    }
    parameters = {
        name: evidence.parameters[name] for name in ("window", "near", "alpha", "thresholds", "draws", "seed")
    }
    return [Finding("lead", sentence, verdict, numbers, LEAD_METHOD, parameters)]

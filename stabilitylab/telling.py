"""From the evidence to findings: sentences that a person understands, each with what it stands on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.detectors import divergence
from stabilitylab.detectors.dip import Compared
from stabilitylab.detectors.spike import Resolution
from stabilitylab.episodes import aftermath, expected_followers
from stabilitylab.findings import Episode, Event, Finding
from stabilitylab.leads import FEWEST
from stabilitylab.phrasing import count, ending, joined, p_value, ratio, signed, span, times
from stabilitylab.run import Run
from stabilitylab.stats.proportion import binomial_p

__all__ = ["Evidence", "tell"]


@dataclass(frozen=True)
class Evidence:
    """All that the findings are told from."""

    run: Run
    frames: Mapping[str, pd.DataFrame]
    """The series that were there, gradients layer by layer."""
    events: tuple[Event, ...]
    episodes: tuple[Episode, ...]
    lags: pd.DataFrame
    resolution: Mapping[str, Resolution]
    """Layer to what could have been seen in it."""
    compared: Mapping[str, Compared]
    """Column of the accuracy to how its measurements were compared."""
    parameters: Mapping[str, Any]

    def of(self, *kinds: str, series: str | None = None) -> list[Event]:
        """Return the events of some kinds, of one series or of all."""
        return [each for each in self.events if each.kind in kinds and series in (None, each.series)]


def tell(evidence: Evidence) -> list[Finding]:
    """Return the findings in the order in which a person wants to read them."""
    return [
        *_divergence(evidence),
        *_spikes(evidence),
        *_origin(evidence),
        *_lead(evidence),
        *_dips(evidence),
        *_aftermath(evidence),
        *_collapse(evidence),
        *_others(evidence),
        *_not_judged(evidence),
    ]


def _divergence(evidence: Evidence) -> list[Finding]:
    frame = evidence.frames.get("training.loss")
    if frame is None or frame.empty:
        return []
    events = evidence.of("divergence")
    method = "loss not finite, or a jump over its robust past level that does not return before the record ends"
    parameters = evidence.parameters.get("divergence", {})
    finite = np.isfinite(frame.to_numpy(dtype=float)).all(axis=1)
    broken = frame.index[~finite]
    gone = [each for each in events if np.isfinite(each.height)]
    patience = int(parameters.get("patience", 0))
    needed = patience + divergence.LEARNED
    parts = [f"The loss stayed finite in {span(frame)}."]
    if len(broken):
        parts = [f"The loss was not finite at {count(len(broken), 'step')}, first at step {broken[0]:,}."]
    if gone:
        parts.append(f"It left its level at step {gone[0].start:,} and did not come back.")
    elif finite.sum() < needed:
        parts.append(f"Whether it left its level for good cannot be judged with fewer than {needed:,} finite losses.")
    else:
        parts.append(f"It did not leave its level for good, as far as can be told of the last {patience:,}.")
    numbers = {"not_finite": len(broken), "samples": len(frame)}
    if len(broken) or gone:
        numbers["first"] = min([int(each) for each in broken[:1]] + [each.start for each in gone])
    verdict = "diverged" if events or len(broken) else ("not judged" if finite.sum() < needed else "none")
    return [Finding("divergence", " ".join(parts), verdict, numbers, method, parameters, tuple(events))]


SPIKE_METHOD = (
    "log magnitude of each layer against a robust level and scale of its past, frozen during events; "
    "threshold from the tails of the whitened noise; events of all layers joined into episodes"
)


def _spikes(evidence: Evidence) -> list[Finding]:
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


def _origin(evidence: Evidence) -> list[Finding]:
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


def _lead(evidence: Evidence) -> list[Finding]:
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


def _dips(evidence: Evidence) -> list[Finding]:
    frame = evidence.frames.get("knn.accuracy")
    if frame is None or frame.empty:
        return []
    about = evidence.run.about("knn.accuracy")
    label = "bank" if "bank" in frame else str(frame.columns[0])
    events = [each for each in evidence.of("dip", "step", "drop", series="knn.accuracy") if each.label == label]
    others = len(evidence.of("dip", "step", "drop", series="knn.accuracy")) - len(events)
    method = "fall below the median of the five measurements before, larger than the curve's own fluctuation"
    compared = evidence.compared.get(label, Compared(0, 0))
    if about.get("samples") or compared.paired:
        kind = "the binomial error"
        if compared.paired:
            kind = "McNemar's test on the same images"
            if compared.paired < compared.judged:
                kind += f" where their votes are known, at {compared.paired:,} of {compared.judged:,} measurements"
                kind += ", else the binomial error" if about.get("samples") else ""
        images = f" ({about['samples']} images)" if about.get("samples") else ""
        method += f", and not explained by {kind}{images}, corrected along the curve"
    measured = int(frame[label].notna().sum())
    kinds = Counter(each.kind for each in events)
    numbers: dict[str, Any] = {
        "measurements": measured, "dips": kinds["dip"], "steps": kinds["step"], "drops": kinds["drop"],
        "in_other_columns": others, "judged": compared.judged, "paired": compared.paired,
    }  # fmt: skip
    parameters = {"dip": evidence.parameters.get("dip", {}), "horizon": evidence.parameters["horizon"]}
    if measured < 14:
        sentence = f"The kNN accuracy was measured {times(measured)}: too few to tell a dip from its fluctuation."
        return [Finding("dips", sentence, "not judged", numbers, method, parameters)]
    if not events:
        sentence = f"No dip of the kNN accuracy beyond its fluctuation in {measured:,} measurements."
        return [Finding("dips", sentence, "none", numbers, method, parameters)]
    deepest = max(events, key=lambda each: each.height)
    numbers |= {"deepest": deepest.height, "deepest_step": deepest.peak}
    said = [count(kinds["dip"], "dip")] if kinds["dip"] else []
    said += [f"{count(kinds['step'], 'step')} down that did not recover"] if kinds["step"] else []
    said += ["one fall that is still open at the end"] if kinds["drop"] else []
    sentence = f"{joined(said)} of the kNN accuracy in {measured:,} measurements; the deepest is "
    sentence += f"{100 * deepest.height:.1f} points at step {deepest.peak:,}."
    gradients = evidence.frames.get("gradients.norm")
    if gradients is not None and not gradients.empty:
        span = (int(frame.index[0]), int(frame.index[-1]))
        horizon = evidence.parameters["horizon"]
        seen, expected, p = expected_followers(evidence.episodes, events, horizon, span)
        numbers |= {"after_spike": seen, "after_spike_by_chance": expected, "p_after_spike": p}
        sentence += f" {seen} of {len(events)} begin{ending(seen)} within {horizon} steps after a gradient spike"
        sentence += f"; {expected:.1f} would by chance (p = {p_value(p)})."
    return [Finding("dips", sentence, "dips", numbers, method, parameters, tuple(events))]


def _aftermath(evidence: Evidence) -> list[Finding]:
    """Say whether the accuracy falls after spikes on average, which small falls one by one cannot show."""
    frame = evidence.frames.get("knn.accuracy")
    if frame is None or frame.empty or not evidence.episodes:
        return []
    label = "bank" if "bank" in frame else str(frame.columns[0])
    used = {name: evidence.parameters[name] for name in ("horizon", "alpha", "draws", "seed")}
    rng = np.random.default_rng(used["seed"])
    found = aftermath(evidence.episodes, frame[label], rng, used["horizon"], draws=used["draws"])
    method = (
        "median of the five measurements before each gradient spike less the mean of the two after it, averaged; "
        "against the same with the spikes moved by up to 500 steps"
    )
    numbers = {"episodes": found.episodes, "fall": found.fall, "by_chance": found.by_chance, "p": found.p}
    if found.episodes < FEWEST:
        sentence = f"Whether the kNN accuracy falls after gradient spikes on average cannot be said of {found.episodes}"
        sentence += f": at least {FEWEST}, more than {used['horizon']} steps apart, are needed."
        return [Finding("after spikes", sentence, "too few events", numbers, method, used)]
    way = "lower" if found.fall >= 0 else "higher"
    sentence = (
        f"After {found.episodes} gradient spikes the kNN accuracy is {100 * abs(found.fall):.1f} points {way} on "
        f"average than before ({100 * found.by_chance:+.1f} points of fall by chance, p = {p_value(found.p)})."
    )
    verdict = "falls" if found.p <= used["alpha"] and found.fall > 0 else "none"
    return [Finding("after spikes", sentence, verdict, numbers, method, used)]


def _collapse(evidence: Evidence) -> list[Finding]:
    findings = []
    for name in ("spectrum.representation", "spectrum.projection"):
        frame = evidence.frames.get(name)
        if frame is None or frame.empty:
            continue
        tap, about = name.split(".")[1], evidence.run.about(name)
        dimensions, samples = frame.shape[1], about.get("samples")
        measurable = min(dimensions, max(int(samples) - 1, 1)) if samples else dimensions
        events = evidence.of("collapse", series=name)
        numbers: dict[str, Any] = {"tap": tap, "dimensions": dimensions, "samples": samples, "measurable": measurable}
        limits = evidence.parameters.get("collapse", {})
        method = (
            "eigenvalues of the centred covariance: dead below a part of the largest and of a power law through the "
            "larger ones, less what sampling leaves; complete where the total variance vanishes"
        )
        if "spectrum.rank" in evidence.run and tap in evidence.run.about("spectrum.rank")["labels"]:
            rank = evidence.run.read("spectrum.rank", [tap])[tap].dropna()
            if len(rank):
                numbers |= {"rank_first": float(rank.iloc[0]), "rank_last": float(rank.iloc[-1])}
        of = f"{measurable} directions" + (f" ({samples} samples, {dimensions} dimensions)" if samples else "")
        if not events and len(frame) < limits.get("persistence", 3):
            sentence = f"Too few spectra of the {tap} ({len(frame)}) to speak of collapse."
            verdict = "not judged"
        elif not events:
            sentence = f"No collapse of the {tap} in {count(len(frame), 'spectrum', 'spectra')} of {of}."
            verdict = "none"
        else:
            verdict = "complete" if any(each.label == "0" for each in events) else "dimensional"
            worst = min(events, key=lambda each: int(each.label))
            until = "to the end" if worst.stop == int(frame.index[-1]) else f"to step {worst.stop:,}"
            what = "All embeddings become equal" if verdict == "complete" else f"{int(worst.height)} of {of} are dead"
            sentence = f"{what} in the {tap}, from step {worst.start:,} {until}."
            numbers |= {"dead": int(worst.height), "since": worst.start, "until": worst.stop}
        if "rank_last" in numbers:
            sentence += f" Effective rank {numbers['rank_first']:.3g} at first, {numbers['rank_last']:.3g} at last."
        findings.append(Finding("collapse", sentence, verdict, numbers, method, limits, tuple(events)))
    return findings


def _others(evidence: Evidence) -> list[Finding]:
    """Say what detectors found that this module does not know."""
    known = {"spike", "shift", "divergence", "dip", "step", "drop", "collapse"}
    findings = []
    for kind in sorted({each.kind for each in evidence.events} - known):
        events = tuple(evidence.of(kind))
        names = joined(sorted({each.series for each in events}))
        sentence = f"{count(len(events), 'event')} of kind {kind} in {names}, first at step {events[0].start:,}."
        findings.append(Finding(kind, sentence, "found", {"events": len(events)}, "", {}, events))
    return findings


WANTED = {
    "gradients.norm": "gradient spikes and which layer leads",
    "knn.accuracy": "dips of the accuracy",
    "training.loss": "divergence",
    "spectrum.representation": "collapse of the representation",
    "spectrum.projection": "collapse of the projection",
}


def _not_judged(evidence: Evidence) -> list[Finding]:
    reasons = {}
    layers = evidence.run.layers
    for name, what in WANTED.items():
        if name not in evidence.run:
            reasons[name] = f"{what}: {name} was not recorded"
        elif name == "gradients.norm" and not layers.names:
            reasons[name] = f"{what}: the run names no layers"
        elif evidence.frames[name].empty:
            reasons[name] = f"{what}: {name} holds no rows"
    if "gradients.norm" not in reasons:
        resolution = evidence.resolution.get(layers.first)
        if resolution is None or resolution.judged == 0:
            reasons["first layer"] = f"what the first layer does: {layers.first} has no gradient, or too few steps"
        steps = evidence.frames["gradients.norm"].index
        every = int(np.median(np.diff(steps))) if len(steps) > 1 else 1
        if every > 1:
            reasons["sampling"] = f"lags under {every} steps: gradients were recorded every {every} steps"
    for name, why in evidence.run.header.get("disabled", {}).items():
        last = (str(why.get("traceback", "")).strip().splitlines() or ["no traceback"])[-1].strip()
        reasons[f"probe {name}"] = f"the probe {name} was switched off at step {why.get('step', '?')}: {last}"
    if not reasons:
        return []
    sentence = f"Not judged: {'; '.join(reasons.values())}."
    return [Finding("not judged", sentence, "not judged", {"reasons": reasons})]

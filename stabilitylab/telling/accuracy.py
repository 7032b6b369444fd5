"""What is told of the accuracy: its dips, and how it stands after spikes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from stabilitylab.detectors import dip
from stabilitylab.detectors.dip import Compared
from stabilitylab.episodes import WIDTHS, aftermath, expected_followers
from stabilitylab.findings import Finding
from stabilitylab.leads import FEWEST
from stabilitylab.phrasing import count, ending, equals, joined
from stabilitylab.telling.evidence import Evidence
from stabilitylab.trials import LENGTH, Trials

__all__ = ["tell_aftermath", "tell_dips"]


def tell_dips(evidence: Evidence) -> list[Finding]:
    """Say how often the accuracy fell, and how many falls follow a spike."""
    frame = evidence.frames.get("knn.accuracy")
    if frame is None or frame.empty:
        return []
    about = evidence.run.about("knn.accuracy")
    label = "bank" if "bank" in frame else str(frame.columns[0])
    events = [each for each in evidence.of("dip", "step", "drop", series="knn.accuracy") if each.label == label]
    others = len(evidence.of("dip", "step", "drop", series="knn.accuracy")) - len(events)
    method = "fall below the median of the five measurements before, larger than the curve's own fluctuation or of two "
    method += "measurements with a sharp edge"
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
    curve = dip.measured(frame[label])
    measured = len(curve)
    kinds = Counter(each.kind for each in events)
    numbers: dict[str, Any] = {
        "measurements": measured, "dips": kinds["dip"], "steps": kinds["step"], "drops": kinds["drop"],
        "in_other_columns": others, "judged": compared.judged, "paired": compared.paired,
    }  # fmt: skip
    trials = evidence.trials.get("knn.accuracy")
    numbers |= evidence.tried("knn.accuracy")
    parameters = {"dip": evidence.parameters.get("dip", {}), "horizon": evidence.parameters["horizon"]}
    if not measured:
        sentence = f"None of the {count(len(frame), 'measurement')} of the kNN accuracy is finite."
        return [Finding("dips", sentence, "not judged", numbers, method, parameters)]
    if not compared.judged:
        sentence = f"{count(measured, 'measurement')} of the kNN accuracy: too few to tell a dip from its fluctuation. "
        sentence += f"Falls can be judged where there are {dip.FEWEST_MEASUREMENTS}: probe more often."
        return [Finding("dips", sentence, "not judged", numbers, method, parameters)]
    if not events and compared.smallest >= curve.max():
        sentence = f"The kNN accuracy fluctuates so much in {measured:,} measurements that no fall of it can be told."
        return [Finding("dips", sentence, "not judged", numbers, method, parameters)]
    if not events:
        sentence = f"No dip of the kNN accuracy beyond its fluctuation in {measured:,} measurements"
        sentence += f"{_reach(trials, compared)}."
        return [Finding("dips", sentence, "none", numbers, method, parameters)]
    deepest = max(events, key=lambda each: each.height)
    numbers |= {"deepest": deepest.height, "deepest_step": deepest.peak}
    numbers["area_lost"] = sum(dip.area_lost(each, curve) for each in events)
    said = [count(kinds["dip"], "dip")] if kinds["dip"] else []
    said += [count(kinds["step"], "lasting fall")] if kinds["step"] else []
    said += ["one fall that was still open at the end"] if kinds["drop"] else []
    sentence = f"The kNN accuracy has {joined(said)} in {measured:,} measurements, "
    sentence += f"{'the deepest ' if len(events) > 1 else ''}of {100 * deepest.height:.1f} points at step "
    sentence += f"{deepest.peak:,}."
    costs = "Together they cost" if len(events) > 1 else "It costs"
    sentence += f" {costs} an area of {numbers['area_lost']:,.1f} (part of 1 times steps"
    patience = parameters["dip"].get("patience")
    sentence += f"; lasting falls over {patience} measurements)." if kinds["step"] and patience else ")."
    gradients = evidence.frames.get("gradients.norm")
    if gradients is not None and not gradients.empty and evidence.episodes:
        span = (int(frame.index[0]), int(frame.index[-1]))
        horizon = evidence.parameters["horizon"]
        seen, expected, p = expected_followers(evidence.episodes, events, horizon, span)
        numbers |= {"after_spike": seen, "after_spike_by_chance": expected, "p_after_spike": p}
        sentence += f" {seen} of {len(events)} begin{ending(seen)} within {horizon} steps after a gradient spike"
        sentence += f"; {expected:.1f} would by chance (p {equals(p)})."
    return [Finding("dips", sentence, "dips", numbers, method, parameters, tuple(events))]


def _reach(trials: Trials | None, compared: Compared) -> str:
    """Say what would have been found of planted dips, and how many are to be expected of noise."""
    if trials is None:
        smallest = f"{100 * compared.smallest:.1f} points"
        return f", out of which a fall of less than {smallest} does not stand" if np.isfinite(compared.smallest) else ""
    seen = [depth for depth, found in trials.found.items() if found >= 0.8]
    depth = count(round(100 * (min(seen) if seen else max(trials.found))), "point")
    some = f"one of {depth}" if seen else f"even one of {depth}"
    how = "would usually have been found" if seen else "might have been missed"
    return f"; {some} over {LENGTH} measurements {how}, and {trials.to_expect} would be expected of noise alone"


def tell_aftermath(evidence: Evidence) -> list[Finding]:
    """Say whether the accuracy falls after spikes on average, which small falls one by one cannot show."""
    frame = evidence.frames.get("knn.accuracy")
    if frame is None or frame.empty or not evidence.episodes:
        return []
    label = "bank" if "bank" in frame else str(frame.columns[0])
    used = {name: evidence.parameters[name] for name in ("horizon", "alpha", "draws", "seed")}
    rng = np.random.default_rng(used["seed"])
    found = aftermath(evidence.episodes, dip.measured(frame[label]), rng, used["horizon"], draws=used["draws"])
    method = (
        "median of the five measurements before each gradient spike less the mean of the next two, and of each stretch "
        "within the horizon the largest, averaged; against the same with the spikes moved by up to "
        f"{' and by up to '.join(map(str, WIDTHS))} steps, of which the larger p counts; the smaller p of both "
        "questions, doubled"
    )
    numbers = {
        "episodes": found.episodes, "fall": found.fall, "by_chance": found.by_chance, "p": found.p,
        "delay": found.delay,
    }  # fmt: skip
    total, usable = len(evidence.episodes), f"more than {used['horizon']} steps apart, with five measurements before"
    if found.episodes < FEWEST:
        sentence = (
            f"Whether the kNN accuracy falls after gradient spikes on average cannot be said: {found.episodes} of "
            f"{total} can be used, and at least {FEWEST} are needed, {usable} each and two within {used['horizon']} "
            "steps after it."
        )
        return [Finding("after spikes", sentence, "too few events", numbers, method, used)]
    way, other = ("lower" if fall >= 0 else "higher" for fall in (found.fall, found.by_chance))
    which = f"{found.episodes} of {total} gradient spikes ({usable} and two after each)"
    bound = ("" if found.p <= used["alpha"] else " at most") if found.fall >= 0 else " at least"
    sentence = (
        f"After {which if found.episodes < total else count(total, 'gradient spike')} the kNN accuracy is"
        f"{bound} {100 * abs(found.fall):.1f} points {way} on average than "
        f"before, {count(found.delay, 'step')} after the start ({100 * abs(found.by_chance):.1f} {other} by chance, "
        f"p {equals(found.p)})."
    )
    verdict = "falls" if found.p <= used["alpha"] and found.fall > 0 else "none"
    return [Finding("after spikes", sentence, verdict, numbers, method, used)]

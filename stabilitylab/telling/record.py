"""What is told of the loss, of the spectra, of events of other kinds, and of what could not be judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.detectors import collapse, divergence
from stabilitylab.findings import Event, Finding
from stabilitylab.phrasing import count, joined, ratio, rounded, span
from stabilitylab.sampling import blind_span
from stabilitylab.telling.evidence import Evidence
from stabilitylab.trials import Trials

__all__ = ["tell_collapse", "tell_divergence", "tell_not_judged", "tell_others", "tell_recording"]


def tell_divergence(evidence: Evidence) -> list[Finding]:
    """Say whether the loss stayed finite and at its level."""
    frame = evidence.frames.get("training.loss")
    if frame is None or frame.empty:
        return []
    events = evidence.of("divergence", "rise", series="training.loss")
    method = (
        "loss not finite; a jump over its robust past level that does not return before the record ends; a fall "
        "that is lost again, or an ever faster rise, beyond its wandering"
    )
    parameters = evidence.parameters.get("divergence", {})
    finite = np.isfinite(frame.to_numpy(dtype=float)).all(axis=1)
    broken = frame.index[~finite]
    gone = [each for each in events if np.isfinite(each.height) and each.kind == "divergence"]
    rising = [each for each in events if each.kind == "rise"]
    patience = int(parameters.get("patience", 0))
    needed = patience + divergence.LEARNED
    parts = [f"The loss stayed finite in {span(frame)}."]
    if len(broken):
        parts = [f"The loss was not finite at {count(len(broken), 'step')}, first at step {broken[0]:,}."]
    if len(broken) and not finite[-1]:
        parts.append("It is not finite where the record ends.")
    if gone:
        parts.append(f"It left its level at step {gone[0].start:,} and did not come back.")
    elif rising:
        parts.append(_rise(rising[0], frame, patience))
    elif len(broken) and not finite[-1]:
        pass  # it is gone anyhow
    elif finite.sum() < needed:
        parts.append(f"Whether it left its level for good cannot be judged with fewer than {needed:,} finite losses.")
    else:
        parts.append(
            f"It did not leave its level for good, as far as can be told of the last {divergence.OPEN} losses"
            f"{_jumps(evidence.trials.get('training.loss')) if np.ptp(frame.to_numpy()[finite, 0]) else ''}."
        )
    end = min((each.start for each in (*gone, *rising)), default=np.inf)
    spikes = [
        each for each in evidence.companions
        if (each.series, each.kind) == ("training.loss", "spike") and np.isfinite(each.height) and each.stop < end
    ]  # fmt: skip
    if spikes:
        top = max(spikes, key=lambda each: each.height)
        tallest = "the tallest " if len(spikes) > 1 else ""
        said = (
            f"It has {count(len(spikes), 'spike')} that came back, {tallest}{ratio(top.height)} at step {top.peak:,}."
        )
        parts.append(said)
    numbers: dict[str, Any] = {"not_finite": len(broken), "samples": len(frame), "spikes": len(spikes)}
    since = {"first_not_finite": [int(each) for each in broken[:1]],
             "left_level": [each.start for each in gone], "rising_since": [each.start for each in rising]}  # fmt: skip
    numbers |= {name: min(steps) for name, steps in since.items() if steps}
    if any(since.values()):
        numbers["first"] = min(step for steps in since.values() for step in steps)
    if spikes:
        numbers |= {"tallest_spike": top.height, "tallest_spike_step": top.peak}
    numbers |= evidence.tried("training.loss")
    verdict = "diverged" if gone or len(broken) else "rising" if rising else "none"
    if verdict == "none" and finite.sum() < needed:
        verdict = "not judged"
    return [Finding("divergence", " ".join(parts), verdict, numbers, method, parameters, tuple(events))]


def _rise(rise: Event, frame: pd.DataFrame, patience: int) -> str:
    """Say that the loss is away from its level where the record ends."""
    height, last = rounded(rise.height), int(frame.index[-1])
    if int((frame.index >= rise.start).sum()) >= patience:
        return (
            f"It rises slowly, and still did where the record ends: from step {rise.start:,} on it lies above its "
            f"lowest level beyond its wandering, by up to {height}."
        )
    return (
        f"It left its level at step {rise.start:,}, by {height}, and had not come back at step {last:,}: whether it "
        f"will cannot be told from fewer than {patience:,} losses."
    )


def _jumps(trials: Trials | None) -> str:
    """Say which planted jumps would have been found, and how many noise makes."""
    if trials is None:
        return ""
    seen = [times for times, found in trials.found.items() if found >= 0.8]
    size = f"{min(seen) if seen else max(trials.found):.0f} times its noise"
    how = f"a jump of {size} would usually have been found" if seen else f"even a jump of {size} might have been missed"
    return f"; {how}, and {trials.to_expect} would be expected of noise alone"


def tell_collapse(evidence: Evidence) -> list[Finding]:
    """Say of each tap whether its directions died, and its effective rank."""
    findings = []
    for name in collapse.Detector.series:
        frame = evidence.frames.get(name)
        if frame is None or frame.empty:
            continue
        place = name.split(".")[1].replace("_", " ")
        tap, about = name.split(".")[1], evidence.run.about(name)
        dimensions, samples = frame.shape[1], about.get("samples")
        whole = int(np.isfinite(frame.to_numpy(dtype=float)).all(axis=1).sum())
        measurable = min(dimensions, max(int(samples) - 1, 1)) if samples else dimensions
        events = evidence.of("collapse", series=name)
        if not events and tap not in TOLD:
            continue
        numbers: dict[str, Any] = {"tap": tap, "dimensions": dimensions, "samples": samples, "measurable": measurable}
        limits = evidence.parameters.get("collapse", {})
        method = (
            "eigenvalues of the centered covariance: dead below a part of the largest and of both a power and an "
            "exponential law through the larger ones, less what sampling leaves; complete where the total variance "
            "vanishes"
        )
        if "spectrum.rank" in evidence.run and tap in evidence.run.about("spectrum.rank")["labels"]:
            rank = evidence.run.read("spectrum.rank", [tap])[tap].dropna()
            if len(rank):
                numbers |= {"rank_first": float(rank.iloc[0]), "rank_last": float(rank.iloc[-1])}
        numbers |= evidence.tried(name)
        of = count(measurable, "direction") + (f" ({samples} samples, {dimensions} dimensions)" if samples else "")
        if not events and whole < limits.get("persistence", 3):
            sentence = f"Too few spectra of the {place} that are finite ({whole}) to speak of collapse."
            verdict = "not judged"
        elif not events:
            sentence = f"No collapse of the {place} in {count(whole, 'spectrum', 'spectra')} of {of}"
            sentence += f"{_reach(evidence.trials.get(name))}."
            verdict = "none"
        else:
            verdict = "complete" if any(each.label == "0" for each in events) else "dimensional"
            spread = collapse.deviation(evidence.run, name)
            detector = collapse.Detector(collapse.Parameters(**limits))
            counted = detector.count(frame, {**about, "feature_std": spread}).set_index("step")["dead"]
            numbers |= _worst(events, counted)
            sentence = _collapses(events, counted, place, of)
            if verdict == "dimensional" and len(events) == 1 and events[0].start == int(counted.index[0]):
                sentence += (
                    " They were so in the first spectrum: directions that the network cannot fill look the same."
                )
            if verdict == "complete" and spread is None:
                sentence += " Or their scale shrank that much: spectrum.feature_std, which would tell, is not recorded."
        if "rank_last" in numbers:
            sentence += f" Effective rank {numbers['rank_first']:.3g} at first, {numbers['rank_last']:.3g} at last."
        findings.append(Finding("collapse", sentence, verdict, numbers, method, limits, tuple(events)))
    return findings


def _worst(events: Sequence[Event], dead: pd.Series) -> dict[str, Any]:
    """Return the numbers of the collapse with the most dead directions; of equal ones the last."""
    worst = min(events, key=lambda each: (int(each.label), -each.start))
    numbers = {"collapses": len(events), "dead": int(worst.height), "since": worst.start, "until": worst.stop}
    numbers["at_end"] = max(each.stop for each in events) == int(dead.index[-1])
    return numbers | ({} if worst.label == "0" else {"dead_last": int(dead.loc[worst.stop])})


def _collapses(events: Sequence[Event], dead: pd.Series, place: str, of: str) -> str:
    """Say of up to three collapses what died and when, in the order of time."""
    clauses: list[str] = []
    told = [*events[:2], events[-1]] if len(events) > 3 else [*events]
    for each in told:
        until = "to the end" if each.stop == int(dead.index[-1]) else f"to step {each.stop:,}"
        complete, number, last = each.label == "0", int(each.height), int(dead.loc[each.stop])
        if clauses:
            what = "all embeddings become equal" if complete else f"{count(number, 'direction')} are dead"
        else:
            what = "All embeddings become equal" if complete else f"{number} of {of} are dead"
            what += f" in the {place},"
        most = f", at most; {last} at last" if not complete and last < number else ""
        clauses.append(f"{what} from step {each.start:,} {until}{most}")
    if len(events) > len(told):
        clauses.insert(2, f"{count(len(events) - len(told), 'further collapse')} in between")
    return f"{'; '.join(clauses)}."


def _reach(trials: Trials | None) -> str:
    """Say what would have been found of planted collapses."""
    if trials is None:
        return ""
    seen = [share for share, found in trials.found.items() if found >= 0.8]
    share = f"{100 * (min(seen) if seen else max(trials.found, default=0.0)):.0f} % of them dead"
    how = f"{share} would have been found" if seen else f"even {share} might have been missed"
    expected = f"{trials.to_expect} would be expected of these spectra alone"
    return f"; {how}, and {expected}" if trials.found else f"; {expected}"


def tell_recording(evidence: Evidence) -> list[Finding]:
    """Say what is wrong with the recording itself: gradients that the optimizer did not use, rows that are missing."""
    header = evidence.run.header
    check, lost = header.get("self_check"), header.get("lost")
    said, verdicts = [], []
    if isinstance(check, dict) and check.get("mistake") not in (None, "passed", "not checked"):
        verdicts.append(str(check["mistake"]))
        said.append(f"What was recorded is not what the optimizer used: {check.get('sentence', '')}")
    rows = [each for each in lost if isinstance(each, dict)] if isinstance(lost, list) else []
    if rows:
        verdicts.append("rows missing")
        names = joined([str(each.get("series")) for each in rows])
        reasons = joined([str(each.get("reason")) for each in rows])
        said.append(f"Rows of {names} never reached the disk: {reasons}.")
    if not said:
        return []
    method = "norms computed slowly in the first steps, and what the writer could not write"
    return [Finding("recording", " ".join(said), verdicts[0], {"self_check": check, "lost": rows}, method)]


def tell_others(evidence: Evidence) -> list[Finding]:
    """Say what detectors found that this module does not know."""
    known = {"spike", "shift", "divergence", "rise", "dip", "step", "drop", "drift", "collapse"}
    findings = []
    for kind in sorted({each.kind for each in evidence.events} - known):
        events = tuple(evidence.of(kind))
        names = joined(sorted({each.series for each in events}))
        sentence = f"{count(len(events), 'event')} of kind {kind} in {names}, first at step {events[0].start:,}."
        findings.append(Finding(kind, sentence, "found", {"events": len(events)}, "", {}, events))
    return findings


def _hint(evidence: Evidence) -> str:
    """Say how an accuracy that was imported from somebody's log can be judged."""
    imported = evidence.run.header.get("imported")
    maps = imported.get("accuracies") if isinstance(imported, dict) else None
    for name, value in maps.items() if isinstance(maps, dict) else ():
        return f" ({name} is taken for it if the log is imported with --map {value})"
    return ""


TOLD = ("representation", "projection")
"""Embeddings that are told of where nothing happened, too."""

WANTED = {
    "gradients.norm": "gradient spikes and which layer leads",
    "knn.accuracy": "dips of the accuracy",
    "training.loss": "divergence",
    "spectrum.representation": "collapse of the representation",
    "spectrum.projection": "collapse of the projection",
}


def tell_not_judged(evidence: Evidence) -> list[Finding]:
    """Say what was not there, or not enough, to be judged."""
    reasons = {}
    layers = evidence.run.layers
    for name, what in WANTED.items():
        if name not in evidence.run:
            reasons[name] = f"{what}: {name} was not recorded{_hint(evidence) if name == 'knn.accuracy' else ''}"
        elif name == "gradients.norm" and not layers.names:
            reasons[name] = f"{what}: the run names no layers"
        elif evidence.frames[name].empty:
            reasons[name] = f"{what}: {name} holds no rows"
    if "gradients.norm" not in reasons:
        resolution = evidence.resolution.get(layers.first)
        if resolution is None or resolution.judged == 0:
            reasons["first layer"] = f"what the first layer does: {layers.first} has no gradient, or too few steps"
        steps = evidence.frames["gradients.norm"].index
        apart = blind_span(steps.to_numpy())
        if apart > 1:
            reasons["sampling"] = f"lags under {apart:,} steps, which lie between rows of the gradients"
    for name, why in evidence.run.header.get("disabled", {}).items():
        last = (str(why.get("traceback", "")).strip().splitlines() or ["no traceback"])[-1].strip()
        reasons[f"probe {name}"] = f"the probe {name} was switched off at step {why.get('step', '?')}: {last}"
    if not reasons:
        return []
    sentence = f"Not judged: {'; '.join(reasons.values())}."
    return [Finding("not judged", sentence, "not judged", {"reasons": reasons})]

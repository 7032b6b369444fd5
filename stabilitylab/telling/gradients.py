"""What is told of gradient spikes: how many there are, how large, and what could have been seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.calibration import Calibration
from stabilitylab.detectors.spike import Resolution
from stabilitylab.findings import Finding
from stabilitylab.phrasing import count, joined, ratio, rounded, span
from stabilitylab.sampling import spacing
from stabilitylab.telling.evidence import Evidence

__all__ = ["tell_spikes"]


SPIKE_METHOD = (
    "log magnitude of each layer against a robust level and scale of its past, frozen during events; "
    "threshold from the tails of the whitened noise; events of all layers joined into episodes; expected false alarms "
    "and power from this run's quiet stretches, resampled in blocks and searched by the same detector"
)


def tell_spikes(evidence: Evidence) -> list[Finding]:
    """Say how many gradient spikes there are, or what could have been seen."""
    frame = evidence.frames.get("gradients.norm")
    judged = {name: each for name, each in evidence.resolution.items() if each.judged > 0}
    if frame is None or frame.empty:
        return []
    seen = judged.keys() | {event.label for each in evidence.episodes for event in each.events}
    where = f"{span(frame)} of {count(len(seen), 'layer')}"
    parameters = evidence.parameters["spike"]
    episodes, shifts = evidence.episodes, evidence.of("shift", series="gradients.norm")
    samples = sum(each.judged for each in judged.values())
    calibration = evidence.calibration
    several = sum(len(each.events) > 1 for each in episodes)
    numbers: dict[str, Any] = {
        "episodes": len(episodes),
        "episodes_in_several_layers": several,
        "events": sum(len(each.events) for each in episodes),
        "false_alarms_expected": evidence.calibration.false_alarms.value * samples / 1e4
        if evidence.calibration
        else None,
        "calibration": asdict(evidence.calibration) if evidence.calibration else None,
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
        tied = next(len(each.tallest) for each in episodes if top in each.events)
        numbers |= {"tallest": top.height, "tallest_step": top.peak} | (
            {} if tied > 1 else {"tallest_layer": top.label}
        )
        where_top = f"{count(tied, 'layer')} alike, first" if tied > 1 else top.label
        in_several = f"{several} of them" if len(episodes) > 1 else ("seen" if several else "not seen")
        at_once = f", {in_several} in more than one layer at once" if len(frame.columns) > 1 else ""
        sentence = f"{count(len(episodes), 'gradient spike')} in {where}{at_once}; "
        sentence += f"the largest: {where_top} at step {top.peak:,}, {size}."
    unit = "step" if spacing(frame.index.to_numpy()) == 1 else "row"
    sentence += _trust(calibration, samples, unit)
    first = min((each.first for each in judged.values()), default=0)
    sentence += f" The first {first:,} {unit}s only say what is usual: no spike is sought in them." if first else ""
    if not judged:
        sentence += " No layer has enough finite gradients to look for other spikes."
    if shifts:
        risen = joined([each.label for each in shifts])
        sentence += f" The level of {risen} rose and stayed up, for {parameters['patience']} {unit}s or more or to the "
        sentence += f"end, first at step {shifts[0].start:,}; only what stands out of such a rise counts as a spike."
    silent = _silent(frame)
    if silent:
        always = {int(frame.index[0]): "at every step"}
        since = ", ".join(f"{name} {always.get(step, f'from step {step:,} on')}" for name, step in silent.items())
        sentence += f" The gradient is exactly zero: of {since}."
        numbers["silent"] = silent
    broken = _broken(frame)
    if broken:
        numbers["not_finite"] = broken
        sentence += f" The gradient is not finite: of {_times(broken, int(frame.index[-1]), unit)}."
    events_of = tuple(sorted([event for each in episodes for event in each.events] + shifts))
    verdict = "spikes" if episodes else "none"
    return [Finding("spikes", sentence, verdict, numbers, SPIKE_METHOD, parameters, events_of)]


def _silent(frame: pd.DataFrame) -> dict[str, int]:
    """Return the layers that lost their gradient, and the step from which on it is exactly zero to the end.

    That is said of fifty steps or more, and of a layer that never had one.
    """
    found = {}
    for name in frame.columns:
        column = frame[name].dropna()
        some = np.flatnonzero(column.to_numpy() != 0)
        since = int(some[-1]) + 1 if len(some) else 0
        if len(column) and (since == 0 or len(column) - since >= 50):
            found[str(name)] = int(column.index[since])
    return found


def _broken(frame: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Return the layers whose gradient is not finite at some steps: at how many, the first and the last."""
    found = {}
    for name in frame.columns:
        steps = frame.index[~np.isfinite(frame[name].to_numpy())]
        if len(steps):
            found[str(name)] = {"steps": len(steps), "first": int(steps[0]), "last": int(steps[-1])}
    return found


def _times(broken: Mapping[str, Mapping[str, int]], end: int, unit: str) -> str:
    """Say of up to three layers, those alike told once, at how many steps they are not finite, and when."""
    alike: dict[tuple[int, int, int], list[str]] = {}
    for name, each in broken.items():
        alike.setdefault((each["steps"], each["first"], each["last"]), []).append(name)
    said = []
    for (number, first, last), names in list(alike.items())[:3]:
        until = "the end" if last == end else f"step {last:,}"
        when = f"at step {first:,}" if number == 1 else f"at {count(number, unit)} from step {first:,} to {until}"
        said.append(f"{joined(names, 3)} {when}")
    left = sum(map(len, list(alike.values())[3:]))
    return "; of ".join(said) + (f"; and of {count(left, 'further layer')}" if left else "")


def _trust(calibration: Calibration | None, samples: int, unit: str) -> str:
    """Say how often the noise of this run alone is taken for a spike, and how often a spike is found in it."""
    if calibration is None:
        return f" How many would be seen by chance cannot be said: too few quiet {unit}s."
    rate = calibration.false_alarms
    found = joined([f"{100 * each.value:.0f} % of {ratio(height)}" for height, each in calibration.power.items()])
    false, low, high = (rounded(each, 2) for each in (rate.value, rate.low, rate.high))
    here, fewest, most = (rounded(each * samples / 1e4, 2) for each in (rate.value, rate.low, rate.high))
    return (
        f" Noise like this run's alone gives {false} [{low}, {high}] spikes in 10,000 {unit}s of a layer, about {here} "
        f"[{fewest}, {most}] in this record, each in a single layer; of spikes of one {unit} planted in it {found} are "
        "found."
    )


def _reach(judged: Mapping[str, Resolution]) -> str:
    """Say what could have been seen."""
    ratios = {name: each.ratio for name, each in judged.items()}
    usual, worst = float(np.median(list(ratios.values()))), max(ratios, key=lambda name: ratios[name])
    said = f"a spike of at least {ratio(usual)} would usually have been seen"
    if ratios[worst] > 1.3 * usual:
        said += f" (in the noisiest layer, {worst}, only from {ratio(ratios[worst])})"
    return said

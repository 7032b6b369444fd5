"""What is told of disturbances that were planted on purpose: which were found, and how each layer responds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.findings import Finding
from stabilitylab.phrasing import count, joined, occasions, ratio, signed
from stabilitylab.telling.evidence import Evidence
from stabilitylab.telling.responses import LONGEST, Row, Told, frames_of, late, look, responses_of, touches

__all__ = ["tell_planted"]

METHOD = (
    "found: a detector that knows nothing of it has an event there, at most two rows late and before another "
    "disturbance begins (gradient: a spike in that layer), or its trace "
    "leaves its level, as long as it lasts, farther than windows of the same length elsewhere in the run do; a frozen "
    "momentum encoder: by a momentum of 1; killed dimensions: by directions without variance; responses: for every "
    "layer and series, all times against the quiet windows nearest by the rank sum of Mann and Whitney, corrected over "
    "columns"
)


def tell_planted(evidence: Evidence) -> list[Finding]:
    """Say of each planted disturbance what was found of it; nothing of a run without any."""
    entries = evidence.run.planted
    frames = frames_of(evidence) if entries else {}
    busy = [(first, min(last, first + LONGEST)) for each in entries for first, last in each["spans"]]
    return [_tell_one(evidence, frames, each, busy) for each in entries]


def _tell_one(
    evidence: Evidence, frames: Mapping[str, pd.DataFrame], entry: Mapping[str, Any], busy: Sequence[Sequence[int]]
) -> Finding:
    near, alpha = evidence.parameters["near"], evidence.parameters["alpha"]
    spans: list[list[int]] = entry["spans"]
    rows = [row for series, frame in frames.items() for row in responses_of(evidence, series, frame, spans, busy)]
    times = [look(evidence, frames, entry, at, busy) for at, each in enumerate(spans)]
    judged = [each for each in times if each.found is not None]
    found = [each for each in judged if each.found]
    verdict = "not judged"
    if judged:
        verdict = "all found" if len(found) == len(times) else "some found" if found else "none found"
    sentence = f"Planted, not the run's own: {entry['what']} {occasions(spans)}; {_how_many(times, judged, found)}"
    sentence += _layers_in_words(rows)
    numbers = {
        "planted": dict(entry), "found": len(found), "judged": len(judged), "times": [each._asdict() for each in times],
        "responses": [each._asdict() for each in rows],
    }  # fmt: skip
    behind = late(evidence)
    events = tuple(each for each in evidence.events if any(touches(each, span, behind, busy) for span in spans))
    return Finding("planted", sentence, verdict, numbers, METHOD, {"near": near, "alpha": alpha}, events)


def _how_many(times: Sequence[Told], judged: Sequence[Told], found: Sequence[Told]) -> str:
    if not judged:
        return "the record does not allow to say whether it was found."
    said = f"found {len(found)} of {len(times)}"
    said += f" ({len(times) - len(judged)} not judged)" if len(judged) < len(times) else ""
    missed = [f"{each.start:,}" for each in judged if not each.found]
    if found:
        late = float(np.median([each.at - each.start for each in found if each.at is not None]))
        when = "at its first step" if late == 0 else f"{late:g} steps after its first step"
        said += f", {when}{' on the median' if len(found) > 1 else ''}; the first by {found[0].by}"
    return said + (f"; missed at step{'s' if len(missed) > 1 else ''} {joined(missed)}." if missed else ".")


def _layers_in_words(rows: Sequence[Row]) -> str:
    """Say which layers respond in their gradients, and which other series do."""
    layers = [each for each in rows if each.series == "gradients.norm"]
    said = [f"{each.label} {ratio(each.change)} at {signed(each.lag)}" for each in layers if each.responds]
    sentence = ""
    if layers:
        sentence = f" {len(said)} of {count(len(layers), 'layer')} respond in their gradients"
        sentence += f": {joined(said, 8)}." if said else " beyond what they do anyway."
    if layers and all(each.responds is None for each in layers):
        sentence = " The run holds too little without disturbances to tell which layers respond."
    others: dict[str, list[Row]] = {}
    for each in rows:
        if each.series != "gradients.norm" and each.responds:
            others.setdefault(each.series, []).append(each)
    parts = []
    for series, those in others.items():
        far = max(those, key=lambda each: abs(each.change) if series == "knn.accuracy" else abs(np.log(each.change)))
        size = f"{100 * far.change:+.1f} points" if series == "knn.accuracy" else ratio(far.change)
        number = sum(each.series == series for each in rows)
        most = f"{len(those)} of {number}, most {far.label}" if number > 1 else far.label
        parts.append(f"{series} ({most}: {size} at {signed(far.lag)})")
    return sentence + (f" Other series that respond: {joined(parts)}." if parts else "")

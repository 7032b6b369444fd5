"""What is told of an accuracy that degrades slowly: against its own past, and against runs known to be good."""

from __future__ import annotations

from typing import Any

import numpy as np

from stabilitylab.detectors.drift import AT_WORST, FEWEST_MEASUREMENTS, Compared, Own, Parameters
from stabilitylab.findings import Finding
from stabilitylab.phrasing import count, equals
from stabilitylab.stats.reference import FEWEST
from stabilitylab.telling.evidence import Evidence

__all__ = ["tell_drift"]

METHOD = (
    "largest fall between two means over an eighth of the record (a quarter, if it is short), without dips and steps, "
    "against simulated curves that only rise and wander as this one does, with every memory that its likelihood "
    "allows, and against the sampling of images; at equal steps against the references by a prediction interval of "
    "Student's t"
)


def tell_drift(evidence: Evidence) -> list[Finding]:
    """Say whether the accuracy degraded without a fall."""
    frame = evidence.frames.get("knn.accuracy")
    if frame is None or frame.empty:
        return []
    label = "bank" if "bank" in frame else str(frame.columns[0])
    past, beside = evidence.drifted.get(label, (None, None))
    events = tuple(each for each in evidence.of("drift", series="knn.accuracy") if each.label == label)
    parameters = evidence.parameters.get("drift", {})
    numbers: dict[str, Any] = {"drifts": len(events)}
    said = []
    own = [each for each in events if past is not None and each.start == past.since and each.height == past.fall]
    behind = [each for each in events if each not in own]
    if past is not None:
        chance = min(1.0, AT_WORST * parameters.get("alpha", Parameters().alpha))
        numbers |= {"fall": past.fall, "p": past.p, "false_alarm_chance": chance}
        numbers |= {"reach": past.reach} if np.isfinite(past.reach) else {}
        said.append(_own(past, bool(own)))
    comparable = beside is not None and np.isfinite(beside.difference)
    if beside is not None and not comparable:
        said.append(f"It shares too few steps with {count(beside.references, 'reference run')} to be compared.")
    elif beside is not None:
        numbers |= {
            "references": beside.references, "compared_at": beside.last, "difference": beside.difference,
            "lowest_expected": beside.low, "plateau": beside.plateau, "plateau_references": list(beside.plateaus),
        }  # fmt: skip
        said.append(_beside(beside, behind[0].start if behind else None))
    if past is None and not comparable:
        sentence = "Too few measurements of the kNN accuracy to tell a slow fall from its wandering: "
        sentence += f"at least {FEWEST_MEASUREMENTS} beside its dips are needed."
        sentence = " ".join([sentence, *said])
        return [Finding("drift", sentence, "not judged", numbers, METHOD, parameters)]
    tested = past is not None or (beside is not None and comparable and beside.references >= FEWEST)
    verdict = "drift" if own else "worse than references" if behind else "none" if tested else "not judged"
    return [Finding("drift", " ".join(said), verdict, numbers, METHOD, parameters, events)]


def _own(past: Own, found: bool) -> str:
    if found:
        return (
            f"The kNN accuracy degrades slowly from step {past.since:,}: {100 * past.fall:.1f} points between its best "
            f"level and that up to step {past.until:,}, more than it wanders."
        )
    reach = f"one of {100 * past.reach:.1f} points would usually have been found"
    if not np.isfinite(past.reach):
        reach = "it wanders so much that any could have been missed"
    said = f"No slow fall of the kNN accuracy beyond its wandering: {reach}."
    if past.p > 0.5:
        return said
    largest = f" Its largest, {100 * past.fall:.1f} points up to step {past.until:,}, cannot be told from wandering"
    return f"{said}{largest} (p {equals(past.p)})."


def _beside(beside: Compared, since: int | None) -> str:
    runs = count(beside.references, "reference run")
    way = "below" if beside.difference < 0 else "above"
    said = f"At step {beside.last:,} it is {100 * abs(beside.difference):.1f} points {way} the mean of {runs}"
    if beside.references < FEWEST:
        return f"{said}; whether that is more than chance cannot be said of fewer than {FEWEST}."
    if since is None:
        return f"{said}, where one like them would seldom be {100 * abs(beside.low):.1f} below."
    early = (
        f" Its rise ended at step {beside.plateau:,}, theirs at {min(beside.plateaus):,} to {max(beside.plateaus):,}."
    )
    said += f", and lower than one like them would be from step {since:,} on."
    return said + (early if beside.plateau < min(beside.plateaus) else "")

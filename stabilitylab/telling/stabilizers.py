"""What is told of what the training did against instability: how often clipping and resets acted, and how much."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from stabilitylab.findings import Episode, Finding
from stabilitylab.phrasing import count, rounded, times
from stabilitylab.run import Run
from stabilitylab.telling.evidence import Evidence

__all__ = ["tell_stabilizers"]

METHOD = (
    "factors below 1 in the recorded steps; a spike counts as clipped where one lies between its first and last step; "
    "of resets, the spikes that begin within `near` steps after one"
)
MOSTLY = 0.5
"""What acts on more than this part of all it could act on guards against nothing rare."""

ACTED = 1 - 1e-6
"""A factor below this one is no rounding."""

TOGETHER = 16
"""So many columns are read at once."""

ENOUGH = 2**22
"""Of more factors than these, every so manyth counts for their median."""


class Action(NamedTuple):
    """One stabilizer: the series and the columns that say what it did, and its name in words."""

    what: str
    series: str
    columns: tuple[str, ...]
    of: str
    """What a column is."""


class Acts(NamedTuple):
    """What a stabilizer did."""

    what: str
    steps: int
    """Recorded steps."""
    acted: int
    """Those in which a factor is below 1 in at least one column."""
    share: float
    """Part of all factors, of every column, that are below 1."""
    most_often: str
    """Column with the most of them."""
    its_share: float
    """Part of its factors that are below 1."""
    usual: float
    """Median factor where below 1; NaN where none is."""
    smallest: float
    smallest_in: str | None
    """Column with it; None where none is below 1, as is its step."""
    smallest_step: int | None
    in_spikes: int
    """Gradient spikes in which it acted."""
    elsewhere: float
    """Part of the other steps in which it acted; NaN without any."""


def tell_stabilizers(evidence: Evidence) -> list[Finding]:
    """Say of each stabilizer that was recorded how often it acted, how much, and whether in the spikes."""
    spikes, near = len(evidence.episodes), evidence.parameters["near"]
    done = [(action, acts) for action in _actions(evidence.run) if (acts := _acts(evidence, action)) is not None]
    sentences = [_in_words(action, acts, spikes) for action, acts in done]
    numbers: dict[str, Any] = {"clipped": [acts._asdict() for _, acts in done]}
    acted = any(acts.acted for _, acts in done)
    resets = _resets(evidence, near)
    if resets is not None:
        numbers |= {"resets": resets[0], "after_reset": resets[1], "after_reset_by_chance": resets[2]}
        sentences.append(_resets_in_words(*resets, spikes, near))
        acted = acted or resets[0] > 0
    if not sentences:
        return []
    verdict = "acted" if acted else "never acted"
    return [Finding("stabilizers", " ".join(sentences), verdict, numbers, METHOD, {"near": near})]


def _actions(run: Run) -> Iterator[Action]:
    def labels(series: str) -> list[str]:
        return list(run.about(series)["labels"]) if series in run else []

    config: Any = run.config.get("stabilize")
    by_score = isinstance(config, dict) and config.get("clip") == "zclip"
    total = "Clipping by the z-score of the total norm" if by_score else "Clipping of the total norm"
    factors = labels("stabilizers.coefficient")
    unit = "layer" if set(factors) <= set(run.layers.names) else "tensor"
    by_part = factors != ["total"]
    groups = (
        ("Clipping to the norm that the loop names", "gradients.clip", labels("gradients.clip"), "norm"),
        (f"Clipping of each {unit}" if by_part else total, "stabilizers.coefficient", factors, unit),
        ("Clipping of the first layer alone", "stabilizers.first_layer", labels("stabilizers.first_layer"), "layer"),
        ("The optimizer's clipping of its update", "stabilizers.update", labels("stabilizers.update"), "tensor"),
    )
    for what, series, columns, of in groups:
        if columns:
            yield Action(what, series, tuple(columns), of)


def _acts(evidence: Evidence, action: Action) -> Acts | None:
    """Return what one did; a few columns at a time, so that no long run is held as a whole."""
    acted, steps = np.zeros(0, dtype=bool), np.empty(0, dtype="int64")
    shares, below, number, known = dict[str, float](), list[np.ndarray](), 0, 0
    least = (1.0, "", -1)
    for first in range(0, len(action.columns), TOGETHER):
        frame = evidence.run.read(action.series, action.columns[first : first + TOGETHER])
        steps = frame.index.to_numpy()
        acted = acted if acted.size else np.zeros(len(steps), dtype=bool)
        every = 1 + len(steps) * len(action.columns) // ENOUGH
        for column, series in frame.items():
            values = series.to_numpy(dtype=float)
            acts, finite = values < ACTED, int(np.isfinite(values).sum())
            acted |= acts
            times, known = int(acts.sum()), known + finite
            number, shares[str(column)] = number + times, times / max(finite, 1)
            below.append(values[acts][::every])
            if times:
                at = int(np.nanargmin(values))
                least = min(least, (float(values[at]), str(column), int(steps[at])))
    if not known:
        return None
    often = max(shares, key=shares.__getitem__)
    spiky, hit = _in_spikes(evidence.episodes, steps, acted)
    return Acts(
        what=action.what,
        steps=len(steps),
        acted=int(acted.sum()),
        share=number / known,
        most_often=often,
        its_share=shares[often],
        usual=float(np.median(np.concatenate(below))) if number else math.nan,
        smallest=least[0],
        smallest_in=least[1] or None,
        smallest_step=least[2] if number else None,
        in_spikes=hit,
        elsewhere=float(acted[~spiky].mean()) if (~spiky).any() else math.nan,
    )


def _in_spikes(episodes: tuple[Episode, ...], steps: np.ndarray, acted: np.ndarray) -> tuple[np.ndarray, int]:
    """Return which rows lie in a spike, and in how many spikes it acted."""
    spiky, hit = np.zeros(len(steps), dtype=bool), 0
    for each in episodes:
        first, last = np.searchsorted(steps, [each.start, each.stop + 1])
        spiky[first:last] = True
        hit += bool(acted[first:last].any())
    return spiky, hit


def _in_words(action: Action, acts: Acts, spikes: int) -> str:
    several = len(action.columns) > 1
    if not acts.acted:
        return f"{acts.what} never acted in {count(acts.steps, 'step')}."
    said = f"{acts.what} acted in {acts.acted:,} of {count(acts.steps, 'step')} ({_percent(acts.acted / acts.steps)})"
    if several:
        said += f", in at least one of {count(len(action.columns), action.of)}"
        said += f"; most often in {acts.most_often} ({_percent(acts.its_share)})"
    least = f"{rounded(acts.smallest, 2)} at step {acts.smallest_step:,}"
    said += f"; by a factor of {rounded(acts.usual, 2)} on the median, {least} at the strongest"
    said += f" ({acts.smallest_in})" if several else ""
    if spikes and acts.elsewhere <= MOSTLY:
        said += f"; in {acts.in_spikes:,} of {count(spikes, 'gradient spike')}"
        said += f" and {_percent(acts.elsewhere)} of the other steps"
    said += "."
    if acts.share > MOSTLY:
        said += " So often it scales the training as a whole, rather than guard it against what is rare."
    return said


def _percent(share: float) -> str:
    return f"{rounded(100 * share, 2)} %"


def _resets(evidence: Evidence, near: int) -> tuple[int, int, float] | None:
    """Return how often moments were forgotten, the spikes that begin soon after, and how many would by chance."""
    if "stabilizers.reset" not in evidence.run:
        return None
    column = evidence.run.read("stabilizers.reset").iloc[:, 0]
    steps = column.index.to_numpy()
    resets = steps[column.to_numpy(dtype=float) > 0]
    soon = np.zeros(len(steps), dtype=bool)
    for each in resets:
        soon[slice(*np.searchsorted(steps, [each, each + near + 1]))] = True
    begins = [each.start for each in evidence.episodes]
    after = sum(bool(((each - resets >= 0) & (each - resets <= near)).any()) for each in begins)
    return len(resets), after, float(soon.mean()) * len(begins) if len(steps) else 0.0


def _resets_in_words(resets: int, after: int, chance: float, spikes: int, near: int) -> str:
    said = f"The moments were forgotten {times(resets)}"
    if resets and spikes:
        said += f"; {after} of {count(spikes, 'gradient spike')} begin within {count(near, 'step')} after that, where "
        said += f"{rounded(chance, 2)} would if they came at any time"
    return f"{said}."

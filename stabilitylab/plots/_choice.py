"""Which layers and events a picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.layers import HEADS, Layers
from stabilitylab.plots._thinning import widen

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis
    from stabilitylab.run import Run

__all__ = [
    "events_of",
    "first_middle_last",
    "has_rows",
    "judged",
    "require",
    "separate",
]


def require(run: Run, series: str) -> None:
    """Refuse a run that lacks a series, or has no row of it.

    Raises:
        InputError: naming the series and the run.
    """
    if series not in run:
        raise InputError(f"{run.path} has no series {series!r}, which this picture shows")


def has_rows(run: Run, series: str) -> bool:
    """Tell whether a run has a series with at least one row."""
    return series in run and len(run[series]) > 0


def first_middle_last(layers: Layers, measured: Sequence[str]) -> tuple[str, ...]:
    """Return up to three layers that stand for the depth of the model, in depth order.

    The first is the layer that sees the input; the middle and the last are those of the backbone, heads left out,
    repeated blocks (``blocks.3``) preferred to what stands between them.

    Args:
        layers: the layers of the model.
        measured: those with values, in depth order.
    """
    if len(measured) <= 3:
        return tuple(measured)
    first = layers.first if layers.first in measured else measured[0]
    later = [name for name in measured if name not in (first, "tokens")]
    body = [name for name in later if name.split(".")[0] not in HEADS] or later
    blocks = [name for name in body if any(character.isdigit() for character in name)]
    blocks = blocks if len(blocks) > 1 else body
    return tuple(dict.fromkeys([first, blocks[(len(blocks) - 1) // 2], blocks[-1]]))


def events_of(
    analysis: Analysis, series: str, kinds: Sequence[str], labels: Sequence[str] | None = None
) -> list[Event]:
    """Return the events of a series, of some kinds and labels, in order of time."""
    wanted = [event for event in analysis.events if event.series == series and event.kind in kinds]
    return sorted(event for event in wanted if labels is None or event.label in labels)


def judged(analysis: Analysis, kind: str) -> bool:
    """Tell whether a kind of finding could be judged, so that a title may say that there is none."""
    return not any(each.kind == kind and each.verdict == "not judged" for each in analysis.findings)


def separate(events: Sequence[Event]) -> int:
    """Return how many there are when those that overlap in time, as in bank and queue, count once."""
    return len(widen(np.array([(event.start, event.stop) for event in events], dtype=float).reshape(-1, 2), 0))

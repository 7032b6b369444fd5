"""What was found: events that happened, the episodes they form, and the findings claimed from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from operator import attrgetter
from typing import Any

__all__ = ["Episode", "Event", "Finding", "from_json", "place", "to_json"]


@dataclass(frozen=True, slots=True)
class Event:
    r"""One thing that happened in one column of a series; all times are training steps.

    ::

        height ............ peak
                           /    \
        half way ...... onset    \
                         /        \
        level  ____start/          \stop____
    """

    start: int
    """First step at which the series is outside its usual range."""
    onset: int
    """First step at or above half of the way from the level to the peak, in the rise that leads to the peak."""
    peak: int
    """Step of the largest deviation."""
    stop: int
    """Last step at which the event is still on (inclusive)."""
    kind: str
    """What it is: ``spike``, ``dip``, ``step``, ``collapse``, ``divergence``, ..."""
    series: str
    """Name of the series it was found in."""
    label: str
    """Column of that series."""
    height: float
    """Size of the deviation at its peak, in the unit that the detector states; may be infinite."""
    score: float
    """How unusual it is, in robust standard deviations of the series' own past; may be infinite."""

    def __lt__(self, other: Event) -> bool:
        return bool(place(self) < place(other))


place = attrgetter("start", "onset", "peak", "stop", "kind", "series", "label")
"""What events are sorted by; as the key of many it is faster than their comparison."""


@dataclass(frozen=True, slots=True)
class Episode:
    """The events of one cluster over layers, and what followed them."""

    start: int
    stop: int
    events: tuple[Event, ...]
    """Ordered by onset; at most one for each layer, its tallest."""
    first_layers: tuple[str, ...]
    """The layers whose onset comes first, of all their spikes in the cluster; several when they tie."""
    followed_by: tuple[Event, ...] = ()
    """Events of other series that begin within the stated horizon after the start."""

    @property
    def tallest(self) -> tuple[str, ...]:
        """The layers of the largest ratio; several when they tie, as those that are not finite do."""
        top = max(event.height for event in self.events)
        return tuple(event.label for event in self.events if event.height == top)


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim: one sentence, its verdict, its numbers, and the method, parameters and events that made it."""

    kind: str
    sentence: str
    verdict: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    method: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


def to_json(value: Any) -> Any:
    """Return the value as JSON types; non-finite floats become the strings ``inf``, ``-inf`` and ``nan``."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        return to_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(kind: type[Event] | type[Finding] | type[Episode], value: Mapping[str, Any]) -> Any:
    """Return the record that `to_json` wrote.

    Raises:
        ValueError: if a field is missing or unknown.
    """
    names = {each.name for each in fields(kind)}
    if set(value) != names:
        raise ValueError(f"{kind.__name__}: fields {sorted(value)} given, {sorted(names)} expected")
    record = dict(value)
    for name in ("events", "followed_by"):
        if name in record:
            record[name] = tuple(from_json(Event, each) for each in record[name])
    if kind is Episode:
        record["first_layers"] = tuple(record["first_layers"])
    if kind is Event:
        record["height"], record["score"] = float(record["height"]), float(record["score"])
    return kind(**record)

"""What the page shows as tables: episodes, other events, lags and couplings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stabilitylab.phrasing import count, equals, joined, rounded, signed

if TYPE_CHECKING:
    import pandas as pd

    from stabilitylab.analysis import Analysis
    from stabilitylab.findings import Episode, Event
    from stabilitylab.run import Run

__all__ = [
    "EPISODES", "Row", "coupling_rows", "episode_rows", "event_rows", "judged", "lag_rows", "planted_spans", "size",
    "windows",
]  # fmt: skip

EPISODES = 500
"""Most rows of a table; of more, the tallest are shown."""


@dataclass(frozen=True)
class Row:
    """A row that leads to its window in the charts."""

    number: int
    """As in the address: ``#episode-3``."""
    low: int
    high: int
    """The window of steps."""
    cells: tuple[str, ...]


def windows(analysis: Analysis) -> np.ndarray:
    """Return the window of steps around each episode and each other event, shape (N, 2)."""
    whole: list[Episode | Event] = [*analysis.episodes, *_others(analysis)]
    spans = [_window(analysis, each) for each in whole]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def episode_rows(analysis: Analysis) -> list[Row]:
    """Return a row for each episode: step, layers, first and tallest layer, order, and what followed."""
    rows = []
    episodes, spans = analysis.episodes, planted_spans(analysis.run)
    kept = _clearest([max(event.score for event in each.events) for each in episodes])
    for place in kept:
        each = episodes[place]
        tallest = max(each.events, key=lambda event: event.height)
        low, high = _window(analysis, each)
        cells = (
            f"{each.start:,}{_planted(each, spans)}",
            joined(each.first_layers, 3),
            f"{tallest.label}, {size(tallest)}",
            f"{len(each.events)}",
            _after(each),
        )
        rows.append(Row(place + 1, low, high, cells))
    return rows


def planted_spans(run: Run) -> list[tuple[int, int]]:
    """Return the first and the last step of each disturbance that was planted in a run on purpose, at most 500."""
    return sorted({(first, last) for each in run.planted for first, last in each["spans"]})[:EPISODES]


def _planted(episode: Episode, spans: Sequence[tuple[int, int]], near: int = 10) -> str:
    """Say of an episode that it begins where something was planted, or just behind."""
    return " (planted)" if any(first - near <= episode.start <= last + near for first, last in spans) else ""


def event_rows(analysis: Analysis) -> list[Row]:
    """Return a row for each event that belongs to no episode: what, where, when, how large."""
    others = _others(analysis)
    rows = []
    for place in _clearest([each.score for each in others]):
        each = others[place]
        low, high = _window(analysis, each)
        cells = (f"{each.start:,}", f"{each.stop:,}", each.kind, f"{each.series}: {each.label}", size(each))
        rows.append(Row(place + 1, low, high, cells))
    return rows


def size(event: Event) -> str:
    """Return the height of an event in its unit."""
    if not math.isfinite(event.height):
        return "not finite"
    if event.kind in ("dip", "step", "drop", "drift"):
        return f"{100 * event.height:.1f} points"
    if event.kind == "collapse":
        return f"{count(int(event.height), 'direction')}"
    unit = "\N{NO-BREAK SPACE}\N{MULTIPLICATION SIGN}" if event.kind in ("spike", "shift") else ""
    return rounded(event.height) + unit


def lag_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """Return layer, lag with its interval, matched events, ties, p and verdict of each later layer."""
    return [
        (str(row["layer"]), _between(row, "lag"), f"{row['matched']}", f"{row['ties']}", *_claim(row))
        for row in analysis.lags.to_dict("records")
    ]


def coupling_rows(analysis: Analysis) -> list[tuple[str, ...]]:
    """Return warning and target, lead with its interval, precision and recall beside chance, p and verdict.

    No rows where no two of the signals were recorded.
    """
    if analysis.couplings.empty or (analysis.couplings["verdict"] == "not recorded").all():
        return []
    return [
        (
            f"{row['warning']} before {row['target']}", f"{row['warnings']}, {row['targets']}", _between(row, "lead"),
            _beside_chance(row, "precision"), _beside_chance(row, "recall"), *_claim(row),
        )
        for row in analysis.couplings.to_dict("records")
    ]  # fmt: skip


def judged(table: pd.DataFrame) -> int:
    """Return how many rows had what a verdict needs."""
    return int((~table["verdict"].isin(["too few events", "not recorded"])).sum()) if len(table) else 0


def _between(row: Mapping[Any, Any], name: str) -> str:
    """Return steps and their interval, where they are known."""
    value, low, high = (_float(row[each]) for each in (name, "low", "high"))
    interval = f" [{signed(low)}, {signed(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{signed(value)}{interval}" if math.isfinite(value) else ""


def _claim(row: Mapping[Any, Any]) -> tuple[str, str, str]:
    """Return the corrected p, the verdict and its reason."""
    return _probability(_float(row["p_adjusted"])), str(row["verdict"]), str(row["reason"])


def _beside_chance(row: Mapping[Any, Any], name: str) -> str:
    share, chance = _float(row.get(name)), _float(row.get(f"{name}_by_chance"))
    if not math.isfinite(share):
        return ""
    return f"{100 * share:.0f} %" + (f" ({100 * chance:.0f} % by chance)" if math.isfinite(chance) else "")


def _probability(p: float) -> str:
    if not math.isfinite(p):
        return ""
    return equals(p).removeprefix("= ")


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _others(analysis: Analysis) -> list[Event]:
    """Return the events that belong to no episode."""
    inside = {event for each in analysis.episodes for event in each.events}
    grouped = bool(analysis.episodes)
    spikes = ("gradients.norm", "spike")
    return [
        each for each in analysis.events if each not in inside and not (grouped and (each.series, each.kind) == spikes)
    ]


def _after(episode: Episode) -> str:
    """Say what followed an episode, and how many steps after its start."""
    followers = [f"{each.kind} {signed(each.start - episode.start)}" for each in episode.followed_by]
    return joined(followers, 3) if followers else ""


def _clearest(scores: Sequence[float]) -> list[int]:
    """Return the places of the highest scores, in their order."""
    ranked = sorted(range(len(scores)), key=lambda place: -scores[place])[:EPISODES]
    return sorted(ranked)


def _window(analysis: Analysis, what: Episode | Event) -> tuple[int, int]:
    """Return the steps to look at: a little before, and as long after as something may follow."""
    horizon = int(analysis.parameters.get("horizon", 100))
    length = what.stop - what.start
    return max(0, what.start - max(horizon // 2, length // 4)), what.stop + max(horizon, length // 4)

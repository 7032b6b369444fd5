"""How pictures write: counts, numbers and names in few characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from stabilitylab.findings import Event
from stabilitylab.run import Run

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["count", "num_spikes", "of_accuracy", "ordinal", "short", "shorten", "title_of"]


def title_of(run: Run) -> str:
    """Return the line under a title: the run, and how it ended where that matters."""
    ended = "" if run.status == "completed" else f" ({run.status})"
    return f"run {shorten(run.name, 60)}{ended}"


def count(number: int, what: str) -> str:
    """Return ``no spikes``, ``1 spike``, ``3 spikes``."""
    return f"{number:,}" * (number > 0) + "no" * (number == 0) + f" {what}" + "s" * (number != 1)


def num_spikes(analysis: Analysis, events: Sequence[Event]) -> int:
    """Return how many spikes a title counts: those of several layers at once are one, as in the findings."""
    return len(analysis.episodes) or len(events)


def of_accuracy(number: int, kinds: Iterable[str], judged: bool = True) -> str:
    """Return how many times the accuracy fell: dips, where all of them recovered."""
    if not number:
        return "no kNN dips" if judged else "kNN dips not judged"
    return (
        count(number, "kNN dip")
        if set(kinds) <= {"dip"}
        else f"{number:,} fall{'s' * (number > 1)} of the kNN accuracy"
    )


def ordinal(number: int) -> str:
    """Return 2nd, 3rd, 5th, 11th, 21st."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def short(value: float) -> str:
    """Return a number in few characters: 0.25, 40, 3e-07."""
    text = f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e") if "e" in text else text


def shorten(name: str, length: int = 28) -> str:
    """Return a name with its middle left out where it is too long: runs differ at both ends."""
    if len(name) <= length:
        return name
    half = (length - 1) // 2
    return f"{name[: length - 1 - half]}…{name[-half:]}"

"""Numbers and names in words, with no more digits than they deserve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "count", "ending", "equals", "joined", "occasions", "p_cell", "p_value", "ratio", "rounded", "signed", "span",
    "times",
]  # fmt: skip


def span(frame: pd.DataFrame) -> str:
    """Return how many steps a series spans, in words, and how many of them it has where that is less."""
    number = int(frame.index[-1]) - int(frame.index[0]) + 1
    has = int(frame.index.nunique())
    return count(number, "step") + (f" ({has:,} of them recorded)" if has < number else "")


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number and its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def times(number: int) -> str:
    """Return how often, in words."""
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number:,} times")


def occasions(spans: Sequence[Sequence[int]]) -> str:
    """Return when something was there, in words, from the first and the last step of each time."""
    if len(spans) == 1:
        first, last = spans[0]
        return f"at step {first:,}" if first == last else f"from step {first:,} to {last:,}"
    return f"{times(len(spans))}, the first {occasions(spans[:1])} and the last {occasions(spans[-1:])}"


def ending(number: int) -> str:
    """Return the ending of a verb after a number of subjects."""
    return "s" if number == 1 else ""


def ratio(value: float) -> str:
    """Return a ratio with no more digits than it deserves."""
    if value < 0.1 or 1e7 <= value < float("inf"):
        return f"{value:.2g}x"
    return f"{value:.1f}x" if value < 10 else f"{value:,.0f}x"


def rounded(value: float, digits: int = 3) -> str:
    """Return a number with so many digits, or with all those before its point: 0.25, 1,500, 3e-07, 2e+12."""
    whole = 10**digits - 0.5 <= abs(value) < 1e9
    return f"{value:,.0f}" if whole else f"{value:.{digits}g}"


def signed(value: float) -> str:
    """Return a lag with its sign."""
    return f"{value:+.0f}" if float(value).is_integer() else f"{value:+.1f}"


def p_value(value: float) -> str:
    """Return a p-value with two digits."""
    return f"{value:.2g}" if value >= 0.001 else "less than 0.001"


def equals(p: float) -> str:
    """Return a p-value with its sign of equality, or of being less."""
    return f"= {p_value(p)}" if p >= 0.001 else "< 0.001"


def p_cell(p: float) -> str:
    """Return a p-value as it stands in a table."""
    return equals(p).removeprefix("= ")


def joined(names: Sequence[str], most: int = 6) -> str:
    """Return names joined, without repetition; many are counted."""
    unique = list(dict.fromkeys(names))
    if len(unique) > most:
        return f"{', '.join(unique[:most])} and {len(unique) - most} more"
    return " and ".join([", ".join(unique[:-1]), unique[-1]] if len(unique) > 1 else unique)

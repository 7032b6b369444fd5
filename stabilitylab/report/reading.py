"""How a finding is read: its verdict as a tone, its numbers by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis
    from stabilitylab.findings import Finding

__all__ = ["QUIET", "UNDECIDED", "number", "of", "tone"]

QUIET = frozenset({"none", "together", "acted", "never acted"})
"""Verdicts that say that nothing is wrong."""

UNDECIDED = frozenset({"inconclusive", "not judged", "not recorded", "no single layer", "no better than chance"})
"""Verdicts that decide nothing; so does whatever begins with ``too few``."""


def tone(verdict: str) -> str:
    """Return how a verdict is to be read: ``quiet``, ``undecided``, or ``found``."""
    if verdict in QUIET:
        return "quiet"
    return "undecided" if verdict in UNDECIDED or verdict.startswith("too few") else "found"


def of(analysis: Analysis, kind: str) -> list[Finding]:
    """Return the findings of a kind."""
    return [each for each in analysis.findings if each.kind == kind]


def number(finding: Finding, name: str) -> float:
    """Return a number of a finding; NaN where it has none of that name."""
    value: Any = finding.numbers.get(name)
    return float(value) if isinstance(value, int | float) else math.nan

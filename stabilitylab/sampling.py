"""How often a series was recorded, and what that cannot show."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["Gaps", "blind_span", "limit_lags", "spacing"]

MOST = 0.95
"""Part of the gaps that tells how closely a series was recorded: a few long ones, as of a break, do not count."""


class Gaps:
    """The steps between the rows of a series, counted while they pass."""

    def __init__(self) -> None:
        self.rows = 0
        self.first = self.last = -1
        self._counts: Counter[int] = Counter()

    def add(self, steps: np.ndarray) -> None:
        """Count rows, later than all before; shape (T,)."""
        if not len(steps):
            return
        whole = steps if self.rows == 0 else np.concatenate([[self.last], steps])
        sizes, numbers = np.unique(np.diff(whole), return_counts=True)
        self._counts.update(dict(zip(sizes.tolist(), numbers.tolist(), strict=True)))
        self.first = int(steps[0]) if self.rows == 0 else self.first
        self.last, self.rows = int(steps[-1]), self.rows + len(steps)

    def about(self) -> dict[str, Any]:
        """Return rows, first and last step; of the steps between rows the median, what 95 % keep to, the largest."""
        return {
            "rows": self.rows, "first": self.first, "last": self.last, "every": self._within(0.5),
            "most_gaps": self._within(MOST), "largest_gap": self._within(1.0),
        }  # fmt: skip

    def _within(self, part: float) -> int:
        """Return the smallest number of steps that such a part of the gaps does not exceed; 0 without any."""
        passed = 0
        for size in sorted(self._counts):
            passed += self._counts[size]
            if passed >= part * (self.rows - 1):
                return size
        return 0


def spacing(steps: np.ndarray) -> int:
    """Return the usual number of steps between the rows of a series: the median, at least 1."""
    return max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else 1


def blind_span(steps: np.ndarray) -> int:
    """Return the number of steps that 95 % of the gaps between the rows of a series do not exceed, at least 1."""
    gaps = Gaps()
    gaps.add(steps)
    return max(1, int(gaps.about()["most_gaps"]))


def limit_lags(table: pd.DataFrame, every: int) -> pd.DataFrame:
    """Return a table of lags without those verdicts that a record of every so many steps cannot carry.

    Two layers that are seen k steps apart, or at the same row, may in truth be anything up to k steps apart in either
    direction: what is claimed must lie beyond.

    Args:
        table: with the columns ``verdict``, ``reason``, ``low`` and ``high``, see `stabilitylab.leads.lags`.
        every: steps between the rows of the gradients, see `blind_span`.
    """
    if every <= 1 or table.empty:
        return table
    claimed = table["verdict"].isin(["leads", "follows", "together"])
    beyond = (table["low"].astype(float) > every) | (table["high"].astype(float) < -every)
    vague = claimed & ~beyond
    table = table.copy()
    table.loc[vague, "verdict"] = "inconclusive"
    table.loc[vague, "reason"] = f"rows of the gradients lie up to {every:,} steps apart: a lag of less cannot be seen"
    return table

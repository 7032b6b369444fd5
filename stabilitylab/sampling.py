"""How often a series was recorded, and what that cannot show."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["Gaps", "limit_lags", "spacing"]


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
        """Return rows, first and last step, the median of the steps between rows and the largest; 0 of one row."""
        sizes = sorted(self._counts)
        middle, passed, median = (self.rows - 1) / 2, 0, 0
        for size in sizes:
            passed += self._counts[size]
            if passed >= middle:
                median = size
                break
        return {
            "rows": self.rows, "first": self.first, "last": self.last,
            "every": median, "largest_gap": sizes[-1] if sizes else 0,
        }  # fmt: skip


def spacing(steps: np.ndarray) -> int:
    """Return the usual number of steps between the rows of a series: the median, at least 1."""
    return max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else 1


def limit_lags(table: pd.DataFrame, every: int) -> pd.DataFrame:
    """Return a table of lags without those verdicts that a record of every so many steps cannot carry.

    Two layers that are seen k steps apart, or at the same row, may in truth be anything up to k steps apart in either
    direction: what is claimed must lie beyond.

    Args:
        table: with the columns ``verdict``, ``reason``, ``low`` and ``high``, see `stabilitylab.leads.lags`.
        every: steps between the rows of the gradients.
    """
    if every <= 1 or table.empty:
        return table
    claimed = table["verdict"].isin(["leads", "follows", "together"])
    beyond = (table["low"].astype(float) > every) | (table["high"].astype(float) < -every)
    vague = claimed & ~beyond
    table = table.copy()
    table.loc[vague, "verdict"] = "inconclusive"
    table.loc[vague, "reason"] = f"the gradients were recorded every {every:,} steps: a lag of less cannot be seen"
    return table

"""What an event cost: the area between a level and what was measured instead."""

from __future__ import annotations

import numpy as np

__all__ = ["area_below"]


def area_below(steps: np.ndarray, values: np.ndarray, first: int, last: int, level: float) -> float:
    """Return the area between a level and a curve, from one step to another: value x steps, positive below the level.

    ::

        level  ----+       +----
                   | area  |
        curve      +-------+        each measurement stands for the steps up to the next one

    Args:
        steps: of the measurements, ascending, shape (T,).
        values: shape (T,); what is NaN counts as nothing.
        first: first step that counts.
        last: last step that counts; the measurement at it stands for as many steps as any other.
        level: in the unit of the values.
    """
    if len(steps) == 0:
        return 0.0
    usual = float(np.median(np.diff(steps))) if len(steps) > 1 else 1.0
    width = np.append(np.diff(steps), usual)
    inside = (steps >= first) & (steps <= last)
    return float(np.nansum((level - values[inside]) * width[inside]))

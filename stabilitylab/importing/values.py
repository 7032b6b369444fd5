"""What every reader yields: values of one column at their steps; and what it could not read."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from stabilitylab.errors import InputError

__all__ = ["Facts", "Values", "counted", "whole_steps"]

LAST_STEP = 10**15


class Values(NamedTuple):
    """Some values of one column, in the order of the file."""

    name: str
    steps: np.ndarray
    """int64, shape (N,); neither sorted nor distinct."""
    values: np.ndarray
    """float64, shape (N,); NaN only where the log says NaN: what is missing is left out."""
    histogram: bool = False
    """Whether they are norms, from histograms."""


@dataclass
class Facts:
    """What is known of a file once it is read."""

    step: str = ""
    """The column that counts the steps."""
    counts: Counter[str] = field(default_factory=Counter)
    """Sentence to how many values, rows or bytes it holds for."""
    remarks: list[str] = field(default_factory=list)
    """Sentences about the file itself."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Column that holds nothing to import, to the reason."""
    clock: tuple[float, float] | None = None
    """First and last wall-clock time in it."""
    purge: int | None = None
    """The file itself says that it replaces everything from this step on."""


def counted(number: int, what: str) -> str:
    """Return a number and a sentence that begins with its noun in the plural, such as ``rows without a step``."""
    return f"{number:,} {what}" if number != 1 else "1 " + re.sub(r"s\b", "", what, count=1)


def whole_steps(steps: np.ndarray, facts: Facts, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows have a step, and those steps as int64.

    Args:
        steps: shape (N,), integer or float; NaN where a row has none.
        facts: is told of rows that are left out.
        where: names the file, in errors.

    Raises:
        InputError: if a step is not an integer, or too large.
    """
    known = np.ones(len(steps), dtype=bool)
    if steps.dtype.kind == "f":
        known = np.isfinite(steps)
        uneven = np.flatnonzero(known & (steps != np.floor(steps)))
        if len(uneven):
            raise InputError(
                f"{where}: the step {steps[uneven[0]]:g} is no integer; is {facts.step!r} the column of the steps? "
                "Another one is chosen with --step"
            )
        facts.counts["rows without a step left out"] += int((~known).sum())
    before = known & (steps < 0)
    facts.counts["rows with a negative step left out"] += int(before.sum())
    known &= ~before
    if len(steps[known]) and steps[known].max() > LAST_STEP:
        raise InputError(f"{where}: the step {steps[known].max():g} is beyond {LAST_STEP:,}")
    return known, steps[known].astype("int64")

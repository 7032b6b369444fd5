"""From values on disk to the series of a run, a block of steps at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stabilitylab.importing.mapping import PER_PARAMETER
from stabilitylab.importing.plan import Plan, Series
from stabilitylab.importing.spool import Block, Spool
from stabilitylab.importing.values import counted
from stabilitylab.run import RunWriter
from stabilitylab.sampling import Gaps

__all__ = ["Ends", "assemble", "out_of_step"]

CELLS = 8_000_000
"""Cells of a table that is built at once."""

ENOUGH = 0.9
"""A column keeps step with the densest one if it holds so many of its rows, from its own first step to its last."""

TAIL = 2
"""So many rows at the end may lack a column without it counting as ended: the writer was killed."""


class Table(NamedTuple):
    """Some rows of a series."""

    steps: np.ndarray
    values: np.ndarray
    """NaN where nothing was logged, too."""
    present: np.ndarray
    """Where something was."""


def _parts(plan: Plan, block: Block, chosen: Sequence[Series]) -> Iterator[tuple[Series, Block]]:
    """Yield the series that have values in a block, each with its own, in the order in which they were read."""
    owner = np.full(len(plan.log.columns), len(chosen))
    for at, series in enumerate(chosen):
        owner[series.columns] = at
    of = owner[block.column]
    order = np.argsort(of, kind="stable")
    edges = np.searchsorted(of[order], np.arange(len(chosen) + 1))
    for series, first, last in zip(chosen, edges[:-1], edges[1:], strict=True):
        if last > first:
            yield series, Block(*(each[order[first:last]] for each in block))


def _tables(block: Block, series: Series, limits: np.ndarray, said: Counter[str]) -> Iterator[Table]:
    """Yield the rows of a series, given its values; of several for one cell the last counts."""
    position = np.full(limits.shape[1], -1)
    position[series.columns] = np.arange(len(series.columns))
    counts = block.step < limits[block.file, block.column]
    said["values replaced by a later file"] += int((~counts).sum())
    column, step, value = position[block.column[counts]], block.step[counts], block.value[counts]
    steps, row = np.unique(step, return_inverse=True)
    size = max(1, CELLS // len(series.columns))
    for first in range(0, len(steps), size):
        here = (row >= first) & (row < first + size)
        own = steps[first : first + size]
        values = np.full((len(own), len(series.columns)), np.nan)
        present = np.zeros(values.shape, dtype=bool)
        values[row[here] - first, column[here]] = value[here]  # the last one stays
        present[row[here] - first, column[here]] = True
        left = values[row[here] - first, column[here]]
        lost = (value[here] != left) & ~(np.isnan(value[here]) & np.isnan(left))
        said["other values at a step that had one already; the last one counts"] += int(lost.sum())
        yield Table(own, values * series.factor, present)


class Ends:
    """Where the columns of a series begin and end, and how they keep step with the densest of them."""

    def __init__(self, plan: Plan, series: Series, limits: np.ndarray) -> None:
        log = plan.log
        self.first = np.array([log.columns[each].first for each in series.columns])
        self.last = np.array([log.last_of(each, limits) for each in series.columns])
        self._densest = int(np.argmax([log.columns[each].count for each in series.columns]))
        self._hits, self._rows, self._after = (np.zeros(len(series.columns), dtype=int) for _ in range(3))

    def active(self, steps: np.ndarray) -> np.ndarray:
        """Return where each column must have a value, shape (T, columns)."""
        return (steps[:, None] >= self.first) & (steps[:, None] <= self.last)

    def count(self, table: Table) -> None:
        """Compare rows."""
        densest = table.present[:, [self._densest]]
        active = self.active(table.steps) & densest
        self._rows += active.sum(axis=0)
        self._hits += (active & table.present).sum(axis=0)
        self._after += (densest & (table.steps[:, None] > self.last)).sum(axis=0)

    def settle(self) -> np.ndarray:
        """Let columns that end a few rows before the others end with them; return which keep step."""
        self.last = np.where(self._after <= TAIL, self.last.max(), self.last)
        return self._hits >= ENOUGH * self._rows


def out_of_step(plan: Plan, spool: Spool) -> tuple[dict[str, str], dict[str, Ends]]:
    """Return the columns that were logged at other steps than their series, and where the others begin and end."""
    limits = plan.log.limits()
    chosen = [series for series in plan.series if series.per_parameter]
    ends = {series.name: Ends(plan, series, limits) for series in chosen}
    for block in spool.blocks() if chosen else ():
        for series, own in _parts(plan, block, chosen):
            for table in _tables(own, series, limits, Counter()):
                ends[series.name].count(table)
    apart = {}
    for series in chosen:
        keeps = ends[series.name].settle()
        for number in np.array(series.columns)[~keeps].tolist():
            apart[plan.log.columns[number].name] = f"logged at other steps than the rest of {series.name}"
    return apart, ends


def assemble(plan: Plan, spool: Spool, ends: dict[str, Ends], writer: RunWriter) -> list[str]:
    """Write the series of a run, and return what must be said of them.

    In a series with a column for each parameter a row that lacks one is left out, because NaN would say that it was
    not finite. After a column ended it is 0, as of a parameter that has no gradient, and so is a gradient before it
    began; another series is NaN there.
    """
    limits, said = plan.log.limits(), Counter[str]()
    gaps = {series.name: Gaps() for series in plan.series}
    for series in plan.series:
        writer.declare(series.name, series.labels)
    for block in spool.blocks():
        for series, own in _parts(plan, block, plan.series):
            for table in _tables(own, series, limits, said):
                steps, values = table.steps, table.values
                if series.per_parameter:
                    steps, values = _whole(series, table, ends[series.name], said)
                if len(steps):
                    writer.write(series.name, steps, values)
                    gaps[series.name].add(steps)
    for series in plan.series:
        writer.declare(series.name, series.labels, **_about(plan, series, gaps[series.name]))
    told = [counted(number, what) for what, number in said.items() if number]
    return told + _ended(plan, ends, gaps) + _unseen(plan, gaps)


def _whole(series: Series, table: Table, ends: Ends, said: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    missing = (ends.active(table.steps) & ~table.present).any(axis=1)
    said[f"rows of {series.name} left out, because a column has no value there"] += int(missing.sum())
    over = table.steps[:, None] > ends.last
    if series.name.startswith("gradients."):  # nor has a layer that is not trained yet a gradient
        over |= table.steps[:, None] < ends.first
    over &= ~table.present
    return table.steps[~missing], np.where(over, 0.0, table.values)[~missing]


def _about(plan: Plan, series: Series, gaps: Gaps) -> dict[str, object]:
    names = [plan.log.columns[number].name for number in series.columns]
    about: dict[str, object] = {"imported": dict(zip(series.labels, names, strict=True)), "sampling": gaps.about()}
    about["nonfinite"] = sum(plan.log.columns[number].nonfinite for number in series.columns)
    if series.estimated:
        about["estimated"] = "L2 norms of histograms, values spread evenly in each bin"
    if series.factor != 1:
        about["factor"] = series.factor
    if series.name.startswith("gradients."):
        about["clipped"] = about["unscaled"] = "not known"
    return about


def _unseen(plan: Plan, gaps: dict[str, Gaps]) -> list[str]:
    """Say what lags cannot be seen between layers that were not logged at every step."""
    said = []
    for series in plan.series:
        apart = gaps[series.name].about()["most_gaps"]
        if series.name in PER_PARAMETER and apart > 1:
            within = f"{apart:,} {plan.unit}s"
            said.append(f"rows of {series.name} lie up to {within} apart: lags under {within} cannot be seen")
    return said


def _ended(plan: Plan, ends: dict[str, Ends], gaps: dict[str, Gaps]) -> list[str]:
    said = []
    for series in plan.series:
        if series.per_parameter:
            early = np.flatnonzero(ends[series.name].last < gaps[series.name].last)
            names: Sequence[str] = [series.labels[each] for each in early[:3]]
            if len(early):
                more = f" and {len(early) - 3} more" if len(early) > 3 else ""
                said.append(f"{series.name} of {', '.join(names)}{more} ends early and reads 0 from there on")
    return said

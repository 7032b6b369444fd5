"""From the times of blocks of training steps to what each probe costs at its schedule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stabilitylab.stats.interval import Interval, median_interval

__all__ = ["Block", "Cost", "Times", "advice", "cost_of", "cost_of_all", "total"]

LIMIT = 0.05
"""The part of the training step that the advice keeps to."""


class Block(NamedTuple):
    """What was timed in one block of steps, seconds."""

    step: float
    """One training step with the recorder."""
    line: float
    """The recorder's line in it."""
    flush: float
    """One flush after the block."""
    off: float
    """One training step without a recorder: the mean of the blocks before and after."""


class Times:
    """The columns of some blocks, each of shape (number of blocks,)."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.step, self.line, self.flush, self.off = np.array(blocks, dtype=float).T


@dataclass(frozen=True)
class Cost:
    """What one probe costs."""

    every: int
    """Its schedule."""
    measurement: Interval
    """Milliseconds of one measurement."""
    step: Interval
    """Milliseconds for each training step, at its schedule."""
    part: Interval
    """The same as a part of the training step."""
    whole: Interval
    """Part of the training step by which whole steps with it are longer than those of the two blocks around."""
    parts: np.ndarray
    """``part`` of each block."""


def cost_of(every: int, measured: Times, between: Times | None, alone: Times, period: int) -> Cost:
    """Return what a probe costs that was measured at every step of its blocks.

    Args:
        every: its schedule, by which a measurement is divided.
        measured: its blocks.
        between: blocks of the same probe with no measurement due, if it watches every step; paired with ``measured``.
        alone: blocks of a recorder without any probe; their medians are taken off.
        period: steps between two flushes.
    """
    own, own_flush = float(np.median(alone.line)), float(np.median(alone.flush))
    watching = np.zeros_like(measured.line) if between is None else between.line - own
    watching_whole = np.zeros_like(measured.step) if between is None else between.step - between.off
    measuring = measured.line - own - watching
    flushing = (measured.flush - own_flush) / max(period, every)
    seconds = watching + measuring / every + flushing
    whole = watching_whole + (measured.step - measured.off - watching_whole) / every + flushing
    return Cost(
        every,
        median_interval(1000 * measuring),
        median_interval(1000 * seconds),
        median_interval(seconds / measured.off),
        median_interval(whole / measured.off),
        seconds / measured.off,
    )


def cost_of_all(blocks: Times, period: int, typical: Callable[[np.ndarray], Interval]) -> Cost:
    """Return what a recorder costs as it is, with all its probes or none: nothing is taken off.

    Args:
        blocks: its blocks.
        period: steps between two flushes.
        typical: the mean where blocks in which a rare measurement falls due differ from the others, else the median.
    """
    seconds = blocks.line + blocks.flush / period
    whole = blocks.step - blocks.off + blocks.flush / period
    milliseconds = typical(1000 * seconds)
    return Cost(
        1, milliseconds, milliseconds, typical(seconds / blocks.off), typical(whole / blocks.off), seconds / blocks.off
    )


def total(costs: Sequence[Cost]) -> Interval:
    """Return the part of the training step that all take together, summed over blocks of the same number."""
    number = min(len(cost.parts) for cost in costs)
    return median_interval(np.sum([cost.parts[:number] for cost in costs], axis=0))


def advice(costs: Mapping[str, Cost], fixed: Collection[str], own: float, limit: float = LIMIT) -> dict[str, int]:
    """Return the schedules with which recording stays within a part of the training step; none if none do.

    As a budget does it: the schedule of the costliest probe is doubled, again and again.

    Args:
        costs: of each probe.
        fixed: probes whose schedules a budget leaves alone.
        own: the part that the recorder takes without any probe.
        limit: the part that is allowed.
    """
    part = {name: max(cost.part.value, 0.0) for name, cost in costs.items()}
    every = {name: cost.every for name, cost in costs.items()}
    rest = own + sum(part[name] for name in fixed)
    free = [name for name in costs if name not in fixed]
    while free and rest < limit < rest + sum(part[name] for name in free):
        costliest = max(free, key=lambda name: part[name])
        every[costliest] *= 2
        part[costliest] /= 2
    return {name: value for name, value in every.items() if value != costs[name].every}

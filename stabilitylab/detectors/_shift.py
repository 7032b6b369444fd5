"""Spikes that begin or ride on a rise that lasts: what stands out of the level at which the series settles."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from stabilitylab.detectors._extent import Found, Limits, describe
from stabilitylab.stats.robust import MAD_TO_SD, runs_of

__all__ = ["apart_from_shifts"]

BESIDE = 12
"""So many samples on each side say whether it is louder there."""

FEW = 4
"""So many of them must lie below the level, or it is the way down."""

SETTLED = 4
"""The last of so many parts of a shift says where the series settles."""


class SpikeLimits(Limits, Protocol):
    """The parameters that say what is a spike."""

    @property
    def min_ratio(self) -> float: ...
    @property
    def exit(self) -> float: ...


def apart_from_shifts(
    log: np.ndarray,
    broken: np.ndarray,
    found: Found,
    before: tuple[np.ndarray, np.ndarray, np.ndarray],
    threshold: float,
    limits: SpikeLimits,
) -> Found:
    """Return the events, with those that a shift has in it besides, and the shifts without them.

    Args:
        log: of a column.
        broken: where it is not finite.
        found: its events.
        before: level, scale, and standard deviation of a sample before each event.
        threshold: of a single sample in standard deviations.
        limits: what a spike is.
    """
    level, scale, spread = before
    extents, levels, owners = [], [], []
    rest = log
    for shift in np.flatnonzero(found.lasting).tolist():
        first = int(found.start[shift])
        part = log[first : int(found.stop[shift]) + 1]
        settled, runs = _standing_out(part, float(spread[shift]), threshold, limits)
        for start, stop in runs:
            rest = log.copy() if rest is log else rest
            rest[first + start : first + stop + 1] = settled
            extents.append((first + start, first + stop))
            levels.append(level[shift] if start <= limits.merge_gap else settled)
            owners.append(shift)
    if not extents:
        return found
    start, stop = np.array(extents, dtype=np.int64).T
    spikes = describe(log, broken, (start, stop), np.array(levels), scale[owners], limits.patience)
    own = np.unique(owners)
    shifts = describe(rest, broken, (found.start[own], found.stop[own]), level[own], scale[own], limits.patience)
    for whole, part in zip(found, shifts, strict=True):
        whole[own] = part
    return Found(*(np.concatenate(each) for each in zip(found, spikes, strict=True)))


def _standing_out(
    part: np.ndarray, spread: float, threshold: float, limits: SpikeLimits
) -> tuple[float, list[tuple[int, int]]]:
    """Return the level at which a shift settles, and the first and the last sample of what stands out of it."""
    end = part[-(len(part) // SETTLED) :]
    settled = float(np.median(end))
    noise = max(spread, MAD_TO_SD * float(np.median(np.abs(end - settled))) * (1 + 8 / len(end)))
    height = max(threshold * noise, float(np.log(limits.min_ratio)))
    first, last = runs_of(part >= settled + max(limits.exit * height, 1.5 * noise))
    new = np.append(True, first[1:] - last[:-1] > limits.merge_gap + 1)[: len(first)]
    starts, stops = first[new], last[np.append(new[1:], True)[: len(last)]]
    tall = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        beside = np.append(part[max(0, start - BESIDE) : start], part[stop + 1 : stop + 1 + BESIDE]) - settled
        deep = -beside[beside < 0]
        loud = MAD_TO_SD * float(np.median(deep)) if len(deep) >= FEW else 0.0  # a burst of noise
        if part[start : stop + 1].max() >= settled + max(height, threshold * loud):
            tall.append((start, stop))
    return settled, tall

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
"""Where fewer of them lie below the level, they are the way down from a spike, and no noise."""

BRIEF = 6
"""Of what lasts for more samples, not only the highest must stand out, but half of them by the smallest ratio."""

FAR = 2.0
"""Where a long spike settles so many standard deviations above its level, the level was wrong."""

AT_FIRST, FIRST = 12, 3.5
"""A shift begins with a spike where one of so many first samples is so many standard deviations above it."""

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
    before: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    threshold: float,
    limits: SpikeLimits,
) -> Found:
    """Return the events by start, with the spikes that a shift has in it besides, and each shift as high as it settles.

    What does not settle at the smallest ratio or above is no shift. A spike of half the patience that settles between
    it and the noise lasted because its level was too low: what stands out of where it settles is left of it.

    Args:
        log: of a column.
        broken: where it is not finite.
        found: its events; it may be overwritten.
        before: level, scale, and standard deviation of a sample before each event.
        threshold: of a single sample in standard deviations.
        limits: what a spike is.
    """
    level, scale, spread, phi = before
    extents, levels, owners = [], [], []
    stay = np.ones(len(found.start), dtype=bool)
    rest = log
    long = found.lasting | ((found.stop - found.start >= limits.patience // 2) & np.isfinite(found.rise))
    for shift in np.flatnonzero(long).tolist():
        first, last = int(found.start[shift]), int(found.stop[shift])
        settled, runs = _standing_out(log[first:], last - first + 1, float(spread[shift]), threshold, limits)
        stays_up = settled - level[shift] >= np.log(limits.min_ratio)
        if not found.lasting[shift] and (stays_up or settled - level[shift] < FAR * spread[shift]):
            continue
        if stays_up and (not runs or runs[0][0] > limits.merge_gap):
            runs = _beginning(log[first : last + 1], float(level[shift]), settled, float(spread[shift]), limits) + runs
        for start, stop in runs:
            rest = log.copy() if rest is log else rest
            rest[first + start : first + stop + 1] = settled
            extents.append((first + start, first + stop))
            levels.append(level[shift] if start <= limits.merge_gap else settled)
            owners.append(shift)
        if stays_up:
            part = describe(
                rest,
                broken,
                (found.start[[shift]], found.stop[[shift]]),
                level[[shift]],
                scale[[shift]],
                phi[[shift]],
                0,
            )
            found.onset[shift], found.peak[shift] = part.onset[0], part.peak[0]
            found.rise[shift] = settled - level[shift]
            found.score[shift] = found.rise[shift] / scale[shift]
        else:
            found.lasting[shift] = False
            stay[shift] = not runs
    if not extents:
        return found
    start, stop = np.array(extents, dtype=np.int64).T
    spikes = describe(log, broken, (start, stop), np.array(levels), scale[owners], phi[owners], limits.patience)
    spikes.lasting[:] = False
    merged = [np.concatenate([whole[stay], part]) for whole, part in zip(found, spikes, strict=True)]
    order = np.argsort(merged[0], kind="stable")
    return Found(*(each[order] for each in merged))


def _beginning(
    part: np.ndarray, level: float, settled: float, spread: float, limits: SpikeLimits
) -> list[tuple[int, int]]:
    """Return the first and the last sample of the peak with which a shift begins; nothing where it has none.

    It is at one place alone, and where the series has changed already, so that less is asked than of a spike anywhere:
    it stands out of the noise to which the series settles, and twice as far above the old level as where it settles.
    """
    noise = _noise(part, settled, spread)
    peak = int(np.argmax(part[:AT_FIRST]))
    height = float(part[peak]) - settled
    twice = part[peak] - level >= 2 * (settled - level)
    if not np.isfinite(height) or not twice or height < max(FIRST * noise, float(np.log(limits.min_ratio))):
        return []
    above = part >= settled + height / 2
    start = peak - int(np.argmin(np.append(above[: peak + 1][::-1], False))) + 1
    return [(start, peak + int(np.argmin(np.append(above[peak:], False))) - 1)]


def _noise(part: np.ndarray, settled: float, spread: float) -> float:
    """Return the standard deviation of what a series settles to, and at least that from before."""
    end = part[-(len(part) // SETTLED) :]
    around = MAD_TO_SD * float(np.median(np.abs(end - settled)))
    return max(spread, around * (1 + 8 / len(end)))  # it stands on few samples


def _standing_out(
    log: np.ndarray, length: int, spread: float, threshold: float, limits: SpikeLimits
) -> tuple[float, list[tuple[int, int]]]:
    """Return the level at which a shift settles, and the first and the last sample of what stands out of it.

    What goes on beyond its end is judged by what comes after.
    """
    part = log[:length]
    end = part[-(len(part) // SETTLED) :]
    settled = float(np.median(end))
    noise = _noise(part, settled, spread)
    height = max(threshold * noise, float(np.log(limits.min_ratio)))
    low = settled + max(limits.exit * height, 1.5 * noise)
    first, last = runs_of(part >= low)
    goes_on = bool((log[length : length + limits.merge_gap + 1] >= low).any())
    new = np.append(True, first[1:] - last[:-1] > limits.merge_gap + 1)[: len(first)]
    starts, stops = first[new], last[np.append(new[1:], True)[: len(last)]]
    tall = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if goes_on and stop >= length - 1 - limits.merge_gap:
            continue
        run = part[start : stop + 1] - settled
        beside = np.append(part[max(0, start - BESIDE) : start], part[stop + 1 : stop + 1 + BESIDE]) - settled
        deep = -beside[beside < 0]
        loud = MAD_TO_SD * float(np.median(deep)) if len(deep) >= FEW else 0.0  # a burst of noise
        whole = len(run) <= BRIEF or float(np.median(run)) >= np.log(limits.min_ratio)
        if whole and run.max() >= max(height, threshold * loud):
            tall.append((start, stop))
    return settled, tall

"""How often the spike detector is wrong and right in one run: tried on the run's own noise, resampled.

The quiet stretches of a sample of layers are cut into blocks long enough to keep autocorrelation and bursts; the
blocks are drawn anew, put back on the level of the layer, and searched by the same detector, without and with spikes
of one step planted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import betaincinv, gammaincinv

from stabilitylab.detectors import spike
from stabilitylab.findings import Event

__all__ = ["HEIGHTS", "Calibration", "Counted", "calibrate"]

HEIGHTS = (2.0, 5.0, 10.0)
"""Ratios of the planted spikes."""

LAYERS = 10
"""Layers that are tried, drawn at random from more."""

STEPS = 8192
"""Samples of a layer that are tried, one stretch drawn at random from more."""

SAMPLES, SERIES = 400_000, 64
"""Resampled samples, and series, in which false alarms are counted, at most; spikes are planted in 3/4 as many more."""

BLOCK, LONGEST = 24, 256
"""Samples in a block that is drawn: an eighth of the series, between these; every seam may cut a burst in two."""

LEAST = 8
"""Blocks that there must be room for; at a quarter of the samples a quiet one must begin."""

NEAR = 1.5
"""A spike of so many times the threshold may be noise."""

BESIDE = 5
"""Spikes of two layers with no more steps between them are one event of both."""

APART = 120
"""Samples from one planted spike to the next; half of a shorter series."""

SMOOTH = 32
"""The level is the median of so many samples, joined by straight lines."""


@dataclass(frozen=True)
class Counted:
    """A count out of a number, the value estimated from it, and its 95 % interval."""

    count: int
    number: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """What the spike detector did with the resampled noise of one run."""

    layers: tuple[str, ...]
    """Those whose noise was resampled."""
    steps: int
    """Largest number of samples taken of each."""
    block: int
    """Samples in a block, the shortest of any layer."""
    false_alarms: Counted
    """Events without a cause, out of the samples searched; the value is in 10,000 samples of one layer."""
    power: Mapping[float, Counted]
    """Height of a planted spike, as a ratio to the level, to the part of them that was found."""
    seed: int


def calibrate(
    frame: pd.DataFrame,
    events: Sequence[Event],
    resolution: Mapping[str, spike.Resolution],
    detector: spike.Detector,
    seed: int = 0,
) -> Calibration | None:
    """Try the detector on the noise of a series; its cost is bounded, whatever the size of the series.

    Args:
        frame: the series, one column for each layer.
        events: what was found in it; what lies within is no noise, but for what may be noise (`_no_noise`).
        resolution: what could have been seen in each layer.
        detector: with the parameters to try.
        seed: of the sample and the draws.

    Returns:
        None where no layer is long enough, or quiet for long enough.
    """
    rng = np.random.default_rng(seed)
    if len(frame) < LEAST * BLOCK:
        return None
    block = int(np.clip(len(frame) // LEAST, BLOCK, LONGEST))
    events = _no_noise(events, resolution, round(detector.parameters.false_alarms / 1e4 * frame.size))
    # where several layers have a spike, others may have one that was missed
    shared = [
        replace(max(each, key=lambda event: event.stop), start=each[0].start)
        for each in _clusters(events)
        if _shared(each)
    ]
    noises = {}
    for place in rng.permutation(frame.shape[1]):
        label = str(frame.columns[place])
        start = int(rng.integers(0, max(len(frame) - STEPS, 0) + 1))
        within = slice(start, start + STEPS)
        own = [each for each in events if each.label == label]
        judged = resolution[label].judged if label in resolution else len(frame)
        unjudged = max(len(frame) - judged - start, 0)  # the first ones, where nothing is sought
        values = frame.iloc[within, place].to_numpy(dtype=float)
        for left_out in (own + shared, own):  # unless hardly anything is left
            noise = _noise(values, frame.index[within].to_numpy(), left_out, block, unjudged)
            if noise is not None:
                break
        if noise is not None:
            noises[label] = noise
        if len(noises) == LAYERS:
            break
    if not noises:
        return None
    shapes = dict(zip(map(str, frame.columns), detector.shapes(frame), strict=True))
    samples = len(noises) * max(len(each.level) for each in noises.values())
    quiet = max(1, min(SAMPLES // samples, SERIES // len(noises)))
    tried = [_tried(noise, quiet, max(1, quiet // 4), detector, shapes[label], rng) for label, noise in noises.items()]
    alarms = sum(number for number, _, _ in tried)
    found, planted = np.sum([hits for _, hits, _ in tried], axis=0), np.sum([all_ for _, _, all_ in tried], axis=0)
    searched = quiet * sum(len(each.level) for each in noises.values())
    power = {height: _part(int(a), int(b)) for height, a, b in zip(HEIGHTS, found, planted, strict=True)}
    steps = max(len(each.level) for each in noises.values())
    return Calibration(
        tuple(sorted(noises)),
        steps,
        min(each.block for each in noises.values()),
        _rate(alarms, searched),
        power,
        seed,
    )


def _no_noise(events: Sequence[Event], resolution: Mapping[str, spike.Resolution], chance: int) -> list[Event]:
    """Return the events without as many of the lowest spikes as chance makes, as far as they are near the threshold.

    They are the tail of the noise: without them hardly any of what is resampled would exceed the threshold again. What
    several layers have together is no noise.
    """
    alone = [each for several in _clusters(events) if not _shared(several) for each in several]
    near = [each for each in alone if each.score < NEAR * resolution[each.label].threshold]
    noise = {id(each) for each in sorted(near, key=lambda each: each.score)[:chance]}
    return [each for each in events if id(each) not in noise]


def _shared(cluster: Sequence[Event]) -> bool:
    return len({each.label for each in cluster}) > 1


def _clusters(events: Sequence[Event]) -> list[list[Event]]:
    """Return the spikes in groups that lie apart."""
    clusters: list[list[Event]] = []
    reach = -math.inf
    for each in sorted((each for each in events if each.kind == "spike"), key=lambda each: each.start):
        if each.start > reach + BESIDE:
            clusters.append([])
        clusters[-1].append(each)
        reach = max(reach, each.stop)
    return clusters


@dataclass(frozen=True)
class _Noise:
    """What is resampled of one layer, on the log scale."""

    level: np.ndarray
    """Shape (T,)."""
    residual: np.ndarray
    """Value minus level, shape (T,)."""
    starts: np.ndarray
    """Samples at which a quiet block begins."""
    block: int

    def draw(self, number: int, rng: np.random.Generator) -> np.ndarray:
        """Return resampled series on the level of the layer, shape (T, number)."""
        length = len(self.level)
        chosen = rng.choice(self.starts, (-(-length // self.block), 1, number))
        residual = self.residual[chosen + np.arange(self.block)[:, None]].reshape(-1, number)[:length]
        return self.level[:, None] + residual


def _noise(
    values: np.ndarray, steps: np.ndarray, events: Sequence[Event], block: int, unjudged: int = 0
) -> _Noise | None:
    """Return level, residuals and quiet blocks of a layer; None where there are too few."""
    measured = np.isfinite(values) & (values > 0)
    quiet = measured.copy()
    quiet[:unjudged] = False
    for each in events:
        quiet[np.searchsorted(steps, each.start) : np.searchsorted(steps, each.stop, side="right")] = False
    log, quiet = np.log(values[measured]), quiet[measured]
    if len(log) < LEAST * block:
        return None
    centers, medians = [], []
    for first in range(0, len(log), SMOOTH):
        some = log[first : first + SMOOTH][quiet[first : first + SMOOTH]]
        if len(some) >= SMOOTH // 4:
            centers.append(first + SMOOTH / 2)
            medians.append(float(np.median(some)))
    noisy = np.concatenate([[0], np.cumsum(~quiet)])
    for size in (block, max(block // 4, BLOCK)):  # shorter ones where spikes are frequent
        starts = np.flatnonzero(noisy[size:] == noisy[:-size])
        if centers and len(starts) >= len(log) // 4:
            break
    else:
        return None
    level = np.interp(np.arange(len(log)), centers, medians)
    return _Noise(level, log - level, starts, size)


def _tried(
    noise: _Noise, quiet: int, spiked: int, detector: spike.Detector, shapes: spike.Shapes, rng: np.random.Generator
) -> tuple[int, np.ndarray, np.ndarray]:
    """Return the events in so many series without spikes; and by height the spikes found, and planted, in others."""
    log = noise.draw(quiet + spiked * len(HEIGHTS), rng)
    apart = min(APART, len(log) // 2)
    at = apart + np.arange(0, len(log) - apart - 1, apart) + rng.integers(0, apart // 2)
    at = at[at < len(log)]
    height = np.repeat(np.log(HEIGHTS), spiked)
    log[at, quiet:] += height
    frame = pd.DataFrame(np.exp(log - np.median(log)))
    events, _ = detector.examine("resampled", frame, [shapes] * log.shape[1])
    spans = np.array([(int(each.label), each.start, each.stop) for each in events if each.kind == "spike"], dtype=int)
    column, start, stop = spans.reshape(-1, 3).T
    marked = np.zeros((len(log) + 2, log.shape[1]), dtype=int)  # samples within an event, one sample of tolerance
    np.add.at(marked, (np.maximum(start - 1, 0), column), 1)
    np.add.at(marked, (np.minimum(stop + 2, len(log)), column), -1)
    hit = (np.cumsum(marked, axis=0)[at, quiet:] > 0).sum(axis=0)
    found = hit.reshape(len(HEIGHTS), spiked).sum(axis=1)
    return int(np.sum(column < quiet)), found, np.full(len(HEIGHTS), len(at) * spiked)


def _rate(count: int, samples: int) -> Counted:
    """Return a rate in 10,000 samples, with the exact interval of a Poisson count."""
    low = float(gammaincinv(count, 0.025)) if count else 0.0
    high = float(gammaincinv(count + 1, 0.975))
    return Counted(count, samples, *(1e4 * each / samples for each in (count, low, high)))


def _part(count: int, number: int) -> Counted:
    """Return a proportion with the exact interval of a binomial count (Clopper and Pearson, 1934)."""
    low = float(betaincinv(count, number - count + 1, 0.025)) if count else 0.0
    high = float(betaincinv(count + 1, number - count, 0.975)) if count < number else 1.0
    return Counted(count, number, count / number, low, high)

"""How often the spike detector is wrong and right in one run: tried on the run's own noise, resampled.

The quiet stretches of a sample of layers are cut into blocks long enough to keep autocorrelation and bursts; the
blocks are drawn anew, put back on the level of the layer, and searched by the same detector, without and with spikes
of one step planted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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

SAMPLES = 400_000
"""Resampled samples in which false alarms are counted, about."""

BLOCK, LONGEST = 64, 256
"""Samples in a block that is drawn: an eighth of the series, between these; every seam may cut a burst in two."""

LEAST = 8
"""Blocks that there must be room for; at a quarter of the samples a quiet one must begin."""

APART = 120
"""Samples from one planted spike to the next."""

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
    frame: pd.DataFrame, events: Sequence[Event], detector: spike.Detector, seed: int = 0
) -> Calibration | None:
    """Try the detector on the noise of a series; its cost is bounded, whatever the size of the series.

    Args:
        frame: the series, one column for each layer.
        events: what was found in it; what lies within is no noise.
        detector: with the parameters to try.
        seed: of the sample and the draws.

    Returns:
        None where no layer is long enough, or quiet for long enough.
    """
    rng = np.random.default_rng(seed)
    if len(frame) < LEAST * BLOCK:
        return None
    block = int(np.clip(len(frame) // LEAST, BLOCK, LONGEST))
    noises = {}
    for place in rng.permutation(frame.shape[1]):
        label = str(frame.columns[place])
        start = int(rng.integers(0, max(len(frame) - STEPS, 0) + 1))
        within = slice(start, start + STEPS)
        own = [each for each in events if each.label == label]
        noise = _noise(frame.iloc[within, place].to_numpy(dtype=float), frame.index[within].to_numpy(), own, block)
        if noise is not None:
            noises[label] = noise
        if len(noises) == LAYERS:
            break
    if not noises:
        return None
    alarms = searched = 0
    found, planted = dict.fromkeys(HEIGHTS, 0), dict.fromkeys(HEIGHTS, 0)
    for noise in noises.values():
        log = noise.draw(max(1, SAMPLES // (len(noises) * len(noise.level))), rng)
        alarms, searched = alarms + sum(map(len, _search(log, detector))), searched + log.size
        for height in HEIGHTS:
            log = noise.draw(max(1, SAMPLES // (8 * len(noises) * len(noise.level))), rng)
            at = APART + np.arange(0, len(log) - APART - 1, APART) + rng.integers(0, APART // 2)
            at = at[at < len(log)]
            log[at] += np.log(height)
            planted[height] += at.size * log.shape[1]
            found[height] += sum(_hits(at, events_of) for events_of in _search(log, detector))
    power = {height: _part(found[height], planted[height]) for height in HEIGHTS}
    steps = max(len(each.level) for each in noises.values())
    return Calibration(
        tuple(sorted(noises)), steps, min(each.block for each in noises.values()), _rate(alarms, searched), power, seed
    )


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


def _noise(values: np.ndarray, steps: np.ndarray, events: Sequence[Event], block: int) -> _Noise | None:
    """Return level, residuals and quiet blocks of a layer; None where there are too few."""
    measured = np.isfinite(values) & (values > 0)
    quiet = measured.copy()
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
    for size in (block, BLOCK):  # shorter ones where spikes are frequent
        starts = np.flatnonzero(noisy[size:] == noisy[:-size])
        if centers and len(starts) >= len(log) // 4:
            break
    else:
        return None
    level = np.interp(np.arange(len(log)), centers, medians)
    return _Noise(level, log - level, starts, size)


def _search(log: np.ndarray, detector: spike.Detector) -> Iterator[list[Event]]:
    """Yield the spikes of each column."""
    frame = pd.DataFrame(np.exp(log - np.median(log)))
    found = [each for each in detector.detect("resampled", frame, {}) if each.kind == "spike"]
    for column in frame.columns:
        yield [each for each in found if each.label == str(column)]


def _hits(at: np.ndarray, events: Sequence[Event]) -> int:
    """Return how many planted samples lie within an event, one sample of tolerance."""
    return sum(any(each.start - 1 <= step <= each.stop + 1 for each in events) for step in at.tolist())


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

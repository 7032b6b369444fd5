"""Noise, levels and the shape of a spike, all on the log scale."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.signal import lfilter

__all__ = ["Noise", "Trend", "bursts", "noise", "spike_shape", "stream", "trend"]

Noise = Literal["gaussian", "student", "autocorrelated", "bursty"]
Trend = Literal["flat", "warmup", "decay", "waves", "drop", "drift"]


def stream(seed: int, purpose: int) -> np.random.Generator:
    """Return a source of randomness of its own for a purpose, so that what one part draws moves no other part."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))


def noise(
    kind: str, shape: tuple[int, int], rng: np.random.Generator, autocorrelation: float = 0.0, freedom: float = 5.0
) -> np.ndarray:
    """Return noise of variance one (bursty: of one in its quiet stretches), time along the first axis.

    Args:
        kind: ``gaussian``; ``student``: Student's t; ``autocorrelated``: AR(1) with 0.5; ``bursty``: three times as
            large in stretches of 20 to 100 steps, a tenth of the time.
        shape: (T, number of series).
        rng: source of randomness.
        autocorrelation: of an AR(1) process that the noise drives, at one step; 0 for none.
        freedom: degrees of freedom of Student's t, more than 2.
    """
    white = rng.standard_normal(shape)
    if kind == "student":
        white = rng.standard_t(freedom, shape) / np.sqrt(freedom / (freedom - 2))
    elif kind == "autocorrelated":
        # the moving-average form of AR(1); 0.5 ** 40 is nothing
        longer = np.concatenate([rng.standard_normal((40, shape[1])), white])
        kernel = 0.5 ** np.arange(41)
        windows = np.lib.stride_tricks.sliding_window_view(longer, 41, axis=0)
        white = np.sqrt(0.75) * windows @ kernel[::-1]
    if autocorrelation:
        white[1:] *= np.sqrt(1 - autocorrelation**2)  # the first sample has the variance of the process already
        white = lfilter([1.0], [1.0, -autocorrelation], white, axis=0)
    if kind == "bursty":
        white = np.where(bursts(shape, rng), 3.0, 1.0) * white
    return white


def bursts(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return where noise is loud: stretches of 20 to 100 steps, a tenth of the time."""
    time = np.arange(shape[0])[:, None]
    starts = rng.random(shape) < 1 / 600
    until = np.where(starts, time + rng.integers(20, 100, shape), -1)
    return np.maximum.accumulate(until, axis=0) >= time


def trend(kind: str, steps: int) -> np.ndarray:
    """Return the level of the log norm over time, shape (T,)."""
    time = np.arange(steps)
    if kind == "warmup":
        return 2.0 * (1 - np.exp(-time / 50))
    if kind == "decay":
        return 2.0 * np.exp(-time / 100)
    if kind == "waves":
        return 0.5 * np.sin(2 * np.pi * time / 500)
    if kind == "drop":
        return np.where(time < steps // 2, 0.0, -0.8)
    if kind == "drift":
        return time / max(steps, 1)
    return np.zeros(steps)


def spike_shape(height: float, length: int = 1, ramp: int = 0) -> np.ndarray:
    """Return log ratios of a spike: a ramp, linear in the logarithm, then so many steps at the height."""
    rise = np.arange(1, ramp + 1) / (ramp + 1)
    return np.log(height) * np.concatenate([rise, np.ones(length)])

"""The limit: a whitened matched filter that knows the level, the noise and the shape of the spike, and not its time.

It is linear in the samples, each divided by the standard deviation that the noise has at that sample; its threshold
is the one at which quiet noise of the same kind gives the stated rate of false alarms.
"""

from __future__ import annotations

import numpy as np

from stabilitylab.synthetic import noise

AUTOCORRELATION = {"autocorrelated": 0.5}


def noise_and_sd(kind: str, shape: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return noise and its standard deviation at each sample, which of the bursty one is three in its bursts."""
    values = noise(kind, shape, np.random.default_rng(seed))
    if kind != "bursty":
        return values, np.ones(shape)
    white = noise("gaussian", shape, np.random.default_rng(seed))  # what the bursts are made of
    return values, np.where(np.abs(values) > 2 * np.abs(white), 3.0, 1.0)


def scores(residual: np.ndarray, sd: np.ndarray, shape: np.ndarray, phi: float) -> np.ndarray:
    """Return at each sample the filter's score of a spike that begins there, of variance one in noise, (T, N).

    Args:
        residual: logarithm minus its true level, shape (T, N).
        sd: standard deviation of the noise at each sample, shape (T, N).
        shape: log ratios of the spike.
        phi: autocorrelation of the noise at one sample.
    """
    white = residual.copy()
    white[1:] -= phi * residual[:-1]
    white[1:] /= np.sqrt(1 - phi**2)
    template = (np.append(shape, 0.0) - phi * np.append(0.0, shape)) / np.sqrt(1 - phi**2)
    template = template[: len(shape) + (phi > 0)]
    length = len(residual) - len(template) + 1
    match, energy = np.zeros((2, length, residual.shape[1]))
    for delay, weight in enumerate(template):
        part = slice(delay, delay + length)
        match += weight * white[part] / sd[part] ** 2
        energy += weight**2 / sd[part] ** 2
    found = np.full(residual.shape, -np.inf)
    found[:length] = match / np.sqrt(energy)
    return found


def peaks(found: np.ndarray, near: int = 5) -> np.ndarray:
    """Return where a score is the highest of those within ``near`` samples."""
    padded = np.pad(found, ((near, near), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * near + 1, axis=0)
    return found >= windows.max(axis=-1)


def threshold(
    kind: str, shapes: list[np.ndarray], rate: float, steps: int = 4000, columns: int = 500, seed: int = 1
) -> float:
    """Return the score that peaks of the best of these filters exceed ``rate`` times in 10,000 samples of noise."""
    values, sd = noise_and_sd(kind, (steps, columns), seed)
    phi = AUTOCORRELATION.get(kind, 0.0)
    found = np.maximum.reduce([scores(values, sd, shape, phi) for shape in shapes])
    highest = np.sort(found[peaks(found)])
    return float(highest[-max(1, round(rate * values.size / 1e4))])

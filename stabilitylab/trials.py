"""What the detectors of accuracy, spectra and loss would do on this very run: on its noise, and on planted events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stabilitylab.detectors import collapse, dip, divergence
from stabilitylab.findings import Event
from stabilitylab.stats.blocks import block_bootstrap
from stabilitylab.stats.robust import MAD_TO_SD

__all__ = ["DEPTHS", "JUMPS", "LENGTH", "SHARES", "Trials", "collapse_trials", "dip_trials", "divergence_trials"]

DEPTHS = (0.01, 0.02, 0.05)
"""Depths of the planted dips, as parts of 1."""

LENGTH = 5
"""Their length in measurements."""

SHARES = (0.1, 0.25, 0.5)
"""Parts of the directions that are made dead."""

JUMPS = (5.0, 10.0, 20.0)
"""Jumps of the loss for good, as multiples of the standard deviation of its noise."""

CURVES, PLACES, LONGEST = 20, 12, 300
"""Curves of noise alone, places of planted dips, and measurements of each trial at most."""

BLOCK, TREND = 16, 9
"""Measurements that are resampled together, and around each one whose median is the trend."""

LOSS_BLOCK, LOSS_TREND, LOSSES = 64, 65, 1500
"""The same of a loss, and the losses of each trial at most."""


class Trials(NamedTuple):
    """How often a detector found something in curves of this run's noise, and how often what was planted."""

    curves: int
    """Resampled curves."""
    length: int
    """Measurements in each."""
    alarms: int
    """Events in them: all are false."""
    expected: float
    """False events to expect in a record as long as this one."""
    found: Mapping[float, float]
    """Depth of a planted dip, part of the directions made dead, or size of a jump of the loss, to the part found."""

    @property
    def to_expect(self) -> str:
        """The number of false events to expect, in words."""
        return "fewer than 0.1" if self.expected < 0.1 else f"{self.expected:.1f}"


def dip_trials(
    column: pd.Series, about: Mapping[str, Any], events: Sequence[Event], detector: dip.Detector, seed: int = 0
) -> Trials | None:
    """Try the detector of dips on an accuracy: on its resampled noise, and with dips planted into the curve itself.

    The noise is what a running median leaves of the quiet measurements, resampled in blocks and put back on it; it is
    judged without votes, for which the rate is an upper bound. Where the votes are known, a planted dip turns right
    answers of the same images into wrong ones.

    Args:
        column: one column of the accuracy, without NaN.
        about: what is said of it, with its votes if they are known.
        events: those found in it.
        detector: with the parameters to try.
        seed: of the places and the draws.

    Returns:
        The counts, or None where the quiet part of the curve is too short.
    """
    rng = np.random.default_rng(seed)
    quiet = np.ones(len(column), dtype=bool)
    for each in events:
        quiet &= ~((column.index >= each.start) & (column.index <= each.stop))
    calm = column[quiet]
    if len(calm) < 4 * BLOCK:
        return None
    noiseless = {name: value for name, value in about.items() if name not in ("correct", "correct_label")}
    trend = calm.rolling(TREND, center=True, min_periods=1).median().to_numpy()
    residual = (calm.to_numpy() - trend) * np.sqrt(TREND / (TREND - 1))
    length, alarms = min(len(calm), LONGEST), 0
    for _ in range(CURVES):
        first = int(rng.integers(len(calm) - length + 1))
        values = trend[first : first + length] + block_bootstrap(residual, length, BLOCK, rng)
        alarms += len(detector.detect("accuracy", _frame(np.clip(values, 0, 1), about), noiseless))
    found = {}
    for depth in DEPTHS:
        places = rng.integers(4 * LENGTH, len(calm) - 2 * LENGTH, PLACES)
        found[depth] = float(np.mean([_sees(detector, calm, about, int(at), depth, rng) for at in places]))
    return Trials(CURVES, length, alarms, alarms / (CURVES * length) * len(column), found)


def _frame(values: np.ndarray, about: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({about.get("correct_label", "bank"): values})


def _sees(
    detector: dip.Detector, calm: pd.Series, about: Mapping[str, Any], at: int, depth: float, rng: np.random.Generator
) -> bool:
    """Plant a dip into the curve, and say whether an event begins there."""
    first = max(0, min(at - LONGEST // 2, len(calm) - LONGEST))
    window = calm.iloc[first : first + LONGEST]
    inside = slice(at - first, at - first + LENGTH)
    values = window.to_numpy(copy=True)
    votes = about.get("correct")
    told = {name: value for name, value in about.items() if name != "correct"}
    if votes is not None and window.index.isin(votes.index).all():
        answers = votes.loc[window.index].to_numpy(copy=True)
        right = np.flatnonzero(answers[inside.start])
        lost = rng.choice(right, min(len(right), round(depth * answers.shape[1])), replace=False)
        answers[inside.start : inside.stop, lost] = 0
        values[inside] = answers[inside].mean(axis=1)
        told["correct"] = pd.DataFrame(answers)
    else:
        values[inside] -= depth
    found = detector.detect("accuracy", _frame(np.clip(values, 0, 1), about), told)
    return any(abs(each.start - inside.start) < LENGTH for each in found)


def collapse_trials(
    frame: pd.DataFrame, about: Mapping[str, Any], events: Sequence[Event], detector: collapse.Detector, seed: int = 0
) -> Trials | None:
    """Try the detector of collapse on the spectra outside of its events.

    What a running median leaves of each direction is resampled in blocks and put back on it, and the smallest
    directions of the last half are made dead.

    Returns:
        The counts, or None where there are too few spectra.
    """
    rng = np.random.default_rng(seed)
    quiet = np.isfinite(frame.to_numpy(dtype=float)).all(axis=1)
    for each in events:
        quiet &= ~((frame.index >= each.start) & (frame.index <= each.stop))
    values = np.maximum(frame.to_numpy(dtype=float)[quiet], 0.0)
    rows, least = len(values), detector.parameters.persistence
    if rows < 2 * least or not values.any():
        return None
    values = -np.sort(-values[-LONGEST:], axis=1)
    length = len(values)
    told = {name: value for name, value in about.items() if name != "feature_std"}
    rounding = values[:, :1].max() * values.shape[1] * np.finfo(np.float32).eps ** 2
    log = np.log(np.maximum(values, rounding))
    trend = pd.DataFrame(log).rolling(TREND, center=True, min_periods=1).median().to_numpy()
    alarms = 0
    for _ in range(CURVES):
        drawn = np.exp(trend + (log - trend)[block_bootstrap(np.arange(length), length, least, rng)])
        alarms += len(detector.detect("spectrum", pd.DataFrame(drawn), told))
    samples = about.get("samples")
    measurable = min(values.shape[1], max(int(samples) - 1, 1)) if samples else values.shape[1]
    found = {}
    for share in SHARES:
        number = max(2, int(np.ceil(share * measurable)))
        if number >= measurable:  # of so few none would be left
            continue
        planted = values.copy()
        planted[length // 2 :, measurable - number :] *= 1e-6
        events = detector.detect("spectrum", pd.DataFrame(planted), told)
        found[share] = float(any(each.start >= length // 2 for each in events))
    return Trials(CURVES, length, alarms, alarms / (CURVES * length) * rows, found)


def divergence_trials(
    column: pd.Series, events: Sequence[Event], detector: divergence.Detector, seed: int = 0
) -> Trials | None:
    """Try the detector of divergence on a loss up to its first event: on its resampled noise, and with planted jumps.

    The noise is what a running median leaves, resampled in blocks and put back on it. A planted jump begins in
    the last half, when most is learned, and lasts to the end.

    Args:
        column: the loss.
        events: those found in it.
        detector: with the parameters to try.
        seed: of the places and the draws.

    Returns:
        The counts, or None where what is before the first event is too short.
    """
    rng = np.random.default_rng(seed)
    calm = column[
        np.isfinite(column.astype(float)) & (column.index < min((each.start for each in events), default=np.inf))
    ]
    shortest = divergence.LEARNED + 3 * detector.parameters.patience
    if len(calm) < shortest:
        return None
    first = int(rng.integers(max(len(calm) - LOSSES, 0) + 1))
    values = calm.to_numpy(dtype=float)[first : first + LOSSES]
    trend = pd.Series(values).rolling(LOSS_TREND, center=True, min_periods=1).median().to_numpy()
    noise = values - trend
    scale = MAD_TO_SD * float(np.median(np.abs(noise)))

    def starts(curve: np.ndarray) -> list[int]:
        return [each.start for each in detector.detect("training.loss", pd.DataFrame({"loss": curve}), {})]

    alarms = sum(len(starts(trend + block_bootstrap(noise, len(noise), LOSS_BLOCK, rng))) for _ in range(CURVES))
    found = {}
    for size in JUMPS:
        places = rng.integers(len(values) // 2, len(values) - detector.parameters.patience, PLACES)
        curves = [values + size * scale * (np.arange(len(values)) >= at) for at in places]
        near = [
            any(abs(start - at) < LENGTH for start in starts(each)) for at, each in zip(places, curves, strict=True)
        ]
        found[size] = float(np.mean(near))
    return Trials(CURVES, len(values), alarms, alarms / (CURVES * len(values)) * len(column), found)

"""Accuracy curves whose truth is known: the level, the wobble of the model, and images that are easy or hard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

SHAPES = ("flat", "rising", "saturating", "two rises", "early peak")


def level(shape: str, length: int) -> np.ndarray:
    """Return the accuracy without noise, shape (T,)."""
    time = np.arange(length) / length
    if shape == "rising":
        return 0.1 + 0.8 * time
    if shape == "saturating":
        return 0.1 + 0.8 * (1 - np.exp(-8 * time))
    if shape == "two rises":
        return 0.1 + 0.4 * (1 - np.exp(-20 * time)) + 0.4 / (1 + np.exp(-30 * (time - 0.6)))
    if shape == "early peak":  # reached soon, then held to the end
        return np.minimum(0.9, 0.1 + 16 * time)
    return np.full(length, 0.9)


def wobble(sd: float, phi: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return an AR(1) process of a standard deviation: what the model itself does from measurement to measurement."""
    white = rng.standard_normal(length) * sd * np.sqrt(1 - phi**2)
    white[0] = sd * rng.standard_normal()
    for at in range(1, length):
        white[at] += phi * white[at - 1]
    return white


def measured(
    truth: np.ndarray, images: int, paired: bool, rng: np.random.Generator, flips: float = 0.02
) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    """Return the accuracy on so many images every ten steps, and what is said of it.

    Args:
        truth: shape (T,), clipped to 0 to 1.
        images: their number.
        paired: the votes of the same images, of which each has a difficulty and changes its mind a little; otherwise
            fresh images at each measurement.
        rng: source of randomness.
        flips: standard deviation of the change of mind on the scale of difficulty.
    """
    truth = np.clip(truth, 0, 1)
    index = pd.Index(10 * np.arange(len(truth)), name="step")
    if not paired:
        frame = pd.DataFrame({"bank": rng.binomial(images, truth) / images}, index=index)
        return frame, {"samples": images}
    difficulty = rng.random(images, dtype=np.float32)
    moved = difficulty + flips * rng.standard_normal((len(truth), images), dtype=np.float32)
    votes = (moved < truth[:, None]).astype(np.uint8)
    about = {"samples": images, "correct": pd.DataFrame(votes, index=index)}
    return pd.DataFrame({"bank": votes.mean(axis=1)}, index=index), about

"""Resampling of a series in blocks, which keeps what neighbors have to do with each other."""

from __future__ import annotations

import numpy as np

__all__ = ["block_bootstrap"]


def block_bootstrap(values: np.ndarray, length: int, block: int, rng: np.random.Generator) -> np.ndarray:
    """Return a series made of blocks of consecutive values, drawn with replacement.

    Args:
        values: shape (T, ...), T at least 1.
        length: of the result.
        block: number of values in a block, at most T of them.
        rng: source of randomness.

    Returns:
        Shape (length, ...).

    References:
        Künsch, 1989, The jackknife and the bootstrap for general stationary observations. Annals of Statistics.
    """
    block = min(block, len(values))
    starts = rng.integers(len(values) - block + 1, size=-(-length // block))
    return values[(starts[:, None] + np.arange(block)).ravel()[:length]]

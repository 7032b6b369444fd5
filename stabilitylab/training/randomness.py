"""Random numbers as a pure function of a key of whole numbers: no state to keep, nothing global to disturb.

The raw stream of numpy's Philox from a `SeedSequence` is guaranteed never to change, unlike the methods of a
`Generator`, so that a split or an order of today is the same with a numpy of tomorrow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["permutation", "uniforms"]


def uniforms(key: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Return independent uniform numbers in [0, 1); the first rows do not depend on how many rows are asked for.

    Args:
        key: whole numbers, none negative; another key gives an independent stream.
        shape: the shape of the result.

    Returns:
        float64, of the given shape, filled row by row.
    """
    return (_raw(key, int(np.prod(shape))) >> np.uint64(11)).reshape(shape) * 2.0**-53


def permutation(key: Sequence[int], num: int) -> np.ndarray:
    """Return the numbers 0 ... num - 1 in a random order, int64, shape (num,)."""
    return np.argsort(_raw(key, num), kind="stable")


def _raw(key: Sequence[int], num: int) -> np.ndarray:
    # The length and two words for each number, as a `SeedSequence` alone does not tell (0,) from (0, 0).
    words = [len(key), *(word for number in key for word in divmod(number, 2**32))]
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(num)

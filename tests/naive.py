"""Slow, obvious twins of what the library computes."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np


def _short_level(medians):
    """Level after the last of these block medians and its slope in a sample, from eight of them."""
    if len(medians) < 2:
        return float("nan"), 0.0
    recent = min(4, (len(medians) + 1) // 2)
    earlier = min(4, len(medians) - recent)
    flat = float(np.median(medians[-recent:]))
    rise = flat - float(np.median(medians[-recent - earlier : -recent]))
    if len(medians) >= 8:  # of which what may be noise of the medians is taken off
        rise -= _level_error(medians)
    up = rise / (8 * (recent + earlier) / 2)
    falls = [(b - a) / 8 for a, b in pairwise(medians)]
    while len(falls) < 3:
        falls.insert(0, 0.0)
    slope = up if up > 0 else min(0.0, max(falls[-3:]))
    return flat + slope * (8 * recent / 2 + 0.5), slope


def _level_error(medians):
    bends = [abs(c - 2 * b + a) for a, b, c in zip(medians, medians[1:], medians[2:], strict=False)]
    return 0.47 * float(np.median(bends))


def _long_level(medians):
    """Level from 8, 16 or 32 of these block medians, as long as the halves of each agree; None if they do not."""
    found = None
    for width, least in ((4, 12), (8, 20), (16, 36)):
        if len(medians) < least:
            break
        new, old = (
            np.mean([np.median(part[len(part) - back - 4 : len(part) - back]) for back in range(0, width, 4)])
            for part in (medians, medians[:-width])
        )
        if abs(new - old) > 2.5 * np.sqrt(4 / width) * _level_error(medians):
            break
        found = float(new + old) / 2
    return found


def level(values, at):
    """Level of one sample from the full blocks of eight before it, step by step: the past that was nearer so far."""
    past = [float(each) for each in values[:at]]
    blocks = [sorted(past[start : start + 8]) for start in range(0, len(past) - 7, 8)]
    medians = [(each[3] + each[4]) / 2 for each in blocks]
    if len(medians) < 3:
        return float("nan")
    nearer = 0.0
    for known in range(12, len(medians)):
        start, slope = _short_level(medians[:known])
        other = _long_level(medians[:known])
        if other is not None:
            nearer += abs(medians[known] - start - 3.5 * slope) - abs(medians[known] - other)
    start, slope = _short_level(medians)
    other = _long_level(medians)
    return other if other is not None and nearer > 0 else start + slope * (at - 8 * len(medians))


def match(first, later, window):
    """Pairs that are each other's nearest, by looking at all of them."""
    pairs = []
    for i, a in enumerate(first):
        j = min(range(len(later)), key=lambda k: (abs(later[k] - a), k)) if len(later) else None
        if j is None or abs(later[j] - a) > window:
            continue
        back = min(range(len(first)), key=lambda k: (abs(first[k] - later[j]), k))
        if back == i:
            pairs.append((i, j))
    return pairs


def max_sign_p(signs):
    """p-values of the largest sign statistic over all flips of episodes."""
    episodes, layers = signs.shape
    used = [max(1, int(np.count_nonzero(signs[:, layer]))) for layer in range(layers)]

    def statistic(flip):
        return [abs(sum(f * s for f, s in zip(flip, signs[:, k], strict=True))) / used[k] ** 0.5 for k in range(layers)]

    observed = statistic([1] * episodes)
    largest = [max(statistic(flip)) for flip in product([1, -1], repeat=episodes)]
    return [sum(each >= value - 1e-9 for each in largest) / len(largest) for value in observed]


def near(first, later, window):
    """Number of first times with a later-series time within the window."""
    return sum(any(abs(b - a) <= window for b in later) for a in first)


def num_within(times, others, low, high):
    return sum(any(low <= other - time <= high for other in others) for time in times)

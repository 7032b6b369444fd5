"""Slow, obvious twins of what the library computes."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np


def level(values, at):
    """Level of one sample from the full blocks of eight before it, a trend included, step by step."""
    past = [float(each) for each in values[:at]]
    blocks = [sorted(past[start : start + 8]) for start in range(0, len(past) - 7, 8)]
    medians = [(each[3] + each[4]) / 2 for each in blocks]
    if len(medians) < 3:
        return float("nan")
    recent = min(4, (len(medians) + 1) // 2)
    earlier = min(4, len(medians) - recent)
    flat = float(np.median(medians[-recent:]))
    rise = flat - float(np.median(medians[-recent - earlier : -recent]))
    if len(medians) >= 8:  # of which what may be noise of the medians is taken off
        bends = [abs(c - 2 * b + a) for a, b, c in zip(medians, medians[1:], medians[2:], strict=False)]
        rise -= 0.47 * float(np.median(bends))
    up = rise / (8 * (recent + earlier) / 2)
    falls = [(b - a) / 8 for a, b in pairwise(medians)]
    while len(falls) < 3:
        falls.insert(0, 0.0)
    slope = up if up > 0 else min(0.0, max(falls[-3:]))
    center = 8 * (len(medians) - recent / 2) - 0.5
    return flat + slope * (at - center)


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

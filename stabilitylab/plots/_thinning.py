"""Fewer points, the same picture: thinning that keeps extremes, NaN and inf; pure functions of arrays."""

from __future__ import annotations

import numpy as np

__all__ = ["bins_of", "pool_max", "spread", "tallest", "thin", "widen"]


def thin(values: np.ndarray, num_points: int = 3000) -> np.ndarray:
    """Return the rows to draw, so that a line through them looks like the line through all of them.

    The rows are cut into bins of equal size. Every bin keeps its smallest and its largest finite value, and, where
    it has them, one NaN, one inf and one -inf; the first and the last row are always kept.

    Args:
        values: shape (T,).
        num_points: the most rows to return; at least 8.

    Returns:
        Row numbers, increasing; all of them where T is small enough.

    Raises:
        ValueError: if fewer than 8 points are asked for.
    """
    if num_points < 8:
        raise ValueError(f"thinning to {num_points} points: at least 8 are needed to keep what matters")
    if len(values) <= num_points:
        return np.arange(len(values))
    finite = np.isfinite(values)
    odd = [mask for mask in (np.isnan(values), values == np.inf, values == -np.inf) if mask.any()]
    num_bins = (num_points - 2) // (2 + len(odd))
    bins = bins_of(len(values), num_bins)
    starts = np.searchsorted(bins, np.arange(num_bins))
    kept = [np.array([0, len(values) - 1])]
    for sign in (1.0, -1.0):
        signed = np.where(finite, sign * values, -np.inf)
        best = np.maximum.reduceat(signed, starts)
        kept.append(_first_in_bin((signed == best[bins]) & finite, bins))
    kept.extend(_first_in_bin(mask, bins) for mask in odd)
    return np.unique(np.concatenate(kept))


def _first_in_bin(mask: np.ndarray, bins: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(mask)
    return rows[np.unique(bins[rows], return_index=True)[1]]


def bins_of(num_rows: int, num_bins: int) -> np.ndarray:
    """Return the bin of every row, shape (num_rows,): as many bins, as equal and as full as possible."""
    return np.arange(num_rows) * min(num_bins, max(num_rows, 1)) // max(num_rows, 1)


def pool_max(values: np.ndarray, bins: np.ndarray, num_bins: int) -> np.ndarray:
    """Return the largest value of each bin, shape (num_bins,); NaN where a bin holds no number.

    Args:
        values: shape (T,); NaN is left out, inf counts.
        bins: the bin of each row, shape (T,).
        num_bins: how many bins there are.
    """
    pooled = np.full(num_bins, -np.inf)
    number = ~np.isnan(values)
    np.maximum.at(pooled, bins[number], values[number])
    filled = np.zeros(num_bins, dtype=bool)
    filled[bins[number]] = True
    return np.where(filled, pooled, np.nan)


def tallest(steps: np.ndarray, heights: np.ndarray, num_marks: int = 200) -> np.ndarray:
    """Return which marks to draw so that no two share one of ``num_marks`` places: the tallest of each place.

    Args:
        steps: where the marks stand, shape (N,), in any order.
        heights: how tall they are, shape (N,); inf is the tallest, NaN the smallest.
        num_marks: how many places the axis has.

    Returns:
        Positions in the arrays, increasing.
    """
    if len(steps) <= num_marks:
        return np.arange(len(steps))
    span = max(int(steps.max() - steps.min()), 1)
    place = np.minimum((steps - steps.min()) * num_marks // (span + 1), num_marks - 1)
    ranked = np.argsort(np.where(np.isnan(heights), -np.inf, heights), kind="stable")[::-1]
    return np.sort(ranked[np.unique(place[ranked], return_index=True)[1]])


def widen(spans: np.ndarray, least: float) -> np.ndarray:
    """Return intervals at least so wide, joined where they meet, so that each stays visible and none is drawn twice.

    Args:
        spans: first and last step of each interval, shape (N, 2).
        least: the smallest visible width, in steps.

    Returns:
        Increasing and disjoint, shape (M, 2), M <= N.
    """
    if len(spans) == 0:
        return np.empty((0, 2))
    missing = np.maximum(least - (spans[:, 1] - spans[:, 0]), 0) / 2
    wide = np.stack([spans[:, 0] - missing, spans[:, 1] + missing], axis=1)
    joined: list[list[float]] = []
    for low, high in wide[np.argsort(wide[:, 0])].tolist():
        if joined and low <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], high)
        else:
            joined.append([low, high])
    return np.array(joined)


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Move labels apart as little as needed: in the same order, ``gap`` apart, within the limits where they fit.

    Args:
        wanted: where each label would stand, shape (N,).
        gap: the least distance between two.
        low: the lower limit.
        high: the upper limit.

    Returns:
        Where each stands, shape (N,).
    """
    order = np.argsort(wanted, kind="stable")
    ramp = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []  # sum, count: neighbors that touch move together (isotonic regression)
    for value in wanted[order] - ramp:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    flat = np.concatenate([np.full(int(count), total / count) for total, count in blocks] or [np.empty(0)])
    placed = np.empty(len(wanted))
    placed[order] = np.clip(flat, low, max(low, high - (ramp[-1] if len(ramp) else 0.0))) + ramp
    return placed

r"""Does one kind of event warn of another? One row of evidence and one verdict for each coupling.

The sign of a lead time, everywhere::

    warning  ____|\_________        lead = time of the target - time of the warning
    target   _________|\____
                 |----|  lead > 0: the target follows, the warning warns

What is measured every k steps is seen up to k - 1 steps late, so an order closer than that is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.findings import Event
from stabilitylab.signals import Signal
from stabilitylab.stats.difference import holm
from stabilitylab.stats.lag import FEWEST, ambiguous, cluster, match, median_interval, sign_p
from stabilitylab.stats.surrogates import jitter, shift_blocks
from stabilitylab.stats.triggered import Excess, excess, moved_into, num_within

__all__ = ["COLUMNS", "PAIRS", "couplings", "onsets"]

PAIRS = (
    ("gradient", "accuracy"),
    ("gradient", "rank of representation"),
    ("gradient", "rank of projection"),
    ("gradient", "loss"),
    ("update", "gradient"),
    ("update", "loss"),
    ("adam", "gradient"),
    ("adam", "loss"),
)
"""Warning and target of each coupling that is tested; chosen before any run was looked at."""

WIDTH = 1.5
"""Targets are moved by so many horizons at most, on both sides."""

NARROW = 4
"""And, to see whether they are near, by so many times what counts as near."""

BLOCK = 2.5
"""And in blocks of so many times these widths."""

LARGEST = 400_000
"""Draws times events at most; with very many events there are fewer draws, at least 200."""

COLUMNS = (
    "warning", "target", "warning_series", "warning_label", "target_series", "target_label",
    "warning_every", "target_every", "horizon", "width",
    "warnings", "targets", "matched", "later", "ties", "sooner", "lead", "low", "high",
    "followed", "precision", "precision_by_chance", "preceded", "recall", "recall_by_chance",
    "p_jitter", "p_shift", "p", "p_adjusted", "p_smallest", "near", "near_by_chance", "p_near", "p_near_adjusted",
    "p_order", "p_order_adjusted", "p_order_smallest", "ambiguous", "verdict", "reason",
)  # fmt: skip


def couplings(
    signals: Mapping[str, Signal],
    *,
    horizon: int = 100,
    near: int = 10,
    gap: int = 20,
    alpha: float = 0.05,
    draws: int = 2000,
    seed: int = 0,
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> pd.DataFrame:
    """Return one row for each coupling: how often the warning is followed, against chance, by how much, a verdict.

    Events of one signal within a gap are one, which begins with the first: nobody is warned twice of the same. By
    chance: targets are moved, each by itself within a width and together in blocks, which leaves an unstable phase
    where it is; of both p-values the larger counts. They are of the largest excess over three windows: after the
    warning to the horizon, as far before it, and near it. Order: sign test of one-to-one matched events. In an
    unstable phase that is shorter than ten widths, moved targets leave it, and the p of being coupled is by itself too
    small (of independent pairs up to 10 % fall below 5 %); a verdict needs the test of the order or of nearness too.

    Args:
        signals: by name; one with a reason in ``missing`` is not recorded.
        horizon: steps within which a target counts as following; longer by the spacing of both signals.
        near: steps within which events count as near.
        gap: steps without any onset after which a new event begins.
        alpha: level of both tests, each corrected over couplings by Holm's procedure.
        draws: number of surrogates.
        seed: of the random draws.
        pairs: names of warning and target.

    Returns:
        Columns `COLUMNS`: ``lead``, ``low``, ``high`` in steps between the onsets of matched events; ``precision`` the
        part of the warnings that a target follows, ``recall`` the part of the targets that a warning precedes, both by
        at least one step and within the horizon; ``p_smallest`` the adjusted p that so many events could reach;
        ``ambiguous`` whether events come so regularly that those on the other side may as well be the partners.
        Verdicts: warns, together (coupled, no order seen), follows, no better than chance, too few events, not
        recorded.
    """
    rows = []
    for number, (warning, target) in enumerate(pairs):
        rng = np.random.default_rng([seed, number])  # a coupling does not depend on which others are there
        rows.append(_row(signals[warning], signals[target], horizon, near, gap, draws, rng))
    tested = [row for row in rows if min(row["warnings"], row["targets"]) >= FEWEST and not row["verdict"]]
    _correct(tested, "p")
    _correct(tested, "p_near")
    for row in rows:
        row["p_smallest"] = min(1.0, row["p_smallest"] * max(len(tested), 1))
    coupled = [row for row in tested if row["p_adjusted"] <= alpha and row["matched"] >= FEWEST]
    _correct(coupled, "p_order")
    for row in coupled:
        row["p_order_smallest"] = min(1.0, 2.0 ** (1 - row["matched"]) * len(coupled))
    for row in rows:
        if not row["verdict"]:
            row["verdict"], row["reason"] = _verdict(row, alpha)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _correct(rows: Sequence[dict[str, Any]], name: str) -> None:
    for row, p in zip(rows, holm(np.array([row[name] for row in rows])).tolist(), strict=True):
        row[f"{name}_adjusted"] = p


def _row(
    warning: Signal, target: Signal, horizon: int, near: int, gap: int, draws: int, rng: np.random.Generator
) -> dict[str, Any]:
    reach = horizon + warning.every - 1 + target.every - 1
    width = int(WIDTH * reach)
    first, later = onsets(warning.events, gap), onsets(target.events, gap)
    row: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan) | {
        "warning": warning.name, "target": target.name,
        "warning_series": warning.series, "warning_label": warning.label,
        "target_series": target.series, "target_label": target.label,
        "warning_every": warning.every, "target_every": target.every, "horizon": reach, "width": width,
        "warnings": len(first), "targets": len(later), "matched": 0, "later": 0, "ties": 0, "sooner": 0,
        "followed": 0, "preceded": 0, "ambiguous": False, "verdict": "", "reason": "",
    }  # fmt: skip
    missing = [each.missing for each in (warning, target) if each.missing]
    if missing:
        return row | {"verdict": "not recorded", "reason": "; ".join(missing)}
    if len(first) == 0 or len(later) == 0:
        return row
    pairs = match(first, later, reach)
    lead = later[pairs[:, 1]] - first[pairs[:, 0]]
    low, high = median_interval(lead, np.arange(len(lead))) if len(lead) else (np.nan, np.nan)
    row |= {
        "matched": len(lead), "later": int((lead > 0).sum()), "ties": int((lead == 0).sum()),
        "sooner": int((lead < 0).sum()), "lead": float(np.median(lead)) if len(lead) else np.nan,
        "low": low, "high": high, "p_order": sign_p(lead) if len(lead) else np.nan,
        "ambiguous": ambiguous(first, later, pairs),
    }  # fmt: skip
    return row | _chance(first, later, (warning, target), (reach, near, width), draws, rng)


def onsets(events: Iterable[Event], gap: int) -> np.ndarray:
    """Return when events begin, in steps, sorted; of those that no gap separates the first."""
    times = np.sort(np.array([each.onset for each in events], dtype=float))
    return times[np.unique(cluster(times, gap), return_index=True)[1]]


def _chance(
    first: np.ndarray,
    later: np.ndarray,
    signals: tuple[Signal, Signal],
    sizes: tuple[int, int, int],
    draws: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return how many follow and precede, how many would by chance, and the p-values."""
    warning, target = signals
    reach, near, width = sizes
    draws = min(draws, max(LARGEST // max(len(first), len(later)), 200))
    span = max(warning.first, target.first), min(warning.last, target.last)

    def against(width: float, *windows: tuple[float, float]) -> tuple[list[np.ndarray], list[Excess]]:
        moved = jitter(later, width, draws, rng), shift_blocks(later, BLOCK * width, draws, rng)
        inside = [moved_into(each, *span) for each in moved]
        return inside, [excess(first, later, each, windows) for each in inside]

    # moved times are no whole steps: half a step on both sides makes the windows as wide for them
    after, before = (0.5, reach + 0.5), (-reach - 0.5, -0.5)
    around = (-near - warning.every + 0.5, near + target.every - 0.5)
    moved, wide = against(width, after, before, around)
    _, close = against(NARROW * (near + warning.every + target.every - 2), around)
    preceded = int(num_within(later, first[None, :], *before)[0])
    return {
        "followed": int(wide[0].counts[0]),
        "precision": wide[0].counts[0] / len(first),
        "precision_by_chance": max(each.expected[0] for each in wide) / len(first),
        "preceded": preceded,
        "recall": preceded / len(later),
        "recall_by_chance": max(_preceded(first, each, *before) for each in moved),
        "p_jitter": wide[0].p,
        "p_shift": wide[1].p,
        "p": max(each.p for each in wide),
        "p_smallest": max(each.p_smallest for each in wide),
        "near": int(close[0].counts[0]),
        "near_by_chance": max(each.expected[0] for each in close),
        "p_near": max(each.p for each in close),
    }


def _preceded(first: np.ndarray, moved: np.ndarray, low: float, high: float) -> float:
    """Return the part of moved targets that a warning precedes."""
    at = np.searchsorted(first, moved + high, side="right") > np.searchsorted(first, moved + low, side="left")
    return float(at.mean())


def _verdict(row: Mapping[str, Any], alpha: float) -> tuple[str, str]:
    fewest = min(row["warnings"], row["targets"])
    if fewest < FEWEST:
        return "too few events", f"{row['warnings']} warnings and {row['targets']} targets, {FEWEST} of each needed"
    if row["p_adjusted"] > alpha:
        if row["p_smallest"] > alpha:
            return "too few events", f"so few events cannot reach p = {alpha:g}"
        return "no better than chance", "moved targets are met as often"
    if row["matched"] < FEWEST:
        return "too few events", f"{row['matched']} matched events, {FEWEST} needed"
    late, early = row["target_every"] - 1, row["warning_every"] - 1
    ordered = row["p_order_adjusted"] <= alpha and not row["ambiguous"]
    if ordered and row["low"] > late:
        return "warns", "the target follows by more than its own spacing hides"
    if ordered and row["high"] < -early:
        return "follows", "the target comes first by more than the spacing of the warning hides"
    if row["p_near_adjusted"] <= alpha:
        hidden = f": the spacing hides one within {max(late, early)} steps" if late or early else ""
        return "together", f"near each other, and no order can be claimed{hidden}"
    if row["ambiguous"]:
        return "no better than chance", "events come so regularly that those on the other side may be the partners"
    if row["p_order_smallest"] > alpha:
        return "too few events", f"{row['matched']} matched events cannot claim an order at p = {alpha:g}"
    return "no better than chance", "in the same stretches of the run, but neither in an order nor near each other"

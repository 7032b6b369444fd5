"""Two groups of runs, measure by measure: the difference, its interval, and what may be claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from stabilitylab.measures import MEASURES
from stabilitylab.stats.difference import holm, paired_difference, unpaired_difference

__all__ = ["COLUMNS", "VERDICTS", "contrast", "corrected"]

VERDICTS: Mapping[str, str] = {
    "higher": "the second group is higher",
    "lower": "the second group is lower",
    "not decided": "chance alone makes such a difference too often",
    "too few runs": "no difference between so few runs could be told from chance",
    "equal": "the measure has the same value in all runs that are compared, or in both runs of each pair",
    "not recorded": "a group has no run that tells it, or no pair of runs does",
}
"""Verdict to its meaning; the second group is compared with the first."""

COLUMNS = (
    "first", "second", "measure", "unit", "runs_first", "runs_second", "pairs", "mean_first", "mean_second",
    "scale", "difference", "low", "high", "p_t", "p_permutation", "p_smallest", "exact", "test", "p", "p_corrected",
    "verdict",
)  # fmt: skip

TINY = 1e-12
"""Differences below it are the last digits of sums."""


def contrast(
    first: pd.DataFrame, second: pd.DataFrame, pairs: Sequence[tuple[int, int]], names: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Return one row for each measure, without verdicts, which `corrected` adds.

    Means and numbers of runs are of those that are compared: with pairs, of the runs with a partner.

    Args:
        first: measures of the runs of the first group, a row a run.
        second: likewise.
        pairs: positions of runs that belong together; empty for a comparison without pairs.
        names: of both groups.
        seed: of random draws.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name in first.columns:
        one, other = first[name].to_numpy(dtype=float), second[name].to_numpy(dtype=float)
        whole = [(a, b) for a, b in pairs if not np.isnan(one[a]) and not np.isnan(other[b])]
        if pairs:
            one, other = one[[a for a, _ in whole]], other[[b for _, b in whole]]
        else:
            one, other = one[~np.isnan(one)], other[~np.isnan(other)]
        unit = MEASURES[name].unit
        row = {"first": names[0], "second": names[1], "measure": name, "unit": unit, "exact": True}
        row |= {"scale": "ratio" if unit == "x" else "difference", "pairs": len(whole)}
        row |= {"runs_first": len(one), "runs_second": len(other)}
        row |= {"mean_first": _mean(one, unit == "x"), "mean_second": _mean(other, unit == "x")}
        rows.append(row | _difference(one, other, bool(whole), rng, unit == "x"))
    return rows


def _mean(values: np.ndarray, logarithm: bool) -> float:
    if not len(values):
        return np.nan
    return float(np.exp(np.log(values).mean()) if logarithm else values.mean())


def _difference(
    one: np.ndarray, other: np.ndarray, paired: bool, rng: np.random.Generator, logarithm: bool
) -> dict[str, Any]:
    if not len(one) or not len(other):
        return {"difference": np.nan, "verdict": "not recorded"}
    if logarithm:
        one, other = np.log(one), np.log(other)
    found = paired_difference(one, other, rng) if paired else unpaired_difference(one, other, rng)
    together = np.concatenate([one, other])
    value = 0.0 if abs(found.value) <= TINY else found.value  # NaN where a value is infinite
    row: dict[str, Any] = {"exact": found.exact, "difference": value}
    if np.array_equal(one, other) if paired else (together == together[0]).all():
        return row | {"difference": 0.0, "verdict": "equal"}
    ranks = rankdata(together)  # where a value is infinite no mean exists
    way = found.value if np.isfinite(found.value) else ranks[len(one) :].mean() - ranks[: len(one)].mean()
    row |= {"low": found.low, "high": found.high, "way": way, "p_permutation": found.p, "p_smallest": found.p_smallest}
    normal = np.isfinite(found.p_t) and len(set(together.tolist())) > 2  # two values alone are far from normal
    return row | {"p_t": found.p_t if normal else np.nan}


def corrected(rows: Sequence[Mapping[str, Any]], alpha: float) -> pd.DataFrame:
    """Return the rows with the p-value that decides, corrected over all of them, and the verdicts; see `COLUMNS`.

    The permutation test decides where so many runs can reach the level after the correction; where they cannot,
    Student's t (Welch's without pairs) does. Which one it is follows from the number of runs, not from their values.
    """
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "way"])
    open_ = frame["verdict"].isna()
    reachable = holm(frame["p_smallest"].to_numpy(dtype=float)) <= alpha
    known = frame["p_t"].notna().to_numpy()
    by_t = np.where(frame["pairs"] > 0, "Student's t", "Welch's t")
    frame["test"] = np.where(~open_, "none", np.where(reachable | ~known, "permutation", by_t))
    frame["p"] = frame["p_permutation"].where(frame["test"] == "permutation", frame["p_t"]).astype(float)
    frame["p_corrected"] = holm(frame["p"].to_numpy(dtype=float))
    words = np.where(frame["way"].fillna(0).astype(float) > 0, "higher", "lower")
    undecided = np.where(reachable | known, "not decided", "too few runs")
    frame["verdict"] = frame["verdict"].where(~open_, np.where(frame["p_corrected"] <= alpha, words, undecided))
    return frame[list(COLUMNS)]

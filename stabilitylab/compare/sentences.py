"""A comparison in words: who has how many more of what, with which interval, and whether that is decided."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.measures import MEASURES
from stabilitylab.phrasing import count, equals, joined, p_cell, p_value, rounded
from stabilitylab.stats.difference import ExcessError

__all__ = ["ALWAYS", "DIFFERENCE", "about_excess", "about_failures", "cells", "headline", "size"]

ALWAYS = ("spikes_per_10k", "final_accuracy")
"""Measures that the first sentence tells, decided or not."""

COUNTED = {
    "spikes": "gradient spikes", "spikes_per_10k": "gradient spikes per 10,000 steps", "dips": "dips of the accuracy",
    "steps": "lasting falls of the accuracy", "drops": "open falls of the accuracy", "drifts": "drifts",
    "collapses": "collapsed embeddings", "divergences": "divergences",
}  # fmt: skip
NOUNS = {
    "tallest": "tallest spike", "deepest": "deepest fall", "area_lost": "accuracy lost in falls (times steps)",
    "final_accuracy": "final accuracy", "best_accuracy": "best accuracy", "final_loss": "final loss",
    "rank": "effective rank at the end", "rank_projection": "effective rank of the projection",
    "diverged": "share of diverged runs", "length": "length", "false_alarms": "number of spikes expected by chance",
}  # fmt: skip

SIZES = ("deepest", "area_lost", "length")
DECIDED = ("higher", "lower")
FEW = "too few runs"

DIFFERENCE = 3
"""Position of the difference in `cells`."""


def headline(rows: pd.DataFrame, pairs: int, tests: int) -> str:
    """Return the first sentences of two groups: what is decided and what everybody asks for, and by which test.

    Args:
        rows: of the table of differences.
        pairs: number of pairs of runs; 0 where they are not paired.
        tests: over how many tests p-values were corrected.
    """
    listed: list[dict[str, Any]] = [{str(key): each for key, each in row.items()} for row in rows.to_dict("records")]
    told = [row for row in listed if row["measure"] in ALWAYS or row["verdict"] in DECIDED]
    told = [row for row in told if row["verdict"] != "not recorded"] or listed[:1]
    told.sort(key=lambda row: (row["verdict"] not in DECIDED, row["measure"] not in ALWAYS))
    sizes = rows[["runs_first", "runs_second"]].max()
    group = count(pairs, "paired seed") if pairs else f"{sizes.iloc[0]} and {sizes.iloc[1]} runs, not paired"
    clauses = [_clause(row, at == 0, group) for at, row in enumerate(told)]
    return f"{'; '.join(clauses)}.{_tests(rows, tests)}"


def _clause(row: Mapping[str, Any], begins: bool, group: str) -> str:
    """Return what is said of one measure; the first clause names the groups and their size."""
    name, first, second = row["measure"], row["first"], row["second"]
    noun = NOUNS.get(name, COUNTED.get(name, name))
    inside = [group] if begins else []
    if row["verdict"] == "not recorded":
        return f"{noun}: not recorded in {first} or {second}{_in_brackets(inside)}"
    if row["verdict"] == "equal":
        subject = f"the number of {noun}" if name in COUNTED else f"the {noun}"
        value = _plain(name, row["mean_first"])
        if row["pairs"]:
            inside.append(f"mean {value}")
        where = "the same in every pair of runs" if row["pairs"] else f"{value} in every run"
        return f"{subject} is {where} of {first} and {second}{_in_brackets(inside)}"
    if row["p_corrected"] == row["p_corrected"]:
        inside.append(f"p {equals(row['p_corrected'])}")
    decision = "" if row["verdict"] in DECIDED else f": {row['verdict']}" + " to decide" * (row["verdict"] == FEW)
    return f"{_difference(row, noun, begins)}{decision}{_in_brackets(inside)}"


def _difference(row: Mapping[str, Any], noun: str, begins: bool) -> str:
    first, second = row["first"], row["second"]
    whose = f"{second}'s" if begins else "its"
    if not np.isfinite(row["difference"]):
        said = f"{whose} {noun} is not finite in some runs, so that only the order of the runs counts"
        return said + (f": {row['verdict']} than {first}'s" if row["verdict"] in DECIDED else "")
    amount, low, high = size(row)
    interval = f" [{low}, {high}]" if low else ""
    if row["difference"] == 0:
        return f"{f'{noun} of {second} and {first}' if begins else noun}: no difference on average{interval}"
    up = row["difference"] > 0
    if row["measure"] in COUNTED:
        than = f" than {first}" if begins else ""
        return f"{second if begins else 'it'} has {amount} {'more' if up else 'fewer'} {noun}{than}{interval}"
    if row["scale"] == "ratio":
        return f"{whose} {noun} is {amount} times {f'that of {first}' if begins else 'as tall'}{interval}"
    ways = ("larger", "smaller") if row["measure"] in SIZES else ("higher", "lower")
    return (
        f"{whose} {noun} is {amount} {ways[0] if up else ways[1]}{f' than that of {first}' if begins else ''}{interval}"
    )


def _in_brackets(parts: Sequence[str]) -> str:
    return f" ({'; '.join(parts)})" if parts else ""


def _tests(rows: pd.DataFrame, tests: int) -> str:
    """Say which tests the p-values come from."""
    tested = rows[rows["p_corrected"].notna()]
    if tested.empty:
        return ""
    said = f" P-values are corrected over {count(tests, 'test')}"
    by_t = tested[tested["test"] != "permutation"]
    if len(by_t):
        smallest = p_value(float(by_t["p_smallest"].min()))
        said += f", and by {by_t['test'].iloc[0]}: by permutation so few runs reach no p below {smallest}"
    return f"{said}."


def size(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the difference and its bounds in words, so that they go with *more* or *less*; no bounds are empty."""
    numbers = [row["difference"], row["low"], row["high"]]
    if row["scale"] == "ratio":
        texts = [_short(float(np.exp(each))) for each in numbers]
    else:
        factor = 100.0 if row["unit"] == "accuracy" else 1.0
        turned = numbers if numbers[0] > 0 else [-numbers[0], -numbers[2], -numbers[1]]
        texts = [_short(factor * each) for each in turned]
    if row["unit"] == "accuracy":
        texts[0] += " points"
    if not np.isfinite(numbers[1:]).all():
        texts[1:] = ["", ""]
    return texts[0], texts[1], texts[2]


def _short(value: float) -> str:
    if not np.isfinite(value):
        return ""
    return f"{value:.2g}" if 0 < abs(value) < 1 else f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"


def _plain(name: str, value: float) -> str:
    return f"{100 * value:.1f} %" if MEASURES[name].unit == "accuracy" else rounded(value, 4)


def about_failures(diverged: Mapping[str, tuple[int, int]], alone: Iterable[str]) -> list[str]:
    """Say how many runs of each group diverged, and how that counts; nothing if none did.

    Args:
        diverged: group to the number of runs that diverged, and of all.
        alone: names of those that diverged and have no partner.
    """
    if not any(number for number, _ in diverged.values()):
        return []
    said = ", ".join(f"{number} of {total} in {name}" for name, (number, total) in diverged.items())
    told = f"Diverged where the record ends: {said}. They count as failures: final accuracy 0, final loss infinite"
    names = joined(list(alone), 12)
    without = f"; but {names}, without a partner, not at all (unpaired, all runs are compared)" if names else ""
    return [f"{told}{without}."]


def about_excess(names: Iterable[str], runs: tuple[int, int], found: ExcessError) -> str:
    """Say which group stays closer to its best run over different settings."""
    first, second = names
    way = "further behind" if found.value > 0 else "closer to"
    decided = found.low > 0 or found.high < 0
    low, high = (
        sorted((100 * abs(found.low), 100 * abs(found.high))) if decided else (100 * found.low, 100 * found.high)
    )
    turn = -1 if found.value < 0 and not decided else 1
    low, high = (low, high) if turn > 0 else (-high, -low)
    return (
        f"Over different settings the runs of {second} end {100 * abs(found.value):.1f} points {way} the best of their "
        f"own group on average than those of {first} [{low:.1f}, {high:.1f}] ({runs[1]} and {runs[0]} runs; largest "
        f"distance of the two distributions {found.distance:.2f})" + ("." if decided else ": not decided.")
    )


def cells(row: Mapping[Any, Any]) -> list[str]:
    """Return a row of the printed table, as its headings in the command say."""
    name = str(row["measure"])
    means = [_plain(name, row[each]) if row[each] == row[each] else "-" for each in ("mean_first", "mean_second")]
    factor = 100.0 if row["unit"] == "accuracy" else 1.0
    numbers = [float(row[each]) for each in ("difference", "low", "high")]
    if row["scale"] == "ratio":
        value, low, high = (_short(float(np.exp(each))) for each in numbers)
        value = f"{value}x" if value else ""
    else:
        value, low, high = (f"{'+' if factor * each > 0 else ''}{_short(factor * each)}" for each in numbers)
    number = count(int(row["pairs"]), "pair") if row["pairs"] else f"{row['runs_first']}, {row['runs_second']}"
    p, corrected, permuted, smallest = (
        p_cell(row[each]) if row[each] == row[each] else "-"
        for each in ("p", "p_corrected", "p_permutation", "p_smallest")
    )
    permuted = f"{permuted} (at least {smallest})" if permuted != "-" else "-"
    interval = f"[{low}, {high}]" if low and high else "-"
    test = str(row["test"]) if p != "-" else "-"
    return [name, *means, value or "-", interval, number, permuted, test, corrected, str(row["verdict"])]

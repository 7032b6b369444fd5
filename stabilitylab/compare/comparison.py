"""From groups of analyzed runs to a comparison: a sentence first, then a table, and what one must know about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stabilitylab.compare.contrast import contrast, corrected
from stabilitylab.compare.groups import (
    Group,
    notes_on_records,
    notes_on_settings,
    pairs,
    refuse_wrong_groups,
    varying,
)
from stabilitylab.compare.sentences import about_excess, about_failures, headline
from stabilitylab.disk.atomic import replace, write_json
from stabilitylab.errors import InputError
from stabilitylab.measures import MEASURES, View, measure
from stabilitylab.phrasing import joined
from stabilitylab.stats.difference import ExcessError, excess_error

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["DEFAULT", "Comparison", "compare"]

DEFAULT = ("spikes_per_10k", "tallest", "dips", "deepest", "area_lost", "final_accuracy", "rank", "diverged")
"""Measures that are compared if none are named: the fewer, the less the correction over them costs."""

MANY = 8
"""With so many runs of different settings in each group their distributions are compared too."""


@dataclass(frozen=True)
class Comparison:
    """Two groups or more, each later one compared with the first."""

    sentences: tuple[str, ...]
    """One for each later group."""
    table: pd.DataFrame
    """One row for each later group and measure, see `stabilitylab.compare.contrast.COLUMNS`."""
    runs: pd.DataFrame
    """One row a run: its group, name, path, seed, pair, and measures; the pair is -1 where it has no partner."""
    excess: Mapping[str, ExcessError]
    """Later group to how far runs of different settings stay behind their best, where there are many."""
    notes: tuple[str, ...]
    """What sets the groups apart, what varies within them, and what could not be compared as it is."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as a mapping of plain values."""
        excess = {name: each._asdict() for name, each in self.excess.items()}
        tables = {"differences": self.table.to_dict("records"), "runs": self.runs.to_dict("records")}
        return {"schema": 1, "sentences": self.sentences, "notes": self.notes, **tables, "excess_error": excess}

    def save(self, folder: Path) -> None:
        """Write ``comparison.json`` and, for other tools, its tables as Parquet, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "comparison.json", self.to_json())
        for name, frame in (("differences", self.table), ("runs", self.runs)):
            replace(folder / f"{name}.parquet", partial(frame.to_parquet, index=False))


def compare(
    groups: Mapping[str, Sequence[Analysis]],
    measures: Sequence[str] = DEFAULT,
    *,
    paired: bool = True,
    alpha: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Compare every later group of runs with the first.

    Runs with equal seeds are compared in pairs. Where lengths differ, only the steps that all runs have count, but
    for those that diverged: they end early because they failed.

    Args:
        groups: name to analyzed runs.
        measures: which of `stabilitylab.measures.MEASURES`; p-values are corrected over all of them (Holm).
        paired: False to leave seeds aside.
        alpha: level of the claims.
        seed: of random draws, where not all arrangements can be gone through.

    Raises:
        InputError: if there are fewer than two groups, one is empty, a run is in two, or a measure is unknown.
    """
    refuse_wrong_groups(list(groups), list(groups.values()))
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise InputError(f"no measure is named {(unknown or [''])[0]!r}; there are {', '.join(MEASURES)}")
    made = [Group(name, tuple(analyses)) for name, analyses in groups.items()]
    diverged = {group.name: [View(each).diverged == 1 for each in group.analyses] for group in made}
    window, notes = _window(made, diverged)
    frames = [_measured(group, diverged[group.name], list(dict.fromkeys(measures)), window) for group in made]
    first, rows, joint = made[0], [], {}
    for group, frame in zip(made[1:], frames[1:], strict=True):
        joint[group.name] = pairs(first, group) if paired else []
        rows += contrast(frames[0], frame, joint[group.name], (first.name, group.name), seed)
    table = corrected(rows, alpha)
    excess = _excess(made, frames, diverged, window, seed)
    sentences = []
    for group in made[1:]:
        said = headline(table[table["second"] == group.name], len(joint[group.name]), int(table["p"].notna().sum()))
        if group.name in excess:
            sizes = (len(first.analyses), len(group.analyses))
            said += " " + about_excess((first.name, group.name), sizes, excess[group.name])
        sentences.append(said)
    counts = {name: (sum(each), len(each)) for name, each in diverged.items()}
    values = _values(made, frames, joint)
    failed = np.concatenate(list(diverged.values()))
    beside = failed & (values["pair"] == -1) & values["group"].isin(_paired(first.name, joint))
    failures = about_failures(counts, values["run"][beside])
    notes = [*notes_on_settings(made), *_notes_on_pairs(made, joint, paired), *failures, *notes]
    return Comparison(tuple(sentences), table, values, excess, (*notes, *notes_on_records(made)))


def _measured(
    group: Group, diverged: Sequence[bool], names: Sequence[str], window: tuple[int | None, int | None]
) -> pd.DataFrame:
    """Return the measures of each run, a failure where it diverged."""
    rows = []
    for analysis, failed in zip(group.analyses, diverged, strict=True):
        row = measure(analysis, names, *window)
        for name in names if failed else ():
            failure = MEASURES[name].failure
            row[name] = row[name] if failure is None else failure
        rows.append(
            row | ({"diverged": float(failed)} if "diverged" in names and not np.isnan(row["diverged"]) else {})
        )
    return pd.DataFrame(rows, columns=list(names))


def _window(
    groups: Sequence[Group], diverged: Mapping[str, Sequence[bool]]
) -> tuple[tuple[int | None, int | None], list[str]]:
    """Return the first and last step that all runs have, open where all are alike, and what is to be said of it."""
    spans = {}
    for group in groups:
        for name, analysis, failed in zip(group.names, group.analyses, diverged[group.name], strict=True):
            span = View(analysis).span
            if span is None:
                raise InputError(f"{analysis.run.path} holds no step: it cannot be compared")
            if not failed:
                spans[name] = span
    if len(set(spans.values())) <= 1:
        return (None, None), []
    first, last = max(each[0] for each in spans.values()), min(each[1] for each in spans.values())
    short = [name for name, each in spans.items() if each[1] == last]
    if first > last:
        raise InputError(
            f"the runs have no step in common: {joined(short, 3)} end at {last:,}, another begins at {first:,}"
        )
    longest = max(each[1] for each in spans.values())
    ending = "s" if len(short) == 1 else ""
    note = f"Compared over the steps {first:,} to {last:,}, which all runs have: {joined(short, 3)} end{ending} there"
    return (first, last), [f"{note}, the longest goes on to {longest:,}."]


def _excess(
    groups: Sequence[Group],
    frames: Sequence[pd.DataFrame],
    diverged: Mapping[str, Sequence[bool]],
    window: tuple[int | None, int | None],
    seed: int,
) -> dict[str, ExcessError]:
    """Return the comparison of the distributions, for groups of many runs whose settings vary."""
    errors = []
    for group, frame in zip(groups, frames, strict=True):
        if "final_accuracy" not in frame:
            frame = _measured(group, diverged[group.name], ["final_accuracy"], window)
        error = 1 - frame["final_accuracy"].to_numpy(dtype=float)
        whole = len(error) >= MANY and not np.isnan(error).any() and bool(varying(group))
        errors.append(error if whole else None)
    first = errors[0]
    if first is None:
        return {}
    rng = np.random.default_rng(seed)
    return {
        group.name: excess_error(first, error, rng)
        for group, error in zip(groups[1:], errors[1:], strict=True)
        if error is not None
    }


def _notes_on_pairs(groups: Sequence[Group], joint: Mapping[str, Sequence[tuple[int, int]]], paired: bool) -> list[str]:
    notes, first = [], groups[0]
    for group in groups[1:]:
        found = joint[group.name]
        if not found:
            why = "as was asked" if not paired else "their runs have no seeds in common, or none is known"
            notes.append(f"{first.name} and {group.name} are not paired: {why}.")
            continue
        said = [f"{first.names[a]} with {group.names[b]} (seed {first.seeds[a]})" for a, b in found]
        notes.append(f"Pairs: {joined(said, 12)}.")
        alone = [name for at, name in enumerate(first.names) if at not in {a for a, _ in found}]
        alone += [name for at, name in enumerate(group.names) if at not in {b for _, b in found}]
        if alone:
            notes.append(f"Without a partner, and so not compared: {joined(alone, 12)}.")
    return notes


def _paired(first: str, joint: Mapping[str, Sequence[tuple[int, int]]]) -> list[str]:
    """Return the names of the groups of which only runs with a partner are compared."""
    with_pairs = [name for name, found in joint.items() if found]
    return [*with_pairs, first] if len(with_pairs) == len(joint) else with_pairs


def _values(
    groups: Sequence[Group], frames: Sequence[pd.DataFrame], joint: Mapping[str, Sequence[tuple[int, int]]]
) -> pd.DataFrame:
    parts = []
    for group, frame in zip(groups, frames, strict=True):
        partner = {b: a for a, b in joint.get(group.name, ())}
        if group is groups[0]:
            partner = {a: a for found in joint.values() for a, _ in found}
        about = {
            "group": group.name,
            "run": group.names,
            "path": [str(each.run.path) for each in group.analyses],
            "seed": group.seeds,
            "pair": [partner.get(at, -1) for at in range(len(group.analyses))],
        }
        parts.append(pd.concat([pd.DataFrame(about), frame], axis=1))
    return pd.concat(parts, ignore_index=True)

"""Groups of runs: what sets them apart, what varies within them, and which runs make pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stabilitylab.errors import InputError
from stabilitylab.phrasing import count, joined
from stabilitylab.settings import flatten

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["Group", "apart", "notes_on_records", "notes_on_settings", "pairs", "refuse_wrong_groups", "varying"]


@dataclass(frozen=True)
class Group:
    """Analyzed runs that are taken to be repetitions of one thing."""

    name: str
    analyses: tuple[Analysis, ...]

    @cached_property
    def names(self) -> list[str]:
        """A name for each run, with its folder where two of them are equal."""
        runs = [each.run for each in self.analyses]
        plain = [run.name for run in runs]
        return [run.name if plain.count(run.name) == 1 else str(run.path) for run in runs]

    @cached_property
    def settings(self) -> list[dict[str, str]]:
        """The settings of each run but its seed, dotted name to value as text."""
        return [{key: text for key, text in each.items() if not _is_seed(key)} for each in self._all]

    @cached_property
    def seeds(self) -> list[str]:
        """The seed of each run; empty where it is not known."""
        found = []
        for analysis, settings in zip(self.analyses, self._all, strict=True):
            seeds = [text for key, text in sorted(settings.items()) if _is_seed(key) and text != "null"]
            header = analysis.run.header.get("seed")
            found.append(" ".join(seeds) if seeds else "" if header is None else str(header))
        return found

    @cached_property
    def _all(self) -> list[dict[str, str]]:
        return [
            {
                key: json.dumps(value, sort_keys=True, default=str).strip('"')
                for key, value in flatten(each.run.config).items()
            }
            for each in self.analyses
        ]

    def values(self, key: str) -> list[str]:
        """Return the different values of a setting, in the order of the runs."""
        return list(dict.fromkeys(each.get(key, "not set") for each in self.settings))


def _is_seed(key: str) -> bool:
    return key.rsplit(".", 1)[-1] == "seed"


def apart(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Return the settings that are one value in each group and not the same in all, with these values."""
    found = {}
    for key in _keys(groups):
        values = [each.values(key) for each in groups]
        if all(len(each) == 1 for each in values) and len({each[0] for each in values}) > 1:
            found[key] = [each[0] for each in values]
    return found


def varying(group: Group) -> dict[str, list[str]]:
    """Return the settings other than the seed that vary within a group, with their values."""
    return {key: group.values(key) for key in _keys([group]) if len(group.values(key)) > 1}


def _keys(groups: Sequence[Group]) -> list[str]:
    return sorted({key for group in groups for settings in group.settings for key in settings})


def pairs(first: Group, second: Group) -> list[tuple[int, int]]:
    """Return which runs of two groups belong together: equal seeds, each once in its group.

    Where a seed occurs several times in a group, the settings that vary within the groups must be equal too.

    Returns:
        Positions of the runs, at least two pairs or none.
    """
    keys: list[list[tuple[str, ...]]] = [[(seed,) for seed in group.seeds] for group in (first, second)]
    if any(len(set(each)) < len(each) for each in keys):
        free = sorted(varying(first) | varying(second))
        keys = [
            [
                (seed, *(settings.get(key, "") for key in free))
                for seed, settings in zip(g.seeds, g.settings, strict=True)
            ]
            for g in (first, second)
        ]
    once = [{key: each.index(key) for key in each if each.count(key) == 1 and key[0]} for each in keys]
    found = [(at, once[1][key]) for key, at in once[0].items() if key in once[1]]
    alone = len(first.analyses) == len(second.analyses) == 1
    return found if len(found) > 1 or (alone and found) else []


def notes_on_settings(groups: Sequence[Group]) -> list[str]:
    """Say which settings set the groups apart, and which vary where they should not."""
    silent = [name for group in groups for name, each in zip(group.names, group.settings, strict=True) if not each]
    notes = []
    if silent:
        notes.append(f"No configuration is known of {joined(silent)}: what sets the groups apart cannot be told.")
    differing = apart(groups)
    if differing:
        said = [f"{key} ({' | '.join(values)})" for key, values in differing.items()]
        notes.append(f"The groups differ in {joined(said, 12)}.")
    elif len(silent) < sum(len(each.analyses) for each in groups):
        notes.append("No setting sets the groups apart: a difference would be chance, or something outside of them.")
    for group in groups:
        free = varying(group)
        if free:
            said = [f"{key} ({count(len(values), 'value')})" for key, values in free.items()]
            notes.append(f"Within {group.name} these vary besides the seed: {joined(said, 8)}.")
    return notes


def notes_on_records(groups: Sequence[Group]) -> list[str]:
    """Say where runs record other things: other layers, another number of images, another embedding."""
    notes = []
    described: Mapping[str, Any] = {
        "layers": lambda run: ", ".join(run.layers.names),
        "held-out images of the kNN accuracy": lambda run: _about(run, "knn.accuracy", "samples"),
        "images of the spectra": lambda run: _about(run, "spectrum.representation", "samples"),
        "embeddings in spectrum.rank": lambda run: _about(run, "spectrum.rank", "labels"),
        "what the accuracy votes with": lambda run: _about(run, "knn.accuracy", "labels"),
    }
    consequence = {
        "layers": "gradient spikes are counted over other layers, so that their number is not quite the same thing",
        "embeddings in spectrum.rank": "ranks of other embeddings are not the same thing",
    }
    for what, read in described.items():
        values = {read(each.run) for group in groups for each in group.analyses} - {""}
        if len(values) > 1:
            then = consequence.get(what, "their errors differ")
            notes.append(f"The runs differ in {what} ({joined(sorted(map(str, values)), 3)}): {then}.")
    return notes


def _about(run: Any, series: str, key: str) -> str:
    return str(run.about(series).get(key) or "") if series in run else ""


def refuse_wrong_groups(names: Sequence[str], groups: Sequence[Sequence[Analysis]]) -> None:
    """Raise `InputError` unless there are two groups or more, each with runs and a name of its own, none twice."""
    if len(groups) < 2:
        raise InputError(f"a comparison takes at least two groups of runs, {count(len(groups), 'group')} given")
    for name, runs in zip(names, groups, strict=True):
        if not runs:
            raise InputError(f"the group {name!r} holds no run")
    twice = [name for at, name in enumerate(names) if name in names[:at]]
    if twice:
        raise InputError(f"two groups are named {twice[0]!r}; each needs a name of its own")
    seen: dict[Any, str] = {}
    for name, runs in zip(names, groups, strict=True):
        for each in runs:
            path = each.run.path.resolve()
            if path in seen:
                raise InputError(f"{each.run.path} is in {seen[path]} and in {name}: a run counts once")
            seen[path] = name

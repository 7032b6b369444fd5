"""What an import makes of a log: series, their columns, what is left out, and what must be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from stabilitylab.importing.mapping import (
    KNOWN,
    MAGNITUDES,
    PER_PARAMETER,
    Pattern,
    accuracies,
    alphabetical,
    in_given_order,
    layers_in,
    map_to,
    place,
)
from stabilitylab.importing.reading import Column, Log
from stabilitylab.importing.values import counted
from stabilitylab.layers import Layers
from stabilitylab.phrasing import count, joined

__all__ = ["Plan", "Series", "make_plan"]

PERCENT = 1.5
"""An accuracy above this is in percent."""


@dataclass
class Series:
    """One series of the run."""

    name: str
    columns: list[int]
    """Numbers of the columns of the log, in the order of the labels."""
    labels: list[str]
    factor: float = 1.0
    """What the values are multiplied by."""
    estimated: bool = False
    """Whether they are norms of histograms."""

    @property
    def per_parameter(self) -> bool:
        """Whether its rows must be whole: a value that is missing is not one that is not finite."""
        return self.name in PER_PARAMETER and len(self.columns) > 1


@dataclass
class Plan:
    """What becomes of a log."""

    log: Log
    series: list[Series]
    layers: Layers | None
    left_out: dict[str, str]
    """Column to the reason."""
    kept_apart: dict[str, str] = field(default_factory=dict)
    """Column that is a series of its own although a pattern matches it, to the reason."""

    def rows(self) -> list[dict[str, Any]]:
        """Return what the user is shown: one record for each column of the log that is imported."""
        found = []
        for series in self.series:
            for number, label in zip(series.columns, series.labels, strict=True):
                column = self.log.columns[number]
                found.append(
                    {
                        "column": column.name, "series": series.name, "label": label,
                        "values": column.count - column.repeated,
                        "first": column.first, "last": column.last, "every": column.every,
                        "largest_gap": column.largest_gap, "nonfinite": column.nonfinite,
                    }
                )  # fmt: skip
        return found

    @property
    def unit(self) -> str:
        """What steps are."""
        return "epoch" if any(file.facts.step.lower() == "epoch" for file in self.log.files) else "step"

    def accuracies(self) -> list[str]:
        """Return columns that may be accuracies of held-out data, the surest first, if none is judged as one."""
        if any(series.name == "knn.accuracy" for series in self.series):
            return []
        own = [self.log.columns[series.columns[0]] for series in self.series if series.name.startswith("imported.")]
        return accuracies([each.name for each in own if 0 < each.largest <= 100])

    def repeated(self) -> list[str]:
        """Return how many values are lost to others at their step, as far as they follow each other."""
        number = sum(self.log.columns[each].repeated for series in self.series for each in series.columns)
        return [counted(number, "values at a step that had one already; the last one counts")] if number else []

    def _strangers(self) -> list[str]:
        """Say which series of the user hardly differ by name from one that the analysis knows."""
        own = sorted({series.name for series in self.series}.difference(KNOWN))
        alike = [(name, meant) for name in own for meant in get_close_matches(name, KNOWN, 1, 0.9)]
        return [
            f"no analysis knows a series {name}; did you mean {meant}?"
            for name, meant in alike if not name.startswith(meant)
        ]  # fmt: skip

    def _held(self) -> list[str]:
        """Say which columns mostly repeat the value before, and how many more do."""
        judged = (*MAGNITUDES, "training.loss")
        columns = [self.log.columns[each] for series in self.series if series.name in judged for each in series.columns]
        held = [each for each in columns if 2 * each.held > each.count and each.smallest < each.largest]
        if not held:
            return []
        worst = max(held, key=lambda each: each.held / each.count)
        more = f" (and likewise {count(len(held) - 1, 'more column')})" if len(held) > 1 else ""
        return [
            f"{worst.held:,} of {worst.count:,} values of {worst.name} are exactly the one before{more}, as where gaps "
            "were filled or values rounded: each counts as measured anew, and rows that were filled in are better left "
            "out"
        ]

    def notes(self) -> list[str]:
        """Return what could not be read, and other things to know, one sentence each."""
        said = []
        for file in self.log.files:
            told = [counted(number, what) for what, number in file.facts.counts.items() if number]
            said += [f"{file.source.path}: {each}" for each in [*file.facts.remarks, *told]]
            if file.source.beside:
                tables = joined(list(file.source.beside), 3)
                said.append(f"the event files are read, and not {tables}; what is wanted can be named file by file")
        said += self._strangers() + self._held()
        for name, why in self.kept_apart.items():
            said.append(f"{name} is a series of its own: {why}")
        for series in self.series:
            if series.factor != 1:
                said.append(f"{series.name} is in percent in the log; divided by {1 / series.factor:g}")
            if series.estimated:
                said.append(f"{series.name} is estimated from histograms, as exactly as their bins are narrow")
        if self.layers is not None and alphabetical(self.layers.names):
            said.append(
                "the layers are in alphabetical order, as trackers export columns: if that is not their order in the "
                f"model, say --layers {','.join(self.layers.names)} in the right one"
            )
        by_name = {series.name: series for series in self.series}
        if "gradients.total" in by_name and "gradients.norm" not in by_name:
            name = self.log.columns[by_name["gradients.total"].columns[0]].name
            said.append(f"no layer has a norm of its own; spikes are sought in {name} with --map "
                        f"{map_to(name, 'gradients.norm')}")  # fmt: skip
        if names := self.accuracies():
            said.append(f"dips are sought in {names[0]} with --map {map_to(names[0], 'knn.accuracy')}")
        return said


def make_plan(
    log: Log, given: Sequence[Pattern], apart: dict[str, str] | None = None, layers: Sequence[str] = ()
) -> Plan:
    """Return what becomes of the columns of a log.

    Args:
        log: that was read.
        given: patterns of the user.
        apart: columns that must not go where their patterns say, to the reason.
        layers: all layers in depth order, where the order that is found is not it.

    Raises:
        InputError: if the layers are others.
    """
    apart = apart or {}
    number = {column.name: at for at, column in enumerate(log.columns) if column.count}
    left_out = {name: why for file in log.files for name, why in file.facts.ignored.items() if name not in number}
    left_out |= {column.name: "no values" for column in log.columns if not column.count}
    histograms = {name: log.columns[at].histogram for name, at in number.items()}
    places = place(histograms, given, apart)
    negative = [
        name for name, each in places.items() if each.series in MAGNITUDES and log.columns[number[name]].smallest < 0
    ]
    if negative:
        apart = {**apart, **dict.fromkeys(negative, "it holds values below zero, as no norm does")}
        places = place(histograms, given, apart)
    members: dict[str, dict[str, int]] = {}
    kept_apart = dict(apart)
    for name, target in places.items():
        if target.series:
            members.setdefault(target.series, {})[target.label] = number[name]
            if target.why:
                kept_apart[name] = target.why
        else:
            left_out[name] = target.why
    made: list[Series] = []
    found: Layers | None = None
    for name in sorted(members, key=lambda each: (each.startswith("imported."), each)):
        labels = list(members[name])
        if name in PER_PARAMETER:
            labels, own = layers_in(labels)
            found = found or own
        columns = [log.columns[members[name][label]] for label in labels]
        made.append(
            Series(
                name, [members[name][label] for label in labels], labels, _factor(name, columns), _hist(log, columns)
            )
        )
    return Plan(log, made, in_given_order(found, layers), left_out, kept_apart)


def _factor(name: str, columns: Sequence[Column]) -> float:
    return 0.01 if name == "knn.accuracy" and any(PERCENT < each.largest <= 100 for each in columns) else 1.0


def _hist(log: Log, columns: Sequence[Column]) -> bool:
    """Tell whether norms were estimated from bins; the histograms of TensorBoard hold the sum of squares itself."""
    tables = any(file.source.kind != "tensorboard" for file in log.files)
    return tables and any(each.histogram for each in columns)

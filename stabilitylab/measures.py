"""The one table of what a run is measured by: for tables of runs, comparisons, and conditions that a run must meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stabilitylab.detectors.dip import area_lost, measured
from stabilitylab.findings import Event
from stabilitylab.signals import curve_of

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["FALLS", "MEASURES", "Measure", "View", "measure", "tabulate"]

NAN = float("nan")
FALLS = ("dip", "step", "drop")
TAPS = ("representation", "projection")
LAST_LOSSES = 100


class View:
    """An analyzed run between two steps, both of which belong to it; by default all of it."""

    def __init__(self, analysis: Analysis, first: int | None = None, last: int | None = None) -> None:
        self.analysis = analysis
        self.first, self.last = first, last

    def inside(self, step: int) -> bool:
        """Return whether a step belongs to the view."""
        return (self.first is None or step >= self.first) and (self.last is None or step <= self.last)

    def judged(self, kind: str) -> bool:
        """Return whether there was enough to judge something."""
        return any(each.kind == kind and each.verdict != "not judged" for each in self.analysis.findings)

    def events(self, kinds: Iterable[str], label: str | None = None) -> list[Event]:
        """Return the events of some kinds that start inside, of one column or of all."""
        found = [each for each in self.analysis.events if each.kind in kinds and self.inside(each.start)]
        return [each for each in found if label in (None, each.label)]

    def curve(self, series: str, label: str) -> pd.Series:
        """Return the recorded part of a column that lies inside; empty where there is none."""
        run = self.analysis.run
        if series not in run or label not in run.about(series)["labels"]:
            return pd.Series(dtype=float)
        return run.read(series, [label])[label].loc[self.first : self.last]

    def steps(self, series: str) -> int:
        """Return how many steps a series spans inside, from its first to its last."""
        labels = self.labels(series)
        index = self.curve(series, labels[0]).index if labels else pd.Index([])
        return int(index[-1]) - int(index[0]) + 1 if len(index) else 0

    @cached_property
    def span(self) -> tuple[int, int] | None:
        """The first and last step inside that any series has; nothing where there is none."""
        run = self.analysis.run
        indices = [self.curve(name, labels[0]).index for name in run.series if (labels := self.labels(name))]
        ends = [(int(index[0]), int(index[-1])) for index in indices if len(index)]
        return (min(first for first, _ in ends), max(last for _, last in ends)) if ends else None

    def labels(self, series: str) -> list[str]:
        """Return the columns of a series; none where it was not recorded."""
        run = self.analysis.run
        return [str(each) for each in run.about(series)["labels"]] if series in run else []

    @cached_property
    def accuracy_column(self) -> str:
        """The column of the accuracy that is told: the fixed bank, else the first."""
        labels = self.labels("knn.accuracy")
        return "bank" if "bank" in labels or not labels else labels[0]

    @cached_property
    def accuracy(self) -> pd.Series:
        """The accuracy inside, without what was not measured."""
        return measured(self.curve("knn.accuracy", self.accuracy_column))

    @cached_property
    def falls(self) -> list[Event] | None:
        """Falls of the accuracy that begin inside; nothing where they could not be judged."""
        return self.events(FALLS, self.accuracy_column) if self.judged("dips") else None

    @cached_property
    def spikes(self) -> list[float] | None:
        """The tallest ratio of each gradient spike inside; nothing where they could not be judged."""
        episodes = [each for each in self.analysis.episodes if self.inside(each.start)]
        tallest = [max(event.height for event in each.events) for each in episodes]
        return tallest if self.judged("spikes") else None

    @cached_property
    def loss(self) -> pd.Series:
        """The loss inside, as it was recorded."""
        labels = self.labels("training.loss")
        return self.curve("training.loss", labels[0]).astype(float) if labels else pd.Series(dtype=float)

    @cached_property
    def diverged(self) -> float:
        """1 if the loss is not finite, or away from its level for good, where the record ends; NaN without a loss."""
        if self.loss.empty:
            return NAN
        losses = self.analysis.run.read("training.loss").index
        open_at_end = [each for each in self.analysis.events if each.kind == "divergence" and each.stop >= losses[-1]]
        return float(any(self.inside(each.start) for each in open_at_end))

    def rank(self, tap: str) -> float:
        """Return the effective rank of an embedding at its last spectrum inside; NaN where it was not recorded."""
        curve = curve_of(self.analysis.run, f"rank of {tap}", None)
        inside = pd.Series(dtype=float) if curve is None else curve.loc[self.first : self.last].dropna()
        return float(inside.iloc[-1]) if len(inside) else NAN


@dataclass(frozen=True)
class Measure:
    """One number of a run; NaN where the run does not tell it."""

    says: str
    """What it is."""
    read: Callable[[View], float]
    unit: Literal["", "per 10,000 steps", "x", "accuracy", "accuracy x steps", "steps"] = ""
    better: Literal["lower", "higher", "neither"] = "neither"
    """Which of two values one wants."""
    failure: float | None = None
    """What counts for a run that diverged."""


def _number(values: Sequence[Any] | None) -> float:
    return NAN if values is None else float(len(values))


def _rate(view: View) -> float:
    steps = view.steps("gradients.norm")
    return 1e4 * len(view.spikes) / steps if view.spikes is not None and steps else NAN


def _tallest(view: View) -> float:
    return NAN if view.spikes is None else max(view.spikes, default=1.0)


def _falls(kind: str) -> Callable[[View], float]:
    return lambda view: _number(None if view.falls is None else [each for each in view.falls if each.kind == kind])


def _deepest(view: View) -> float:
    return NAN if view.falls is None else max((each.height for each in view.falls), default=0.0)


def _drifts(view: View) -> float:
    return float(len(view.events(["drift"]))) if view.judged("drift") else NAN


def _area(view: View) -> float:
    if view.falls is None:
        return NAN
    seen = [each for each in view.falls if each.peak in view.accuracy.index]
    return float(sum(area_lost(each, view.accuracy) for each in seen))


def _collapses(view: View) -> float:
    return float(len({each.series for each in view.events(["collapse"])})) if view.judged("collapse") else NAN


def _divergences(view: View) -> float:
    return float(len(view.events(["divergence"]))) if view.judged("divergence") else NAN


def _final_loss(view: View) -> float:
    last = view.loss.iloc[-LAST_LOSSES:].to_numpy()
    return float(np.median(np.where(np.isfinite(last), last, np.inf))) if len(last) else NAN


def _rank(view: View) -> float:
    return next((rank for rank in map(view.rank, TAPS) if not np.isnan(rank)), NAN)


def _false_alarms(view: View) -> float:
    said = [each.numbers.get("false_alarms_expected") for each in view.analysis.findings if each.kind == "spikes"]
    return float(said[0]) if said and said[0] is not None else NAN


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "length": Measure(
            "steps from the first to the last one recorded",
            lambda view: float(view.span[1] - view.span[0] + 1) if view.span else 0.0, "steps",
        ),
        "spikes": Measure(
            "gradient spikes; one that hits several layers counts once", lambda view: _number(view.spikes), "", "lower"
        ),
        "spikes_per_10k": Measure("gradient spikes per 10,000 steps", _rate, "per 10,000 steps", "lower"),
        "tallest": Measure(
            "largest ratio of a spike to the level of its layer; 1 without a spike, inf where not finite",
            _tallest, "x", "lower",
        ),
        "dips": Measure("falls of the kNN accuracy that recovered", _falls("dip"), "", "lower"),
        "steps": Measure("falls of the kNN accuracy that did not recover", _falls("step"), "", "lower"),
        "drops": Measure("falls of the kNN accuracy still open at the end", _falls("drop"), "", "lower"),
        "drifts": Measure("slow degradations without a fall", _drifts, "", "lower"),
        "deepest": Measure("depth of the deepest fall, as a part of 1; 0 without one", _deepest, "accuracy", "lower"),
        "area_lost": Measure(
            "accuracy lost in the falls: depth below the level before each, times steps", _area, "accuracy x steps",
            "lower",
        ),
        "final_accuracy": Measure(
            "last kNN accuracy, as a part of 1",
            lambda view: float(view.accuracy.iloc[-1]) if len(view.accuracy) else NAN, "accuracy", "higher", 0.0,
        ),
        "best_accuracy": Measure(
            "highest kNN accuracy, as a part of 1",
            lambda view: float(view.accuracy.max()) if len(view.accuracy) else NAN, "accuracy", "higher",
        ),
        "final_loss": Measure(
            f"median of the last {LAST_LOSSES} losses; inf where most are not finite", _final_loss, "", "lower", np.inf
        ),
        "rank": Measure(
            "effective rank at the end, of the representation where it was recorded, else of the projection",
            _rank, "", "higher",
        ),
        "rank_projection": Measure(
            "effective rank of the projection at the end", lambda view: view.rank("projection"), "", "higher"
        ),
        "collapses": Measure("embeddings that collapsed, completely or in part", _collapses, "", "lower"),
        "divergences": Measure(
            "times that the loss stopped being finite, or left its level for good", _divergences, "", "lower"
        ),
        "diverged": Measure(
            "1 if it had done so where the record ends, else 0", lambda view: view.diverged, "", "lower"
        ),
        "false_alarms": Measure("gradient spikes that chance alone would make in this run", _false_alarms),
    }
)  # fmt: skip
"""Name to measure."""


def measure(
    analysis: Analysis, names: Iterable[str] = tuple(MEASURES), first: int | None = None, last: int | None = None
) -> dict[str, float]:
    """Return measures of a run, NaN where it does not tell them.

    Args:
        analysis: the analyzed run.
        names: which of `MEASURES`.
        first: step before which nothing counts.
        last: step after which nothing counts.
    """
    view = View(analysis, first, last)
    return {name: MEASURES[name].read(view) for name in names}


def tabulate(analyses: Iterable[Analysis]) -> pd.DataFrame:
    """Return one row a run: its name, path and status, the verdicts on lead and collapse, and all `MEASURES`."""
    rows = []
    for each in analyses:
        verdicts = {"lead": _verdict(each, "lead"), "collapse": _verdict(each, "collapse")}
        about = {"run": each.run.name, "path": str(each.run.path), "status": each.run.status}
        rows.append(about | verdicts | measure(each))
    return pd.DataFrame(rows, columns=["run", "path", "status", "lead", "collapse", *MEASURES])


def _verdict(analysis: Analysis, kind: str) -> str:
    """Return the verdict of a kind of finding, the gravest where there are several; empty where it was not told."""
    told = [each.verdict for each in analysis.findings if each.kind == kind]
    quiet = ("none", "not judged")
    return next((each for each in told if each not in quiet), next(iter(sorted(told)), ""))

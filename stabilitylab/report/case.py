"""What an advice may ask of a run: its findings, its events, its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis
    from stabilitylab.findings import Episode, Finding

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """An analyzed run, asked in the words of the advice."""

    analysis: Analysis

    def setting(self, name: str) -> Any:
        """Return a setting by its dotted name; None where the run does not say it."""
        value: Any = self.analysis.run.config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def number(self, name: str) -> float | None:
        """Return a setting that is a number; None where it is none."""
        value = self.setting(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def finding(self, kind: str, *verdicts: str) -> Finding | None:
        """Return the first finding of a kind, with one of the verdicts where any are given."""
        found = (each for each in self.analysis.findings if each.kind == kind)
        return next((each for each in found if not verdicts or each.verdict in verdicts), None)

    def collapse(self, tap: str, verdict: str) -> Finding | None:
        """Return the finding of a collapse of a tap."""
        found = (each for each in self.analysis.findings if each.kind == "collapse" and each.verdict == verdict)
        return next((each for each in found if each.numbers.get("tap") == tap), None)

    @property
    def first(self) -> str:
        """The layer that sees the input."""
        return self.analysis.run.layers.first

    @property
    def patches(self) -> bool:
        """Whether the first layer projects patches."""
        stem = self.setting("model.stem")
        return stem == "patchify" if isinstance(stem, str) else "patch" in self.first or self.first == "conv_proj"

    @property
    def shared(self) -> list[Episode]:
        """The episodes that reach more than one layer; noise of one layer makes none."""
        return [each for each in self.analysis.episodes if len(each.events) > 1]

    @property
    def from_first(self) -> int:
        """How many of them are tallest in the first layer or, if the order is no chance, begin in it alone."""
        begins = self.finding("where spikes begin", "first layer") is not None
        return sum(
            each.tallest == (self.first,) or (begins and each.first_layers == (self.first,)) for each in self.shared
        )

    def events_in(self, *series: str) -> int:
        """Return how many spikes the series of these names, or of names below them, have."""
        return sum(
            any(event.series == name or event.series.startswith(f"{name}.") for name in series)
            for event in (*self.analysis.events, *self.analysis.companions)
            if event.kind in ("spike", "shift", "dip", "step")
        )

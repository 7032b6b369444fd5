"""Conditions such as ``spikes>5`` that a run must not fulfil, for machines that run trainings unattended."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from stabilitylab.errors import InputError
from stabilitylab.measures import MEASURES, measure
from stabilitylab.schema import KINDS

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["NAMES", "Condition", "Outcome", "parse"]

OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt
    }
)  # fmt: skip
SHAPE = re.compile(r"\s*([A-Za-z][\w ]*?)\s*(>=|<=|==|!=|>|<)\s*(.+?)\s*")

NOTHING = "none"
"""The verdict of a kind of finding that the run gave no cause to tell."""

STATUSES = ("completed", "interrupted", "failed", "running", "killed", "empty")

VERDICTS: Mapping[str, str] = MappingProxyType(
    {name.replace(" ", "_"): name for name in KINDS if name not in MEASURES and name != "not judged"}
)
"""Word for a kind of finding to the kind: its value is the verdict; `MEASURES` of the same name go first."""

NAMES: Mapping[str, str] = MappingProxyType(
    {name: each.says for name, each in MEASURES.items()}
    | {"status": f"how the run ended: {', '.join(STATUSES)}"}
    | {word: f"verdict: {', '.join(KINDS[kind].verdicts)}" for word, kind in VERDICTS.items()}
)
"""All names that a condition may use, and what each means."""


@dataclass(frozen=True)
class Outcome:
    """What became of a condition in one run."""

    holds: bool | None
    """Nothing where the run does not tell the value."""
    value: str
    """The value in words, or why it is not known."""


@dataclass(frozen=True)
class Condition:
    """A name, an operator, and a number or a verdict."""

    text: str
    name: str
    sign: str
    wanted: float | str

    def judge(self, analysis: Analysis) -> Outcome:
        """Return whether a run fulfils it; what several findings of one kind say counts where one of them does."""
        if self.name in MEASURES:
            value = measure(analysis, [self.name])[self.name]
            if value != value:
                return Outcome(None, "not recorded in this run, or too short to be judged")
            return Outcome(OPERATORS[self.sign](value, self.wanted), f"{value:g}")
        if self.name == "status":
            return Outcome(OPERATORS[self.sign](analysis.run.status, self.wanted), analysis.run.status)
        kind = VERDICTS[self.name]
        told = [each.verdict for each in analysis.findings if each.kind == kind]
        needs = KINDS[kind].needs
        if not told and needs and not any(series in analysis.run for series in needs):
            return Outcome(None, f"not told: it needs {' or '.join(needs)}, which this run lacks")
        known = [each for each in told or [NOTHING] if each != "not judged" or self.wanted == "not judged"]
        if not known:
            return Outcome(None, "not judged in this run")
        return Outcome(any(OPERATORS[self.sign](each, self.wanted) for each in known), ", ".join(known))


def parse(text: str) -> Condition:
    """Return the condition that a text such as ``spikes>5`` or ``lead==leads`` states.

    Raises:
        InputError: if it has no operator, an unknown name, a value that its name cannot have, or an order of words.
    """
    found = SHAPE.fullmatch(text)
    if not found:
        raise InputError(
            f"{text!r} is no condition: NAME OPERATOR VALUE is expected, such as 'spikes>5'; the operators are "
            f"{' '.join(OPERATORS)}; {_listed()}"
        )
    name, sign, said = found[1].replace(" ", "_"), found[2], found[3].strip("'\"")
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"{text!r}: nothing is named {name!r}{hint}; {_listed()}")
    if name in MEASURES:
        try:
            wanted = float(said)
        except ValueError:
            wanted = float("nan")
        if wanted != wanted:
            raise InputError(f"{text!r}: {name} is a number, {said!r} is none")
        return Condition(text, name, sign, wanted)
    if sign not in ("==", "!="):
        raise InputError(f"{text!r}: {name} is a word, which takes == or !=, not {sign}")
    verdicts = dict.fromkeys([*KINDS[VERDICTS[name]].verdicts, NOTHING]) if name in VERDICTS else STATUSES
    if said not in verdicts:
        raise InputError(f"{text!r}: {name} is never {said!r}; it is one of {', '.join(verdicts)}")
    return Condition(text, name, sign, said)


def _listed() -> str:
    return f"the names are {', '.join(NAMES)}"

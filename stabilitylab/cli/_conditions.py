"""``--fail-on``: conditions read before anything else, and an exit code after everything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from stabilitylab.errors import InputError

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis
    from stabilitylab.conditions import Condition

__all__ = ["HOLDS", "conditions_of", "report_conditions"]

HOLDS = 3
"""Exit code where a condition holds."""


def conditions_of(texts: Sequence[str]) -> list[Condition]:
    """Return the conditions of ``--fail-on``; a wrong one is wrong usage."""
    if not texts:
        return []
    from stabilitylab.conditions import parse

    try:
        return [parse(each) for each in texts]
    except InputError as error:
        raise click.BadParameter(str(error), param_hint="--fail-on") from error


def report_conditions(analyses: Sequence[Analysis], conditions: Sequence[Condition], allow_missing: bool) -> int:
    """Say to standard error which conditions hold, or cannot be judged, and return the exit code."""
    held, missing = 0, 0
    for analysis in analyses:
        for condition in conditions:
            outcome = condition.judge(analysis)
            where = f"{analysis.run.path}: {condition.name}"
            if outcome.holds:
                held += 1
                click.echo(f"failed: {where} is {outcome.value} (--fail-on '{condition.text}')", err=True)
            elif outcome.holds is None:
                missing += 1
                word = "skipped" if allow_missing else "Error"
                hint = "" if allow_missing else "; --allow-missing lets this pass"
                click.echo(f"{word}: {where}: {outcome.value} (--fail-on '{condition.text}'){hint}", err=True)
    if missing and not allow_missing:
        return 1
    return HOLDS if held else 0

"""``stabilitylab overhead``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from stabilitylab.cli._options import configured, plainly

__all__ = ["overhead"]


@click.command()
@configured
@click.option("--steps", type=click.IntRange(min=1), default=24, show_default=True, help="Measured with each probe.")
@click.option("--json", "as_json", is_flag=True, help="Print the costs as JSON.")
@plainly
def overhead(
    preset: str | None, data: Path | None, settings: tuple[str, ...], file: Path | None, steps: int, as_json: bool
) -> None:
    """Measure what each probe costs in a training with these settings.

    Trains with and without each probe, in turns; keeps nothing. Ctrl-C prints what was measured so far.
    """
    from stabilitylab.training import command, overhead_command

    sys.exit(overhead_command.run(command.choose(preset, data, file, settings), steps, as_json))

"""``stabilitylab analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stabilitylab.cli._options import analyses_of, draw, plainly

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis
    from stabilitylab.findings import Event

__all__ = ["analyze"]


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--no-pictures", is_flag=True, help="Draw no pictures.")
@click.option("--mirror", metavar="NAME", help="Show the events to a tracker too: tensorboard.")
@click.option("--skip-damaged", is_flag=True, help="Leave damaged parts of a run out, and say so.")
@plainly
def analyze(runs: tuple[Path, ...], as_json: bool, no_pictures: bool, mirror: str | None, skip_damaged: bool) -> None:
    """Find spikes, dips and collapse in runs, and say what leads what.

    RUN: run folders [default: the newest one in ./runs]. Writes events, lags, findings and pictures into
    RUN/analysis.
    """
    import json

    from stabilitylab.findings import to_json

    analyses = analyses_of(runs, skip_damaged)
    for analysis in analyses:
        analysis.save()
        if not as_json:
            tell(analysis)
        if not no_pictures:
            draw([analysis], None, "png", None, quiet=as_json)
        if mirror is not None:
            analysis.show(mirror)
    if as_json:
        listed = [{"run": str(each.run.path), "findings": [to_json(one) for one in each.findings]} for each in analyses]
        click.echo(json.dumps(listed, indent=1, allow_nan=False))


def tell(analysis: Analysis, most: int = 12) -> None:
    """Print a table of the events and a sentence per finding."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    run = analysis.run
    console.print(f"[bold]{escape(run.name)}[/bold]  {run.status}", soft_wrap=True)
    shown = sorted(sorted(analysis.events, key=lambda event: -event.score)[:most])
    if shown:
        table = Table("start", "what", "where", "onset", "peak", "stop", "size", box=None, pad_edge=False)
        for event in shown:
            where = f"{event.series} {event.label}" if event.series != "gradients.norm" else event.label
            times = (f"{step:,}" for step in (event.start, event.onset, event.peak, event.stop))
            start, *others = times
            table.add_row(start, event.kind, escape(where), *others, _size(event))
        console.print(table)
        if len(analysis.events) > most:
            console.print(f"... the {most} clearest of {len(analysis.events)} events; all are in events.parquet")
    for finding in analysis.findings:
        console.print(f"- [bold]{finding.kind}[/bold] ({finding.verdict}): {escape(finding.sentence)}")


def _size(event: Event) -> str:
    if event.height == float("inf"):
        return "not finite"
    if event.kind in ("dip", "step", "drop"):
        return f"{100 * event.height:.1f} points"
    return f"{event.height:.3g}x" if event.kind in ("spike", "shift") else f"{event.height:.3g}"

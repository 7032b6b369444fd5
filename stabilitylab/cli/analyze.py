"""``stabilitylab analyze``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stabilitylab.cli._conditions import conditions_of, report_conditions
from stabilitylab.cli._options import analyses_of, draw, plainly
from stabilitylab.cli._pooled import tell_pooled
from stabilitylab.cli._table import print_table, refuse_unwritable, write_table
from stabilitylab.phrasing import rounded

if TYPE_CHECKING:
    import pandas as pd

    from stabilitylab.analysis import Analysis
    from stabilitylab.findings import Event
    from stabilitylab.pooling import Pooled

__all__ = ["analyze"]


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--no-pictures", is_flag=True, help="Draw no pictures.")
@click.option("--no-report", is_flag=True, help="Write no report.html.")
@click.option("--mirror", metavar="NAME", help="Show the events to a tracker too: tensorboard.")
@click.option("--table", "table_file", type=click.Path(path_type=Path), metavar="FILE",
              help="Write one row a run, as .csv, .parquet or .json.")  # fmt: skip
@click.option("--fail-on", multiple=True, metavar="CONDITION",
              help="Exit with 3 if a run fulfils it: 'spikes>5', 'collapse==complete'; repeatable.")  # fmt: skip
@click.option("--allow-missing", is_flag=True, help="A value that --fail-on asks for need not be known.")
@click.option("--pool", "pooled", is_flag=True, help="Say what leads what over all runs together: seeds of one model.")
@click.option("--reference", "references", multiple=True, type=click.Path(path_type=Path), metavar="RUN",
              help="A run known to be good, to compare the accuracy with; repeatable, 3 make a test.")  # fmt: skip
@click.option("--skip-damaged", is_flag=True, help="Leave damaged parts of a run out, and say so.")
@plainly
def analyze(
    runs: tuple[Path, ...],
    as_json: bool,
    no_pictures: bool,
    no_report: bool,
    mirror: str | None,
    table_file: Path | None,
    fail_on: tuple[str, ...],
    allow_missing: bool,
    pooled: bool,
    references: tuple[Path, ...],
    skip_damaged: bool,
) -> None:
    """Find spikes, dips and collapse in runs, and say what leads what.

    RUN: run folders [default: the newest one in ./runs]. Writes events, lags, findings, pictures and a page that
    shows them all, report.html, into RUN/analysis. Several runs give one table, a row a run.

    Exit codes: 0 done; 1 an error, also a value that --fail-on asks for and a run does not tell; 2 wrong usage;
    3 a condition of --fail-on holds.
    """
    from stabilitylab import plugins
    from stabilitylab.measures import tabulate
    from stabilitylab.pooling import pool

    conditions = conditions_of(fail_on)
    refuse_unwritable(table_file)
    if mirror is not None:
        plugins.load("mirrors", mirror)  # fails now, not after the analysis, if there is none or it lacks what it needs
    analyses = analyses_of(runs, skip_damaged, references)
    together = pool(analyses) if pooled else None
    several = len(analyses) > 1
    table = tabulate(analyses) if several or as_json or table_file else None
    if table is not None and table_file is not None:
        write_table(table, table_file)
    if table is not None and several and not as_json:
        print_table(table)
    for analysis in analyses:
        if not as_json:
            tell_shortly(analysis) if several else tell(analysis)
        report = _write(analysis, not no_pictures, not no_report, quiet=as_json or several)
        if report is not None and not as_json:
            click.echo(f"wrote {report}")
        if mirror is not None:
            analysis.show(mirror)
    if table is not None and as_json:
        click.echo(_in_json(analyses, table, together))
    elif together is not None:
        tell_pooled(together)
    code = report_conditions(analyses, conditions, allow_missing)
    if code:
        raise SystemExit(code)


def _write(analysis: Analysis, pictures: bool, report: bool, quiet: bool) -> Path | None:
    """Write what was found, pictures and a page into the folder of the run; return the page."""
    from stabilitylab.report import write as write_report

    analysis.save()
    drawn = draw([analysis], None, "png", None, quiet=quiet) if pictures else {}
    return write_report(analysis, pictures=drawn) if report else None


def _in_json(analyses: Sequence[Analysis], table: pd.DataFrame, together: Pooled | None) -> str:
    """Return measures and findings of each run, and what they say together."""
    import json

    from stabilitylab.findings import to_json

    rows = zip(analyses, table.to_dict("records"), strict=True)
    listed: list[dict[str, Any]] = [
        {"run": str(each.run.path), "measures": row, "findings": each.findings} for each, row in rows
    ]
    if together is not None:
        lags = together.lags.to_dict("records")
        listed.append({"pooled": together.runs, "lags": lags, "findings": together.findings})
    return json.dumps(to_json(listed), indent=1, allow_nan=False)


def tell_shortly(analysis: Analysis) -> None:
    """Print what was found in a run, a sentence each; nothing of what was not."""
    from stabilitylab.report.verdict import tone

    click.echo(f"\n{analysis.run.name}")
    found = [
        each.sentence for each in analysis.findings
        if tone(each.verdict) == "found" or (each.kind == "divergence" and each.numbers.get("spikes"))
    ]  # fmt: skip
    judged = any(tone(each.verdict) == "quiet" for each in analysis.findings if each.kind != "sampling")
    for sentence in found or [f"Nothing {'found that the detectors can see' if judged else 'could be judged'}."]:
        click.echo(f"- {sentence}")


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
    if event.kind in ("dip", "step", "drop", "drift"):
        return f"{100 * event.height:.1f} points"
    return rounded(event.height) + ("x" if event.kind in ("spike", "shift") else "")

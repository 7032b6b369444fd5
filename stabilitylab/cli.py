"""The command line: options in, one call, text out; heavy imports stand inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stabilitylab import __version__
from stabilitylab.errors import InputError

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis
    from stabilitylab.findings import Event

__all__ = ["main"]

RUNS = Path("runs")
EPILOG = "Run 'stabilitylab COMMAND --help' for the options of a command."


def _plainly(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an error that is addressed to the user into one line and exit code 1."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return command(*args, **options)
        except InputError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error

    return run


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="stabilitylab")
def main() -> None:
    """Record training runs, and find out why they misbehave.

    'train' pretrains a small ViT on real digits, with instruments; 'analyze' finds gradient spikes, accuracy
    dips and collapse in a run, and says what leads what. 'probes' lists the instruments, 'overhead' what they cost.
    """


def _configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose a configuration."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--config", "file", type=path, help="A TOML file of settings."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable."),
        click.option("--data", "data", type=path, help="A folder of images, CIFAR, STL10 or ImageNet."),
        click.option("--preset", metavar="NAME", help="Where to start from [default: digits; small with --data]."),
    ):
        command = option(command)
    return command


@main.command()
@_configured
@click.option("--out", type=click.Path(path_type=Path), help="The run folder [default: runs/PRESET-DATE-TIME].")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Continue an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, every setting with its meaning, and stop.")
@click.option("--presets", "list_presets", is_flag=True, help="List the presets and stop.")
@_plainly
def train(
    preset: str | None,
    data: Path | None,
    settings: tuple[str, ...],
    file: Path | None,
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    list_presets: bool,
) -> None:
    """Pretrain with instruments and record the run.

    Without options: MoCo v3 with a small ViT on the handwritten digits of scikit-learn, in minutes on a laptop.
    Ctrl-C ends the run after the current step, with a checkpoint; --resume goes on from there.
    """
    from stabilitylab.training import command

    if list_presets:
        click.echo(command.presets_table())
        return
    if resume is not None and (preset or data or settings or file or out):
        raise InputError("--resume takes everything from the run; leave --preset, --data, --set, --config, --out away")
    chosen = command.choose(preset, data, file, settings) if resume is None else command.chosen_before(resume)
    if dry_run:
        for line in command.dry_run(chosen):
            click.echo(line)
        return
    outcome = command.run(chosen, out, resume, RUNS)
    sys.exit(outcome)


@main.command()
@_configured
@click.option("--steps", type=click.IntRange(min=1), default=24, show_default=True, help="Measured with each probe.")
@click.option("--json", "as_json", is_flag=True, help="Print the costs as JSON.")
@_plainly
def overhead(
    preset: str | None, data: Path | None, settings: tuple[str, ...], file: Path | None, steps: int, as_json: bool
) -> None:
    """Measure what each probe costs in a training with these settings.

    Trains with and without each probe, in turns; keeps nothing. Ctrl-C prints what was measured so far.
    """
    from stabilitylab.training import command, overhead_command

    sys.exit(overhead_command.run(command.choose(preset, data, file, settings), steps, as_json))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@_plainly
def probes(as_json: bool) -> None:
    """List the probes that are installed: what each records, when, what it needs, and what it costs."""
    import json

    from stabilitylab import listing

    entries = listing.list_probes()
    if as_json:
        click.echo(json.dumps([each.to_json() for each in entries], indent=1))
    else:
        listing.tell(entries)


@main.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--no-pictures", is_flag=True, help="Draw no pictures.")
@click.option("--mirror", metavar="NAME", help="Show the events to a tracker too: tensorboard.")
@click.option("--skip-damaged", is_flag=True, help="Leave damaged parts of a run out, and say so.")
@_plainly
def analyze(runs: tuple[Path, ...], as_json: bool, no_pictures: bool, mirror: str | None, skip_damaged: bool) -> None:
    """Find spikes, dips and collapse in runs, and say what leads what.

    RUN: run folders [default: the newest one in ./runs]. Writes events, lags, findings and pictures into
    RUN/analysis.
    """
    import json

    from stabilitylab.findings import to_json

    analyses = _analyses(runs, skip_damaged)
    for analysis in analyses:
        analysis.save()
        if not as_json:
            _tell(analysis)
        if not no_pictures:
            _draw([analysis], None, "png", None, quiet=as_json)
        if mirror is not None:
            analysis.show(mirror)
    if as_json:
        listed = [{"run": str(each.run.path), "findings": [to_json(one) for one in each.findings]} for each in analyses]
        click.echo(json.dumps(listed, indent=1, allow_nan=False))


@main.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option("--picture", "pictures", multiple=True, metavar="NAME", help="Which pictures [default: all].")
@click.option("--format", "suffix", type=click.Choice(["png", "svg", "pdf"]), default="png", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where to put them [default: RUN/analysis].")
@click.option("--skip-damaged", is_flag=True, help="Leave damaged parts of a run out, and say so.")
@_plainly
def plot(runs: tuple[Path, ...], pictures: tuple[str, ...], suffix: str, out: Path | None, skip_damaged: bool) -> None:
    """Draw pictures of runs; several runs share one picture where that makes sense.

    RUN: run folders [default: the newest one in ./runs].
    """
    _draw(_analyses(runs, skip_damaged), out, suffix, pictures or None)


def _analyses(paths: tuple[Path, ...], skip_damaged: bool) -> list[Analysis]:
    from stabilitylab.analysis import analyze as analyze_run
    from stabilitylab.run import Run, find_runs

    if not paths:
        found = find_runs(RUNS)
        if not found:
            raise InputError(f"there is no run in ./{RUNS}; name one, or make one with 'stabilitylab train'")
        paths = (found[-1],)
    done = []
    for path in paths:
        run = Run(path, damaged="skip" if skip_damaged else "error")
        done.append(analyze_run(run))
        for message in dict.fromkeys(run.skipped):
            click.echo(f"skipped: {message}", err=True)
    return done


def _tell(analysis: Analysis, most: int = 12) -> None:
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


def _draw(
    analyses: list[Analysis], out: Path | None, suffix: str, names: tuple[str, ...] | None, quiet: bool = False
) -> None:
    from stabilitylab.plots import draw_all

    for path, reason in draw_all(analyses, out, suffix, names):
        if not quiet:
            click.echo(f"drew {path}" if reason is None else f"no picture {path}: {reason}")

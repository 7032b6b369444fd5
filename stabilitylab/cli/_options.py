"""What several commands share: errors told plainly, the options of a configuration, runs by their folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from stabilitylab.errors import InputError

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["RUNS", "analyses_of", "configured", "draw", "plainly", "refuse_no_folder"]

RUNS = Path("runs")
"""Where runs are written and looked for."""


def plainly(command: Callable[..., Any]) -> Callable[..., Any]:
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


def configured(command: Callable[..., Any]) -> Callable[..., Any]:
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


def refuse_no_folder(out: Path | None) -> None:
    """Raise `InputError` if a folder cannot be made or written to, before any work is done for it."""
    if out is None:
        return
    there = next(each for each in (out, *out.absolute().parents) if each.exists())
    if not there.is_dir():
        raise InputError(f"--out was {out}: {there} is a file; expected a folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"--out was {out}: the folder {there} cannot be written to")


def analyses_of(paths: tuple[Path, ...], skip_damaged: bool, references: tuple[Path, ...] = ()) -> list[Analysis]:
    from stabilitylab.analysis import analyze as analyze_run
    from stabilitylab.run import Run, find_runs

    if not paths:
        found = find_runs(RUNS)
        if not found:
            raise InputError(f"there is no run in ./{RUNS}; name one, or make one with 'stabilitylab train'")
        paths = (found[-1],)
    done = []
    damaged: Literal["skip", "error"] = "skip" if skip_damaged else "error"
    good = [Run(path, damaged=damaged) for path in references]
    for path in paths:
        run = Run(path, damaged=damaged)
        done.append(analyze_run(run, reference=good))
        for message in dict.fromkeys(run.skipped):
            click.echo(f"skipped: {message}", err=True)
    return done


def draw(
    analyses: list[Analysis], out: Path | None, suffix: str, names: tuple[str, ...] | None, quiet: bool = False
) -> dict[str, Path]:
    """Draw pictures, say which, and return those that could be drawn, file name without its ending to path."""
    from stabilitylab.plots import draw_all

    drawn = {}
    for path, reason in draw_all(analyses, out, suffix, names):
        if reason is None:
            drawn[path.stem] = path
        if not quiet:
            click.echo(f"drew {path}" if reason is None else f"no picture {path}: {reason}")
    return drawn

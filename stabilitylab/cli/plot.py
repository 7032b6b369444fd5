"""``stabilitylab plot``."""

from __future__ import annotations

from pathlib import Path

import click

from stabilitylab.cli._options import analyses_of, draw, plainly, refuse_no_folder

__all__ = ["plot"]


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path), metavar="[RUN]...")
@click.option("--picture", "pictures", multiple=True, metavar="NAME", help="Which pictures [default: all].")
@click.option("--format", "suffix", type=click.Choice(["png", "svg", "pdf"]), default="png", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Where to put them [default: RUN/analysis].")
@click.option("--skip-damaged", is_flag=True, help="Leave damaged parts of a run out, and say so.")
@plainly
def plot(runs: tuple[Path, ...], pictures: tuple[str, ...], suffix: str, out: Path | None, skip_damaged: bool) -> None:
    """Draw pictures of runs; several runs share one picture where that makes sense.

    RUN: run folders [default: the newest one in ./runs].
    """
    refuse_no_folder(out)
    draw(analyses_of(runs, skip_damaged), out, suffix, pictures or None)

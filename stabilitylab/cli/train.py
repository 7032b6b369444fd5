"""``stabilitylab train``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from stabilitylab.cli._options import RUNS, configured, plainly
from stabilitylab.errors import InputError

__all__ = ["train"]


@click.command()
@configured
@click.option("--out", type=click.Path(path_type=Path), help="The run folder [default: runs/PRESET-DATE-TIME].")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Continue an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, every setting with its meaning, and stop.")
@click.option("--presets", "list_presets", is_flag=True, help="List the presets and stop.")
@plainly
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

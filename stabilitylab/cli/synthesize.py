"""``stabilitylab synthesize``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stabilitylab.cli._options import plainly
from stabilitylab.errors import InputError

if TYPE_CHECKING:
    from stabilitylab.synthetic import Parameters, Synthetic

__all__ = ["synthesize"]


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--set", "words", multiple=True, metavar="KEY=VALUE", help="Change a field; repeatable.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="A TOML file of fields.")
@click.option("--dry-run", is_flag=True, help="Print every field with its meaning, and what would be planted.")
@click.option("--json", "as_json", is_flag=True, help="Print the truth as JSON.")
@plainly
def synthesize(out: Path, words: tuple[str, ...], file: Path | None, dry_run: bool, as_json: bool) -> None:
    """Write a run with planted spikes, dips, collapses, lags and couplings, and the truth about it.

    OUT: the run folder; the truth stands in OUT/truth.json. For example: --set random_spikes=20 --set
    'lags=[0,3,3,5,5,8]' --set loss_follow=4. 'stabilitylab analyze OUT' looks for what was planted.
    """
    import json

    from stabilitylab import synthetic
    from stabilitylab.parameters import validated
    from stabilitylab.settings import parse_settings, read_file

    fields = (read_file(file) if file else {}) | parse_settings(words)
    chosen = validated(synthetic.Parameters, fields, "synthesize")
    if (out / "run.json").exists() and not dry_run:
        raise InputError(f"{out} holds a run already; choose another folder")
    made = synthetic.synthesize(chosen) if dry_run else synthetic.write(out, chosen)
    if as_json:
        click.echo(json.dumps(synthetic.truth_of(made), indent=1, allow_nan=False))
        return
    for line in [*(_fields(chosen) if dry_run else ()), *_planted(made)]:
        click.echo(line)
    if not dry_run:
        following = f"stabilitylab analyze {shlex.quote(str(out))}"
        click.echo(f"wrote {out}; the truth is in {out / synthetic.TRUTH}; next: {following}")


def _fields(chosen: Parameters) -> Iterator[str]:
    """Yield every field with its value and its meaning."""
    for name, field in type(chosen).model_fields.items():
        yield f"  {name} = {getattr(chosen, name)}"
        yield f"      {(field.description or '').replace(chr(10), ' ')}"
    yield ""


def _planted(made: Synthetic) -> Iterator[str]:
    """Yield what is in the run: its series, and how many events of which kind."""
    from collections import Counter

    from stabilitylab.phrasing import count

    for name, frame in made.series.items():
        yield f"series {name}: {count(len(frame), 'row')} of {count(frame.shape[1], 'column')}"
    for (kind, name), number in sorted(Counter((each.kind, each.series) for each in made.truth).items()):
        yield f"planted in {name}: {number:,} x {kind}"
    for coupling in made.couplings:
        where = f"{abs(coupling.lag)} steps {'before' if coupling.lag < 0 else 'after'} gradient spikes"
        yield f"coupled: {coupling.kind} in {coupling.series}, {where}, {len(coupling.spikes):,} times"
    if not made.truth:
        yield "nothing is planted: noise alone"

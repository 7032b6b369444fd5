"""``stabilitylab compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stabilitylab.cli._options import analyses_of, plainly, refuse_no_folder
from stabilitylab.errors import InputError

if TYPE_CHECKING:
    from stabilitylab.compare import Comparison

__all__ = ["compare"]

BETWEEN = "\0"
"""Stands for ``--`` between groups, which click would take away; no word of a command line can hold it."""

HEADINGS = ("difference", "95 % interval", "n", "permutation p", "decided by", "p corrected", "verdict")


class Groups(click.Command):
    """A command whose arguments are groups, separated by ``--``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the separators."""
        return super().parse_args(ctx, [BETWEEN if each == "--" else each for each in args])


@click.command(cls=Groups)
@click.argument("runs", nargs=-1, metavar="RUN... -- RUN... [-- RUN...]")
@click.option("--names", metavar="A,B", help="Names of the groups [default: A, B, ...].")
@click.option("--measure", "measures", multiple=True, metavar="NAME",
              help="What is compared, repeatable; the fewer, the less their correction costs.")  # fmt: skip
@click.option("--unpaired", is_flag=True, help="Leave equal seeds aside.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FOLDER", help="Write tables and a picture there.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
@click.option("--skip-damaged", is_flag=True, help="Leave damaged parts of a run out, and say so.")
@plainly
def compare(
    runs: tuple[str, ...],
    names: str | None,
    measures: tuple[str, ...],
    unpaired: bool,
    out: Path | None,
    as_json: bool,
    skip_damaged: bool,
) -> None:
    """Compare groups of runs: spikes, falls of the accuracy, final accuracy, rank.

    The groups are separated by a word of two dashes; each later one is compared with the first. Runs with equal
    seeds are compared in pairs.

    \u0008
      stabilitylab compare runs/learned-* -- runs/frozen-* --names learned,frozen
    """
    import json

    from stabilitylab import compare as comparing
    from stabilitylab.findings import to_json

    refuse_no_folder(out)
    groups = _groups(runs, names)
    analyses = {name: analyses_of(tuple(map(Path, paths)), skip_damaged) for name, paths in groups.items()}
    found = comparing.compare(analyses, measures or comparing.DEFAULT, paired=not unpaired)
    if out is not None:
        from stabilitylab.compare.picture import draw

        found.save(out)
        draw(found, out / "comparison.png")
    if as_json:
        click.echo(json.dumps(to_json(found.to_json()), indent=1, allow_nan=False))
    else:
        _tell(found)
        if out is not None:
            click.echo(f"wrote {out}")


def _groups(words: tuple[str, ...], names: str | None) -> dict[str, list[str]]:
    """Return the paths of each group under its name."""
    groups: list[list[str]] = [[]]
    for word in words:
        if word == BETWEEN:
            groups.append([])
        else:
            groups[-1].append(word)
    if len(groups) < 2 or not all(groups):
        raise InputError("compare takes groups of runs separated by '--', such as: compare RUN RUN -- RUN RUN")
    labels = [" ".join(each.split()) for each in names.split(",")] if names else list(map(_letter, range(len(groups))))
    if len(labels) != len(groups) or not all(labels):
        raise InputError(f"--names was {names!r}: {len(groups)} names are needed, one for each group")
    if len(set(labels)) < len(labels):
        raise InputError(f"--names was {names!r}: each group needs a name of its own")
    return dict(zip(labels, groups, strict=True))


def _letter(position: int) -> str:
    return chr(ord("A") + position) if position < 26 else f"group {position + 1}"


def _tell(found: Comparison) -> None:
    """Print the sentences, the table, and the notes."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from stabilitylab.compare.sentences import cells

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=140)
    for sentence in found.sentences:
        console.print(f"[bold]{escape(sentence)}[/bold]", soft_wrap=True)
    for second, rows in found.table.groupby("second", sort=False):
        first = rows["first"].iloc[0]
        table = Table("", str(first), str(second), *HEADINGS, box=None, pad_edge=False)
        for row in rows.to_dict("records"):
            table.add_row(*(escape(each) for each in cells(row)))
        console.print()
        console.print(table)
    console.print()
    for note in found.notes:
        console.print(f"- {escape(note)}", soft_wrap=True)

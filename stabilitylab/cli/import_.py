"""``stabilitylab import``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stabilitylab.cli._options import plainly
from stabilitylab.errors import InputError

if TYPE_CHECKING:
    from stabilitylab.importing import Plan

__all__ = ["import_"]


@click.command("import")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE...")
@click.option("--out", type=click.Path(path_type=Path), metavar="RUN", help="The run folder that is made.")
@click.option("--map", "maps", multiple=True, metavar="PATTERN=SERIES", help="Where columns go; repeatable.")
@click.option("--step", metavar="COLUMN", help="The column of the steps, where it is not found by its name.")
@click.option("--layers", metavar="LAYER,LAYER,...", help="All layers in depth order, where it is found wrong.")
@click.option("--dry-run", is_flag=True, help="Print what would become of each column, and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the same as JSON.")
@plainly
def import_(
    sources: tuple[Path, ...],
    out: Path | None,
    maps: tuple[str, ...],
    step: str | None,
    layers: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a run of what somebody else logged.

    SOURCE: TensorBoard event files or their folder, W&B history (JSON, JSON lines, CSV), a CSV or Parquet table with
    a column of steps; several files of one run in the order in which they were written.

    PATTERN is a regular expression for the whole name of a column; its group 'label' becomes the label:
    --map 'grad/(?P<label>.*)=gradients.norm' --map 'train/loss=training.loss'. An empty SERIES leaves columns out.
    """
    import json

    from stabilitylab.importing import import_run, survey

    if out is None and not dry_run:
        raise InputError("--out is missing: the run folder that is made; or --dry-run to look first")
    order = [each.strip() for each in (layers or "").split(",") if each.strip()]
    if dry_run or out is None:
        plan = survey(sources, maps, step, order)
        notes = plan.notes() + plan.repeated()
    else:
        plan, notes = import_run(sources, out, maps, step, order)
    if as_json:
        listed = {"columns": plan.rows(), "left_out": plan.left_out, "notes": notes}
        click.echo(json.dumps(listed, indent=1, allow_nan=False))
        return
    _tell(plan, notes)
    if out is not None and not dry_run:
        click.echo(f"imported into {out}; next: stabilitylab analyze {shlex.quote(str(out))}")


def _tell(plan: Plan, notes: list[str]) -> None:
    """Print where each column goes, what is left out, and what is to be known."""
    from stabilitylab.phrasing import count

    for row in plan.rows():
        every = (
            f"at {plan.unit} {row['first']:,}"
            if row["values"] == 1
            else _often(row["every"], row["largest_gap"], plan.unit)
        )
        target = row["series"] if row["series"].startswith("imported.") else f"{row['series']} {row['label']}"
        odd = f", {row['nonfinite']:,} not finite" if row["nonfinite"] else ""
        click.echo(f"{row['column']} -> {target}: {count(row['values'], 'value')} {every}{odd}")
    if plan.layers is not None:
        click.echo(f"layers, in depth order: {', '.join(plan.layers.names)} (first: {plan.layers.first})")
    for name, why in plan.left_out.items():
        click.echo(f"left out: {name} ({why})")
    for note in notes:
        click.echo(f"note: {note}")


def _often(every: float, largest: int, unit: str) -> str:
    from stabilitylab.phrasing import rounded

    often = f"every {unit}" if every == 1 else f"about every {rounded(every)} {unit}s"
    return often + (f" with gaps of up to {largest:,}" if largest > every else "")

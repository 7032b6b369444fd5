"""``stabilitylab evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from stabilitylab.cli._options import plainly

__all__ = ["evaluate"]


@click.command()
@click.argument("weights", type=click.Path(path_type=Path), metavar="RUN|CHECKPOINT")
@click.option("--data", type=click.Path(path_type=Path), help="Other images than those of the run.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="k, temperature, rates, epochs, seeds, finetune, ..."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@plainly
def evaluate(weights: Path, data: Path | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Judge what was learned: nearest neighbors, linear probes, effective ranks, each with its interval.

    --set finetune=true trains the whole backbone on with labels too, several times, and takes as long.

    RUN|CHECKPOINT: a run of 'stabilitylab train', one of its checkpoint folders, or a published MoCo v3 checkpoint.
    The result is kept in RUN/evaluations.
    """
    from stabilitylab.evaluation import command

    command.evaluate(weights, data, settings, as_json)

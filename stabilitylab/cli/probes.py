"""``stabilitylab probes``."""

from __future__ import annotations

import click

from stabilitylab.cli._options import plainly

__all__ = ["probes"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@plainly
def probes(as_json: bool) -> None:
    """List the probes that are installed: what each records, when, what it needs, and what it costs."""
    import json

    from stabilitylab import listing

    entries = listing.list_probes()
    if as_json:
        click.echo(json.dumps([each.to_json() for each in entries], indent=1))
    else:
        listing.tell(entries)

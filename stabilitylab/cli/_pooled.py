"""What several runs say together, printed: a row a layer, then a sentence per finding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stabilitylab.phrasing import count, p_cell, signed

if TYPE_CHECKING:
    from stabilitylab.pooling import Pooled

__all__ = ["tell_pooled"]

SIGN = "lag > 0:  first layer __|\\______  later layer ______|\\__  the later layer follows, in steps"
"""The sign of a lag, drawn."""


def tell_pooled(pooled: Pooled) -> None:
    """Print the lags of the later layers with what they stand on, and the findings."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=150)
    console.print(f"\n[bold]{count(len(pooled.runs), 'run')} pooled[/bold]: {escape(', '.join(pooled.runs))}")
    if not pooled.findings:
        console.print("No gradient spike in any of them, or no layer but the first: there is no order in time to test.")
        return
    console.print(escape(SIGN))
    table = Table("layer", "verdict", "lag", "95 %", "n", "clusters", "ties", "p", "smallest p", "why", box=None)
    for row in pooled.lags.to_dict("records"):
        table.add_row(*(escape(each) for each in _cells(row)))
    console.print(table)
    for finding in pooled.findings:
        console.print(f"- [bold]{finding.kind}[/bold] ({finding.verdict}): {escape(finding.sentence)}")


def _cells(row: Mapping[Any, Any]) -> list[str]:
    few = row["verdict"] == "too few events"
    numbers = [""] * 2 if few else [p_cell(row["p_adjusted"]), p_cell(row["p_smallest"])]
    interval = "" if row["low"] != row["low"] else f"{signed(row['low'])} to {signed(row['high'])}"
    return [
        row["layer"], row["verdict"], "" if row["lag"] != row["lag"] else signed(row["lag"]), interval,
        str(row["matched"]), str(row["clusters"]), str(row["ties"]), *numbers, row["reason"],
    ]  # fmt: skip

"""The table of several runs: printed, and written as a file."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SUFFIXES", "print_table", "refuse_unwritable", "write_table"]

SUFFIXES = (".csv", ".parquet", ".json")

SHOWN = {
    "run": "run", "length": "steps", "status": "status", "spikes": "spikes", "spikes_per_10k": "per 10k steps",
    "false_alarms": "by chance", "tallest": "tallest", "lead": "first layer", "dips": "dips", "steps": "lasting falls",
    "area_lost": "area lost", "final_accuracy": "final %", "best_accuracy": "best %", "rank": "rank at end",
    "collapse": "collapse", "diverged": "diverged",
}  # fmt: skip
"""Column to its heading."""


def refuse_unwritable(path: Path | None) -> None:
    """Raise `InputError` if a table cannot be written to a file of this name, before any work is done for it."""
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path.name} is no table that can be written: its suffix must be one of {', '.join(SUFFIXES)}"
        )
    if path.is_dir():
        raise InputError(f"--table was {path}, a folder; expected a file")
    if not path.parent.is_dir():
        raise InputError(f"--table was {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"--table was {path}: the folder {path.parent} cannot be written to")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, Parquet, or JSON with a record a row, whole or not at all."""
    from stabilitylab.disk.atomic import replace, write_json

    kind = path.suffix.lower()
    if kind == ".json":
        write_json(path, frame.to_dict("records"))
    else:
        replace(path, partial(frame.to_csv if kind == ".csv" else frame.to_parquet, index=False))


def print_table(frame: pd.DataFrame) -> None:
    """Print the columns that a person compares, a row a run."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=170)
    table = Table(box=None, pad_edge=False)
    for name, heading in SHOWN.items():
        table.add_column(heading, justify="left" if frame[name].dtype == object else "right", overflow="fold")
    for row in frame.to_dict("records"):
        table.add_row(*(escape(_cell(name, row[name])) for name in SHOWN))
    console.print(table)


def _cell(name: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value) or "-"
    if value != value:
        return "-"
    if name == "diverged":
        return "yes" if value else "no"
    if value == float("inf"):
        return "not finite"
    if name.endswith("_accuracy"):
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if value.is_integer() else f"{value:.2g}" if abs(value) < 10 else f"{value:,.1f}"

"""Tables in CSV and Parquet, a block of rows at a time."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from stabilitylab.errors import InputError
from stabilitylab.importing.columns import Columns
from stabilitylab.importing.sources import Source, decoded
from stabilitylab.importing.values import Facts, Values

__all__ = ["read_csv", "read_parquet"]

BLOCK = 8 * 2**20
"""Bytes of a CSV that are parsed at once; a row must fit in it."""

CELLS = 2_000_000
"""Cells of a Parquet table that are read at once."""

MISSING = ["", "null", "NULL", "None", "none", "NA", "N/A", "<NA>", "#N/A"]
"""What stands for no value. NaN does not: it is one."""


def read_csv(source: Source, step: str | None, facts: Facts) -> Iterator[Values]:
    """Yield the values of a CSV, wide or long, whose first line names the columns.

    Columns that an export of W&B calls ``RUN - NAME`` are called NAME, where all are of one run.

    Raises:
        InputError: if it is not UTF-8 or no table, or no column counts steps.
    """
    with open(source.path, "rb") as file:
        header = decoded(source.path, file.readline(BLOCK)).rstrip("\r\n")
    delimiter = max(",;\t", key=header.count)

    def leave_out(_: pcsv.InvalidRow) -> str:
        facts.counts["rows with another number of cells than the header left out"] += 1
        return "skip"

    parsing = pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=leave_out)
    try:
        names = next(csv.reader([header], delimiter=delimiter))
        reader = pcsv.open_csv(source.path, pcsv.ReadOptions(block_size=BLOCK), parsing, _as_text(names))
        called = _without_run(names)
        columns = Columns(called, step, facts, str(source.path), _tag(source))
        rows = 0
        for batch in reader:
            rows += batch.num_rows
            yield from columns.read(dict(zip(called, batch.columns, strict=True)))
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        what = str(error).splitlines()[0]
        raise InputError(f"{source.path} is no table in CSV and UTF-8 that can be read: {what}") from error
    if rows == 0:
        raise InputError(f"{source.path} has a header and no rows")


def _as_text(names: list[str]) -> pcsv.ConvertOptions:
    return pcsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=MISSING, strings_can_be_null=True
    )


def _without_run(names: list[str]) -> list[str]:
    """Return the names of an export of W&B without its run; the extremes over a smoothed stretch are left out."""
    runs = {name.split(" - ", 1)[0] for name in names if " - " in name}
    if len(runs) != 1:
        return names
    short = [name.split(" - ", 1)[-1] for name in names]
    kept = ["" if name.endswith(("__MIN", "__MAX")) else name for name in short]
    return [name if name not in kept[:place] else "" for place, name in enumerate(kept)]


def _tag(source: Source) -> str:
    """Return what the file of one scalar, as TensorBoard saves it, says its column ``Value`` is."""
    found = re.fullmatch(r".*-tag-(.+)", source.path.stem)
    return found[1] if found else source.path.stem


def read_parquet(source: Source, step: str | None, facts: Facts) -> Iterator[Values]:
    """Yield the values of a Parquet table, wide or long.

    Raises:
        InputError: if it is damaged, or no column counts steps.
    """
    try:
        with pq.ParquetFile(source.path) as file:
            names = file.schema_arrow.names
            columns = Columns(names, step, facts, str(source.path))
            if file.metadata.num_rows == 0:
                raise InputError(f"{source.path} has no rows")
            for batch in file.iter_batches(batch_size=max(1000, CELLS // len(names))):
                yield from columns.read(dict(zip(names, batch.columns, strict=True)))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source.path} is no Parquet file that can be read: {error}") from error

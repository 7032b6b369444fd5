"""Tables in CSV and Parquet, a block of rows at a time."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from stabilitylab.errors import InputError
from stabilitylab.importing.columns import CLOCKS, Columns
from stabilitylab.importing.decimals import DecimalCommas
from stabilitylab.importing.sources import Source, decoded
from stabilitylab.importing.values import Facts, Values, counted

__all__ = ["read_csv", "read_parquet"]

BLOCK = 8 * 2**20
"""Bytes of a CSV that are parsed at once; a row must fit in it."""

CELLS = 2_000_000
"""Cells of a Parquet table that are read at once."""

EXTREMES = ("__MIN", "__MAX")

MISSING = ["", "null", "NULL", "None", "none", "NA", "N/A", "<NA>", "#N/A"]
"""What stands for no value. NaN does not: it is one."""


def read_csv(source: Source, step: str | None, facts: Facts) -> Iterator[Values]:
    """Yield the values of a CSV, wide or long, whose first line names the columns.

    Columns that an export of W&B calls ``RUN - NAME`` are called NAME, where all are of one run.

    Raises:
        InputError: if it is not UTF-8 or no table, or no column counts steps.
    """
    names, delimiter, before = _header(source)

    odd = "rows with another number of cells than the header left out"

    def leave_out(_: pcsv.InvalidRow) -> str:
        facts.counts[odd] += 1
        return "skip"

    parsing = pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=leave_out)
    try:
        called = _without_run(names, facts, str(source.path))
        columns = Columns(called, step, facts, str(source.path), _tag(source))
        reading = pcsv.ReadOptions(block_size=BLOCK, skip_rows=before, column_names=names)
        reader = pcsv.open_csv(source.path, reading, parsing, _as_text(names))
        commas = DecimalCommas(facts, facts.step, filter(CLOCKS.fullmatch, called)) if delimiter != "," else None
        rows = 0
        for batch in reader:
            rows += batch.num_rows
            block = dict(zip(called, batch.columns, strict=True))
            yield from columns.read(commas.with_points(block) if commas is not None else block)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        what = str(error).splitlines()[0]
        raise InputError(f"{source.path} is no table in CSV and UTF-8 that can be read: {what}") from error
    if rows == 0:
        wrong = f" of its {len(names)} cells; {counted(facts.counts[odd], odd)}" if facts.counts[odd] else ""
        raise InputError(f"{source.path} has a header and no rows{wrong}")


def _header(source: Source) -> tuple[list[str], str, int]:
    """Return the names of the columns, what separates them, and how many lines come before the rows.

    Lines that are empty or begin with ``#`` may come first; the last of these is the header if numbers follow it, as
    numpy writes it.
    """
    comment, number = "", 0
    with open(source.path, "rb") as file:
        while line := file.readline(BLOCK):
            number += 1
            text = decoded(source.path, line).strip("\r\n")
            if text.strip() and not text.startswith("#"):
                break
            comment = text.lstrip("# ") or comment
        else:
            raise InputError(f"{source.path} holds nothing but comments and empty lines")
    names, delimiter = _split(comment)
    cells = _cells(text, delimiter)
    if comment and len(names) == len(cells) and all(map(_is_number, cells)):
        return names, delimiter, number - 1
    return *_split(text), number


def _split(line: str) -> tuple[list[str], str]:
    """Return the cells of a line, and what separates them: that which makes the most of them."""
    cut = {mark: _cells(line, mark) for mark in ",;\t"}
    mark = max(cut, key=lambda each: len(cut[each]))
    return cut[mark], mark


def _cells(line: str, mark: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])]


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return cell in MISSING
    return True


def _as_text(names: list[str]) -> pcsv.ConvertOptions:
    return pcsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=MISSING, strings_can_be_null=True
    )


def _without_run(names: list[str], facts: Facts, where: str) -> list[str]:
    """Return the names of the export of a chart of W&B without its run, and empty ones for what is left out.

    Raises:
        InputError: if it holds several runs.
    """
    if not any(name.endswith(EXTREMES) and " - " in name for name in names):
        return names
    runs = list(dict.fromkeys(name.split(" - ", 1)[0] for name in names if " - " in name))
    if len(runs) > 1:
        raise InputError(f"{where} holds several runs: {', '.join(runs[:6])}; export the chart of one")
    kept: list[str] = []
    for name in names:
        short = name.split(" - ", 1)[-1]
        why = "the smallest or largest of several points in the chart" if short.endswith(EXTREMES) else ""
        why = why or ("a second column of this name" if short in kept else "")
        if why:
            facts.ignored[name] = why
        kept.append("" if why else short)
    return kept


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

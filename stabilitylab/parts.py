"""One series on disk: a folder of Parquet parts, each whole, none overlapping as far as a reader can see.

A part is named after its first and last step. A merged part is written before the parts that it replaces are
removed, so that a reader may meet both: what lies inside a wider part is left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stabilitylab.atomic import replace
from stabilitylab.errors import InputError

__all__ = ["Part", "compact", "list_parts", "merge", "read_part", "steps_of", "truncate", "write_part"]

NAME = re.compile(r"(\d{8,})-(\d{8,})\.parquet")
FAN = 16
"""So many parts of one size are merged into one of the next size while a run is written."""


class Part(NamedTuple):
    """A part of a series: the first and the last step in it, and its file."""

    first: int
    last: int
    path: Path


def list_parts(folder: Path) -> list[Part]:
    """Return the parts in order of steps, without those that lie inside a wider one."""
    return _split(folder)[0]


def _split(folder: Path) -> tuple[list[Part], list[Part]]:
    """Return the parts that count and those that a wider part has replaced."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = NAME.fullmatch(path.name)
        if match:
            found.append(Part(int(match[1]), int(match[2]), path))
    found.sort(key=lambda part: (part.first, -part.last))
    kept: list[Part] = []
    replaced: list[Part] = []
    for part in found:
        (replaced if kept and part.last <= kept[-1].last else kept).append(part)
    return kept, replaced


def write_part(folder: Path, frame: pd.DataFrame) -> Part:
    """Write the rows as one part, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    part = _part(folder, int(frame.index[0]), int(frame.index[-1]))
    table = pa.Table.from_pandas(frame, preserve_index=True)
    replace(part.path, lambda path: _write_table(table, path))
    return part


def _part(folder: Path, first: int, last: int) -> Part:
    return Part(first, last, folder / f"{first:08d}-{last:08d}.parquet")


def _write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)


def read_part(part: Part, labels: Sequence[str] | None = None) -> pa.Table:
    """Return a part as a table with the column ``step`` and one column per label.

    Raises:
        InputError: if the file is damaged, or is no part of a series.
        FileNotFoundError: if it was merged away meanwhile.
    """
    columns = None if labels is None else ["step", *labels]
    try:
        table = pq.ParquetFile(part.path).read(columns=columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{part.path} is damaged: {reason}") from error
    if "step" not in table.column_names or not pa.types.is_integer(table.schema.field("step").type):
        raise InputError(f"{part.path} is no part of a series: it has no integer column 'step'")
    numeric = [pa.types.is_floating(field.type) or pa.types.is_integer(field.type) for field in table.schema]
    if not all(numeric):
        raise InputError(f"{part.path} is no part of a series: not all of its columns are numbers")
    return table


def steps_of(part: Part) -> np.ndarray:
    """Return the steps in a part, int64."""
    return read_part(part, []).column("step").to_numpy()


def merge(folder: Path, parts: Sequence[Part]) -> None:
    """Merge neighboring parts into one, a row group at a time, then remove them."""
    if len(parts) < 2:
        return
    merged = _part(folder, parts[0].first, parts[-1].last)
    schema = pa.unify_schemas([pq.read_schema(part.path) for part in parts], promote_options="default")
    replace(merged.path, lambda path: _stream(parts, schema, path))
    for part in parts:
        part.path.unlink(missing_ok=True)


def _stream(parts: Sequence[Part], schema: pa.Schema, path: Path, rows: int = 8192) -> None:
    """Write the parts into one file with row groups of at least so many rows: few, and bounded in memory."""
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        for part in parts:
            for batch in pq.ParquetFile(part.path).iter_batches(batch_size=rows):
                waiting.append(pa.Table.from_batches([batch]))
                if sum(table.num_rows for table in waiting) >= rows:
                    writer.write_table(_concat(waiting, schema))
                    waiting = []
        if waiting:
            writer.write_table(_concat(waiting, schema))


def _concat(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    joined = pa.concat_tables(tables, promote_options="default")
    missing = [field for field in schema if field.name not in joined.column_names]
    for field in missing:
        joined = joined.append_column(field, pa.nulls(joined.num_rows, field.type))
    return joined.select(schema.names).cast(schema).replace_schema_metadata(schema.metadata)


def compact(folder: Path, rows_per_flush: int) -> None:
    """Merge the newest parts where `FAN` of one size lie side by side, so that the number of files stays small."""
    while True:
        parts, replaced = _split(folder)
        for part in replaced:
            part.path.unlink(missing_ok=True)
        sizes = [_size(part, rows_per_flush) for part in parts]
        if len(parts) < FAN or len(set(sizes[-FAN:])) > 1:
            return
        merge(folder, parts[-FAN:])


def _size(part: Part, rows_per_flush: int) -> int:
    return max(0, round(math.log((part.last - part.first + 1) / rows_per_flush, FAN)))


def truncate(folder: Path, step: int) -> None:
    """Remove every row at or after a step."""
    kept, replaced = _split(folder)
    for part in replaced:
        part.path.unlink(missing_ok=True)
    for part in kept:
        if part.last < step:
            continue
        if part.first < step:
            table = read_part(part)
            before = table.filter(pa.compute.less(table.column("step"), step))
            if before.num_rows:
                last = int(before.column("step")[-1].as_py())
                replace(_part(folder, part.first, last).path, partial(_write_table, before))
        part.path.unlink()

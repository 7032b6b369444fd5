"""Values on their way from logs to a run: on disk, then again in order of steps, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["Block", "Spool"]

SCHEMA = pa.schema([("column", pa.int32()), ("file", pa.int32()), ("step", pa.int64()), ("value", pa.float64())])

GROUP = 500_000
"""Values that are written at once."""

MOST = 2_000_000
"""Values that are read again at once, but for a single step that has more."""


class Block(NamedTuple):
    """All values of a range of steps, in the order in which they were read."""

    column: np.ndarray
    file: np.ndarray
    step: np.ndarray
    value: np.ndarray


class Spool:
    """A Parquet file of values, whose groups know the steps that they span."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd", use_dictionary=["column", "file"])
        self._waiting: list[tuple[np.ndarray, ...]] = []
        self._number = 0

    def add(self, column: int, file: int, steps: np.ndarray, values: np.ndarray) -> None:
        """Keep values of a column."""
        kinds = np.full(len(steps), column, "int32"), np.full(len(steps), file, "int32")
        self._waiting.append((*kinds, steps, values))
        self._number += len(steps)
        if self._number >= GROUP:
            self._flush()

    def close(self) -> None:
        """Write what waits; from now on the blocks can be read."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._number:
            arrays = [np.concatenate(each) for each in zip(*self._waiting, strict=True)]
            self._writer.write_table(pa.Table.from_arrays([pa.array(each) for each in arrays], schema=SCHEMA))
        self._waiting, self._number = [], 0

    def blocks(self) -> Iterator[Block]:
        """Yield all values, in ranges of steps that rise and do not overlap."""
        with pq.ParquetFile(self._path) as file:
            spans = [_span(file, group) for group in range(file.num_row_groups)]
            for first, last in _ranges(file):
                groups = [group for group, (low, high) in enumerate(spans) if low <= last and first <= high]
                pieces = [_within(file, group, first, last) for group in groups]
                yield Block(*(np.concatenate(each) for each in zip(*pieces, strict=True)))


def _span(file: pq.ParquetFile, group: int) -> tuple[int, int]:
    steps = file.metadata.row_group(group).column(2).statistics
    return int(steps.min), int(steps.max)


def _within(file: pq.ParquetFile, group: int, first: int, last: int) -> Block:
    table = file.read_row_group(group, use_threads=False)
    arrays = [table.column(name).to_numpy() for name in SCHEMA.names]
    inside = (arrays[2] >= first) & (arrays[2] <= last)
    return Block(*(each[inside] for each in arrays))


def _ranges(file: pq.ParquetFile) -> list[tuple[int, int]]:
    """Return ranges of steps with at most `MOST` values each."""
    steps, counts = np.empty(0, "int64"), np.empty(0, "int64")
    for group in range(file.num_row_groups):
        own, number = np.unique(file.read_row_group(group, ["step"]).column(0).to_numpy(), return_counts=True)
        steps, place = np.unique(np.concatenate([steps, own]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts, number])).astype("int64")
    if not len(steps):
        return []
    part = (np.cumsum(counts) - 1) // MOST
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    ends = np.append(starts[1:], len(steps)) - 1
    return [(int(steps[start]), int(steps[end])) for start, end in zip(starts, ends, strict=True)]

"""One series on disk: a folder of parts, few at every moment, none overlapping as far as a reader can see.

A merged part is written before the parts that it replaces are removed, so that a reader may meet both: what lies
inside a wider part is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from stabilitylab.disk.atomic import replace
from stabilitylab.disk.containment import holds_folder
from stabilitylab.disk.part import WRITING, OpenPart, Part, common, schema_of
from stabilitylab.errors import InputError

__all__ = ["MOST", "all_parts", "compact", "list_parts", "merge", "merge_all", "newest_to_merge", "truncate"]

MOST = 24
"""So many parts has a series at most, but for the one that is being written."""

ROWS = 8192
"""A merged part has row groups of at least so many rows: few groups, and merging takes little memory."""


def all_parts(folder: Path) -> list[Part]:
    """Return every part in a folder in order of steps, a wider one before what lies in it.

    Raises:
        OSError: if the folder is a link, or no folder.
    """
    if not (holds_folder(folder.parent) and holds_folder(folder)):
        return []
    found = [part for path in folder.iterdir() if (part := Part.named(path))]
    return sorted(found, key=lambda part: (part.first, -part.last))


def list_parts(folder: Path) -> list[Part]:
    """Return the parts in order of steps, without those that lie inside a wider one."""
    kept: list[Part] = []
    for part in all_parts(folder):
        if not kept or part.last > kept[-1].last:
            kept.append(part)
    return kept


def merge(folder: Path, merged: Sequence[Part]) -> None:
    """Merge neighboring parts into one, a few rows at a time, then remove them.

    Raises:
        InputError: if one of them is damaged; then all stay.
    """
    if len(merged) > 1:
        _rewrite(folder, merged, merged[-1].last)


def merge_all(folder: Path) -> None:
    """Merge all parts of a series into one.

    Raises:
        InputError: if one of them is damaged; then all stay.
    """
    _remove_replaced(folder)
    merge(folder, list_parts(folder))


def _rewrite(folder: Path, old: Sequence[Part], last: int) -> None:
    """Replace parts by one that holds their rows up to a step."""
    with ExitStack() as stack:
        opened = [stack.enter_context(OpenPart(part)) for part in old]
        steps = np.concatenate([each.steps for each in opened])
        if np.any(steps[1:] <= steps[:-1]):
            raise InputError(f"the parts {old[0].path} to {old[-1].path.name} overlap")
        kept = steps[: np.searchsorted(steps, last, "right")]
        new = Part.between(folder, int(kept[0]), int(kept[-1]))
        replace(new.path, lambda path: _stream(opened, last, path))
    for part in old:
        part.path.unlink(missing_ok=True)


def _stream(opened: Sequence[OpenPart], last: int, path: Path) -> None:
    types: dict[str, list[np.dtype]] = {}
    for part in opened:
        for label, dtype in part.dtypes.items():
            types.setdefault(label, []).append(dtype)
    schema = schema_of({label: common(found) for label, found in types.items()})
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(path, schema, **WRITING) as writer:
        for part in opened:
            for batch in part.batches(ROWS):
                rows = batch.filter(pa.compute.less_equal(batch.column("step"), last))
                waiting.append(_fitted(rows, schema))
                if sum(table.num_rows for table in waiting) >= ROWS:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with every column of the schema: null where a label was not recorded."""
    found = dict(zip(table.column_names, table.columns, strict=True))
    columns = [
        found[field.name].cast(field.type, safe=False)
        if field.name in found
        else pa.chunked_array([pa.nulls(table.num_rows, field.type)])
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def compact(folder: Path, after: int = -1) -> None:
    """Merge the newest parts where there are more than `MOST`; those that begin up to a step are left as they are.

    Raises:
        InputError: if a part that should be merged is damaged.
    """
    _remove_replaced(folder)
    while True:
        parts = [part for part in list_parts(folder) if part.first > after]
        if len(parts) <= MOST:
            return
        sizes = [part.path.stat().st_size for part in parts]
        merge(folder, parts[-newest_to_merge(sizes) :])


def newest_to_merge(sizes: Sequence[int]) -> int:
    """Return how many of the newest parts to merge: two, and more while the next is no larger than all of them.

    What stays doubles in size from part to part, so that a row is rewritten a few times only, however irregular
    the flushes are: about four times in a million steps.
    """
    number, size = 2, sizes[-1] + sizes[-2]
    while number < len(sizes) and sizes[-number - 1] <= size:
        number += 1
        size += sizes[-number]
    return number


def truncate(folder: Path, step: int) -> int:
    """Remove every row at or after a step, the newest first, so that a kill leaves no gap.

    Returns:
        The last step that is left, or -1.

    Raises:
        InputError: if a part that holds rows on both sides of the step is damaged.
    """
    parts = [part for part in all_parts(folder) if part.last >= step]
    for part in parts:
        if part.first < step:
            with OpenPart(part) as opened:
                _ = opened.steps  # fails, if it must, before anything is removed
    for part in reversed(parts):
        if part.first < step:
            _rewrite(folder, [part], step - 1)
        else:
            part.path.unlink()
    left = list_parts(folder)
    return left[-1].last if left else -1


def _remove_replaced(folder: Path) -> None:
    """Remove the parts that lie inside a wider one, left by a kill, if that one is sound."""
    kept = list_parts(folder)
    for part in set(all_parts(folder)) - set(kept):
        wider = next(each for each in kept if each.first <= part.first and part.last <= each.last)
        with suppress(InputError), OpenPart(wider) as opened:
            _ = opened.steps
            part.path.unlink()

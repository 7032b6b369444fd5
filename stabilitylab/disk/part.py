"""One part of a series: a Parquet file of the rows between two steps, which give it its name.

What is read is not trusted: a part is used only if it holds what its name says, in columns of numbers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stabilitylab.disk.atomic import replace
from stabilitylab.disk.containment import make_folder, open_regular
from stabilitylab.errors import InputError

__all__ = ["WRITING", "OpenPart", "Part", "common", "schema_of", "write_part"]

NAME = re.compile(r"([0-9]{8,18})-([0-9]{8,18})\.parquet")

ROWS_PER_BYTE = 8
"""More rows than this in a byte are a bomb: steps that increase take about a byte each, however well compressed."""

PANDAS = {
    "index_columns": ["step"],
    "column_indexes": [],
    "columns": [
        {"name": "step", "field_name": "step", "pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    ],
}
"""As much as pandas needs to know; building it from a frame takes longer than writing one."""

WRITING = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}


class Part(NamedTuple):
    """A part of a series: the first and the last step in it, and its file."""

    first: int
    last: int
    path: Path

    @classmethod
    def between(cls, folder: Path, first: int, last: int) -> Part:
        """Return the part with these steps."""
        return cls(first, last, folder / f"{first:08d}-{last:08d}.parquet")

    @classmethod
    def named(cls, path: Path) -> Part | None:
        """Return the part that a file is by its name; none if it is something else."""
        match = NAME.fullmatch(path.name)
        return cls(int(match[1]), int(match[2]), path) if match else None


def write_part(folder: Path, labels: Sequence[str], steps: np.ndarray, values: np.ndarray) -> Part:
    """Write rows as one part, whole or not at all: steps of shape (T,), values of shape (T, number of labels)."""
    make_folder(folder.parent)
    make_folder(folder)
    part = Part.between(folder, int(steps[0]), int(steps[-1]))
    # not through pandas, which would make nulls of NaN: a null says that a label was not recorded
    columns = [pa.array(np.ascontiguousarray(column)) for column in values.T]
    table = pa.Table.from_arrays([*columns, pa.array(steps)], schema=schema_of(dict.fromkeys(labels, values.dtype)))
    try:
        replace(part.path, lambda path: pq.write_table(table, path, **WRITING))
    except BaseException:  # it may be there but not in safety: the caller keeps the rows, and may split them otherwise
        with suppress(OSError):
            part.path.unlink(missing_ok=True)
        raise
    return part


def schema_of(dtypes: Mapping[str, np.dtype]) -> pa.Schema:
    """Return the schema of a part: a column for each label, then ``step``, which pandas takes for the index."""
    columns = [(label, pa.from_numpy_dtype(dtype)) for label, dtype in dtypes.items()]
    return pa.schema([*columns, ("step", pa.int64())], metadata={"pandas": json.dumps(PANDAS)})


def common(dtypes: Sequence[np.dtype]) -> np.dtype:
    """Return the type that holds a label whose parts have these types; float64 if there are none."""
    return np.result_type(*dtypes) if dtypes else np.dtype("float64")


class OpenPart:
    """A part whose file is open, so that it can be read also when the writer merges it away.

    Raises:
        FileNotFoundError: if it was merged away already.
        InputError: if it is a link, or no file that can be opened.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        with _blaming(part):
            self._file = open_regular(part.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    @cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        """The labels in the part and the type of each.

        Raises:
            InputError: if the part is damaged, or is no part of a series.
        """
        types = {field.name: field.type for field in self._parquet.schema_arrow if field.name != "step"}
        return {label: np.dtype(kind.to_pandas_dtype()) for label, kind in types.items()}

    @cached_property
    def steps(self) -> np.ndarray:
        """The steps of the rows, int64.

        Raises:
            InputError: if they do not increase, or are not those that the name of the part says.
        """
        return self.read([])["step"]

    def read(self, labels: Sequence[str], absent: float | None = None) -> dict[str, np.ndarray]:
        """Return the column ``step``, and those of the labels that the part holds; integers with gaps as floats.

        Args:
            labels: wanted, whether the part holds them or not.
            absent: stands where a label was not recorded; by default NaN.

        Raises:
            InputError: if the part is damaged, or is no part of a series.
        """
        present = [label for label in labels if label in self.dtypes]
        with _blaming(self.part):
            table = self._parquet.read(columns=["step", *present])
            table.validate()
            columns = {label: _filled(table.column(label), absent).to_numpy() for label in ["step", *present]}
        steps = columns["step"]
        if steps.dtype.kind not in "iu" or not np.all(steps[1:] > steps[:-1]):
            raise InputError(f"{self.part.path} is no part of a series: its steps do not increase")
        if (steps[0], steps[-1]) != self.part[:2]:
            raise InputError(f"{self.part.path} is no part of a series: it holds the steps {steps[0]} to {steps[-1]}")
        return columns | {"step": steps.astype("int64", copy=False)}

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """Return the rows in order, at most so many at a time.

        Raises:
            InputError: if the part is damaged.
        """
        with _blaming(self.part):
            for batch in self._parquet.iter_batches(batch_size=rows):
                yield pa.Table.from_batches([batch])

    @cached_property
    def _parquet(self) -> pq.ParquetFile:
        with _blaming(self.part):
            parquet = pq.ParquetFile(self._file, page_checksum_verification=True)
            wrong = _wrong_columns(parquet.schema_arrow) or self._wrong_rows(parquet.metadata)
        if wrong:
            raise InputError(f"{self.part.path} is no part of a series: {wrong}")
        return parquet

    def _wrong_rows(self, footer: Any) -> str:
        rows = footer.num_rows
        if rows != sum(footer.row_group(index).num_rows for index in range(footer.num_row_groups)):
            return "its numbers of rows disagree"
        if not 0 < rows <= self.part.last - self.part.first + 1:
            return f"{rows} rows for the steps {self.part.first} to {self.part.last}"
        size = os.fstat(self._file.fileno()).st_size
        return f"{rows} rows in {size} bytes" if rows > ROWS_PER_BYTE * size else ""


def _filled(column: pa.ChunkedArray, absent: float | None) -> pa.ChunkedArray:
    if absent is None or not column.null_count:
        return column
    return column.cast(pa.float64() if pa.types.is_integer(column.type) else column.type).fill_null(absent)


def _wrong_columns(schema: pa.Schema) -> str:
    if "step" not in schema.names or not pa.types.is_integer(schema.types[schema.names.index("step")]):
        return "it has no integer column 'step'"
    if len(set(schema.names)) != len(schema.names):
        return "two of its columns have one name"
    numeric = [pa.types.is_floating(kind) or pa.types.is_integer(kind) for kind in schema.types]
    return "" if all(numeric) else "not all of its columns are numbers"


@contextmanager
def _blaming(part: Part) -> Iterator[None]:
    """Turn whatever a parser of hostile bytes may raise into an error that names the part."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{part.path} is damaged: {reason}") from error

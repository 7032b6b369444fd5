"""A block of a table, wide or long, as values of columns: which column counts steps, and what is a number."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stabilitylab.errors import InputError
from stabilitylab.importing.values import Facts, Values, whole_steps

__all__ = ["Columns", "histogram_norm"]

STEPS = (
    "trainer/global_step", "train/global_step", "global_step", "step", "steps", "_step",
    "iteration", "iterations", "iter", "epoch",
)  # fmt: skip
"""What counts steps, the surest first; the ``_step`` of W&B counts calls of its logger."""

CLOCKS = re.compile(r"_?runtime|_?timestamp|wall[_ ]time|_?time|created_at|relative time.*", re.IGNORECASE)
NAMES = ("name", "tag", "metric", "key", "variable", "series")
NAN = {"nan", "+nan", "-nan"}
COMMA = r"^\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*$"
THOUSANDS = r"^\s*[+-]?[1-9]\d{0,2}(,\d{3})+\s*$"
"""A number that may be a thousand as well as a decimal, or can only be the former."""


class Columns:
    """How the columns of one table are read: decided at its first block.

    Args:
        names: of the table.
        chosen: the column of the steps, where it was named.
        facts: is told what is left out.
        where: names the file, in errors.
        single: what a column that is called only ``value`` is called.

    Raises:
        InputError: if no column counts steps, or a name stands there twice.
    """

    def __init__(self, names: Sequence[str], chosen: str | None, facts: Facts, where: str, single: str = "") -> None:
        self._facts, self._where, self._single = facts, where, single
        twice = [name for name in names if name and names.count(name) > 1]
        if twice:
            raise InputError(f"{where} has two columns that are called {twice[0]!r}")
        lower = {name.lower(): name for name in reversed(names)}  # the first of those that are alike
        facts.step = self._choose(names, lower, chosen)
        key = next((lower[name] for name in NAMES if name in lower), None)
        self._long = (key, lower["value"]) if key is not None and "value" in lower else None
        self._run = lower.get("run") if self._long else None
        self._runs: set[str] = set()

    def _choose(self, names: Sequence[str], lower: Mapping[str, str], chosen: str | None) -> str:
        shortened = [name if len(name) <= 40 else f"{name[:37]}..." for name in list(names)[:12]]
        shown = ", ".join(map(repr, shortened)) + (", ..." if len(names) > 12 else "")
        if chosen is not None:
            if chosen not in names:
                raise InputError(f"{self._where} has no column {chosen!r} of steps; it has {shown}")
            return chosen
        nested = {name.replace(".", "/"): each for name, each in lower.items()}
        found = next((nested[name] for name in STEPS if name in nested), None)
        if found is None:
            raise InputError(f"{self._where} has no column of steps; name it with --step, of {shown}")
        if found.lower() == "epoch":
            self._facts.remarks.append("time is counted in epochs, for want of steps")
        return found

    def read(self, block: Mapping[str, Any]) -> Iterator[Values]:
        """Yield the values of a block: name of a column to an Arrow array."""
        steps, present = _numbers(block[self._facts.step])
        if present.sum() + block[self._facts.step].null_count < len(present):
            self._refuse_thousands(block[self._facts.step])
        known, whole = whole_steps(np.where(present, steps, np.nan), self._facts, self._where)
        if self._long is not None:
            yield from self._read_long(block, known, whole)
            return
        for name, column in block.items():
            if not name or name == self._facts.step or CLOCKS.fullmatch(name):
                continue
            called = self._single if self._single and name.lower() == "value" else name
            yield from self._column(called, column, known, whole)

    def _refuse_thousands(self, steps: Any) -> None:
        wrong = _first(steps, THOUSANDS)
        if wrong:
            raise InputError(f"{self._where}: the step {wrong!r} has a comma; write steps without any")

    def _column(self, name: str, column: Any, known: np.ndarray, steps: np.ndarray) -> Iterator[Values]:
        values, present = _numbers(column)
        strange = len(present) - int(present.sum()) - column.null_count
        norms = _histograms(column) if strange else None
        if norms is not None:
            chosen = known & np.isfinite(norms)
            yield Values(name, steps[chosen[known]], norms[chosen], histogram=True)
            return
        chosen = known & present
        if present.any():
            self._facts.ignored.pop(name, None)
            if strange:
                self._facts.counts[f"values of {name} left out: no numbers"] += strange
            yield Values(name, steps[chosen[known]], values[chosen])
        elif strange:
            self._facts.ignored.setdefault(name, _what_text(column))

    def _read_long(self, block: Mapping[str, Any], known: np.ndarray, steps: np.ndarray) -> Iterator[Values]:
        assert self._long is not None
        key, value = self._long
        if self._run is not None:
            self._runs |= {str(each) for each in pc.unique(block[self._run]).to_pylist() if each is not None}
            if len(self._runs) > 1:
                names = ", ".join(sorted(self._runs)[:6])
                raise InputError(f"{self._where} holds several runs: {names}; give the rows of one")
        values, present = _numbers(block[value])
        self._facts.counts["values left out: no numbers"] += len(present) - int(present.sum()) - block[value].null_count
        codes, names_ = pd.factorize(block[key].cast(pa.string()).to_numpy(zero_copy_only=False))
        everywhere = np.zeros(len(known), dtype="int64")
        everywhere[known] = steps
        rows = np.flatnonzero(known & present & (codes >= 0))
        rows = rows[np.argsort(codes[rows], kind="stable")]
        for part in np.split(rows, np.flatnonzero(np.diff(codes[rows])) + 1):
            if len(part):
                yield Values(str(names_[codes[part[0]]]), everywhere[part], values[part])


def _numbers(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return values as float64, and where there are any; text that spells a number is one."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    present = ~np.asarray(column.is_null())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind) or pa.types.is_decimal(kind):
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=float), present
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return np.full(len(column), np.nan), np.zeros(len(column), dtype=bool)
    try:
        return np.asarray(pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False), dtype=float), present
    except pa.ArrowInvalid:
        text = pd.Series(column.to_pylist(), dtype=object).str.strip()
        values = pd.to_numeric(text, errors="coerce").to_numpy(dtype=float)
        spelled = text.str.lower().isin(NAN).to_numpy(dtype=bool)
        return values, present & (~np.isnan(values) | spelled)


def _first(column: Any, pattern: str) -> str:
    """Return the first text of a column that matches a pattern; nothing if none does, or it is no text."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return ""
    return str(next(iter(column.filter(pc.match_substring_regex(column, pattern)).to_pylist()), ""))


def _what_text(column: Any) -> str:
    """Return why a column without a number is left out."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    comma, some = _first(column, COMMA), _first(column, ".")
    if comma:
        reason = "decimal commas are read where semicolons or tabs separate the cells and no number has a point"
        return f"text, such as {comma!r}; {reason}"
    return f"text, such as {some[:20]!r}" if some else f"no numbers, but {column.type}"


def _histograms(column: Any) -> np.ndarray | None:
    """Return the norms of a column of W&B histograms, NaN where there is none; nothing if it is no such column."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    text = column.to_pylist()
    some = next((each for each in text if each is not None), "")
    if "histogram" not in some[:200] and '"bins"' not in some and '"packedBins"' not in some:
        return None
    norms = np.full(len(text), np.nan)
    for row, each in enumerate(text):
        if each is not None:
            norms[row] = histogram_norm(each)
    return norms


def histogram_norm(text: str) -> float:
    """Return the L2 norm of what a W&B histogram counts, its values spread evenly inside each bin; NaN if it is none.

    Args:
        text: JSON with ``values`` (how many in each bin) and ``bins`` (edges) or ``packedBins`` (min, size, count).
    """
    try:
        parsed = json.loads(text)
        counts = np.asarray(parsed["values"], dtype=float)
        if "bins" in parsed:
            edges = np.asarray(parsed["bins"], dtype=float)
        else:
            packed = parsed["packedBins"]
            edges = packed["min"] + packed["size"] * np.arange(len(counts) + 1)
        if len(edges) != len(counts) + 1:
            return float("nan")
        low, high = edges[:-1], edges[1:]
        return float(np.sqrt((counts * (low * low + low * high + high * high) / 3).sum()))
    except (ValueError, KeyError, TypeError, IndexError):
        return float("nan")

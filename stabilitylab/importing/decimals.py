"""Decimal commas of tables whose cells are separated by semicolons or tabs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stabilitylab.importing.columns import COMMA, THOUSANDS
from stabilitylab.importing.values import Facts

__all__ = ["DecimalCommas"]

POINT = r"^\s*[+-]?\d*\.\d+([eE][+-]?\d+)?\s*$"


class DecimalCommas:
    """Writes points for decimal commas, if the first numbers that are no integers have commas and none has a point.

    Args:
        facts: is told how many numbers were read so.
        step: the column of the steps: ``1,000`` stays text there, as it may be a thousand.
        clocks: columns that do not tell how numbers are written.
    """

    def __init__(self, facts: Facts, step: str, clocks: Iterable[str]) -> None:
        self._facts, self._step, self._clocks = facts, step, set(clocks)
        self._used: bool | None = None

    def with_points(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a block, name to text, with points."""
        commas = {name: _matches(column, COMMA) for name, column in block.items() if _any(column, ",")}
        commas = {name: found for name, found in commas.items() if pc.any(found).as_py()}
        if self._used is None:
            others = [column for name, column in block.items() if name not in self._clocks and _any(column, ".")]
            pointed = any(pc.any(_matches(column, POINT)).as_py() for column in others)
            self._used = None if not commas and not pointed else not pointed
        if not self._used:
            return dict(block)
        read = dict(block)
        for name, found in commas.items():
            column = block[name]
            if name == self._step:
                found = pc.and_not(found, _matches(column, THOUSANDS))
            self._facts.counts["numbers with a decimal comma"] += pc.sum(found).as_py() or 0
            read[name] = pc.if_else(found, pc.replace_substring(column, ",", "."), column)
        return read


def _any(column: Any, mark: str) -> bool:
    return bool(pc.any(pc.match_substring(column, mark)).as_py())


def _matches(column: Any, pattern: str) -> pa.Array:
    return pc.fill_null(pc.match_substring_regex(column, pattern), False)

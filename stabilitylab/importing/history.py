"""Histories in JSON: one object a row, in lines or in a list, or one object of columns; objects may be nested."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from stabilitylab.errors import InputError
from stabilitylab.importing.columns import Columns
from stabilitylab.importing.sources import Source
from stabilitylab.importing.values import Facts, Values

__all__ = ["read_history"]

CHUNK = 2**20
LARGEST = 2**28
"""Characters of one object at most."""

ROWS = 5000
"""Rows that are passed on at once."""


def read_history(source: Source, step: str | None, facts: Facts) -> Iterator[Values]:
    """Yield the values of a history: rows as W&B and the Trainer of Hugging Face write them, or columns as pandas does.

    Raises:
        InputError: if it is not JSON in UTF-8, holds no rows, or no key counts steps.
    """
    columns: Columns | None = None
    waiting: list[dict[str, Any]] = []
    for row in _rows(source, facts):
        waiting.append(row)
        if len(waiting) == ROWS:
            columns = columns or _columns(waiting, source, step, facts)
            yield from columns.read(_block(waiting, facts.step))
            waiting = []
    if waiting:
        columns = columns or _columns(waiting, source, step, facts)
        yield from columns.read(_block(waiting, facts.step))
    if columns is None:
        raise InputError(f"{source.path} holds no rows")


def _columns(rows: list[dict[str, Any]], source: Source, step: str | None, facts: Facts) -> Columns:
    return Columns(list(dict.fromkeys(name for row in rows for name in row)), step, facts, str(source.path))


def _block(rows: list[dict[str, Any]], step: str) -> dict[str, pa.Array]:
    """Return rows as columns of text, numbers spelled out; a key that is missing or null has no value."""
    names = dict.fromkeys([step, *(name for row in rows for name in row)])
    return {name: pa.array([_text(row.get(name)) for row in rows], pa.string()) for name in names}


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return json.dumps(value)
    return repr(value)  # 0.1 reads back as 0.1, inf as inf


def _rows(source: Source, facts: Facts) -> Iterator[dict[str, Any]]:
    return (_flat(row, source) for row in _nested_rows(source, facts))


def _flat(row: dict[str, Any], source: Source) -> dict[str, Any]:
    """Return a row with objects inside of it taken apart, under dotted names; a histogram is one value."""
    flat: dict[str, Any] = {}
    waiting = list(reversed(row.items()))
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict) and value and "_type" not in value and not {"bins", "packedBins"} & value.keys():
            waiting += [(f"{name}.{inner}", each) for inner, each in reversed(value.items())]
        elif name in flat:
            raise InputError(f"{source.path}: a row has {name!r} twice, once as an object inside of another")
        else:
            flat[name] = value
    return flat


def _nested_rows(source: Source, facts: Facts) -> Iterator[dict[str, Any]]:
    for value in _objects(source, facts):
        if not isinstance(value, dict):
            raise InputError(f"{source.path}: a row is {str(value)[:40]!r}; expected objects, name to value")
        inner = value.get("log_history")  # trainer_state.json of the Hugging Face Trainer
        if isinstance(inner, list):
            yield from (row for row in inner if isinstance(row, dict))
        elif value and all(isinstance(each, dict | list) and "_type" not in each for each in value.values()):
            yield from _transposed(value, source)
        else:
            yield value


def _transposed(columns: dict[str, Any], source: Source) -> Iterator[dict[str, Any]]:
    """Yield the rows of an object of columns: lists, or objects from row to value."""
    if all(isinstance(each, list) for each in columns.values()):
        columns = {name: dict(enumerate(each)) for name, each in columns.items()}
    if not all(isinstance(each, dict) for each in columns.values()):
        raise InputError(f"{source.path}: some of its columns are lists and some are objects")
    for row in dict.fromkeys(row for column in columns.values() for row in column):
        yield {name: column.get(row) for name, column in columns.items()}


def _objects(source: Source, facts: Facts) -> Iterator[Any]:
    """Yield the objects of a file, or of the list that it is, one after the other; a cut line at the end is told."""
    decoder = json.JSONDecoder()
    text, at, listed, ended, some = "", 0, None, False, False
    try:
        with open(source.path, encoding="utf-8-sig") as file:
            while True:
                while at < len(text) and text[at] in " \t\r\n,":
                    at += 1
                if listed is None and at < len(text):
                    listed = text[at] == "["
                    at += listed
                    continue
                if listed and text[at : at + 1] == "]":
                    return
                try:
                    value, at = decoder.raw_decode(text, at)
                    some = True
                    yield value
                    continue
                except json.JSONDecodeError as error:
                    if ended:
                        if some and not listed:
                            rest = len(text[at:].strip())
                            facts.counts["characters at the end that are no whole object left out"] += rest
                        elif text[at:].strip() or listed:
                            raise InputError(f"{source.path} is no JSON, or cut off: {error.msg}") from error
                        return
                # twice as much each time: a long object is not parsed again and again
                more = file.read(max(CHUNK, len(text) - at))
                ended = not more
                text, at = text[at:] + more, 0
                if len(text) > LARGEST:
                    raise InputError(f"{source.path} has an object of more than {LARGEST:,} characters")
    except UnicodeDecodeError as error:
        raise InputError(f"{source.path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise InputError(f"{source.path} is nested too deeply") from error

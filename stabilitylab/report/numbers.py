"""Nested numbers and parameters of a finding as a list of names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from stabilitylab.findings import to_json
from stabilitylab.phrasing import rounded

__all__ = ["numbers"]

LISTED = 24
"""Most values of a nested number that are listed one by one."""


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted names and values of nested numbers; many of one kind are summed up."""
    if is_dataclass(value) and not isinstance(value, type):
        value = to_json(value)
    if isinstance(value, Mapping):
        flat = [each for each in value.values() if isinstance(each, int | float) and not isinstance(each, bool)]
        if len(value) > LISTED and len(flat) == len(value):
            yield name, f"{len(flat)} values, {_short(min(flat))} to {_short(max(flat))}"
            return
        for place, (key, item) in enumerate(value.items()):
            if place == LISTED:
                yield name, f"and {len(value) - LISTED} more"
                return
            yield from numbers(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        if all(not isinstance(each, list | tuple | Mapping) and not is_dataclass(each) for each in value):
            rest = f" and {len(value) - LISTED} more" if len(value) > LISTED else ""
            yield name, (", ".join(_short(each) for each in value[:LISTED]) + rest) or "none"
        else:
            yield from numbers(dict(enumerate(value, 1)), name)
    else:
        yield name, _short(value)


def _short(value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return rounded(value, 4) if isinstance(value, float) else str(value)

"""The header of a run, ``run.json``: what must be in it, and reading it without trusting it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stabilitylab.disk.containment import open_regular
from stabilitylab.errors import InputError
from stabilitylab.findings import to_json

__all__ = ["SCHEMA", "damage", "plain", "planted_in", "read_header", "series_damage", "series_folder"]

SCHEMA = 1
"""Version of the layout on disk; a reader refuses a newer one."""

REQUIRED = {"layers": dict, "series": dict, "attempts": list}
OPTIONAL = {"config": dict, "versions": dict, "probes": dict, "left_out": dict, "disabled": dict}

LARGEST = 32 * 2**20
SERIES_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
LONGEST_NAME = 200
LAST_STEP = 10**18 - 1


def read_header(folder: Path) -> dict[str, Any]:
    """Return the content of ``run.json``; its series are the caller's to check, with `series_damage`.

    Raises:
        InputError: if the folder holds no run, or one of a newer schema, or ``run.json`` is damaged.
    """
    file = folder / "run.json"
    header = _parsed(folder, file)
    schema = header.get("schema") if isinstance(header, dict) else None
    if type(schema) is not int or schema < 1:
        raise InputError(f"{file} does not describe a run: it has no schema version")
    if schema > SCHEMA:
        raise InputError(f"{file} has schema {schema}; this version of stabilitylab reads up to {SCHEMA}")
    wrong = damage(header)
    if wrong:
        raise InputError(f"{file} is damaged: {wrong}")
    return header


def _parsed(folder: Path, file: Path) -> Any:
    try:
        with open_regular(file) as opened:
            content = opened.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"holds no run.json{_runs_in(folder)}" if folder.exists() else "does not exist"
        raise InputError(f"{folder} is no run: it {what}") from error
    except (OSError, ValueError) as error:  # a ValueError: no path can hold a zero byte
        raise InputError(f"{file} cannot be read: {error}") from error
    if len(content) > LARGEST:
        raise InputError(f"{file} is larger than {LARGEST // 2**20} MiB, which no run writes")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from error


def _runs_in(folder: Path) -> str:
    """Say which runs lie in a folder that is none."""
    try:
        found = sorted(str(path.parent) for path in folder.glob("*/run.json"))
    except OSError:
        return ""
    if not found:
        return ""
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"; runs in it: {', '.join(found[:3])}{more}"


def damage(header: Mapping[str, Any]) -> str:
    """Return what is wrong with a header, its series left aside; nothing if it is sound."""
    for key, kind in [*REQUIRED.items(), *((key, OPTIONAL[key]) for key in OPTIONAL if key in header)]:
        if not isinstance(header.get(key), kind):
            return f"{key!r} is missing or of the wrong kind"
    if not _are_layers(header["layers"]):
        return "'layers' is missing or of the wrong kind"
    if not all(isinstance(each, dict) and isinstance(each.get("status"), str) for each in header["attempts"]):
        return "'attempts' is missing or of the wrong kind"
    return ""


def series_damage(name: str, about: Any) -> str:
    """Return what is wrong with the entry of a series; nothing if it is sound."""
    if not SERIES_NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        return f"{name[:LONGEST_NAME]!r} is no name of a series: letters, digits, '_' and single dots are expected"
    labels: Any = about.get("labels") if isinstance(about, dict) else None
    if not _are_names(labels) or len(set(labels)) != len(labels) or "step" in labels:
        return f"the labels of {name} must be names that differ from each other and from 'step'"
    return ""


def series_folder(folder: Path, name: str) -> Path:
    """Return the folder of a series, whose name was checked."""
    return folder / "series" / name


def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a header as they will be read again: JSON types, copied.

    Raises:
        InputError: if a value has no form in JSON.
    """
    try:
        copied: dict[str, Any] = json.loads(json.dumps(to_json(fields), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"run.json holds JSON types only: {error}") from error
    return copied


def planted_in(header: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the planted disturbances that a header names, those that are sound."""
    listed = header.get("planted")
    return [each for each in listed if _is_planted(each)] if isinstance(listed, list) else []


def _is_planted(entry: Any) -> bool:
    if not isinstance(entry, dict) or not _are_names([entry.get("kind"), entry.get("what")]):
        return False
    spans = entry.get("spans")
    if not isinstance(spans, list) or not all(isinstance(each, list) for each in spans):
        return False
    whole = all([type(step) for step in each] == [int, int] for each in spans)
    return len(spans) > 0 and whole and all(0 <= first <= last <= LAST_STEP for first, last in spans)


def _are_layers(value: Any) -> bool:
    if set(value) != {"names", "of", "first"} or not isinstance(value["of"], dict):
        return False
    of = [*value["of"].values()]
    return _are_names(value["names"]) and _are_names([*of, value["first"]]) and set(of) <= set(value["names"])


def _are_names(value: Any) -> bool:
    """Tell whether it is a list of texts; JSON can also spell half a character, which no file can hold."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        return False
    try:
        "".join(value).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True

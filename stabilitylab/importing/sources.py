"""What kind of file somebody's log is, told by its content, and which files of a folder belong together."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stabilitylab.errors import InputError

__all__ = ["Source", "find_sources", "natural"]

EXPECTED = "TensorBoard event files or their folder, W&B history as JSON, JSON lines or CSV, or a CSV or Parquet table"
TABLES = (".csv", ".jsonl", ".parquet")
HEAD = 2**16


class Source(NamedTuple):
    """One file."""

    path: Path
    kind: str
    """``tensorboard``, ``csv``, ``json`` or ``parquet``."""
    prefix: str = ""
    """Comes before the names of its columns: the folder below the one that was named."""
    beside: tuple[str, ...] = ()
    """Tables beside the event files of a folder that are not read, said of its first file."""


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """Return the files behind what was named, in the order in which they were written.

    Raises:
        InputError: if something is missing, empty, of no known kind, or a folder of several runs.
    """
    found: list[Source] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        if path.is_dir():
            found += _in_folder(path)
        else:
            found.append(Source(path, _kind(path)))
    seen: set[Path] = set()
    for each in found:
        real = each.path.resolve()
        if real in seen:
            raise InputError(f"{each.path} is named twice")
        seen.add(real)
    return found


def _in_folder(folder: Path) -> list[Source]:
    """Return the event files of a folder; one folder of events is one run, and those below it are parts of it."""
    events: dict[Path, list[Path]] = {}
    for where, folders, names in os.walk(folder):  # follows no links
        folders.sort()
        own = sorted((name for name in names if "tfevents" in name), key=natural)
        if own:
            events[Path(where)] = [Path(where, name) for name in own]
    if not events:
        metrics = folder / "metrics.csv"  # of Lightning's CSVLogger
        if metrics.is_file():
            return [Source(metrics, _kind(metrics))]
        inside = sorted(each.name for each in folder.iterdir())
        held = ", ".join(inside[:8]) or "nothing"
        raise InputError(f"{folder} holds no TensorBoard event files and no metrics.csv; it holds {held}")
    top = next(iter(events))
    apart = [where for where in events if not where.is_relative_to(top)]
    if apart:
        several = ", ".join(str(where) for where in list(events)[:6])
        raise InputError(f"{folder} holds several runs; import one of them: {several}")
    found = [
        Source(path, _kind(path, "tensorboard"), "" if where == top else f"{where.relative_to(top).as_posix()}/")
        for where, paths in events.items()
        for path in paths
    ]
    beside = [each for where in dict.fromkeys([folder, *events]) for each in sorted(where.iterdir())]
    tables = [str(each) for each in beside if each.suffix.lower() in TABLES and each.is_file()]
    return [found[0]._replace(beside=tuple(tables)), *found[1:]]


def _kind(path: Path, of_empty: str = "") -> str:
    if not path.is_file():
        raise InputError(f"{path} is no regular file; expected: {EXPECTED}")
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head and of_empty:
        return of_empty
    if not head:
        raise InputError(f"{path} is empty")
    if "tfevents" in path.name:
        return "tensorboard"
    if head.startswith(b"PAR1"):
        return "parquet"
    text = decoded(path, head)
    if text.lstrip()[:1] in ("{", "["):
        return "json"
    lines = text.splitlines()
    if lines and (path.suffix.lower() == ".csv" or any(delimiter in lines[0] for delimiter in ",;\t")):
        return "csv"
    raise InputError(f"{path} is no log that can be imported; expected: {EXPECTED}")


def decoded(path: Path, head: bytes) -> str:
    """Return the beginning of a file as text.

    Raises:
        InputError: if it is not UTF-8.
    """
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)  # a character may be cut at the end
    except UnicodeDecodeError as error:
        guess = "UTF-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "binary, or not UTF-8"
        raise InputError(f"{path} is {guess}; expected: {EXPECTED}, text in UTF-8") from error
    if "\0" in text:
        raise InputError(f"{path} is binary; expected: {EXPECTED}")
    return text


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return what names are sorted by so that the tenth comes after the ninth."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]

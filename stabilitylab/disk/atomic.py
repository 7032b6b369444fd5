"""Files that are there whole or not at all, also after a kill, on a full disk, or after a power cut."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stabilitylab.findings import to_json

__all__ = ["remove_leftovers", "replace", "sync_folder", "write_json"]

TEMPORARY = re.compile(r"\..+\.[0-9]+\.tmp")


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file under a temporary name, sync it, and rename it to ``path``.

    Raises:
        OSError: if the disk is full or the folder cannot be written; what was at ``path`` is there still.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # a link with this name would lead the writing elsewhere
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:  # a full disk names no file, and nobody knows the temporary one
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; nobody else may be writing in the folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if TEMPORARY.fullmatch(path.name) and (path.is_symlink() or path.is_file()):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system offers it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, whole or not at all; non-finite numbers become strings."""
    text = json.dumps(to_json(value), indent=1, allow_nan=False) + "\n"
    replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

"""Nothing outside a run folder is read or written: links are not followed, and only regular files are opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

__all__ = ["holds_folder", "make_folder", "open_regular"]


def open_regular(path: Path) -> BinaryIO:
    """Open a file of the run for reading, without ever waiting for a pipe or following a link.

    Raises:
        FileNotFoundError: if nothing is there.
        OSError: if it is a link, a folder, a pipe or a device, or may not be read.
    """
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise _link(path)
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    safely = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, os.O_RDONLY | safely), "rb")


def holds_folder(path: Path) -> bool:
    """Tell whether a folder of the run is there.

    Raises:
        OSError: if something else is there: a link or a file.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        raise _link(path)
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(path))
    return True


def make_folder(path: Path) -> None:
    """Make a folder of the run where it is missing.

    Raises:
        OSError: if something else is there, or it cannot be made.
    """
    if not holds_folder(path):
        path.mkdir(exist_ok=True)


def _link(path: Path) -> OSError:
    return OSError(errno.ELOOP, "it is a link, which may lead outside the run", str(path))

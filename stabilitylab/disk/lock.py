"""A lock that one writer holds, on a file; its forked children neither hold, keep nor release it."""

from __future__ import annotations

import os
import sys
import time
import weakref
from pathlib import Path

__all__ = ["LOCK", "Lock", "is_held"]

LOCK = ".writer.lock"
"""Name of the file in a run."""

TRIES, PAUSE = 5, 0.02
"""Who only asks whether it is held (`is_held`) holds it for an instant."""


class Lock:
    """Take a lock, or fail at once if anybody holds it, in this process or another.

    It is given back by `release`, when the object is collected, and when the process ends, however it ends.

    Raises:
        BlockingIOError: if somebody else holds it.
        OSError: if the file cannot be made; a link is not followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        for tried in range(1, TRIES + 1):
            try:
                _lock(self._descriptor)
                break
            except BlockingIOError as error:
                if tried == TRIES:
                    raise BlockingIOError(error.errno, "another writer holds it", str(path)) from error
                time.sleep(PAUSE)
        # A forked child shares the lock through its copy of the descriptor: unlocking there would take it from this
        # process, and keeping it would hold the lock when this process is gone. Closing the copy does neither.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._close)

    @property
    def mine(self) -> bool:
        """Whether this process took the lock, rather than a parent that forked it."""
        return os.getpid() == self._process

    @property
    def in_place(self) -> bool:
        """Whether the locked file is still the one at its path: not so once the folder was removed."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor))
        except OSError:
            return False

    def release(self) -> None:
        """Give the lock back; a second time, or in a forked child, this does nothing."""
        if self.mine and self._close.alive:
            _unlock(self._descriptor)  # at once, also where a child was forked so lately that it has a copy yet
            self._close()


def is_held(path: Path) -> bool | None:
    """Tell whether a process of this machine holds a lock; None where that cannot be told."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error

    def _unlock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)

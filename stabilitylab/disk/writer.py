"""Writing a run: whole parts, a header that is never torn, one writer at a time."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa

from stabilitylab.disk import parts
from stabilitylab.disk.atomic import remove_leftovers, write_json
from stabilitylab.disk.containment import holds_folder
from stabilitylab.disk.header import LAST_STEP, SCHEMA, damage, plain, read_header, series_damage, series_folder
from stabilitylab.disk.lock import LOCK, Lock
from stabilitylab.disk.part import write_part
from stabilitylab.errors import InputError

__all__ = ["RunWriter"]

NEW: dict[str, Any] = {"series": {}, "attempts": [], "layers": {"names": [], "of": {}, "first": ""}}


class RunWriter:
    """The only writer of a run, in the process that made it: in a forked child it silently does nothing.

    What fails with an `OSError`, on a full disk or in a folder that was removed, leaves nothing half-written and can
    be called again with the same arguments; a folder that was removed is then made again.

    Args:
        path: the run folder; made if missing.
        header: what is known before the first step (``config``, ``layers``, ``versions``, ``seed``, ...).
        first_step: where this attempt begins. 0 refuses a folder that holds a run; a later step continues the run
            that is there, after removing every row at or after it. A folder without a run gets a new one.

    Raises:
        InputError: if the folder holds a run already, is being written, or cannot be.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], first_step: int = 0) -> None:
        self._closed = self._saved = False
        self._last: dict[str, int] = {}
        self._left: dict[str, int] = {}  # up to these steps, merging met a damaged part
        try:
            self.path = Path(os.path.realpath(path))  # stays the same if the program changes its folder
            self._holds_run(first_step)  # before anything is made
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.path / LOCK)
        except BlockingIOError as error:
            raise InputError(f"{path} is being written by another process, or by another writer in this one") from error
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}") from error
        try:
            self._begin(header, first_step)
        except OSError as error:
            self._lock.release()
            raise InputError(f"{path} cannot be written: {error}") from error
        except BaseException:
            self._lock.release()
            raise

    def __reduce__(self) -> NoReturn:
        raise InputError(
            f"the writer of {self.path} cannot be copied or sent to another process: make the recorder in the "
            "training process only, and keep it out of what data loader workers and spawned processes are given"
        )

    def _holds_run(self, first_step: int) -> bool:
        exists = os.path.lexists(self.path / "run.json")
        if first_step < 0:
            raise InputError(f"the first step is {first_step}; 0 begins a run, a later one continues it")
        if exists and first_step == 0:
            raise InputError(f"{self.path} holds a run already; choose another folder, or resume that run")
        if not exists and os.path.lexists(self.path / "series"):
            raise InputError(f"{self.path} holds series but no run.json; choose another folder")
        return exists

    def _begin(self, header: Mapping[str, Any], first_step: int) -> None:
        old = read_header(self.path) if self._holds_run(first_step) else NEW
        for attempt in old["attempts"]:
            if attempt["status"] == "running":
                attempt.update(status="killed", ended=None)
        this = {"first_step": first_step, "started": _now(), "status": "running", "host": socket.gethostname()}
        attempts = [*old["attempts"], this]
        self.header = plain(old | dict(header) | {"schema": SCHEMA, "series": old["series"], "attempts": attempts})
        for wrong in (damage(self.header), *(series_damage(*each) for each in old["series"].items())):
            if wrong:
                raise InputError(f"the header of {self.path} is damaged: {wrong}")
        self._labels = {name: about["labels"] for name, about in self.header["series"].items()}
        remove_leftovers(self.path)
        for name in self.header["series"]:
            folder = series_folder(self.path, name)
            self._last[name] = parts.truncate(folder, first_step)
            remove_leftovers(folder)
        self._save()

    def declare(self, name: str, labels: Sequence[str], **about: Any) -> None:
        """Announce a series: its labels and what is known of it (unit, schedule, provenance).

        A series may be declared again with other labels: they hold from the next rows on, and the header keeps the
        old ones after them.
        """
        if not self._writes():
            return
        entry = plain({"labels": list(labels), **about})
        wrong = series_damage(name, entry)
        if wrong:
            raise InputError(wrong)
        self._labels[name] = entry["labels"]
        old = self.header["series"].get(name, {"labels": []})["labels"]
        entry["labels"] = list(dict.fromkeys([*entry["labels"], *old]))
        self._saved = self._saved and self.header["series"].get(name) == entry
        self.header["series"][name] = entry

    def write(self, name: str, steps: np.ndarray, values: np.ndarray) -> None:
        """Write rows of a declared series as one part.

        Args:
            name: a series that was declared.
            steps: increasing, later than every step written before, shape (T,).
            values: shape (T, number of labels); stored in their own dtype, NaN and inf included.

        Raises:
            OSError: if the rows could not be written.
        """
        if not self._writes() or len(steps) == 0:
            return
        if name not in self._labels:
            raise InputError(f"{name} was not declared; declared are {', '.join(self._labels) or 'none'}")
        labels = self._labels[name]
        steps, values = np.asarray(steps), np.asarray(values)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if values.shape != (len(steps), len(labels)):
            raise ValueError(f"{name}: values of shape {values.shape}, expected {(len(steps), len(labels))}")
        if values.dtype.kind not in "fiu" or values.dtype.itemsize > 8:
            raise ValueError(f"{name}: values of type {values.dtype}, expected numbers of up to 64 bits")
        last = self._last.get(name, -1)
        if steps.dtype.kind not in "iu" or np.any(steps[1:] <= steps[:-1]) or steps[0] <= last or steps[-1] > LAST_STEP:
            raise ValueError(f"{name}: steps must increase; {steps[0]} follows {last}")
        self._hold()
        if not self._saved:
            self._save()  # rows that no header lists would be lost
        folder = series_folder(self.path, name)
        part = write_part(folder, labels, steps.astype("int64"), values)
        self._last[name] = part.last
        try:
            with suppress(OSError, pa.ArrowException):  # merged when there is room
                parts.compact(folder, self._left.get(name, -1))
        except InputError:  # for the reader to name; what follows can be merged
            self._left[name] = part.last

    def update(self, **fields: Any) -> None:
        """Set fields of the header and write it.

        Raises:
            OSError: if it could not be written; the fields are kept for the next time.
        """
        if not self._writes():
            return
        header = self.header | plain(fields)
        wrong = damage(header)
        if wrong:
            raise InputError(wrong)
        self.header.update(header)
        self._saved = False
        self._hold()
        self._save()

    def close(self, status: str, message: str = "", **about: Any) -> None:
        """Merge the parts, say how the attempt ended, and release the run; a second time, this does nothing.

        Raises:
            OSError: if the header could not be written; the run is still held, and can be closed again.
        """
        if self._closed or not self._writes():
            return
        self._hold()
        for name in self.header["series"]:
            with suppress(InputError, OSError, pa.ArrowException):  # a damaged part is the reader's to name
                parts.merge_all(series_folder(self.path, name))
        *before, this = self.header["attempts"]
        this = this | plain({"status": status, "message": message, "ended": _now(), **about})
        self._save({"attempts": [*before, this]})
        self._closed = True
        self._lock.release()

    def _writes(self) -> bool:
        """Tell whether this process is the writer: a forked child never is."""
        if self._lock.mine and self._closed:
            raise InputError(f"the writer of {self.path} is closed")
        return self._lock.mine

    def _hold(self) -> None:
        """Make the folder again if it was removed, with its lock and header, unless somebody else did."""
        if not self._lock.in_place:
            if not holds_folder(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            lock = Lock(self.path / ".writer.lock")
            if os.path.lexists(self.path / "run.json") and not self._wrote_header():
                lock.release()
                raise FileExistsError(errno.EEXIST, "holds another run by now", str(self.path))
            self._lock.release()
            self._lock = lock
        if not os.path.lexists(self.path / "run.json"):
            self._save()

    def _wrote_header(self) -> bool:
        try:
            return bool(read_header(self.path)["attempts"] == self.header["attempts"])
        except InputError:
            return False

    def _save(self, change: Mapping[str, Any] | None = None) -> None:
        header = self.header | dict(change or {})
        write_json(self.path / "run.json", header)
        self.header.update(header)
        self._saved = True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

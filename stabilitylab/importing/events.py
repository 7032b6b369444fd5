"""TensorBoard event files, every record of them, by tensorboard's own reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stabilitylab.errors import InputError
from stabilitylab.importing.sources import Source
from stabilitylab.importing.values import Facts, Values

__all__ = ["read_events"]

TOGETHER = 200_000
"""So many values are gathered before they are passed on."""

FRAME = 16
"""Bytes of a record beside its content: its length, and two checksums."""


def read_events(source: Source, facts: Facts) -> Iterator[Values]:
    """Yield the scalars of an event file, and the L2 norms of its histograms, which hold their sum of squares.

    A record that is cut off or damaged ends the reading, as it does for TensorBoard; how many bytes were left is
    told. A file that says where it resumes (``purge_step``) is believed.

    Raises:
        InputError: if tensorboard is not installed, or the file holds no record.
    """
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    except ImportError as error:
        raise InputError("event files need tensorboard: pip install 'stabilitylab[tensorboard]'") from error
    facts.step = "step"
    if source.path.stat().st_size == 0:
        facts.remarks.append("empty; its writer was killed before it wrote")
        return
    gathered = _Gathered(source.prefix)
    whole = 0
    for record in RawEventFileLoader(str(source.path)).Load():
        whole += FRAME + len(record)
        try:
            event = Event.FromString(record)
        except DecodeError as error:
            raise InputError(f"{source.path} is no event file: a record of it holds no event") from error
        facts.clock = (facts.clock[0] if facts.clock else event.wall_time, event.wall_time)
        if event.HasField("session_log") and event.session_log.status == SessionLog.START and event.step > 0:
            facts.purge = event.step
        if event.HasField("summary"):
            for value in event.summary.value:
                gathered.add(event.step, value, facts)
        if gathered.number >= TOGETHER:
            yield from gathered.take()
    size = source.path.stat().st_size
    if whole == 0:
        raise InputError(f"{source.path} is no event file, or its first record is damaged")
    if whole < size:
        why = "the writer was killed or is still writing, or a record is damaged"
        facts.counts[f"bytes after the last whole record ({why})"] += size - whole
    yield from gathered.take()


class _Gathered:
    """Values of each tag until they are passed on."""

    def __init__(self, prefix: str) -> None:
        self.number = 0
        self._prefix = prefix
        self._waiting: dict[tuple[str, bool], tuple[list[int], list[float]]] = {}

    def add(self, step: int, value: Any, facts: Facts) -> None:
        """Take a value of a summary: a scalar or a histogram; the name of anything else is noted."""
        kind = value.WhichOneof("value")
        number: float | None = None
        if kind == "simple_value":
            number = value.simple_value
        elif kind == "histo":
            number = float(np.sqrt(value.histo.sum_squares))
        elif kind == "tensor":
            number = _scalar(value.tensor)
        if number is None:
            facts.ignored.setdefault(_called(self._prefix, value.tag), "no scalar")
        elif step < 0:
            facts.counts["rows with a negative step left out"] += 1
        else:
            key = (_called(self._prefix, value.tag), kind == "histo")
            steps, values = self._waiting.setdefault(key, ([], []))
            steps.append(step)
            values.append(number)
            self.number += 1

    def take(self) -> Iterator[Values]:
        """Yield what waits."""
        for (name, histogram), (steps, values) in self._waiting.items():
            yield Values(name, np.array(steps, dtype="int64"), np.array(values, dtype=float), histogram)
        self._waiting, self.number = {}, 0


def _called(folder: str, tag: str) -> str:
    """Return the name of a column: ``TAG/NAME`` for what ``add_scalars`` of torch writes as TAG to a folder."""
    written = tag.replace("/", "_") + "_"
    return f"{tag}/{folder.removeprefix(written).rstrip('/')}" if folder.startswith(written) else folder + tag


def _scalar(tensor: Any) -> float | None:
    """Return the one number that a tensor holds, if it does, as the summaries of TensorFlow 2 and JAX do."""
    from tensorboard.util.tensor_util import make_ndarray

    if len(tensor.tensor_shape.dim) > 0:
        return None
    value = make_ndarray(tensor)
    return float(value) if value.dtype.kind in "fiub" and value.size == 1 else None

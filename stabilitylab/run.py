"""Reading a run on disk, also while it is written; `RunWriter` is the only writer."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stabilitylab.disk import parts
from stabilitylab.disk.header import SCHEMA, planted_in, read_header, series_damage, series_folder
from stabilitylab.disk.lock import LOCK, is_held
from stabilitylab.disk.part import OpenPart, common
from stabilitylab.disk.writer import RunWriter
from stabilitylab.errors import InputError
from stabilitylab.layers import Layers

__all__ = ["SCHEMA", "Run", "RunWriter", "find_runs"]


class Run:
    """A run folder, read lazily: ``run["gradients.norm"]`` is a DataFrame with the index ``step``.

    Args:
        path: the run folder, which holds ``run.json``.
        damaged: ``error`` names a damaged part or series; ``skip`` leaves it out and lists it in `skipped`.

    Raises:
        InputError: if the folder holds no run, or one of a newer schema, or its ``run.json`` is damaged.
    """

    def __init__(self, path: str | Path, damaged: Literal["error", "skip"] = "error") -> None:
        self.path = Path(path)
        self.damaged = damaged
        self.skipped: list[str] = []
        """What was left out because it was damaged."""
        self.header: dict[str, Any] = read_header(self.path)
        """The content of ``run.json``."""
        for name, about in list(self.header["series"].items()):
            wrong = series_damage(name, about)
            if wrong:
                self._skip(InputError(f"{self.path / 'run.json'} is damaged: {wrong}"))
                del self.header["series"][name]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {len(self.series)} series, {self.status})"

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty for a run of somebody's own loop that gave none."""
        return self.header.get("config", {})

    @property
    def status(self) -> str:
        """How the last attempt ended: ``running``, ``completed``, ``interrupted``, ``failed``, ``killed``.

        It was killed if it is running by its own account, and no process of the machine that ran it writes it.
        """
        attempts = self.header["attempts"]
        if not attempts:
            return "empty"
        running = attempts[-1]["status"] == "running" and attempts[-1].get("host") == socket.gethostname()
        if not running or is_held(self.path / LOCK) is not False:
            return attempts[-1]["status"]
        now = read_header(self.path)["attempts"][-1]["status"]  # it may have ended since the header was read
        return "killed" if now == "running" else now

    @property
    def planted(self) -> list[dict[str, Any]]:
        """Disturbances that were planted on purpose: ``kind``, ``what`` in words, and ``spans`` of steps, inclusive."""
        return planted_in(self.header)

    @property
    def layers(self) -> Layers:
        """The layers of the model in depth order, and the layer of each parameter."""
        layers = self.header["layers"]
        return Layers(tuple(layers["names"]), dict(layers["of"]), layers["first"])

    @property
    def series(self) -> tuple[str, ...]:
        """Names of the series that were declared, sorted."""
        return tuple(sorted(self.header["series"]))

    def about(self, name: str) -> dict[str, Any]:
        """Return what ``run.json`` says about a series: labels, unit, schedule, provenance."""
        if name not in self.series:
            raise InputError(f"{self.path} has no series {name!r}; it has {', '.join(self.series) or 'none'}")
        return dict(self.header["series"][name])

    def __contains__(self, name: object) -> bool:
        return name in self.series

    def __iter__(self) -> Iterator[str]:
        return iter(self.series)

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.read(name)

    def read(self, name: str, labels: Sequence[str] | None = None, absent: float | None = None) -> pd.DataFrame:
        """Return a series, or some of its columns, as a DataFrame: index ``step`` (int64), a column per label.

        Args:
            name: of the series.
            labels: which columns; all if not given.
            absent: stands where a label was not recorded, as before a parameter was thawed; by default NaN, which may
                as well have been measured.

        Raises:
            InputError: if there is no such series or label, or a part is damaged (unless asked to skip).
        """
        declared = self.about(name)["labels"]
        wanted = declared if labels is None else list(dict.fromkeys(labels))
        unknown = [label for label in wanted if label not in declared]
        if unknown:
            raise InputError(f"{name} of {self.path} has no column {unknown[0]!r}; it has {', '.join(declared)}")
        pieces = self._pieces(name, declared, wanted, absent)
        steps = np.concatenate([np.empty(0, "int64"), *(piece["step"] for piece in pieces)])
        columns = {label: _joined(pieces, label, absent) for label in wanted}
        return pd.DataFrame(columns, index=pd.Index(steps, dtype="int64", name="step"))

    def _pieces(
        self, name: str, declared: Sequence[str], wanted: Sequence[str], absent: float | None
    ) -> list[dict[str, np.ndarray]]:
        """Return the columns of each part that counts: a wider one, where it is sound, before what lies in it."""
        pieces = []
        last = -1
        with ExitStack() as stack:
            for part in self._open(series_folder(self.path, name), stack):
                if part.part.last <= last:
                    continue
                try:
                    if part.part.first <= last:
                        raise InputError(f"{part.part.path} is damaged: it overlaps the part before it")
                    strange = part.dtypes.keys() - set(declared)
                    if strange and strange - set(Run(self.path, "skip").about(name)["labels"]):  # nor declared since
                        raise InputError(f"{part.part.path} is no part of {name}: it has a column {min(strange)!r}")
                    pieces.append(part.read(wanted, absent))
                    last = part.part.last
                except InputError as error:
                    self._skip(error)
        return pieces

    def _open(self, folder: Path, stack: ExitStack) -> list[OpenPart]:
        """Open every part at once, so that the writer beside us cannot merge one away before it is read."""
        for _ in range(1000):
            try:
                return self._opened(folder, stack)
            except FileNotFoundError:  # merged away between listing and opening: list again
                stack.close()
            except OSError as error:
                self._skip(InputError(f"{folder} is damaged: {error}"))
                return []
        raise InputError(f"{folder} kept changing while it was read; try again")

    def _opened(self, folder: Path, stack: ExitStack) -> list[OpenPart]:
        opened = []
        for part in parts.all_parts(folder):
            try:
                opened.append(stack.enter_context(OpenPart(part)))
            except InputError as error:
                self._skip(error)
        return opened

    def _skip(self, error: InputError) -> None:
        if self.damaged != "skip":
            raise InputError(f"{error} (Run(path, damaged='skip') reads the rest)") from error
        if str(error) not in self.skipped:
            self.skipped.append(str(error))


def _joined(pieces: Sequence[dict[str, np.ndarray]], label: str, absent: float | None) -> np.ndarray:
    """Return a column over all parts: of the type that they have, floating where it was not recorded in some."""
    dtype = common([piece[label].dtype for piece in pieces if label in piece])
    if dtype.kind != "f" and not all(label in piece for piece in pieces):
        dtype = np.dtype("float64")
    missing = 0 if dtype.kind != "f" else np.nan if absent is None else absent
    gap = np.full(max((len(piece["step"]) for piece in pieces), default=0), missing, dtype)
    columns = [piece.get(label, gap[: len(piece["step"])]) for piece in pieces]
    return np.concatenate([np.empty(0, dtype), *columns])


def find_runs(folder: str | Path) -> list[Path]:
    """Return the runs in a folder, the newest last."""
    written = {}
    for header in Path(folder).glob("*/run.json"):
        with suppress(OSError):  # removed meanwhile
            written[header.parent] = header.lstat().st_mtime_ns
    return sorted(written, key=lambda path: written[path])

"""A run on disk: `Run` reads it, also while it is written; `RunWriter` is the only writer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout

from stabilitylab import parts
from stabilitylab.atomic import write_json
from stabilitylab.errors import InputError
from stabilitylab.layers import Layers

__all__ = ["SCHEMA", "Run", "RunWriter", "find_runs"]

SCHEMA = 1
"""Version of the layout on disk; a reader refuses a newer one."""

SERIES_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
LARGEST_HEADER = 64 * 2**20


class Run:
    """A run folder, read lazily: ``run["gradients.norm"]`` is a DataFrame with the index ``step``.

    Args:
        path: the run folder, which holds ``run.json``.
        damaged: ``error`` names a damaged part; ``skip`` leaves it out and lists it in `skipped`.

    Raises:
        InputError: if the folder holds no run, or one of a newer schema, or its ``run.json`` is damaged.
    """

    def __init__(self, path: str | Path, damaged: Literal["error", "skip"] = "error") -> None:
        self.path = Path(path)
        self.damaged = damaged
        self.skipped: list[str] = []
        """What was left out because it was damaged."""
        self.header: dict[str, Any] = _read_header(self.path)
        """The content of ``run.json``."""

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
        """How the last attempt ended: ``running``, ``completed``, ``interrupted``, ``failed``, ..."""
        attempts = self.header.get("attempts", [])
        return str(attempts[-1]["status"]) if attempts else "empty"

    @property
    def layers(self) -> Layers:
        """The layers of the model in depth order, and the layer of each parameter."""
        layers = self.header["layers"]
        return Layers(tuple(layers["names"]), dict(layers["of"]), layers["first"])

    @property
    def series(self) -> tuple[str, ...]:
        """Names of the series that were declared, sorted."""
        return tuple(sorted(self.header.get("series", {})))

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

    def read(self, name: str, labels: Sequence[str] | None = None) -> pd.DataFrame:
        """Return a series, or some of its columns, as a DataFrame: index ``step`` (int64), a column per label.

        Raises:
            InputError: if there is no such series or label, or a part is damaged (unless asked to skip).
        """
        declared = [str(label) for label in self.about(name)["labels"]]
        unknown = [label for label in labels or () if label not in declared]
        if unknown:
            raise InputError(f"{name} of {self.path} has no column {unknown[0]!r}; it has {', '.join(declared)}")
        wanted = declared if labels is None else list(labels)
        for _ in range(20):
            try:
                tables = self._tables(_series_folder(self.path, name), labels)
                break
            except FileNotFoundError:  # merged away by the writer between listing and reading: list again
                continue
        else:
            raise InputError(f"{name} of {self.path} kept changing while it was read; try again")
        if not tables:
            empty = pd.Index([], dtype="int64", name="step")
            return pd.DataFrame({label: pd.Series([], dtype="float64") for label in wanted}, index=empty)
        table = pa.concat_tables(tables, promote_options="default")
        frame = pd.DataFrame(
            {label: table.column(label).to_numpy() for label in wanted if label in table.column_names},
            index=pd.Index(table.column("step").to_numpy(), dtype="int64", name="step"),
        )
        return frame.reindex(columns=wanted) if list(frame.columns) != wanted else frame

    def _tables(self, folder: Path, labels: Sequence[str] | None) -> list[pa.Table]:
        tables = []
        for part in parts.list_parts(folder):
            try:
                if not part.path.resolve().is_relative_to(self.path.resolve()):
                    raise InputError(f"{part.path} links to a file outside the run")
                tables.append(parts.read_part(part, labels))
            except InputError as error:
                if self.damaged != "skip":
                    raise InputError(f"{error} (Run(path, damaged='skip') reads the rest)") from error
                self.skipped.append(str(error))
        return tables


def find_runs(folder: str | Path) -> list[Path]:
    """Return the runs in a folder, the newest last."""
    found = [path.parent for path in Path(folder).glob("*/run.json")]
    return sorted(found, key=lambda path: (path / "run.json").stat().st_mtime_ns)


def _read_header(path: Path) -> dict[str, Any]:
    file = path / "run.json"
    if not file.is_file():
        what = "does not exist" if not path.exists() else "holds no run.json"
        raise InputError(f"{path} is no run: it {what}")
    if file.stat().st_size > LARGEST_HEADER:
        raise InputError(f"{file} is larger than {LARGEST_HEADER // 2**20} MiB, which no run writes")
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}") from error
    expected = {"schema": int, "layers": dict, "series": dict, "attempts": list}
    if not isinstance(header, dict) or not isinstance(header.get("schema"), int):
        raise InputError(f"{file} does not describe a run: it has no schema version")
    if header["schema"] > SCHEMA:
        raise InputError(f"{file} has schema {header['schema']}; this version of stabilitylab reads up to {SCHEMA}")
    wrong = [key for key, kind in expected.items() if not isinstance(header.get(key), kind)]
    layers, series = header.get("layers"), header.get("series")
    if not wrong and not _are_layers(layers):
        wrong = ["layers"]
    if not wrong and not _are_series(series):
        wrong = ["series"]
    if not wrong and not all(isinstance(each, dict) and "status" in each for each in header["attempts"]):
        wrong = ["attempts"]
    if wrong:
        raise InputError(f"{file} is damaged: {wrong[0]!r} is missing or of the wrong kind")
    return header


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _are_series(value: Any) -> bool:
    return all(isinstance(each, dict) and _are_names(each.get("labels")) for each in value.values())


def _are_layers(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {"names", "of", "first"} or not isinstance(value["of"], dict):
        return False
    return _are_names(value["names"]) and set(value["of"].values()) <= set(value["names"])


def _series_folder(path: Path, name: str) -> Path:
    if not SERIES_NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of a series: letters, digits, '_' and single dots are expected")
    return path / "series" / name


class RunWriter:
    """The only writer of a run: whole parts, a header that is never torn, one writer at a time.

    Args:
        path: the run folder; made if missing.
        header: what is known before the first step (``config``, ``layers``, ``versions``, ``seed``, ...).
        first_step: where this attempt begins. 0 makes a new run and refuses a folder that holds one; later
            steps continue the run that is there, after removing every row at or after that step.

    Raises:
        InputError: if the folder holds a run already, holds none to continue, or is being written.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], first_step: int = 0) -> None:
        self.path = Path(path)
        exists = (self.path / "run.json").exists()
        if exists and first_step == 0:
            raise InputError(f"{self.path} holds a run already; choose another folder, or resume that run")
        if not exists and first_step > 0:
            raise InputError(f"{self.path} holds no run to continue at step {first_step}")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / ".writer.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(f"{self.path} is being written by another process") from error
        old: dict[str, Any] = (
            _read_header(self.path)
            if exists
            else {"series": {}, "attempts": [], "layers": {"names": [], "of": {}, "first": ""}}
        )
        for attempt in old["attempts"]:
            if attempt["status"] == "running":
                attempt.update(status="killed", ended=None)
        self.header = old | dict(header) | {"schema": SCHEMA}
        self.header["attempts"] = [*old["attempts"], {"first_step": first_step, "started": _now(), "status": "running"}]
        if exists:
            for name in old["series"]:
                parts.truncate(_series_folder(self.path, name), first_step)
        self._last: dict[str, int] = {}
        self._longest: dict[str, int] = {}
        write_json(self.path / "run.json", self.header)

    def declare(self, name: str, labels: Sequence[str], **about: Any) -> None:
        """Announce a series: its labels and what is known of it (unit, schedule, provenance)."""
        _series_folder(self.path, name)
        if len(set(labels)) != len(labels) or "step" in labels:
            raise InputError(f"the labels of {name} must differ from each other and from 'step'")
        self.header["series"][name] = {"labels": list(labels), **about}

    def write(self, name: str, steps: np.ndarray, values: np.ndarray) -> None:
        """Write rows of a declared series as one part.

        Args:
            name: a series that was declared.
            steps: increasing, later than every step written before, shape (T,).
            values: shape (T, number of labels); stored in their own dtype, NaN and inf included.
        """
        if len(steps) == 0:
            return
        labels = self.header["series"][name]["labels"]
        if values.shape != (len(steps), len(labels)):
            raise ValueError(f"{name}: values of shape {values.shape}, expected {(len(steps), len(labels))}")
        if np.any(np.diff(steps) <= 0) or steps[0] <= self._last.get(name, -1):
            raise ValueError(f"{name}: steps must increase; {steps[0]} follows {self._last.get(name, -1)}")
        index = pd.Index(steps, dtype="int64", name="step")
        folder = _series_folder(self.path, name)
        part = parts.write_part(folder, pd.DataFrame(values, index=index, columns=labels))
        self._last[name] = part.last
        span = part.last - part.first + 1
        self._longest[name] = max(span, self._longest.get(name, 1))
        _tolerantly(partial(parts.compact, folder, self._longest[name]))

    def update(self, **fields: Any) -> None:
        """Set fields of the header and write it."""
        self.header.update(fields)
        write_json(self.path / "run.json", self.header)

    def close(self, status: str, message: str = "", **about: Any) -> None:
        """Merge the parts, say how the attempt ended, and release the run."""
        try:
            for name in self.header["series"]:
                folder = _series_folder(self.path, name)
                _tolerantly(partial(_merge_all, folder))
            self.header["attempts"][-1].update(status=status, message=message, ended=_now(), **about)
            write_json(self.path / "run.json", self.header)
        finally:
            self._lock.release()


def _merge_all(folder: Path) -> None:
    parts.merge(folder, parts.list_parts(folder))


def _tolerantly(merge: Callable[[], None]) -> None:
    """Merge parts, or leave them as they are: a part that is damaged is the reader's to name."""
    with suppress(InputError, OSError, pa.ArrowException):
        merge()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

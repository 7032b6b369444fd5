"""Logs read from end to end: which columns there are, where they begin and end, and what could not be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from stabilitylab.errors import InputError
from stabilitylab.importing.events import read_events
from stabilitylab.importing.history import read_history
from stabilitylab.importing.sources import Source
from stabilitylab.importing.spool import Spool
from stabilitylab.importing.tables import read_csv, read_parquet
from stabilitylab.importing.values import Facts, Values

__all__ = ["FOREVER", "Column", "File", "Log", "read", "refuse_two_runs"]

FOREVER = np.iinfo("int64").max


@dataclass
class Column:
    """One column over all files."""

    name: str
    histogram: bool
    count: int = 0
    first: int = FOREVER
    last: int = -1
    smallest: float = np.inf
    """Of its finite values."""
    largest: float = -np.inf
    nonfinite: int = 0
    held: int = 0
    """Values other than zero that are exactly the one before, at a later step."""
    _gaps: Counter[int] = field(default_factory=Counter)
    """Steps from one value to the next, in the order of the log, to how many."""
    _previous: int | None = None
    _value: float = np.nan

    def add(self, each: Values) -> None:
        """Count values."""
        finite = np.isfinite(each.values)
        self.count += len(each.steps)
        self.nonfinite += int((~finite).sum())
        if len(each.steps):
            before = each.steps[:1] if self._previous is None else [self._previous]
            gaps = np.diff(each.steps, prepend=before)
            sizes, numbers = np.unique(gaps, return_counts=True)
            self._gaps.update(dict(zip(sizes.tolist(), numbers.tolist(), strict=True)))
            same = (each.values == np.append(self._value, each.values[:-1])) & (each.values != 0)
            self.held += int((same & (gaps > 0)).sum())
            self._previous, self._value = int(each.steps[-1]), float(each.values[-1])
            self.first, self.last = min(self.first, int(each.steps.min())), max(self.last, int(each.steps.max()))
        self.smallest = min(self.smallest, float(each.values[finite].min(initial=np.inf)))
        self.largest = max(self.largest, float(each.values[finite].max(initial=-np.inf)))

    @property
    def repeated(self) -> int:
        """How many values come at the step of the one before."""
        return max(self._gaps[0] - 1, 0)  # the first one counts as its own

    @property
    def every(self) -> float:
        """The usual number of steps from value to value: the median, or the mean where they are in no order."""
        forward = self._forward()
        if not forward:
            return (self.last - self.first) / max(self.count - 1, 1)
        passed = np.cumsum([number for _, number in forward])
        return float(forward[np.searchsorted(passed, passed[-1] / 2)][0])

    @property
    def largest_gap(self) -> int:
        """The largest number of steps from value to value; 0 where they are in no order, or there is but one."""
        return max((size for size, _ in self._forward()), default=0)

    def _forward(self) -> list[tuple[int, int]]:
        """Return the gaps by size, and how many; none where they are in no order: a restart goes back, but seldom."""
        forward = sorted((size, number) for size, number in self._gaps.items() if size > 0)
        backward = sum(number for size, number in self._gaps.items() if size < 0)
        return forward if 10 * backward < sum(number for _, number in forward) else []


@dataclass
class File:
    """One file, once it is read."""

    source: Source
    facts: Facts = field(default_factory=Facts)
    columns: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Number of each of its columns to the first and the last step there."""

    @property
    def first(self) -> int:
        """The first step of all."""
        return min((first for first, _ in self.columns.values()), default=FOREVER)


@dataclass
class Log:
    """All files of one run."""

    columns: list[Column]
    files: list[File]

    def limits(self) -> np.ndarray:
        """Return from which step on the values of a file do not count, shape (files, columns).

        A file that shares a column with an earlier one, and was begun when that one had ended, continues it: from its
        first step on, it replaces what the earlier file holds. A value at that very step stays where the later file
        does not have its column, and so does all where it begins no later than the earlier one.
        """
        limits = np.full((len(self.files), len(self.columns)), FOREVER)
        for at, earlier in enumerate(self.files):
            for later in self.files[at + 1 :]:
                beside = earlier.source.path.parent == later.source.path.parent
                if later.facts.purge is not None and beside:
                    limits[at] = np.minimum(limits[at], later.facts.purge)
                if not later.columns.keys() & earlier.columns.keys() or _at_once(earlier.facts, later.facts):
                    continue
                own = np.zeros(len(self.columns), dtype=bool)
                own[list(later.columns)] = True
                others = later.first + 1 if later.first > earlier.first else FOREVER  # else it stands beside it
                limits[at] = np.minimum(limits[at], np.where(own, later.first, others))
        return limits

    def last_of(self, column: int, limits: np.ndarray) -> int:
        """Return the last step of a column that counts."""
        ends = [
            min(file.columns[column][1], int(limits[at, column]) - 1)
            for at, file in enumerate(self.files)
            if column in file.columns
        ]
        return max(ends, default=-1)


def refuse_two_runs(log: Log) -> None:
    """Refuse a table that a later one replaces from its first step on.

    Event files are not refused: a run that was begun anew leaves them in one folder.

    Raises:
        InputError: if there is one.
    """
    limits = log.limits()
    for at, file in enumerate(log.files):
        whole = all(limits[at, column] <= first for column, (first, _) in file.columns.items())
        if file.columns and whole and file.source.kind != "tensorboard":
            others = [each.source.path for each in log.files[at + 1 :] if each.columns.keys() & file.columns.keys()]
            raise InputError(
                f"{others[0] if others else 'a later file'} has the columns of {file.source.path} from its first step "
                "on, and would replace all of it: files of one run go on where the one before ended. Two runs are "
                "imported one by one, each into its own folder"
            )


def _at_once(earlier: Facts, later: Facts) -> bool:
    """Tell whether two files were written at the same time, as by two writers, as far as their clocks tell."""
    return earlier.clock is not None and later.clock is not None and later.clock[0] < earlier.clock[1]


def read(sources: Sequence[Source], step: str | None, spool: Spool | None = None) -> Log:
    """Read all files.

    Args:
        sources: in the order in which they were written.
        step: the column of the steps in tables and histories, where it is not found by its name.
        spool: keeps the values; without one they are only counted.

    Raises:
        InputError: if one cannot be read, or all of them hold no numbers.
    """
    log = Log([], [])
    numbers: dict[str, int] = {}
    for at, source in enumerate(sources):
        file = File(source)
        log.files.append(file)
        for each in (_as_recorded(each, file.facts) for each in _values(source, step, file.facts)):
            number = numbers.setdefault(each.name, len(numbers))
            if number == len(log.columns):
                log.columns.append(Column(each.name, each.histogram))
            log.columns[number].add(each)
            if len(each.steps):
                first, last = file.columns.get(number, (FOREVER, -1))
                file.columns[number] = (min(first, int(each.steps.min())), max(last, int(each.steps.max())))
                if spool is not None:
                    spool.add(number, at, each.steps, each.values)
    if not any(column.count for column in log.columns):
        names = ", ".join(str(source.path) for source in sources)
        ignored = {name: why for file in log.files for name, why in file.facts.ignored.items()}
        reasons = [f"{name} is left out ({why})" for name, why in list(ignored.items())[:3]]
        reasons += [each for file in log.files[:3] for each in file.facts.remarks]
        raise InputError("; ".join([f"{names}: there is no number in it that has a step", *reasons]))
    return log


def _values(source: Source, step: str | None, facts: Facts) -> Iterator[Values]:
    if source.kind == "tensorboard":
        return read_events(source, facts)
    reader = {"csv": read_csv, "parquet": read_parquet, "json": read_history}[source.kind]
    return reader(source, step, facts)


def _as_recorded(each: Values, facts: Facts) -> Values:
    """Return values beyond the range of single precision as infinite, as a recorder would have seen them."""
    beyond = np.isfinite(each.values) & (np.abs(each.values) > np.finfo(np.float32).max)
    if not beyond.any():
        return each
    facts.counts[f"values of {each.name} beyond single precision, taken for infinite"] += int(beyond.sum())
    return each._replace(values=np.where(beyond, np.copysign(np.inf, each.values), each.values))

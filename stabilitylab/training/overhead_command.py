"""What ``stabilitylab overhead`` does: measure with progress, then a table or JSON of what recording costs."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stabilitylab.stats.interval import Interval
from stabilitylab.training.command import show_warnings
from stabilitylab.training.config import Config
from stabilitylab.training.costs import LIMIT, advice
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.loop import prepare
from stabilitylab.training.overhead import Overhead, measure

__all__ = ["run", "table", "to_json"]


def run(config: Config, steps: int, as_json: bool) -> int:
    """Measure and print; return the exit code: 0, 1 if it ended early, 128 + signal after an interruption."""
    show_warnings()
    with (
        process_group(config.train.device) as ranks,
        tempfile.TemporaryDirectory(prefix="stabilitylab-overhead-") as folder,
    ):
        setup = prepare(config, open_dataset(config.data), ranks)
        with _progress(ranks.rank == 0) as progress:
            found = measure(setup, steps, Path(folder), progress)
    where = f"{config.preset}, batch {config.data.batch_size}, {ranks.device}"
    if ranks.rank == 0 and as_json:
        print(json.dumps(to_json(found, where), indent=1, allow_nan=False))
    elif ranks.rank == 0:
        _tell(found, where)
    if found.stopped:
        print(f"stopped early: {found.stopped}", file=sys.stderr)
        return 1 if found.signal is None else 128 + found.signal
    return 0


@contextmanager
def _progress(speaks: bool) -> Iterator[Callable[[int, int], None]]:
    """Show how far it is on standard error: a bar for terminals, a line now and then for files and pipes."""
    if speaks and sys.stderr.isatty():
        columns = (TextColumn("training step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    started = said = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if speaks and done and now - said >= 10:
            said = now
            left = (now - started) / done * (total - done)
            print(f"training step {done}/{total}  {left:.0f} s left", file=sys.stderr, flush=True)

    yield line


def _tell(found: Overhead, where: str) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    console.print(f"[bold]what recording costs[/bold]: {escape(where)}", soft_wrap=True)
    if found.recorder is not None:
        console.print(table(found))
    for sentence in _sentences(found):
        console.print(f"- {escape(sentence)}")


def table(found: Overhead) -> Table:
    """Return a row for each probe, the recorder itself, their sum, and all together."""
    shown = Table(box=None, pad_edge=False)
    for head in ("probe", "every", "ms a measurement", "ms a step", "part of a step", "in whole steps", "bytes a step"):
        shown.add_column(head, justify="left" if head == "probe" else "right", no_wrap=head != "ms a measurement")
    for name, cost in sorted(found.probes.items(), key=lambda each: -each[1].part.value):
        times = (_number(cost.measurement.value), _number(cost.step.value), _part(cost.part), _part(cost.whole))
        shown.add_row(escape(name), str(cost.every), *times, _bytes(found.bytes_per_step[name]))
    for name, own in (("no probe", found.recorder), ("all at once", found.together)):
        if own is not None:
            parts = (_part(own.part), _part(own.whole))
            shown.add_row(f"[italic]{name}[/italic]", "", "", _number(own.step.value), *parts)
    if found.total is not None:
        sizes = [size for size in found.bytes_per_step.values() if not math.isnan(size)]
        shown.add_row("[italic]sum[/italic]", "", "", "", _part(found.total), "", _bytes(sum(sizes)))
    return shown


def _part(part: Interval) -> str:
    """Return a part of the training step in percent, with its bounds."""
    value, low, high = (_number(100 * each) for each in part)
    if math.isnan(part.low):
        return f"{value} %"
    return f"{value if part.differs_from_zero else '0?'} [{low}, {high}] %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"


def _bytes(size: float) -> str:
    return "" if math.isnan(size) else f"{size:,.0f}"


def _sentences(found: Overhead) -> Iterator[str]:
    """Yield what was measured and how, what was not, and what to do about it."""
    if found.step is None or found.recorder is None:
        yield "Too little was measured to say anything; a block with every probe, and one without, is the least."
        return
    value, low, high = (_number(each) for each in found.step)
    bounds = "" if math.isnan(found.step.low) else f" [{low}, {high}]"
    yield (
        f"A training step without a recorder takes {value} ms{bounds}. Measured: {found.pairs} blocks of {found.block} "
        f"steps with each probe alone, in random order (seed {found.seed}), each between two blocks without a recorder."
    )
    yield (
        "In its blocks a probe measures at every step. At its schedule it costs what it does at every step to watch, "
        f"the rest over 'every', and its writing to disk, once in {found.period} steps."
    )
    yield (
        "'ms' and 'part of a step': the recorder's line alone was timed, less what it takes with no probe. 'in whole "
        "steps': how much longer steps are than in the two blocks around (paired differences); sees also what is "
        "slowed down elsewhere, but hardly anything on a busy machine. 0? means: not distinguishable from 0."
    )
    yield (
        "Medians with 95 % intervals by the sign test, which need 6 blocks; for 'all at once' (as they fell due in "
        "these few steps) means by Student's t. The sum counts features that probes share for each of them."
    )
    for name, reason in found.left_out.items():
        yield f"{name} cannot measure here: {reason}"
    for name, reason in found.failed.items():
        yield f"{name} failed while it was measured, and has no cost: {reason}"
    yield _advice(found)


def _advice(found: Overhead) -> str:
    if found.total is None or found.recorder is None:
        return "Nothing to advise."
    taken = f"Recording takes {_number(100 * found.total.value)} % of a training step"
    if found.total.value <= LIMIT:
        return f"{taken}: within {LIMIT:.0%}, Recorder(budget={LIMIT}) would stretch no schedule."
    stretched = advice(found.probes, found.fixed, found.recorder.part.value)
    if not stretched:
        fixed = " and ".join(sorted(found.fixed & found.probes.keys()))
        if not fixed:
            return f"{taken}; {LIMIT:.0%} is out of reach: the recorder takes more without any probe."
        return f"{taken}; {LIMIT:.0%} is out of reach: {fixed}, whose schedules a budget leaves alone, take too much."
    settings = " ".join(f"--set probes.{name}.every={every}" for name, every in stretched.items())
    return f"{taken}; in a loop of your own Recorder(budget={LIMIT}) keeps it within {LIMIT:.0%}, here: {settings}"


def to_json(found: Overhead, where: str) -> dict[str, Any]:
    """Return everything that was measured as JSON types: null where a number is not known."""
    fields = {name: value for name, value in asdict(found).items() if name != "fixed"}
    stretched = {} if found.recorder is None else advice(found.probes, found.fixed, found.recorder.part.value)
    return _plain({"configuration": where, **fields, "within_budget": {"budget": LIMIT, "every": stretched}})


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        known = {"value": value.value, "low": value.low, "high": value.high}
        return _plain(known) | {"differs_from_zero": value.differs_from_zero}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if name != "parts"}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

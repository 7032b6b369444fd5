"""What recording costs: blocks of training steps with and without each probe, interleaved in random order."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stabilitylab import plugins
from stabilitylab.disk.part import write_part
from stabilitylab.errors import InputError
from stabilitylab.probe import Probe
from stabilitylab.recorder import Recorder
from stabilitylab.run import Run
from stabilitylab.stats.interval import Interval, mean_interval, median_interval
from stabilitylab.training.costs import Cost, Times, cost_of, cost_of_all, total
from stabilitylab.training.distributed import Ranks
from stabilitylab.training.interleaving import Arm, Loop, Stopped, endless, measure_block, warm_up
from stabilitylab.training.loop import Setup, noted_signals, recorder_of, trainable

__all__ = ["PAIRS", "Overhead", "measure"]

PAIRS = 12
"""So many blocks of each kind, if there are as many steps: enough for an interval, few enough to be of some length."""
NEVER = 2**40
"""A schedule that falls due at the first step only."""


@dataclass(frozen=True)
class Overhead:
    """What was measured of one configuration; without costs if it was stopped too soon."""

    block: int
    """Steps in a block."""
    seed: int
    """Of the order of the blocks."""
    left_out: Mapping[str, str]
    """Probes that cannot measure here, and why."""
    stopped: str = ""
    """Why it ended early."""
    signal: int | None = None
    """The signal that ended it."""
    pairs: int = 0
    """So many blocks there are of each kind at least."""
    period: int = 0
    """Steps between two flushes of a training like this one."""
    step: Interval | None = None
    """Milliseconds of a training step without a recorder."""
    recorder: Cost | None = None
    """The recorder without any probe."""
    probes: Mapping[str, Cost] = field(default_factory=dict)
    bytes_per_step: Mapping[str, float] = field(default_factory=dict)
    """Bytes on disk for each training step, at the schedule of each probe; NaN if too few rows were seen."""
    total: Interval | None = None
    """Part of the training step that the recorder and all probes take at their schedules: the sum."""
    together: Cost | None = None
    """All probes at once, as they fell due during the measurement."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Probes that failed while they were measured, and how."""
    fixed: frozenset[str] = frozenset()
    """Probes whose schedule a budget leaves alone."""


def measure(setup: Setup, steps: int, folder: Path, progress: Callable[[int, int], None]) -> Overhead:
    """Measure what the configured probes cost, with real training steps.

    Args:
        setup: what is trained.
        steps: so many steps are measured with each probe.
        folder: an empty folder, for the runs that are recorded.
        progress: hears how many training steps are done, and of how many.
    """
    block = max(1, steps // PAIRS)
    rounds = max(1, steps // block)
    rng = np.random.default_rng(setup.config.train.seed)
    offs: list[float] = []
    stopped, signals = "", list[int]()
    with ExitStack() as stack:
        model, scaler = trainable(setup)
        arms, left_out = _arms(setup, scaler, folder, stack)
        kinds = list(arms.values())
        order = [kinds[index] for _ in range(rounds) for index in rng.permutation(len(kinds))]
        stream = stack.enter_context(closing(endless(setup)))
        signals = stack.enter_context(noted_signals())
        loop = Loop(setup, model, scaler, stream, signals)
        try:
            warm_up(loop, kinds)
            offs.append(loop.steps(block)[0])
            for done, arm in enumerate(order):
                progress(2 * block * done, 2 * block * len(order))
                measure_block(loop, arm, block, offs)
        except (Stopped, KeyboardInterrupt) as reason:
            stopped = str(reason) or "interrupted"
    found = Overhead(block, setup.config.train.seed, left_out, stopped, signals[0] if signals else None)
    return found if setup.ranks.rank > 0 or not offs else _with_costs(found, setup, arms, offs, folder)


def _arms(
    setup: Setup, scaler: torch.amp.GradScaler, folder: Path, stack: ExitStack
) -> tuple[dict[tuple[str, str], Arm], dict[str, str]]:
    """Return every way of recording that is compared, and the probes that cannot measure here with the reason."""
    off: dict[str, Any] = dict.fromkeys(plugins.names("probes"), False)
    left_out: dict[str, str] = {}
    arms: dict[tuple[str, str], Arm] = {}

    def add(kind: str, name: str, probes: dict[str, Any]) -> None:
        own = {"scaler": scaler, "flush_steps": NEVER, "flush_seconds": math.inf, "self_check": 0}
        own["probes"] = {**off, **probes}
        recorder = stack.enter_context(recorder_of(setup, folder / f"{len(arms)}", 0, **own))
        arms[kind, name] = Arm(recorder, folder / f"{len(arms)}")

    add("alone", "", {})
    on = {name: parameters for name, parameters in setup.config.probes.items() if parameters is not False}
    for name, parameters in on.items():
        if setup.probes.get(name) is False:
            left_out[name] = setup.data.unlabeled or ""
            continue
        try:
            add("measured", name, {name: parameters.model_copy(update={"every": 1})})
        except InputError as error:
            left_out[name] = str(error)
            continue
        if plugins.load("probes", name).observe is not Probe.observe:
            add("between", name, {name: parameters.model_copy(update={"every": NEVER})})
    add("together", "", {name: parameters for name, parameters in on.items() if name not in left_out})
    return _those_of_rank_0(arms, setup.ranks), left_out


def _those_of_rank_0(arms: dict[tuple[str, str], Arm], ranks: Ranks) -> dict[tuple[str, str], Arm]:
    """Keep the arms that the first rank has, which alone knows what can be measured: all ranks train alike."""
    if ranks.world == 1:
        return arms
    keys = [list(arms)]
    torch.distributed.broadcast_object_list(keys, src=0, device=ranks.device)
    return {key: arms[key] for key in keys[0]}


def _with_costs(
    found: Overhead, setup: Setup, arms: Mapping[tuple[str, str], Arm], offs: Sequence[float], folder: Path
) -> Overhead:
    """Add what follows from the blocks that were measured, and from the runs that they recorded."""
    step = median_interval(1000 * np.array(offs))
    defaults = inspect.signature(Recorder).parameters
    steps_in_time = int(1000 * defaults["flush_seconds"].default / step.value)
    period = max(1, min(defaults["flush_steps"].default, steps_in_time))
    found = replace(found, step=step, period=period, pairs=min(len(arm.blocks) for arm in arms.values()))
    if not arms["alone", ""].blocks:
        return found
    alone, together = Times(arms["alone", ""].blocks), arms["together", ""].blocks
    probes, sizes, failed = dict[str, Cost](), dict[str, float](), dict[str, str]()
    for (kind, name), arm in arms.items():
        between = arms.get(("between", name))
        pairs = min(len(arm.blocks), len(between.blocks) if between else len(arm.blocks))
        if kind != "measured" or not pairs:
            continue
        run = Run(arm.folder)
        if name in run.header["disabled"]:
            failed[name] = run.header["disabled"][name]["traceback"].strip().splitlines()[-1]
            continue
        parameters: Any = setup.config.probes[name]
        watching = Times(between.blocks[:pairs]) if between else None
        probes[name] = cost_of(parameters.every, Times(arm.blocks[:pairs]), watching, alone, period)
        sizes[name] = sum(_bytes_per_row(run, series, folder) for series in run.series) / parameters.every
    own = cost_of_all(alone, period, median_interval)
    return replace(
        found,
        recorder=own,
        probes=probes,
        bytes_per_step=sizes,
        total=total([own, *probes.values()]),
        together=cost_of_all(Times(together), period, mean_interval) if together else None,
        failed=failed,
        fixed=frozenset(name for name in probes if plugins.load("probes", name).fixed_schedule),
    )


def _bytes_per_row(run: Run, series: str, folder: Path) -> float:
    """Return what a row more adds to the file of a series: of two lengths, so that what a file has once is left out."""
    frame = run[series]
    rows = len(frame)
    if rows < 4:
        return math.nan
    steps, values = frame.index.to_numpy(), frame.to_numpy()
    parts = [
        write_part(folder / "sizes" / series, [str(label) for label in frame], steps[:n], values[:n])
        for n in (rows // 2, rows)
    ]
    short, long = (part.path.stat().st_size for part in parts)
    return max(long - short, 0) / (rows - rows // 2)

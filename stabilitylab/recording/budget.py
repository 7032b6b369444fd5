"""A budget of time: the schedules of heavy probes are stretched until recording costs no more than its part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from stabilitylab.errors import InputError
from stabilitylab.probe import Probe, Target

__all__ = ["Budget", "Change"]

LARGEST = 2**10
"""No schedule is stretched by more than this."""
RELAX = 0.8
"""A stretched schedule is shortened again only where the cost stays below this part of the budget."""


class Change(NamedTuple):
    """A new schedule of a probe, and why."""

    probe: str
    every: int
    reason: str


class Budget:
    """Measures what each probe costs, and says which schedules must be stretched, by powers of two.

    Times are wall-clock seconds of the host, or of the device where they are longer (by CUDA events, which are read
    after a flush has waited anyway). The first measurement of each probe pays for warming up and does not count
    once a second is there.

    Args:
        limit: the part of the training's own time that recording may take, such as 0.05.
        target: what is measured.

    Raises:
        InputError: if the limit is not positive, or parameters are sharded: each rank would stretch on its own.
    """

    def __init__(self, limit: float, target: Target) -> None:
        if not limit > 0:
            raise InputError(f"budget was {limit!r}: a positive part of the training time is expected, such as 0.05")
        if target.sharded:
            raise InputError("budget cannot be used with sharded parameters: each rank would stretch on its own")
        self.limit = limit
        self._on_gpu = any(each.is_cuda for each in target.parameters.values())
        self._costs: dict[str, list[float]] = defaultdict(list)
        self._events: list[tuple[str, float, torch.cuda.Event, torch.cuda.Event]] = []
        self._steps, self._recording = 0, 0.0
        self._since: float | None = None
        self._step_seconds = float("nan")

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Time one measurement of a probe."""
        began = self._mark()
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        ended = self._mark()
        self._recording += seconds
        if began is not None and ended is not None:
            self._events.append((name, seconds, began, ended))
        else:
            self._costs[name].append(seconds)

    def _mark(self) -> torch.cuda.Event | None:
        if not self._on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def step(self) -> None:
        """Count a step of the training."""
        if self._since is None:  # the first step pays for warming up
            self._since, self._recording = time.perf_counter(), 0.0
        else:
            self._steps += 1

    def changes(self, probes: Mapping[str, Probe]) -> list[Change]:
        """Return the schedules that must change; called after a flush has waited for the device."""
        for name, seconds, start, end in self._events:
            device_seconds = start.elapsed_time(end) / 1000
            self._costs[name].append(max(seconds, device_seconds))
            self._recording += max(device_seconds - seconds, 0.0)
        self._events.clear()
        if self._since is None or self._steps == 0:
            return []
        elapsed = time.perf_counter() - self._since
        self._step_seconds = max(elapsed - self._recording, 1e-9) / self._steps
        self._since, self._steps, self._recording = time.perf_counter(), 0, 0.0
        costs = {name: self._cost(name) for name in probes if self._costs[name]}
        stretched = self._stretched(costs, probes)
        return [
            Change(name, every, self._reason(costs[name]))
            for name, every in stretched.items()
            if every != probes[name].every
        ]

    def _cost(self, name: str) -> float:
        """Return the mean seconds of the newest measurements."""
        seconds = self._costs[name] = self._costs[name][-16:]
        counted = seconds[1:] if 1 < len(seconds) < 16 else seconds
        return sum(counted) / len(counted)

    def _stretched(self, costs: Mapping[str, float], probes: Mapping[str, Probe]) -> dict[str, int]:
        """Return the schedules with which the total stays within the budget, or is as small as it can be."""
        every = {name: probes[name].parameters.every for name in costs}
        free = [name for name in costs if not probes[name].fixed_schedule]

        def share(name: str) -> float:
            return costs[name] / every[name] / self._step_seconds

        while sum(map(share, costs)) > self.limit:
            heavy = [name for name in free if every[name] < LARGEST * probes[name].parameters.every]
            if not heavy:
                break
            every[max(heavy, key=share)] *= 2
        shorter = {name: value for name, value in every.items() if value < probes[name].every}
        if shorter and sum(map(share, costs)) > RELAX * self.limit:
            every |= {name: probes[name].every for name in shorter}
        return every

    def _reason(self, cost: float) -> str:
        return (
            f"{1000 * cost:.3g} ms a measurement and {1000 * self._step_seconds:.3g} ms a step, "
            f"with a budget of {self.limit:.3g} of the training time"
        )

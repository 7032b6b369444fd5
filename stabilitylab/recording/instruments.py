"""The probes of a recording: built for a target, looked through on their schedules, switched off when they fail."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.parameters import validated
from stabilitylab.probe import Probe, Step
from stabilitylab.recording.budget import Budget
from stabilitylab.target import Target

__all__ = ["Failure", "Instruments", "Row", "build_probes"]


class Row(NamedTuple):
    """What was measured of one series at one step."""

    series: str
    labels: tuple[str, ...]
    step: int
    values: Any


class Failure(NamedTuple):
    """A probe that raised, and is off from then on."""

    probe: str
    step: int
    traceback: str


class Instruments:
    """The probes that are on.

    Args:
        chosen: name to parameters, or to False for none.
        target: what they measure.
        budget: stretches the schedules of the heavy ones.

    Raises:
        InputError: if a probe is unknown, or one that was asked for cannot measure.
    """

    def __init__(self, chosen: Mapping[str, Any], target: Target, budget: Budget | None = None) -> None:
        self._chosen, self._budget = chosen, budget
        self._last: dict[str, int] = {}
        self.failures: list[Failure] = []
        self.about: dict[str, dict[str, Any]] = {}
        self.probes, self.left_out = build_probes(chosen, target)
        self._describe(target)

    def _describe(self, target: Target) -> None:
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        shared = {"ranks": world, "measured_on": "all ranks" if target.sharded else "the first rank"}
        for name, probe in self.probes.items():
            for series in probe.labels:
                about = probe.about.get(series, {})
                self.about[series] = {"probe": name, "every": probe.parameters.every, **shared, **about}

    def rebuild(self, target: Target) -> None:
        """Build the probes again, for other parameters; they go on with the state and schedules that they have."""
        failed = {failure.probe: False for failure in self.failures}
        old = self.probes
        self.probes, self.left_out = build_probes({**self._chosen, **failed}, target, strict=False)
        for name, probe in self.probes.items():
            if name in old:
                probe.load_state(old[name].state())
                probe.every = old[name].every
        self._describe(target)

    def look(self, step: Step, settle: bool = False) -> Iterator[Row]:
        """Let every probe look, and yield what those measured that are due.

        Args:
            step: the present one.
            settle: whether only to ask for what belongs to the step before.
        """
        for name, probe in list(self.probes.items()):
            if settle and not probe.delay:
                continue
            try:
                yield from list(self._look(probe, name, step, settle))
            except Exception:  # whatever a probe does, it never ends a training
                del self.probes[name]
                self.failures.append(Failure(name, step.index, traceback.format_exc()))

    def _look(self, probe: Probe, name: str, step: Step, settle: bool) -> Iterator[Row]:
        if not settle:
            probe.observe(step)
        if step.index % probe.every and not (probe.delay and (step.index - probe.delay) % probe.every == 0):
            return
        with self._budget.timing(name) if self._budget else nullcontext():
            measured = probe.measure(step)
        index = step.index - probe.delay
        for series, values in (measured or {}).items():
            if index <= self._last.get(series, -1):
                continue  # already settled before a checkpoint
            labels = tuple(probe.labels[series])
            row = values.detach() if isinstance(values, Tensor) else np.asarray(values, dtype="float64")
            if row.ndim != 1 or len(row) != len(labels):
                raise ValueError(f"{series}: values of shape {tuple(row.shape)} for {len(labels)} labels")
            self._last[series] = index
            yield Row(series, labels, index, row)

    def state(self) -> dict[str, Tensor]:
        """Return what the probes need to go on after an interruption, as named tensors."""
        return {f"{name}.{key}": value for name, probe in self.probes.items() for key, value in probe.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        for name, probe in self.probes.items():
            prefix = f"{name}."
            probe.load_state(
                {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            )


def build_probes(
    chosen: Mapping[str, Any], target: Target, strict: bool = True
) -> tuple[dict[str, Probe], dict[str, str]]:
    """Build the probes: those asked for must be able to measure, the others are left out with the reason.

    Args:
        chosen: name to parameters, or to False for none.
        target: what they measure.
        strict: False to leave out, too, those that were asked for and cannot measure.
    """
    if not isinstance(chosen, Mapping):
        raise InputError(f"probes was {chosen!r}; expected a mapping of names to parameters, or to False for none")
    built: dict[str, Probe] = {}
    left_out: dict[str, str] = {}
    for name in [*plugins.names("probes"), *(name for name in chosen if name not in plugins.names("probes"))]:
        wanted = chosen.get(name)
        if wanted is False:
            continue
        try:
            kind = plugins.load("probes", name)
            given = isinstance(wanted, kind.Parameters)
            if not given and not isinstance(wanted, Mapping | bool | None):
                raise InputError(f"probes.{name} was {wanted!r}; expected its parameters, True or False")
            fields = wanted if isinstance(wanted, Mapping) else {}
            parameters = wanted if given else validated(kind.Parameters, fields, f"probes.{name}")
            built[name] = kind(parameters, target)
        except InputError as error:
            if wanted is not None and strict:
                raise
            left_out[name] = str(error)
    return built, left_out

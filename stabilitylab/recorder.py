"""The recorder: probes on their schedule in any loop, values kept on the device, one host transfer a flush."""

from __future__ import annotations

import atexit
import os
import sys
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stabilitylab.errors import InputError
from stabilitylab.probe import Step
from stabilitylab.recording.budget import Budget
from stabilitylab.recording.buffer import Backlog, Rows
from stabilitylab.recording.instruments import Instruments
from stabilitylab.recording.mirror import Mirrors
from stabilitylab.recording.scaling import scale_now
from stabilitylab.recording.self_check import SelfCheck
from stabilitylab.recording.world import World
from stabilitylab.run import Run, RunWriter
from stabilitylab.target import HeldOut, Target, make_target, updated_by

__all__ = ["Recorder"]

VERSIONS = ("stabilitylab", "torch", "timm", "torchvision", "numpy", "pandas", "pyarrow")


class Recorder:
    """Record a training run: one line in the loop, after the backward pass and before clipping and the update.

    ::

        with Recorder("runs/mine", model, optimizer) as recorder:
            for images, labels in loader:
                loss = criterion(model(images), labels)
                loss.backward()
                recorder.step(loss)
                optimizer.step(); optimizer.zero_grad()

    Args:
        path: the run folder; must not hold a run yet, unless ``first_step`` is positive.
        model: any module, also compiled, in DistributedDataParallel, or sharded by ``fully_shard``. Parameters that
            begin to take a gradient later, or are given to the optimizer, are recorded from then on, others that appear
            from the next flush on; those that are frozen later read 0.
        optimizer: gives the learning rate, Adam's moments, and the steps that the self-check watches.
        probes: name to parameters, or to False for none; a probe that is not named runs with its defaults. By
            default, every installed probe that can measure with what it is given.
        held_out: labelled images for the probes that need them (``knn``, ``spectrum``).
        inputs: a batch that the model is shown by the probes of activations and attention: a tensor, or a tuple or
            dict of arguments; by default some held-out images.
        teacher: a module that follows the model and is no part of it; one inside the model is found by its name.
        scaler: the `torch.amp.GradScaler` of an fp16 loop: gradients are unscaled if it has not done so yet, and its
            scale is recorded.
        mirror: who else hears what is recorded: ``"tensorboard"``, an object with the methods of
            `stabilitylab.recording.mirror.Mirror`, or a list of these.
        budget: the part of the training's time that recording may take, such as 0.05: the schedules of heavy probes
            are stretched by powers of two to stay within it. None leaves all schedules as they are.
        first_step: index of the first step; a positive one continues the run that is in the folder, if there is one.
        first_layer: the layer that sees the input, where it is not the first one in order of registration.
        config: anything that describes the run, as JSON types; goes into ``run.json``.
        seed: goes into ``run.json``.
        planted: disturbances that the loop plants on purpose, so that an analysis can say whether it found them: a
            mapping for each, with ``kind``, ``what`` in words, and ``spans``, the first and the last step of each time.
        flush_steps, flush_seconds: what is recorded reaches the disk after so many steps or seconds.
        backlog: bytes that may wait in memory while the disk refuses to take them; beyond it the oldest are lost.
        self_check: so many first steps of the optimizer are compared with what was recorded; 0 for none.

    In a process group, the first rank writes. The others only help with the self-check, and, where parameters are
    sharded, with every measurement: then each rank must make a recorder with the same probes and call it each step.

    Raises:
        InputError: if the folder holds a run, a probe or mirror is unknown, a probe that was asked for cannot
            measure, or parameters are sharded by FSDP1 or DeepSpeed, which hide what would be measured.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        probes: Mapping[str, Any] | None = None,
        held_out: HeldOut | None = None,
        inputs: Any = None,
        teacher: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
        mirror: Any = None,
        budget: float | None = None,
        first_step: int = 0,
        first_layer: str | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        planted: Sequence[Mapping[str, Any]] = (),
        flush_steps: int = 50,
        flush_seconds: float = 5.0,
        backlog: int = 64 * 2**20,
        self_check: int = 5,
    ) -> None:
        _check(
            flush_steps=(flush_steps, 1), first_step=(first_step, 0), self_check=(self_check, 0), backlog=(backlog, 0)
        )
        if not isinstance(flush_seconds, int | float) or not flush_seconds >= 0:
            raise InputError(f"flush_seconds was {flush_seconds!r}; expected a number of at least 0")
        self.index = first_step
        self.status = ""
        """How the run ends, if not by leaving the ``with`` block: set it before closing."""
        self.message = ""
        self.newest: dict[str, np.ndarray] = {}
        """The last row of each series that was flushed."""
        self._process = os.getpid()
        self._flush_steps, self._flush_seconds = flush_steps, flush_seconds
        self._since, self._flushed_at, self._first, self._closed = 0, time.monotonic(), first_step, False
        self._scaler, self._optimizer = scaler, getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        given: dict[str, Any] = {"held_out": held_out, "inputs": inputs, "teacher": teacher}
        self._make_target = partial(make_target, model, self._optimizer, first_layer=first_layer, **given)
        self._target = self._make_target()
        if first_step and not self._target.sharded:  # ranks that see other disks must measure alike
            self._target = self._make_target(trained=_trained_before(path, self._target))
        self._updated = list(map(id, updated_by(self._optimizer)))
        self._world = World(path, first_step, self._target.sharded)
        self._check = SelfCheck(self._target, self_check)
        self._rows, self._told, self._found = Rows(), 0, ""
        self._schedule: list[dict[str, Any]] = []
        self._backlog: Backlog | None = None
        self._instruments: Instruments | None = None
        self._budget: Budget | None = None
        if not self._world.measures:
            return
        self._budget = None if budget is None else Budget(budget, self._target)
        self._instruments = Instruments(probes or {}, self._target, self._budget)
        self._world.agree(sorted(self._instruments.probes))
        if self._world.writes:
            self._mirrors = Mirrors(mirror, Path(path), first_step)
            header = self._header(self._instruments, config, seed) | ({"planted": list(planted)} if planted else {})
            writer = RunWriter(path, header, first_step)
            self._backlog = Backlog(writer, self._instruments.about, backlog)
            self._at_exit = partial(_close_at_exit, weakref.ref(self))
            atexit.register(self._at_exit)

    def _header(self, instruments: Instruments, config: Mapping[str, Any] | None, seed: int | None) -> dict[str, Any]:
        return {
            "created_with": "stabilitylab",
            "config": dict(config or {}),
            "seed": seed,
            "versions": _versions(),
            "layers": asdict(self._target.layers),
            "probes": {name: each.parameters.model_dump() for name, each in instruments.probes.items()},
            "left_out": instruments.left_out,
            "disabled": {},
            "schedule": self._schedule,
            "self_check": {"mistake": "not checked", "sentence": "The self-check has not finished."},
        }

    @torch.no_grad()
    def step(
        self,
        loss: Tensor | float | None = None,
        *,
        outputs: Mapping[str, Tensor] | None = None,
        scalars: Mapping[str, float] | None = None,
        images: int | None = None,
        scale: Tensor | float | None = None,
        max_norm: float | None = None,
    ) -> None:
        """Record one training step: once for each step of the optimizer, after its last backward pass.

        Args:
            loss: the loss of the step.
            outputs: named tensors for the probes: ``representation``, ``projection`` and ``positive`` (N, D),
                ``labels`` and ``indices`` (N,).
            scalars: named numbers: ``momentum``.
            images: how many images the step used, for the speed.
            scale: the factor by which the gradients are still scaled, where no ``scaler`` was given; leave it after
                ``scaler.unscale_``.
            max_norm: the total norm to which the gradients are about to be clipped; the coefficient is recorded.
        """
        if os.getpid() != self._process:
            return  # a copy in a forked process records nothing
        if self._closed:
            warnings.warn("the recorder is closed: this step and those after it are not recorded", stacklevel=2)
            return
        if torch.is_inference_mode_enabled():  # what is kept here must still be writable later
            with torch.inference_mode(mode=False):
                self.step(loss, outputs=outputs, scalars=scalars, images=images, scale=scale, max_norm=max_norm)
            return
        if self.index == self._first or self.index % self._flush_steps == 0 or self._trains_more():
            self._follow_parameters()
        if isinstance(loss, Tensor):
            loss = loss.detach()
        detached = {name: value.detach() for name, value in (outputs or {}).items() if _is_tensor(name, value)}
        still, loss_scale = (scale, scale) if scale is not None else self._scale()
        self._look(Step(self.index, self._target, loss, detached, scalars or {}, images, still, loss_scale, max_norm))
        self.index += 1
        self._since += 1
        if self._since >= self._flush_steps or time.monotonic() - self._flushed_at >= self._flush_seconds:
            self.flush()

    def _scale(self) -> tuple[Tensor | float, Tensor | None]:
        device = next((each.device for each in self._target.trainable.values()), torch.device("cpu"))
        return scale_now(self._scaler, self._optimizer, device)

    def _look(self, step: Step, settle: bool = False) -> None:
        found: dict[str, Any] = {}
        if self._instruments is not None:
            for row in self._instruments.look(step, settle):
                found[row.series] = row.values
                if self._backlog is not None:
                    self._rows.add(*row)
            self._tell_failures(self._instruments)
        if not settle:
            self._check.look(found, step.scale)
            if self._budget is not None:
                self._budget.step()

    def _tell_failures(self, instruments: Instruments) -> None:
        for failure in instruments.failures[self._told :]:
            reason = failure.traceback.strip().splitlines()[-1]
            text = f"the probe {failure.probe!r} failed at step {failure.step} and is off now: {reason}"
            warnings.warn(text, stacklevel=5)
            off = {each.probe: {"step": each.step, "traceback": each.traceback} for each in instruments.failures}
            self._say("probe failed", text, disabled=off)
        self._told = len(instruments.failures)

    def _say(self, kind: str, text: str, **fields: Any) -> None:
        """Write something that happened into ``run.json``, and show it to the mirrors."""
        if self._backlog is not None:
            self._backlog.say(self.index, **fields)
            self._mirrors.event(self.index, kind, text)

    def _trains_more(self) -> bool:
        """Tell, quickly, whether a frozen parameter thawed, or the optimizer was given others."""
        thawed = any(each.requires_grad for each in self._target.frozen)
        return thawed or self._updated != list(map(id, updated_by(self._optimizer)))

    def _follow_parameters(self) -> None:
        """Measure other parameters where the model has others now: unfrozen, added, replaced, materialized."""
        self._updated = list(map(id, updated_by(self._optimizer)))
        trained = dict.fromkeys(map(id, self._target.trainable.values()))
        now = [each for each in self._target.model.parameters() if each.requires_grad or id(each) in trained]
        if list(trained) == [id(each) for each in now if not is_lazy(each)]:
            return
        if self.index > self._first:
            self._look(Step(self.index, self._target), settle=True)  # what the old probes know of the step before
        self._target = self._make_target(trained=trained)
        self._check.finish()
        self._check = SelfCheck(self._target, self._check.steps)
        if self._instruments is not None:
            self._instruments.rebuild(self._target)
            layers = asdict(self._target.layers)
            text = f"{len(self._target.trainable)} parameters are recorded now"
            self._say("parameters", text, layers=layers, left_out=self._instruments.left_out)

    def settle(self) -> None:
        """Measure what belongs to the last step and is known only after its update, then flush.

        Called before a checkpoint and at the end, so that a resumed run has every row of an uninterrupted one.
        """
        if self.index > 0:
            with torch.no_grad():
                self._look(Step(self.index, self._target), settle=True)
        self.flush()

    def flush(self) -> None:
        """Write what was recorded since the last flush: one host transfer, one file per series."""
        if os.getpid() != self._process:
            return
        self._since, self._flushed_at = 0, time.monotonic()
        self._tell_check(last=self._closed)
        if self._backlog is None:
            return
        blocks = self._rows.take()
        self._backlog.write(blocks, self.index)
        self._mirrors.rows(blocks)
        self.newest |= {block.series: block.values[-1] for block in blocks}
        if self._budget is not None and self._instruments is not None:
            self._stretch(self._budget, self._instruments)

    def _stretch(self, budget: Budget, instruments: Instruments) -> None:
        for name, every, reason in budget.changes(instruments.probes):
            instruments.probes[name].every = every
            self._schedule.append({"step": self.index, "probe": name, "every": every, "reason": reason})
            text = f"{name} is measured every {every} steps now: {reason}"
            self._say("schedule", text, schedule=self._schedule)

    def _tell_check(self, last: bool) -> None:
        """Say, once, what the self-check found."""
        verdict = self._check.take_verdict(self._world, last)
        if verdict is None or self._backlog is None:
            return
        fine = verdict.mistake in ("passed", "not checked")
        if self._found not in ("", "not checked") and (fine or self._found != "passed"):
            return  # a further check, of parameters that were added, finds nothing new
        self._found = verdict.mistake
        if not fine:
            warnings.warn(f"what is recorded is not what the optimizer uses: {verdict.sentence}", stacklevel=4)
        self._say("self-check", verdict.sentence, self_check=verdict._asdict())

    def state(self) -> dict[str, Tensor]:
        """Return what the probes need to go on after an interruption, as named tensors."""
        return {} if self._instruments is None else self._instruments.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""
        if self._instruments is not None:
            self._instruments.load_state(state)

    @property
    def nbytes(self) -> int:
        """Bytes recorded and not on disk yet: ``flush_steps`` rows of each series at most, and the backlog."""
        return self._rows.nbytes + (0 if self._backlog is None else self._backlog.nbytes)

    def close(self, status: str = "completed", message: str = "") -> None:
        """Write the rest, say in ``run.json`` how the run ended, and release the folder."""
        if os.getpid() != self._process or self._closed:
            return
        self._closed = True
        self._check.finish()
        if self._target.sharded and status != "completed":
            self.flush()  # to measure needs every rank, and others may not have come to this point
        else:
            self.settle()
        if self._backlog is not None:
            atexit.unregister(self._at_exit)
            self._backlog.close(status, message, self.index)
            self._mirrors.close()

    def __del__(self) -> None:
        # a recorder that nobody closed and nobody can close any more: its last rows must reach the disk
        if getattr(self, "_backlog", None) is not None:
            self.close("failed", "the recorder was given up without being closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close(self.status or "completed", self.message)
        elif issubclass(kind, KeyboardInterrupt | SystemExit):
            self.close(self.status or "interrupted", self.message or kind.__name__)
        else:
            self.close(self.status or "failed", self.message or f"{kind.__name__}: {error}")

    def __reduce__(self) -> Any:
        raise InputError("a Recorder cannot be copied, nor sent to another process: make it in the process that trains")


def _is_tensor(name: str, value: Any) -> bool:
    """Tell whether an output can be looked at, and warn if not."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        warnings.warn(f"outputs[{name!r}] is left out: it was of type {kind}; expected a tensor", stacklevel=4)
    return isinstance(value, Tensor)


def _check(**given: tuple[Any, float]) -> None:
    """Raise `InputError` for a setting that is no whole number, or below the least one allowed."""
    for name, (value, least) in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} was {value!r}; expected a whole number of at least {least}")


def _close_at_exit(recorder: weakref.ref[Recorder]) -> None:
    """Close a recorder that is open when the process ends, without a ``with`` block."""
    opened, error = recorder(), getattr(sys, "last_value", None)
    if opened is not None:
        opened.__exit__(type(error) if error else None, error, None)


def _trained_before(path: str | Path, target: Target) -> set[int]:
    """Return the identities of the parameters whose gradients the run in a folder holds."""
    try:
        names = set(Run(path).about("gradients.norm")["labels"])
    except InputError:
        return set()
    return {id(each) for name, each in target.parameters.items() if name in names}


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

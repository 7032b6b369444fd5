"""The recorder: probes on their schedule in any loop, values kept on the device, one host transfer a flush."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.layers import layers_of
from stabilitylab.parameters import validated
from stabilitylab.probe import HeldOut, Measurement, Probe, Step, Target
from stabilitylab.run import RunWriter

__all__ = ["Recorder", "build_probes"]

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
        model: any module. Its trainable parameters at this moment are the ones that are recorded.
        optimizer: gives the learning rate.
        probes: name to parameters, or to False for none; a probe that is not named runs with its defaults. By
            default, every installed probe that can measure with what it is given.
        held_out: labelled images for the probes that need them (``knn``, ``spectrum``).
        first_step: index of the first step; a positive one continues the run that is in the folder.
        first_layer: the layer that sees the input, where it is not the first one in order of registration.
        config: anything that describes the run, as JSON types; goes into ``run.json``.
        seed: goes into ``run.json``.
        flush_steps, flush_seconds: what is recorded reaches the disk after so many steps or seconds.

    In a process group, the first rank writes and the others only count steps.

    Raises:
        InputError: if the folder holds a run, a probe is unknown, or a probe that was asked for cannot measure.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        probes: Mapping[str, Any] | None = None,
        held_out: HeldOut | None = None,
        first_step: int = 0,
        first_layer: str | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        flush_steps: int = 50,
        flush_seconds: float = 5.0,
    ) -> None:
        self.index = first_step
        self.status = ""
        """How the run ends, if not by leaving the ``with`` block: set it before closing."""
        self.message = ""
        self._flush_steps, self._flush_seconds = flush_steps, flush_seconds
        self._rows: dict[str, list[tuple[int, Tensor | Sequence[float]]]] = {}
        self._last: dict[str, int] = {}
        self._since, self._flushed_at = 0, time.monotonic()
        self._writer: RunWriter | None = None
        self.probes: dict[str, Probe] = {}
        self.newest: dict[str, np.ndarray] = {}
        """The last row of each series that was flushed."""
        if _rank() > 0:
            return
        names = [name for name, _ in model.named_parameters()]
        self._target = Target(model, optimizer, layers_of(names, first_layer), held_out)
        self.probes, left_out = build_probes(probes or {}, self._target)
        self._about = {
            series: (list(labels), {"probe": name, "every": probe.parameters.every, **probe.about.get(series, {})})
            for name, probe in self.probes.items()
            for series, labels in probe.labels.items()
        }
        layers = self._target.layers
        header = {
            "created_with": "stabilitylab",
            "config": dict(config or {}),
            "seed": seed,
            "versions": _versions(),
            "layers": {"names": layers.names, "of": layers.of, "first": layers.first},
            "probes": {name: probe.parameters.model_dump() for name, probe in self.probes.items()},
            "left_out": left_out,
            "disabled": {},
        }
        self._writer = RunWriter(path, header, first_step)

    @torch.no_grad()
    def step(
        self,
        loss: Tensor | float | None = None,
        *,
        outputs: Mapping[str, Tensor] | None = None,
        scalars: Mapping[str, float] | None = None,
        images: int | None = None,
        scale: Tensor | float = 1.0,
    ) -> None:
        """Record one training step.

        Args:
            loss: the loss of the step.
            outputs: named tensors for the probes: ``representation`` and ``projection`` (N, D), ``labels`` (N,).
            scalars: named numbers: ``momentum``.
            images: how many images the step used, for the speed.
            scale: the factor by which the gradients are still scaled; leave it after ``scaler.unscale_``.
        """
        if self._writer is not None:
            if isinstance(loss, Tensor):
                loss = loss.detach()
            detached = {name: value.detach() for name, value in (outputs or {}).items()}
            step = Step(self.index, self._target, loss, detached, scalars or {}, images, scale)
            for name in list(self.probes):
                self._look(name, step)
        self.index += 1
        self._since += 1
        if self._since >= self._flush_steps or time.monotonic() - self._flushed_at >= self._flush_seconds:
            self.flush()

    def _look(self, name: str, step: Step, settle: bool = False) -> None:
        """Let one probe look; an error disables that probe and never ends the training."""
        probe = self.probes[name]
        every, delay = probe.parameters.every, probe.delay
        try:
            if not settle:
                probe.observe(step)
            if step.index % every == 0 or (delay and (step.index - delay) % every == 0):
                self._keep(step.index - delay, probe.measure(step))
        except Exception:
            del self.probes[name]
            self._failed(name, traceback.format_exc())

    def _keep(self, index: int, measured: Measurement | None) -> None:
        for series, values in (measured or {}).items():
            if index <= self._last.get(series, -1):
                continue  # already settled before a checkpoint
            labels = self._about[series][0]
            if len(values) != len(labels):
                raise ValueError(f"{series}: {len(values)} values for {len(labels)} labels")
            self._rows.setdefault(series, []).append((index, values))
            self._last[series] = index

    def _failed(self, name: str, trace: str) -> None:
        assert self._writer is not None
        self._writer.header["disabled"][name] = {"step": self.index, "traceback": trace}
        self._writer.update()
        reason = trace.strip().splitlines()[-1]
        warnings.warn(f"the probe {name!r} failed at step {self.index} and is off now: {reason}", stacklevel=4)

    def settle(self) -> None:
        """Measure what belongs to the last step and is known only after its update, then flush.

        Called before a checkpoint and at the end, so that a resumed run has every row of an uninterrupted one.
        """
        if self._writer is not None and self.index > 0:
            with torch.no_grad():
                step = Step(self.index, self._target)
                for name in [name for name, probe in self.probes.items() if probe.delay]:
                    self._look(name, step, settle=True)
        self.flush()

    def flush(self) -> None:
        """Write what was recorded since the last flush: one host transfer, one file per series."""
        self._since, self._flushed_at = 0, time.monotonic()
        if self._writer is None or not self._rows:
            return
        stacked = {series: _stack([value for _, value in rows]) for series, rows in self._rows.items()}
        on_host = _transfer({name: values for name, values in stacked.items() if isinstance(values, Tensor)})
        new = [series for series in self._rows if series not in self._writer.header["series"]]
        for series in new:
            labels, about = self._about[series]
            self._writer.declare(series, labels, **about)
        if new:
            self._writer.update(reduced_over_ranks=_world())
        for series, values in stacked.items():
            values = values if isinstance(values, np.ndarray) else on_host[series]
            self._writer.write(series, np.asarray([index for index, _ in self._rows[series]], dtype="int64"), values)
            del self._rows[series]  # only what is on disk is let go
            self.newest[series] = values[-1]

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

    def close(self, status: str = "completed", message: str = "") -> None:
        """Write the rest, say in ``run.json`` how the run ended, and release the folder."""
        if self._writer is None:
            return
        self.settle()
        self._writer.close(status, message, last_step=self.index - 1)
        self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.close(self.status or "completed", self.message)
        elif issubclass(kind, KeyboardInterrupt | SystemExit):
            self.close(self.status or "interrupted", self.message or kind.__name__)
        else:
            self.close(self.status or "failed", self.message or f"{kind.__name__}: {error}")


def build_probes(chosen: Mapping[str, Any], target: Target) -> tuple[dict[str, Probe], dict[str, str]]:
    """Build the probes: those asked for must be able to measure, the others are left out with the reason."""
    built: dict[str, Probe] = {}
    left_out: dict[str, str] = {}
    for name in [*plugins.names("probes"), *(name for name in chosen if name not in plugins.names("probes"))]:
        wanted = chosen.get(name)
        if wanted is False:
            continue
        kind = plugins.load("probes", name)
        if isinstance(wanted, kind.Parameters):
            parameters = wanted
        else:
            parameters = validated(kind.Parameters, wanted or {}, f"probes.{name}")
        try:
            built[name] = kind(parameters, target)
        except InputError as error:
            if wanted is not None:
                raise
            left_out[name] = str(error)
    return built, left_out


def _stack(values: list[Tensor | Sequence[float]]) -> Tensor | np.ndarray:
    """Return rows as one array (T, number of labels): on the device if any row is there."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return np.asarray(values, dtype="float64")
    return torch.stack([value if isinstance(value, Tensor) else tensors[0].new_tensor(value) for value in values])


def _transfer(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copy all tensors to the host at once: the only place that waits for the device, once a flush."""
    if not tensors:
        return {}
    # numpy has no bfloat16; float32 holds it exactly
    tensors = {name: each.float() if each.dtype == torch.bfloat16 else each for name, each in tensors.items()}
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return {name: tensor.numpy() for name, tensor in tensors.items()}
    # float64 holds float32, bfloat16 and small integers exactly; Apple's devices have no float64
    device = next(tensor.device for tensor in tensors.values() if tensor.device.type != "cpu")
    dtype = torch.float32 if device.type == "mps" else torch.float64
    flat = torch.cat([tensor.to(device, dtype, non_blocking=True).flatten() for tensor in tensors.values()]).cpu()
    pieces = flat.split([tensor.numel() for tensor in tensors.values()])
    return {
        name: piece.reshape(tensor.shape).to(tensor.dtype).numpy()
        for (name, tensor), piece in zip(tensors.items(), pieces, strict=True)
    }


def _rank() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if ready else 0


def _world() -> int:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

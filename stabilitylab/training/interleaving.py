"""One training that is recorded in several ways, a block of steps after the other, and what each block took."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stabilitylab.recorder import Recorder
from stabilitylab.training.batches import Batch
from stabilitylab.training.costs import Block
from stabilitylab.training.distributed import mean_over_ranks
from stabilitylab.training.loop import Setup, gradients, seen, stream_of, update

__all__ = ["Arm", "Loop", "Stopped", "endless", "measure_block", "warm_up"]


@dataclass
class Arm:
    """A way of recording, its run, and the blocks of steps that were recorded so."""

    recorder: Recorder
    folder: Path
    blocks: list[Block] = field(default_factory=list)


class Stopped(Exception):  # noqa: N818 - not an error
    """The measurement ends before its end."""


class Loop:
    """The training of a configuration, step by step, whoever records it."""

    def __init__(
        self,
        setup: Setup,
        model: nn.Module,
        scaler: torch.amp.GradScaler,
        batches: Iterator[Batch],
        signals: list[int],
    ) -> None:
        self.setup, self.signals = setup, signals
        self._model, self._scaler, self._batches = model, scaler, batches
        self.told: tuple[torch.Tensor, dict[str, Any]] = (torch.zeros(()), {})
        """What the recorder was told last."""

    def steps(self, number: int, recorder: Recorder | None = None) -> tuple[float, float]:
        """Train for a block of steps; return the seconds of one step, and of the recorder's line in it."""
        line = 0.0
        started = self._now()
        for _ in range(number):
            line += self._step(recorder)
        return (self._now() - started) / number, line / number

    def _step(self, recorder: Recorder | None) -> float:
        setup = self.setup
        batch = next(self._batches)
        output = gradients(setup, self._model, self._scaler, batch)
        stop = torch.tensor(float(bool(self.signals)), device=setup.ranks.device)
        loss_and_stop = mean_over_ranks(torch.stack([output.loss.float(), stop]), setup.ranks.world)
        self.told = loss_and_stop[0], seen(setup, batch, output)
        before = self._now()
        if recorder is not None:
            recorder.step(self.told[0], **self.told[1])
        after = self._now()
        loss, stopped = loss_and_stop.tolist()
        if stopped:
            raise Stopped("interrupted")
        if setup.config.train.nonfinite == "stop" and not math.isfinite(loss):
            raise Stopped(f"the loss was {loss} after {batch.step} steps")
        update(setup, self._scaler, batch.step)
        return after - before

    def _now(self) -> float:
        """Return the time when everything that was asked of the device is done."""
        device = self.setup.ranks.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


def endless(setup: Setup) -> Generator[Batch]:
    """Return this rank's batches, again from the first one after the last."""
    while True:
        with closing(stream_of(setup, 0)) as stream:
            yield from stream


def warm_up(loop: Loop, arms: Sequence[Arm]) -> None:
    """Train two steps, and let everyone record the second one twice: what is done only once must not count."""
    loop.steps(2)
    for arm in arms:
        for _ in range(2):
            arm.recorder.step(loop.told[0], **loop.told[1])
        arm.recorder.flush()


def measure_block(loop: Loop, arm: Arm, block: int, offs: list[float]) -> None:
    """Train for a block of steps that are recorded, then for one of steps that are not."""
    step, line = loop.steps(block, arm.recorder)
    started = time.perf_counter()
    arm.recorder.flush()
    flush = time.perf_counter() - started
    offs.append(loop.steps(block)[0])
    arm.blocks.append(Block(step, line, flush, (offs[-2] + offs[-1]) / 2))

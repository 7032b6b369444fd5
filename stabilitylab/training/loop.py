"""The training loop: images to views, loss, gradients, one line of recording, update."""

from __future__ import annotations

import hashlib
import inspect
import logging
import math
import os
import signal
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.methods import Images
from stabilitylab.models import kind_of
from stabilitylab.probe import HeldOut
from stabilitylab.recorder import Recorder
from stabilitylab.target import make_target
from stabilitylab.training import checkpoint as checkpoints
from stabilitylab.training import optimizers, schedules, weights
from stabilitylab.training.batches import Batch, batches
from stabilitylab.training.blame import first_nonfinite
from stabilitylab.training.config import Config
from stabilitylab.training.data import Dataset
from stabilitylab.training.distributed import Ranks, mean_over_ranks
from stabilitylab.training.fixed_images import fixed_images
from stabilitylab.training.injections import Injections, Training
from stabilitylab.training.refusals import refuse_crops, refuse_rules, without_effect
from stabilitylab.training.stabilizers import Stabilizers

__all__ = [
    "Outcome",
    "Reporter",
    "Setup",
    "gradients",
    "noted_signals",
    "prepare",
    "recorder_of",
    "seen",
    "stream_of",
    "train",
    "trainable",
    "update",
]

log = logging.getLogger(__name__)

NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # since torch 2.14
KEEP_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if NEW_NAME else "broadcast_buffers": False}
"""No rank's buffers replace those of the others in a forward pass."""

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Reporter(Protocol):
    """Whoever tells the user how far the training is."""

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hear of a finished step; ``numbers`` may hold ``loss``, ``knn`` and ``images_per_second``."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended: ``completed``, ``interrupted`` or ``failed``, after so many steps, and why."""

    status: str
    steps: int
    message: str = ""
    signal: int | None = None


@dataclass(frozen=True)
class Setup:
    """What is trained, on what, and for how long."""

    config: Config
    data: Dataset
    ranks: Ranks
    method: nn.Module
    optimizer: torch.optim.Optimizer
    held_out: HeldOut | None
    total: int
    warmup: int
    injections: Injections
    timm_arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def stabilizers(self) -> Stabilizers:
        """What is done to the gradients between recording and update."""
        return self.optimizer.stabilizers  # type: ignore[attr-defined]

    @property
    def probes(self) -> dict[str, Any]:
        """The probes that were configured; False for those that cannot measure because the images have no labels.

        One that was left as it is by default is not named: the recorder leaves it out where it cannot measure.
        """
        kinds = {name: plugins.load("probes", name) for name in self.config.probes}
        asked = {name: value for name, value in self.config.probes.items() if value != kinds[name].Parameters()}
        return {name: not (self.data.unlabeled and kinds[name].needs_labels) and value for name, value in asked.items()}


def prepare(config: Config, data: Dataset, ranks: Ranks, resumed: bool = False) -> Setup:
    """Build everything that a training needs; fails here rather than in the middle.

    Args:
        config: all settings.
        data: the images.
        ranks: the processes.
        resumed: whether the weights come from a checkpoint, so that those of ``train.initial`` need not be there.

    Raises:
        InputError: if sizes do not fit each other or the data.
    """
    if config.data.batch_size % ranks.world:
        raise InputError(f"data.batch_size is {config.data.batch_size}, not a multiple of the {ranks.world} processes")
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA refuses to be deterministic
        torch.use_deterministic_algorithms(True)
    torch.manual_seed(config.train.seed)
    size, channels = data.image_size, data.channels
    kind = plugins.load("methods", config.method.name)  # type: ignore[attr-defined]
    refuse_crops(config, kind)
    backbone = kind_of(config.model.name)  # type: ignore[attr-defined]
    images = Images(len(data.train), len(data.classes) if data.train.labels is not None else 0, config.data.batch_size)
    crops = (config.augment.side(2, size),) if config.augment.small_crops else ()
    method = kind(config.method, lambda: backbone.build(config.model, size, channels, crops), images).to(ranks.device)
    if config.train.initial is not None and not resumed:
        weights.find(config.train.initial).load(method)
    named = {name: each for name, each in method.named_parameters() if each.requires_grad}
    total = config.num_steps(data.steps_per_epoch)
    layers, shape = make_target(method).layers, (channels, size, size)
    refuse_rules(config, named, layers)
    groups = optimizers.groups_of(config.optimizer, named, layers)
    optimizer: Any = optimizers.build(config.optimizer, groups, config.data.batch_size)
    optimizer.stabilizers = Stabilizers(config.stabilize, named, layers, optimizer)
    for told in without_effect(config, optimizer) if ranks.rank == 0 else ():
        log.warning(told)
    return Setup(
        config,
        data,
        ranks,
        method,
        optimizer,
        _held_out(data, ranks, method),
        total,
        config.schedule.warmup(data.steps_per_epoch, total),
        Injections(config.inject, Training(method, optimizer, layers, shape, ranks, config.train.seed, total)),
        backbone.timm_arguments(config.model, size, channels),
    )


def _held_out(data: Dataset, ranks: Ranks, method: nn.Module) -> HeldOut | None:
    if ranks.rank > 0:
        return None
    held_out, bank = (fixed_images(data, which, ranks.device) for which in ("held_out", "bank"))
    labels, bank_labels = (None if each.labels is None else each.labels.to(ranks.device) for each in (held_out, bank))
    encode: Any = method.encode
    momentum: Any = getattr(method, "encode_momentum", None)  # not every method has a momentum encoder
    images = held_out.images, labels, bank.images, bank_labels
    return HeldOut(*images, encode, len(data.train), encode_momentum=momentum)


def train(setup: Setup, out: Path, reporter: Reporter, resume: checkpoints.Checkpoint | None = None) -> Outcome:
    """Train, record into a run folder, and say how it ended.

    Args:
        setup: what `prepare` returned.
        out: the run folder: new, or the one that is resumed.
        reporter: hears of every step.
        resume: the checkpoint to go on from.
    """
    config, ranks, total = setup.config, setup.ranks, setup.total
    batch_size = config.data.batch_size
    first = resume.step if resume else 0
    state = checkpoints.load(resume) if resume else None  # before the run is touched
    model, scaler = trainable(setup)
    if state and resume:
        _restore(state, resume.path, setup, scaler)
    recorder = recorder_of(setup, out, first, scaler=scaler)
    stream = stream_of(setup, first)
    started = time.perf_counter()
    with recorder, closing(stream), noted_signals() as signals:
        if state:
            recorder.load_state({name: value.to(ranks.device) for name, value in state.probes.items()})
        for batch in stream:
            output = gradients(setup, model, scaler, batch)
            stop = torch.tensor(float(bool(signals)), device=ranks.device)
            loss_and_stop = mean_over_ranks(torch.stack([output.loss.float(), stop]), ranks.world)
            recorder.step(loss_and_stop[0], **seen(setup, batch, output))
            # the one wait for the device in a step: a loss that is not finite must not reach the weights unseen
            loss, stopped = loss_and_stop.tolist()
            if config.train.nonfinite == "stop" and not math.isfinite(loss):
                return _end_nonfinite(setup, recorder, batch, loss)
            update(setup, scaler, batch.step)
            done = batch.step + 1
            speed = (done - first) * batch_size / (time.perf_counter() - started)
            reporter.step(batch.step, {"loss": loss, "images_per_second": speed, **_newest(recorder)})
            due = config.checkpoint.every and done % config.checkpoint.every == 0
            if due or stopped or done == total:
                _save(out, done, setup, recorder, scaler)
            if stopped:
                return _end_interrupted(recorder, done, signals)
    return Outcome("completed", total)


def trainable(setup: Setup) -> tuple[nn.Module, torch.amp.GradScaler]:
    """Return the method in train mode, wrapped where there are many processes, and the scaler of its loss."""
    ranks, method = setup.ranks, setup.method.train()
    model = DistributedDataParallel(method, **KEEP_BUFFERS) if ranks.world > 1 else method
    return model, torch.amp.GradScaler(ranks.device.type, enabled=setup.config.train.precision == "fp16")


def stream_of(setup: Setup, first: int) -> Generator[Batch]:
    """Return this rank's batches from a step on."""
    config, ranks = setup.config, setup.ranks
    where: dict[str, Any] = {"rank": ranks.rank, "world": ranks.world, "device": ranks.device}
    stream = batches(setup.data, config.augment, seed=config.train.seed, steps=setup.total, first_step=first, **where)
    return setup.injections.poison(stream) if config.inject else stream


def gradients(setup: Setup, model: nn.Module, scaler: torch.amp.GradScaler, batch: Batch) -> Any:
    """Go forward and backward with the seed and the learning rate of the step, and return the method's output."""
    config, optimizer = setup.config, setup.optimizer
    torch.manual_seed(_seed_of(config.train.seed, batch.step, setup.ranks.rank))
    rate = config.optimizer.rate(config.data.batch_size)
    rate *= schedules.factor(config.schedule, batch.step, setup.warmup, setup.total)
    rate *= setup.stabilizers.rate_factor(batch.step)
    for group in optimizer.param_groups:
        group["lr"] = optimizers.rate_of(config.optimizer, group, rate, batch.step)
    setup.injections.before(batch.step)
    with _autocast(config, setup.ranks):
        output = model(batch.views, batch.step / setup.total, batch.indices, batch.labels)
    optimizer.zero_grad()
    scaler.scale(output.loss).backward()
    after_backward: Any = getattr(setup.method, "after_backward", None)  # not every method drops gradients
    if after_backward is not None:
        after_backward(batch.step)
    setup.injections.after()
    scaler.unscale_(optimizer)
    return output


def update(setup: Setup, scaler: torch.amp.GradScaler, step: int) -> None:
    """Apply the stabilizers, let the optimizer update the weights, and then the method what must follow upon that."""
    setup.stabilizers.apply(step)
    scaler.step(setup.optimizer)
    scaler.update()
    after_update: Any = getattr(setup.method, "after_update", None)  # not every method has something to do
    if after_update is not None:
        after_update()


def recorder_of(setup: Setup, out: Path, first: int, **changes: Any) -> Recorder:
    """Return the recorder of a training, or one that differs in some arguments."""
    arguments: dict[str, Any] = {
        **setup.config.record.model_dump(),
        "probes": setup.probes,
        "held_out": setup.held_out,
        "first_step": first,
        "config": setup.config.to_json(),
        "seed": setup.config.train.seed,
        "planted": setup.injections.planted(),
    }
    return Recorder(out, setup.method, setup.optimizer, **{**arguments, **changes})


def seen(setup: Setup, batch: Batch, output: Any) -> dict[str, Any]:
    """Return what the recorder is told of a step besides its loss."""
    told = {f"diagnostics.{name}": value for name, value in output.diagnostics.items()}
    outputs = _with_batch({**output.outputs, **told}, batch, setup.ranks)
    return {"outputs": outputs, "scalars": output.scalars, "images": setup.config.data.batch_size}


def _with_batch(outputs: Mapping[str, Tensor], batch: Batch, ranks: Ranks) -> Mapping[str, Tensor]:
    """Add what the method never sees: which images the batch holds, and their labels for the kNN monitor's queue."""
    outputs = {**outputs, "indices": batch.indices}
    return outputs if batch.labels is None else {**outputs, "labels": batch.labels.to(ranks.device, non_blocking=True)}


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM, to end after the step; a second one ends at once."""
    seen: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    kept = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _autocast(config: Config, ranks: Ranks) -> torch.autocast:
    dtype = PRECISIONS[config.train.precision]
    return torch.autocast(ranks.device.type, dtype=dtype, enabled=dtype != torch.float32)


def _seed_of(seed: int, step: int, rank: int) -> int:
    """Return the seed of one step: all randomness is a function of it, so that there is no state to be saved."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()[:7], "big")


def _newest(recorder: Recorder) -> dict[str, float]:
    accuracy = recorder.newest.get("knn.accuracy")
    return {} if accuracy is None else {"knn": float(accuracy[0])}


def _end_nonfinite(setup: Setup, recorder: Recorder, batch: Batch, loss: float) -> Outcome:
    ranks, total = setup.ranks, setup.total

    def forward() -> None:
        torch.manual_seed(_seed_of(setup.config.train.seed, batch.step, ranks.rank))
        with _autocast(setup.config, ranks):
            setup.method(batch.views, batch.step / total, batch.indices, batch.labels)

    where = first_nonfinite(setup.method, forward)
    recorder.status, recorder.message = "failed", f"the loss is {loss} at step {batch.step}; first not finite: {where}"
    return Outcome("failed", batch.step + 1, recorder.message)


def _end_interrupted(recorder: Recorder, done: int, signals: list[int]) -> Outcome:
    number = signals[0] if signals else int(signal.SIGTERM)
    recorder.status, recorder.message = "interrupted", f"{signal.Signals(number).name} after {done} steps"
    return Outcome("interrupted", done, recorder.message, number)


def _save(out: Path, done: int, setup: Setup, recorder: Recorder, scaler: torch.amp.GradScaler) -> None:
    recorder.settle()
    if setup.ranks.rank > 0:
        return
    method: Any = setup.method
    state = checkpoints.State(
        done,
        method.state_dict(),
        setup.optimizer.state_dict(),
        recorder.state() | setup.stabilizers.state(),
        scaler.state_dict(),
    )
    keep = setup.config.checkpoint.keep
    try:
        checkpoints.save(out, state, method.backbone.state_dict(), setup.timm_arguments, keep)
    except OSError as error:
        log.warning("the checkpoint after %d steps could not be written, and training goes on: %s", done, error)


def _restore(state: checkpoints.State, path: Path, setup: Setup, scaler: torch.amp.GradScaler) -> None:
    try:
        setup.method.load_state_dict(state.model)
        setup.optimizer.load_state_dict(dict(state.optimizer))
        if state.scaler:
            scaler.load_state_dict(dict(state.scaler))
        setup.stabilizers.load_state(state.probes)
    except (RuntimeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path} does not fit the configuration of its run, or is damaged: {said[:300]}") from error

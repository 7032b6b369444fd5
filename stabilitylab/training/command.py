"""What ``stabilitylab train`` does: choose a configuration, tell what it means, and run it with progress."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.phrasing import occasions
from stabilitylab.recording.instruments import build_probes
from stabilitylab.run import Run
from stabilitylab.target import make_target
from stabilitylab.training import checkpoint as checkpoints
from stabilitylab.training import presets
from stabilitylab.training.config import Config, describe, flatten, parse_settings, read_file, resolve
from stabilitylab.training.data import open_dataset
from stabilitylab.training.distributed import process_group
from stabilitylab.training.loop import Outcome, Setup, prepare, train

__all__ = ["choose", "chosen_before", "dry_run", "presets_table", "run", "show_warnings"]


def choose(preset: str | None, data: Path | None, file: Path | None, settings: Sequence[str]) -> Config:
    """Return the configuration: a preset, then the file, then ``--data`` and ``--set``."""
    from_file = read_file(file) if file else {}
    named = from_file.pop("preset", None)
    words = parse_settings(settings)
    if data is not None:
        words = {"data.path": str(data)} | words
    on_images = data is not None or "data.path" in {**from_file, **words}
    return resolve(preset or named or ("small" if on_images else "digits"), from_file, words)


def chosen_before(path: Path) -> Config:
    """Return the configuration of a run that is to be resumed.

    Raises:
        InputError: if the run is not one of this harness.
    """
    config = Run(path).config
    if "preset" not in config:
        raise InputError(f"{path} was not made by 'stabilitylab train': its run.json holds no configuration to resume")
    settings = flatten({key: value for key, value in config.items() if key != "preset"})
    return resolve(str(config["preset"]), {name: value for name, value in settings.items() if value is not None})


def presets_table() -> str:
    """Return the presets, one a line."""
    width = max(len(name) for name in presets.PRESETS)
    return "\n".join(f"{name:<{width}}  {presets.sentence(name)}" for name in presets.PRESETS)


def dry_run(config: Config) -> Iterator[str]:
    """Yield what a training would be, line by line: every setting, layers, series, steps, size of the log."""
    yield f"preset {config.preset}"
    yield ""
    yield "settings"
    for name, value, meaning in describe(config):
        yield f"  {name} = {value}"
        yield f"      {meaning}"
    yield ""
    show_warnings()
    with process_group(config.train.device) as ranks:
        yield from _plan(prepare(config, open_dataset(config.data), ranks))


def _plan(setup: Setup) -> Iterator[str]:
    method, mirror = setup.method, setup.config.record.mirror
    if mirror is not None:
        plugins.load("mirrors", mirror)  # which fails here as it would in the training
    target = make_target(method, setup.optimizer, held_out=setup.held_out)
    built, _ = build_probes(setup.probes, target)
    size = sum(each.numel() for each in target.trainable.values())
    yield f"images: {len(setup.data.train)} for training, {len(setup.data.held_out)} held out, from {setup.data.name}"
    yield f"parameters: {size:,} trainable, {sum(each.numel() for each in method.parameters()):,} in all"
    yield f"layers, in depth order: {', '.join(target.layers.names)} (first: {target.layers.first})"
    for each in setup.injections.planted():
        yield f"planted: {each['what']} {occasions(each['spans'])}"
    yield f"steps: {setup.total}, of which {setup.warmup} warm-up; {setup.data.steps_per_epoch} an epoch"
    yield "series"
    log = 0.0
    for probe in built.values():
        rows = -(-setup.total // probe.parameters.every)
        for series, labels in probe.labels.items():
            stored = 8 if series.startswith("spectrum.") else 0.2 if series == "knn.correct" else 4
            log += rows * len(labels) * stored
            yield f"  {series}: {len(labels)} columns, every {probe.parameters.every} steps, {rows} rows"
    if setup.data.unlabeled:
        yield f"  {setup.data.unlabeled}"
    yield f"log: about {log / 1e6:.1f} MB"


def run(config: Config, out: Path | None, resume: Path | None, runs: Path) -> int:
    """Train and return the exit code: 0, 1 after a failure, 128 + signal after an interruption."""
    last = _last_checkpoint(resume) if resume else None
    show_warnings()
    folder = resume or out or _new_folder(runs, config.preset)
    if resume is None and (folder / "run.json").exists():
        raise InputError(f"{folder} holds a run already; choose another folder with --out, or --resume it")
    if resume is None and config.data.path is not None:
        _refuse_among_images(folder.resolve(), config.data.path.resolve())
    with process_group(config.train.device) as ranks:
        setup = prepare(config, open_dataset(config.data), ranks, resumed=last is not None)
        if last is not None and last.step >= setup.total:
            raise InputError(f"{folder} is complete: {last.step} of {setup.total} steps were done")
        with _reporter(setup, folder, last.step if last else 0, ranks.rank == 0) as reporter:
            outcome = train(setup, folder, reporter, last)
        if ranks.rank == 0:
            _tell(outcome, folder)
    if outcome.signal is not None:
        return 128 + outcome.signal
    return 0 if outcome.status == "completed" else 1


def _refuse_among_images(folder: Path, images: Path) -> None:
    """Refuse a run in a folder whose folders are classes: it would be one of them the next time."""
    parts = [images / name for name in ("train", "val")] if (images / "train").is_dir() else [images]
    if any(part in (folder, *folder.parents) for part in parts):
        raise InputError(f"{folder} lies in the folder of the images, {images}; choose another one with --out")


def _last_checkpoint(path: Path) -> checkpoints.Checkpoint:
    try:
        return checkpoints.latest(path)
    except InputError as error:
        raise InputError(f"{error} to go on from; train anew in another folder, with --out") from error


class _Told(logging.Handler):
    """Warnings of the package, one line each on standard error, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"warning: {record.getMessage()}", err=True)


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def show_warnings() -> None:
    """Print warnings on standard error, one line each without their place in the code."""
    warnings.showwarning = _show
    log = logging.getLogger("stabilitylab")
    if not any(isinstance(handler, _Told) for handler in log.handlers):
        log.addHandler(_Told())


def _new_folder(runs: Path, preset: str) -> Path:
    name = f"{preset}-{datetime.now():%Y%m%d-%H%M%S}"  # local time: a name for people
    folder, count = runs / name, 1
    while folder.exists():
        count += 1
        folder = runs / f"{name}-{count}"
    return folder


def _tell(outcome: Outcome, folder: Path) -> None:
    if outcome.status == "failed":
        print(f"stopped: {outcome.message}", file=sys.stderr)
        print(f"the evidence is in {folder}; look at it: stabilitylab analyze {folder}", file=sys.stderr)
    elif outcome.status == "interrupted":
        print(f"interrupted: {outcome.message}; go on with: stabilitylab train --resume {folder}")
    else:
        print(f"recorded {outcome.steps} steps in {folder}; next: stabilitylab analyze {folder}")


@contextmanager
def _reporter(setup: Setup, folder: Path, first: int, speaks: bool) -> Iterator[Any]:
    console = Console()
    if not speaks:
        yield _Silent()
    elif sys.stdout.isatty():  # rich takes FORCE_COLOR for a terminal, and a log would fill with bars
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, expand=True) as progress:
            progress.console.print(f"training {setup.config.preset} into {folder}")
            yield _Bar(progress, progress.add_task("training", total=setup.total, completed=first, numbers=""))
    else:
        print(f"training {setup.config.preset} into {folder}", flush=True)
        yield _Lines(setup.total)


def _words(numbers: Mapping[str, float]) -> str:
    words = [f"loss {numbers['loss']:.4f}"]
    if "knn" in numbers:
        words.append(f"kNN {numbers['knn']:.1%}")
    return "  ".join([*words, f"{numbers['images_per_second']:.0f} images/s"])


class _Silent:
    """The reporter of every rank but the first."""

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Say nothing."""


class _Bar:
    """A progress bar, for terminals."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        self._progress.update(self._task, completed=step + 1, numbers=_words(numbers))


class _Lines:
    """A plain line now and then, for files and pipes."""

    def __init__(self, total: int, seconds: float = 10.0) -> None:
        self._total, self._seconds = total, seconds
        self._said, self._started, self._first = time.monotonic(), time.monotonic(), -1

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        now = time.monotonic()
        if self._first < 0:
            self._first = step
        if now - self._said < self._seconds and step + 1 < self._total:
            return
        self._said = now
        left = (now - self._started) / (step + 1 - self._first) * (self._total - step - 1)
        print(f"step {step + 1}/{self._total}  {_words(numbers)}  {left:.0f} s left", flush=True)

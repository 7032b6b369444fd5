"""What recording a training step costs: ours beside the tools that are used for it, in one run.

The step is that of MoCo v3 on a ViT-S/16 (43 million trainable parameters). A few whole steps are timed for the
denominator; the recording itself many times on the gradients of the last one, all tools taking turns in random order.
Hooks are called as a backward pass would call them, and also in backward passes with and without them, in turns.

    python tests/benchmarks/recorder_speed.py [--batch 32] [--size 224] [--parts count,time,backward,disk]

Times are medians of means of ten steps in a row, with 95 % intervals by the sign test. Ours include writing to disk:
a flush, measured by itself, over the steps between two of them. A wait is a scalar read by the host (one
``_local_scalar_dense``), or a tensor moved to it: on a GPU each stops the host. Cockpit 1.0.2 imports pkg_resources,
which setuptools removed in version 82: give it a folder with an older one,

    pip install --no-deps --target COCKPIT cockpit-for-pytorch==1.0.2 backpack-for-pytorch json-tricks seaborn \
        unfoldNd einops "setuptools<81"
    PYTHONPATH=COCKPIT python tests/benchmarks/recorder_speed.py
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recording_tools import WANDB_FREQUENCY, Tools, Training, wandb_on_disk
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stabilitylab import Recorder, Run, RunWriter
from stabilitylab.stats.interval import Interval, median_interval

ROW = 10
"""So many steps in a row make one value: the longest schedule of a cheap probe."""
FLUSH_STEPS, FLUSH_SECONDS = 50, 5.0
"""A recorder's defaults."""


# ---- what is measured


class Operations(TorchDispatchMode):
    """Count the tensor operations, and the scalars that the host reads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class Transfers(TorchFunctionMode):
    """Count the tensors that are moved to the host by name: also those that are there, which no dispatch sees.

    ``torch.tensor`` of a list of tensors reads each of them, where no dispatch sees it either.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        words = [*args[1:], *(kwargs or {}).values()]
        if func is Tensor.cpu or (func is Tensor.to and "cpu" in [word for word in words if isinstance(word, str)]):
            self.seen += 1
        elif func is torch.tensor and isinstance(args[0], list):
            self.seen += sum(isinstance(each, Tensor) for each in args[0])
        return func(*args, **(kwargs or {}))


def count(tools: Tools) -> dict[str, tuple[float, float]]:
    """Return how often each tool waits for the device in a step, and how many tensor operations it asks for."""
    counted = {}
    for name, record in tools.record.items():
        with Transfers() as transfers, Operations() as operations:
            for _ in range(ROW):
                record()
        scalars = operations.seen["_local_scalar_dense"]
        counted[name] = ((scalars + transfers.seen) / ROW, (operations.seen.total() - scalars) / ROW)
    return counted


def time_recording(training: Training, tools: Tools, rounds: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return seconds of a step, shape (rounds,), and of a flush of ours, all tools taking turns in random order."""
    shuffle = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in tools.record}
    flushes: dict[str, list[float]] = {name: [] for name in tools.recorders}
    order = list(tools.record)
    for done in range(1, rounds * ROW + 1):
        shuffle.shuffle(order)
        for name in order:
            started = training.now()
            tools.record[name]()
            times[name].append(training.now() - started)
        if done % FLUSH_STEPS == 0 or done == rounds * ROW:
            for name, recorder in tools.recorders.items():
                started = training.now()
                recorder.flush()
                flushes[name].append(training.now() - started)
    rows = {name: np.array(values).reshape(rounds, ROW).mean(axis=1) for name, values in times.items()}
    return rows, {name: float(np.median(values)) for name, values in flushes.items()}


def time_backward(training: Training, tools: Tools, rounds: int) -> None:
    """Print how much longer a backward pass takes with hooks than without, in turns."""
    print(f"\nbackward passes with and without hooks, {rounds} of each in turns")
    for name, hooks in tools.hooks.items():
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for number in range(2 * rounds):
            hooked = bool((number + number // 2) % 2)  # without, with, with, without, ...
            handles = [training.trainable[each].register_hook(hook) for each, hook in hooks.items() if hooked]
            seconds[hooked].append(training.step()[1])
            for handle in handles:
                handle.remove()
        extra = median_interval(np.array(seconds[True]) - np.array(seconds[False]))
        typical = float(np.median(seconds[False]))
        print(f"  {name:<30} {1e3 * typical:9.1f} ms without, {in_ms(extra)} ms more with: {extra.value / typical:.2%}")


def on_disk(recorder: Recorder, path: Path, folder: Path, steps: int) -> tuple[float, float]:
    """Return bytes per value and per step of a long run whose values vary like gradients.

    The recorded rows are all alike here, and would be compressed to nothing: each value is multiplied by lognormal
    noise of its own.
    """
    run, rng = Run(path), np.random.default_rng(0)
    writer = RunWriter(folder, run.header)
    values = 0
    for series in run.series:
        about, last = run.about(series), run[series].to_numpy()[-1]
        writer.declare(series, about["labels"])
        rows = np.arange(0, steps, about["every"])
        for part in np.split(rows, range(FLUSH_STEPS, len(rows), FLUSH_STEPS)):
            noise = np.exp(rng.normal(0, 0.3, (len(part), len(last))))
            writer.write(series, part, (last * noise).astype(last.dtype))
        values += len(rows) * len(last)
    writer.close("completed")
    size = sum(each.stat().st_size for each in folder.rglob("*.parquet"))
    return size / values, size / steps


# ---- the table


def in_ms(seconds: Interval) -> str:
    value, low, high = (1e3 * each for each in seconds)
    return f"{value:.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")


def report(step: float, tools: Tools, rows: dict[str, np.ndarray], flushes: dict[str, float]) -> dict[str, float]:
    """Print what each tool takes, and return that as parts of the training step."""
    period = max(1, min(FLUSH_STEPS, int(FLUSH_SECONDS / step)))
    print(f"\nrecording alone, ms a step; ours with a flush once in {period} steps")
    full = next((rows[name] for name in rows if name.endswith("log_freq=1")), None)
    first = median_interval(rows["ours, gradients"] + flushes["ours, gradients"] / period).value
    parts = {}
    for name, seconds in rows.items():
        seconds = seconds + flushes.get(name, 0.0) / period
        if name.endswith(f"log_freq={WANDB_FREQUENCY}") and full is not None:
            seconds = seconds + np.median(full) / WANDB_FREQUENCY
        found = median_interval(seconds)
        parts[name] = found.value / step
        print(f"  {name:<30} {in_ms(found):>26} {found.value / first:8.2f} x ours  {parts[name]:8.3%} of the step")
    for name, seconds in flushes.items():
        print(f"  a flush of {FLUSH_STEPS} rows, {name}: {1e3 * seconds:.1f} ms")
    return parts


def goal(what: str, value: float, most: float, show: str) -> None:
    print(f"  {what}: {value:{show}}, goal at most {most:{show}}: {'met' if value <= most else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224, help="side of the images, pixels")
    parser.add_argument("--depth", type=int, default=12, help="blocks of the ViT")
    parser.add_argument("--hidden", type=int, default=4096, help="hidden width of the heads")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full-steps", type=int, default=3, help="whole steps, and backward passes with and without")
    parser.add_argument("--rounds", type=int, default=12, help=f"times {ROW} recordings of each tool")
    parser.add_argument("--rows", type=int, default=5000, help="steps of the run whose size on disk is told")
    parser.add_argument("--parts", default="count,time,backward,disk")
    options = parser.parse_args()
    parts = options.parts.split(",")
    training = Training(options.batch, options.size, options.depth, options.hidden, options.device)
    training.step()
    step = float(np.median([training.step()[0] for _ in range(options.full_steps)]))
    size = sum(each.numel() for each in training.trainable.values())
    what = f"{size / 1e6:.1f} M trainable parameters in {len(training.trainable)} tensors"
    where = f"batch {options.batch}, {options.size} px, {options.device}, {torch.get_num_threads()} threads"
    print(f"{what}; {where}: a step without anything takes {step:.3f} s")
    with tempfile.TemporaryDirectory() as name:
        run_parts(parts, training, step, Tools(training, Path(name)), options, Path(name))


def run_parts(parts: list[str], training: Training, step: float, tools: Tools, options: Any, folder: Path) -> None:
    met: list[tuple[str, float, float, str]] = []
    for name, reason in tools.missing.items():
        print(f"not measured, {name}: {reason}")
    for record in tools.record.values():
        record()
    if "count" in parts:
        print("\nwaits for the device and tensor operations, a step (ours: and one transfer a flush)")
        for name, (waits, operations) in count(tools).items():
            print(f"  {name:<30} {waits:8.1f} waits {operations:10.1f} operations")
    if "time" in parts:
        shares = report(step, tools, *time_recording(training, tools, options.rounds))
        names = list(tools.recorders)
        limits = zip(names, (0.01, 0.03), strict=True)
        met += [(f"{name}: part of the step", shares[name], most, ".2%") for name, most in limits]
    if "backward" in parts:
        time_backward(training, tools, options.full_steps)
    for number, (name, recorder) in enumerate(tools.recorders.items()):
        recorder.close()
        if "disk" in parts:
            each, whole = on_disk(recorder, folder / str(number), folder / f"long {number}", options.rows)
            print(f"\n{name} on disk, {options.rows} steps: {each:.2f} bytes a value, {whole:,.0f} bytes a step")
            met.append((f"{name}: bytes a value", each, 4.5, ".2f"))
    if tools.hooks:
        import wandb

        wandb.finish()
        if "disk" in parts:
            for watch, what in ((True, "wandb.watch, log_freq=1"), (False, "wandb.log of one norm a tensor")):
                print(f"{what}, offline: {wandb_on_disk(training, folder, watch):,.0f} bytes a step")
    print("\ngoals" if met else "")
    for each in met:
        goal(*each)


if __name__ == "__main__":
    main()

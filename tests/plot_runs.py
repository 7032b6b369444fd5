"""Runs with planted spikes, dips and collapses for the tests of the pictures, and the analysis that knows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from stabilitylab.analysis import Analysis
from stabilitylab.findings import Event
from stabilitylab.run import Run, RunWriter

LAGS = ["first", "layer", "matched", "ties", "lag", "low", "high", "verdict"]


@dataclass
class Planted:
    """What to plant; everything that it does not name is noise around a slow trend."""

    num_layers: int = 10
    num_steps: int = 3000
    spikes: tuple[tuple[int, int, float], ...] = ()
    """(position of the layer, step, ratio)."""
    dips: tuple[tuple[int, int, float], ...] = ()
    """(first step, last step, depth)."""
    not_finite: tuple[tuple[int, int, float], ...] = ()
    """(position of the layer, step, value)."""
    constant: bool = False
    frozen: bool = False
    knn: tuple[str, ...] = ("bank", "queue")
    final: float = 0.95
    spectrum: bool = True
    collapsed: int = 0
    seed: int = 0
    first: int = 0
    leave_out: tuple[str, ...] = field(default=())


def layer_names(number: int) -> list[str]:
    """Return so many layers of a ViT with heads."""
    if number <= 3:
        return ["patch_embed", "blocks.0", "projector"][:number]
    return ["patch_embed", *[f"blocks.{each}" for each in range(number - 4)], "norm", "projector", "predictor"]


def make(folder: Path, planted: Planted) -> Analysis:
    """Write the run and return it analyzed: the events are the planted ones."""
    rng = np.random.default_rng(planted.seed)
    names = layer_names(planted.num_layers)
    of = {f"{name}.{leaf}": name for name in names for leaf in ("weight", "bias")}
    writer = RunWriter(folder, {"layers": {"names": names, "of": of, "first": names[0]}})
    steps = np.arange(planted.num_steps)
    events: list[Event] = []

    def write(series: str, labels: list[str], at: np.ndarray, values: np.ndarray, **about: object) -> None:
        if series not in planted.leave_out:
            writer.declare(series, labels, **about)
            writer.write(series, at + planted.first, values)

    norms = _norms(rng, planted, names, steps, events)
    parameters = list(of)
    write("gradients.norm", parameters, steps, norms)
    write("updates.ratio", parameters, steps, (norms / norms[:1].mean() * 1e-3).astype(np.float32))
    ramp = steps / planted.num_steps
    loss = np.full(len(steps), 2.0) if planted.constant else 6 * np.exp(-4 * ramp) + 2 + rng.normal(0, 0.08, len(steps))
    for _, step, value in planted.not_finite:
        loss[step] = value
    write("training.loss", ["loss"], steps, loss[:, None].astype(np.float32))
    rate = np.minimum(ramp / 0.1, 1) * (1 + np.cos(np.pi * ramp)) / 2 * 6e-3
    write("training.lr", ["lr"], steps, (np.full(len(steps), 6e-3) if planted.constant else rate)[:, None])
    write("training.momentum", ["momentum"], steps, (1 - 0.01 * (1 + np.cos(np.pi * ramp)) / 2)[:, None])
    if planted.knn:
        _knn(rng, planted, write, steps[::10], events)
    if planted.spectrum:
        _spectrum(rng, planted, write, steps[::50])
    writer.close("completed")
    return Analysis(Run(folder), tuple(sorted(events)), (), pd.DataFrame(columns=LAGS), (), {})


def _norms(rng, planted, names, steps, events) -> np.ndarray:
    trend = 1.0 if planted.constant else (1 + 3 * np.exp(-steps / max(len(steps) / 8, 1)))[:, None]
    noise = 0.0 if planted.constant else 0.18
    norms = np.exp(rng.normal(0, noise, (len(steps), 2 * len(names))).astype(np.float32)) * trend
    norms *= np.repeat(np.geomspace(2, 0.2, len(names)), 2)
    for layer, step, ratio in planted.spikes:
        for at, part in ((step - 1, 0.4), (step, 1.0), (step + 1, 0.6), (step + 2, 0.3)):
            norms[at, 2 * layer : 2 * layer + 2] *= 1 + (ratio - 1) * part
        score = float(np.log(ratio) / 0.18)
        at = [step - 1 + planted.first, step + planted.first, step + planted.first, step + 2 + planted.first]
        events.append(Event(*at, "spike", "gradients.norm", names[layer], ratio, score))
    for layer, step, value in planted.not_finite:
        norms[step, 2 * layer] = value
    if planted.frozen:
        norms[:, :2] = 0.0
    return norms.astype(np.float32)


def _knn(rng, planted, write, steps, events) -> None:
    curve = planted.final - (planted.final - 0.1) * np.exp(-steps / max(steps[-1] / 12, 1))
    for start, stop, depth in planted.dips:
        inside = (steps >= start) & (steps <= stop)
        curve[inside] -= depth * np.sin(np.pi * (steps[inside] - start + 5) / (stop - start + 10))
        at = (
            start + planted.first,
            start + 5 + planted.first,
            (start + stop) // 2 + planted.first,
            stop + planted.first,
        )
        events.append(Event(*at, "dip", "knn.accuracy", planted.knn[0], depth, 5.0))
    offset = 0.02 * np.arange(len(planted.knn))
    accuracy = np.clip(curve[:, None] - offset + rng.normal(0, 0.003, (len(steps), len(offset))), 0, 1)
    if planted.constant:
        accuracy[:] = planted.final
    write("knn.accuracy", list(planted.knn), steps, accuracy, samples=360)
    write("knn.standard_error", list(planted.knn), steps, np.sqrt(accuracy * (1 - accuracy) / 360))


def _spectrum(rng, planted, write, steps) -> None:
    ranks = []
    for name, dimension in (("representation", 96), ("projection", 64)):
        decay = np.linspace(0.5, 1.5, len(steps))[:, None]
        values = np.arange(1, dimension + 1.0) ** -decay * (1 + rng.random((len(steps), 1)))
        if planted.collapsed and name == "projection":
            fall = np.linspace(0, 40, len(steps))[:, None]
            values[:, -planted.collapsed :] *= np.exp(-fall)
            values[len(steps) // 2 :, -planted.collapsed // 2 :] = 0.0
        p = values / values.sum(axis=1, keepdims=True)
        ranks.append(np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=1)))
        write(f"spectrum.{name}", [str(each) for each in range(dimension)], steps, values, samples=2000)
    write("spectrum.rank", ["representation", "projection"], steps, np.stack(ranks, axis=1))

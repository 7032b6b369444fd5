"""Series and whole runs with planted spikes, dips, collapses and lags, and the truth about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from stabilitylab import parameters
from stabilitylab.findings import Event
from stabilitylab.run import RunWriter

__all__ = ["Parameters", "Synthetic", "noise", "spike_shape", "synthesize", "trend", "write"]

Noise = Literal["gaussian", "student", "autocorrelated", "bursty"]
Trend = Literal["flat", "warmup", "decay", "waves", "drop", "drift"]


class Parameters(parameters.Parameters):
    """What a synthetic run contains."""

    steps: int = Field(2000, ge=1)
    """Number of steps."""
    layers: int = Field(6, ge=1)
    """Number of layers; the first one is ``patch_embed``, then ``blocks.0`` and so on."""
    tensors: int = Field(1, ge=1)
    """Parameters in each layer, of equal share in its norm."""
    noise: Noise = "gaussian"
    """Shape of the noise of the log norms."""
    sd: float = Field(0.1, ge=0)
    """Standard deviation of that noise (natural logarithm)."""
    trend: Trend = "flat"
    """What the level does."""
    spikes: tuple[int, ...] = ()
    """Steps at which spikes begin in the first layer."""
    heights: tuple[float, ...] = (4.0,)
    """Height of the spikes as ratios to the level, one for each layer or one for all."""
    lags: tuple[int, ...] = (0,)
    """Delay of the spikes in each layer, in steps, one for each layer or one for all."""
    timing_noise: float = Field(0.0, ge=0)
    """Standard deviation of the delay of each spike in each later layer, in steps."""
    length: int = Field(1, ge=1)
    """Number of steps for which a spike stays at its height."""
    ramp: int = Field(0, ge=0)
    """Number of steps in which a spike rises before it."""
    missed: float = Field(0.0, ge=0, le=1)
    """Share of the spikes that a later layer does not have."""
    nonfinite: tuple[int, ...] = ()
    """Steps at which all gradients and the loss are NaN."""
    dips: tuple[int, ...] = ()
    """Steps at which dips of the kNN accuracy begin."""
    depth: float = Field(0.1, gt=0, lt=1)
    """Depth of the dips."""
    dip_length: int = Field(40, ge=1)
    """Length of the dips in steps."""
    images: int = Field(500, ge=1)
    """Number of fixed held-out images."""
    knn_every: int = Field(10, ge=1)
    """Steps between measurements of the accuracy."""
    dimensions: int = Field(16, ge=2)
    """Dimensions of the embeddings."""
    spectrum_every: int = Field(50, ge=1)
    """Steps between spectra."""
    collapse_at: int | None = None
    """Step from which directions of the projection are dead."""
    dead: int = Field(6, ge=1)
    """How many of them; all dimensions make a complete collapse."""
    diverge_at: int | None = None
    """Step at which the loss jumps for good."""
    seed: int = 0
    """Seed of everything random."""

    @model_validator(mode="after")
    def _lengths(self) -> Parameters:
        for name in ("heights", "lags"):
            if len(getattr(self, name)) not in (1, self.layers):
                raise ValueError(f"{name} must have one value or one for each of the {self.layers} layers")
        if self.dead > self.dimensions:
            raise ValueError(f"dead must not exceed the {self.dimensions} dimensions")
        return self


@dataclass(frozen=True)
class Synthetic:
    """A synthetic run: its series, what is said of them, its layers, and what was planted."""

    series: Mapping[str, pd.DataFrame]
    about: Mapping[str, Mapping[str, Any]]
    layers: Mapping[str, Any]
    """As in ``run.json``: names, of, first."""
    truth: tuple[Event, ...]
    """What was planted, heights without noise, scores infinite."""
    parameters: Parameters = field(default_factory=Parameters)

    def of(self, kind: str) -> list[Event]:
        """Return the planted events of one kind."""
        return [each for each in self.truth if each.kind == kind]


def noise(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return noise of variance one (bursty: of one in its quiet stretches), time along the first axis.

    Args:
        kind: ``gaussian``; ``student``: t with 5 degrees of freedom; ``autocorrelated``: AR(1) with 0.5;
            ``bursty``: three times as large in stretches of 20 to 100 steps, a tenth of the time.
        shape: (T, number of series).
        rng: source of randomness.
    """
    white = rng.standard_normal(shape)
    if kind == "student":
        return rng.standard_t(5, shape) / np.sqrt(5 / 3)
    if kind == "autocorrelated":
        # the moving-average form of AR(1); 0.5 ** 40 is nothing
        longer = np.concatenate([rng.standard_normal((40, shape[1])), white])
        kernel = 0.5 ** np.arange(41)
        windows = np.lib.stride_tricks.sliding_window_view(longer, 41, axis=0)
        return np.sqrt(0.75) * windows @ kernel[::-1]
    if kind == "bursty":
        starts = rng.random(shape) < 1 / 600
        until = np.where(starts, np.arange(shape[0])[:, None] + rng.integers(20, 100, shape), -1)
        loud = np.maximum.accumulate(until, axis=0) >= np.arange(shape[0])[:, None]
        return np.where(loud, 3.0, 1.0) * white
    return white


def trend(kind: str, steps: int) -> np.ndarray:
    """Return the level of the log norm over time, shape (T,)."""
    time = np.arange(steps)
    if kind == "warmup":
        return 2.0 * (1 - np.exp(-time / 50))
    if kind == "decay":
        return 2.0 * np.exp(-time / 100)
    if kind == "waves":
        return 0.5 * np.sin(2 * np.pi * time / 500)
    if kind == "drop":
        return np.where(time < steps // 2, 0.0, -0.8)
    if kind == "drift":
        return time / max(steps, 1)
    return np.zeros(steps)


def spike_shape(height: float, length: int = 1, ramp: int = 0) -> np.ndarray:
    """Return log ratios of a spike: a ramp, linear in the logarithm, then so many steps at the height."""
    rise = np.arange(1, ramp + 1) / (ramp + 1)
    return np.log(height) * np.concatenate([rise, np.ones(length)])


def synthesize(chosen: Parameters | None = None, **fields: Any) -> Synthetic:
    """Return a synthetic run in memory.

    Args:
        chosen: what it contains.
        **fields: fields of `Parameters`, where none are given.
    """
    given = chosen or Parameters(**fields)
    rng = np.random.default_rng(given.seed)
    names = ["patch_embed", *(f"blocks.{each}" for each in range(given.layers - 1))]
    parts = ["weight", "bias", *(f"extra{each}" for each in range(given.tensors))][: given.tensors]
    of = {f"{layer}.{part}": layer for layer in names for part in parts}
    log, spikes = _gradients(given, names, rng)
    magnitudes = np.exp(log)
    magnitudes[[step for step in given.nonfinite if step < given.steps]] = np.nan
    norms = np.repeat(magnitudes / np.sqrt(given.tensors), given.tensors, axis=1).astype(np.float32)
    index = pd.RangeIndex(given.steps, name="step")
    loss, divergence = _loss(given, rng)
    accuracy, votes, dips = _accuracy(given, rng)
    spectra, collapses = _spectra(given, rng)
    columns = [str(each) for each in range(given.dimensions)]
    at = pd.Index(np.arange(0, given.steps, given.spectrum_every), name="step")
    series = {
        "gradients.norm": pd.DataFrame(norms, index=index, columns=list(of)),
        "training.loss": pd.DataFrame({"loss": loss}, index=index),
        "knn.accuracy": accuracy,
        "knn.correct": votes,
        "spectrum.projection": pd.DataFrame(spectra, index=at, columns=columns),
    }
    about = {
        "knn.accuracy": {"samples": given.images},
        "spectrum.projection": {"samples": 64 * given.dimensions, "dimensions": given.dimensions},
    }
    layers = {"names": names, "of": of, "first": names[0]}
    return Synthetic(series, about, layers, tuple(sorted(spikes + divergence + dips + collapses)), given)


def write(path: str | Path, chosen: Synthetic | Parameters | None = None, **fields: Any) -> Synthetic:
    """Write a synthetic run as a run folder and return it with its truth; its ``config`` names what was planted."""
    made = chosen if isinstance(chosen, Synthetic) else synthesize(chosen, **fields)
    header = {"layers": dict(made.layers), "config": {"synthetic": made.parameters.model_dump(mode="json")}}
    writer = RunWriter(path, header)
    for name, frame in made.series.items():
        if len(frame):
            writer.declare(name, list(frame.columns), **made.about.get(name, {}))
            writer.write(name, frame.index.to_numpy(), frame.to_numpy())
    writer.close("completed")
    return made


def _each(values: Sequence[Any], number: int) -> list[Any]:
    return list(values) * number if len(values) == 1 else list(values)


def _gradients(given: Parameters, names: Sequence[str], rng: np.random.Generator) -> tuple[np.ndarray, list[Event]]:
    log = trend(given.trend, given.steps)[:, None] + given.sd * noise(given.noise, (given.steps, given.layers), rng)
    log += np.linspace(0, -2, given.layers)  # layers have levels of their own
    events = []
    pairs = zip(names, _each(given.heights, given.layers), _each(given.lags, given.layers), strict=True)
    for column, (name, height, lag) in enumerate(pairs):
        shape = spike_shape(height, given.length, given.ramp)
        half = int(np.argmax(shape >= np.log(height) / 2))
        for step in given.spikes:
            late = round(given.timing_noise * rng.standard_normal()) if column else 0
            start = step + lag + late
            absent = column > 0 and rng.random() < given.missed
            if absent or not 0 <= start < given.steps - len(shape):
                continue
            log[start : start + len(shape), column] += shape
            times = (start, start + half, start + given.ramp, start + len(shape) - 1)
            events.append(Event(*times, "spike", "gradients.norm", name, float(height), np.inf))
    return log, events


def _loss(given: Parameters, rng: np.random.Generator) -> tuple[np.ndarray, list[Event]]:
    time = np.arange(given.steps)
    loss = 2.0 + 3.0 * np.exp(-time / 300) + 0.05 * rng.standard_normal(given.steps)
    events = []
    if given.diverge_at is not None and given.diverge_at < given.steps:
        start, last = given.diverge_at, given.steps - 1
        loss[start:] += 3.0
        events.append(Event(start, start, start, last, "divergence", "training.loss", "loss", 3.0, np.inf))
    for step in given.nonfinite:
        if step < given.steps:
            loss[step] = np.nan
            events.append(Event(step, step, step, step, "divergence", "training.loss", "loss", np.inf, np.inf))
    return loss, events


def _accuracy(given: Parameters, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, list[Event]]:
    """Return accuracy and votes: each image has a difficulty of its own and answers mostly as it did before."""
    steps = np.arange(0, given.steps, given.knn_every)
    right = 0.1 + 0.85 * (1 - np.exp(-steps / 150))
    events = []
    for start in given.dips:
        inside = (steps >= start) & (steps < start + given.dip_length)
        right[inside] -= given.depth
        if inside.any():
            first, last = int(steps[inside][0]), int(steps[inside][-1])
            events.append(Event(first, first, first, last, "dip", "knn.accuracy", "bank", given.depth, np.inf))
    difficulty = rng.random(given.images)
    moved = difficulty + 0.02 * rng.standard_normal((len(steps), given.images))
    votes = (moved < right[:, None]).astype(np.uint8)
    index = pd.Index(steps, dtype="int64", name="step")
    bank = votes.mean(axis=1)
    queue = np.clip(bank + 0.003 * rng.standard_normal(len(steps)), 0, 1)
    queue[steps < 50] = np.nan
    accuracy = pd.DataFrame({"bank": bank, "queue": queue}, index=index)
    return accuracy, pd.DataFrame(votes, index=index, columns=[str(each) for each in range(given.images)]), events


def _spectra(given: Parameters, rng: np.random.Generator) -> tuple[np.ndarray, list[Event]]:
    steps = np.arange(0, given.steps, given.spectrum_every)
    law = np.arange(1, given.dimensions + 1) ** -0.5
    spectra = law * np.exp(0.05 * rng.standard_normal((len(steps), given.dimensions)))
    events = []
    if given.collapse_at is not None:
        after = steps >= given.collapse_at
        spectra[np.ix_(after, np.arange(given.dimensions) >= given.dimensions - given.dead)] *= 1e-8
        if after.any():
            first, last, label = int(steps[after][0]), int(steps[-1]), str(given.dimensions - given.dead)
            height = float(given.dimensions if given.dead == given.dimensions else given.dead)
            events.append(Event(first, first, first, last, "collapse", "spectrum.projection", label, height, np.inf))
    return -np.sort(-spectra, axis=1), events

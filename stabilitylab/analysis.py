"""From a run to events, episodes, lags and findings; it can run again with other parameters, and loads no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field, ValidationError

from stabilitylab import parameters, plugins, telling
from stabilitylab.detectors import dip, spike
from stabilitylab.disk.atomic import replace, write_json
from stabilitylab.episodes import follow, group, layer_magnitudes
from stabilitylab.errors import InputError
from stabilitylab.findings import Episode, Event, Finding
from stabilitylab.leads import COLUMNS, lags
from stabilitylab.run import Run

__all__ = ["Analysis", "Parameters", "analyze", "layer_magnitudes"]

LARGEST_VOTES = 2**29
"""Bytes of votes per image that are read at most; beyond it the binomial error is used."""


class Parameters(parameters.Parameters):
    """How events are joined and compared; the detectors have parameters of their own."""

    episode_gap: int = Field(20, ge=0)
    """Steps without an onset after which a new episode begins."""
    window: int = Field(100, ge=1)
    """Steps within which an event of a later layer is matched with one of the first layer."""
    near: int = Field(10, ge=0)
    """Steps within which events of two layers count as associated."""
    horizon: int = Field(100, ge=1)
    """Steps after the start of a spike within which a dip counts as following it."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Level of the tests, corrected over layers."""
    thresholds: tuple[float, ...] = (6.0, 8.0, 10.0)
    """Scores over which the sign of a lag must not turn."""
    draws: int = Field(2000, ge=100)
    """Number of bootstrap samples and surrogates."""
    seed: int = 0
    """Seed of the random draws."""


@dataclass(frozen=True)
class Analysis:
    """What an analysis of one run found."""

    run: Run
    events: tuple[Event, ...]
    """Ordered by start."""
    episodes: tuple[Episode, ...]
    """Gradient spikes joined over layers, ordered in time, with what followed."""
    lags: pd.DataFrame
    """One row for each later layer, see `stabilitylab.leads.lags`."""
    findings: tuple[Finding, ...]
    parameters: Mapping[str, Any]
    """All parameters, those of the detectors under their names."""

    def save(self, folder: str | Path | None = None) -> Path:
        """Write ``events.parquet``, ``lags.parquet`` and ``findings.json``, each whole or not at all.

        Args:
            folder: by default ``analysis`` in the run.

        Returns:
            The folder.
        """
        folder = Path(folder) if folder is not None else self.run.path / "analysis"
        folder.mkdir(parents=True, exist_ok=True)
        events = pd.DataFrame([asdict(each) for each in self.events], columns=list(Event.__dataclass_fields__))
        for name, frame in (("events", events), ("lags", self.lags)):
            replace(folder / f"{name}.parquet", partial(frame.to_parquet, index=False))
        content = {"schema": 1, "run": self.run.name, "parameters": self.parameters, "findings": list(self.findings)}
        write_json(folder / "findings.json", content | {"episodes": list(self.episodes)})
        return folder

    def show(self, mirror: Any) -> None:
        """Show each event and each finding to a tracker, as a text and, where it has them, a marker.

        Args:
            mirror: the name of a mirror, such as ``tensorboard``, which writes into ``analysis`` in the run; or an
                object with the methods of `stabilitylab.recording.mirror.Mirror`.

        Raises:
            InputError: if there is no mirror of that name, or what it needs is not installed.
        """
        folder = self.run.path / "analysis"
        tracker = plugins.load("mirrors", mirror)(folder, 0) if isinstance(mirror, str) else mirror
        for each in self.events:
            where = f"{each.label} of {each.series}, steps {each.start:,} to {each.stop:,}"
            tracker.event(each.peak, each.kind, f"{each.kind} in {where}: height {each.height:.3g}")
        last = max((each.stop for each in self.events), default=0)
        for finding in self.findings:
            tracker.event(last, "finding", f"{finding.kind} ({finding.verdict}): {finding.sentence}")
        tracker.close()


def analyze(run: Run, **parameters: Any) -> Analysis:
    """Run every installed detector on the series that the run holds, and say what follows from the events.

    Args:
        run: may lack any series, be short, or be still written.
        **parameters: fields of `Parameters`, and for a detector a mapping under its name
            (``spike={"min_ratio": 2}``).

    Raises:
        InputError: if a parameter is unknown or out of range, or a series of the run is damaged.
    """
    limits, detectors = _build(parameters)
    events: list[Event] = []
    frames: dict[str, pd.DataFrame] = {}
    resolution: dict[str, spike.Resolution] = {}
    compared: dict[str, dip.Compared] = {}
    for detector in detectors.values():
        for name in detector.series:
            if name not in run:
                continue
            if name not in frames:
                frames[name] = layer_magnitudes(run) if name == "gradients.norm" else run[name]
            if isinstance(detector, spike.Detector):
                found, resolution = detector.examine(name, frames[name])
            elif isinstance(detector, dip.Detector):
                found, compared = detector.examine(name, frames[name], _about(run, name, frames[name]))
            else:
                found = detector.detect(name, frames[name], _about(run, name, frames[name]))
            events += found
    events.sort()
    layers = run.layers
    gradients = frames.get("gradients.norm", pd.DataFrame())
    spikes = [each for each in events if each.kind == "spike" and each.series == "gradients.norm"]
    others = [each for each in events if each.series != "gradients.norm"]
    episodes = follow(group(spikes, layers.names, limits.episode_gap), others, limits.horizon)
    table = pd.DataFrame(columns=list(COLUMNS))
    if not gradients.empty:
        table = lags(
            spikes,
            [name for name in layers.names if name in gradients or name == layers.first],
            layers.first,
            window=limits.window,
            near=limits.near,
            gap=limits.episode_gap,
            alpha=limits.alpha,
            thresholds=limits.thresholds,
            draws=limits.draws,
            seed=limits.seed,
        )
    used = limits.model_dump() | {name: each.parameters.model_dump() for name, each in detectors.items()}
    evidence = telling.Evidence(run, frames, tuple(events), tuple(episodes), table, resolution, compared, used)
    return Analysis(run, tuple(events), tuple(episodes), table, tuple(telling.tell(evidence)), used)


def _build(given: Mapping[str, Any]) -> tuple[Parameters, dict[str, Any]]:
    """Return the parameters of the analysis and every installed detector with its own."""
    available = plugins.names("detectors")
    unknown = [name for name in given if name not in available and name not in Parameters.model_fields]
    if unknown:
        known = ", ".join([*Parameters.model_fields, *available])
        raise InputError(f"analyze has no parameter {unknown[0]!r}; it has {known}")
    detectors = {}
    try:
        limits = Parameters(**{name: value for name, value in given.items() if name not in available})
        for name, path in available.items():
            kind = plugins.load("detectors", name)
            own = importlib.import_module(path).Parameters
            wanted = given.get(name, {})
            detectors[name] = kind(wanted if isinstance(wanted, own) else own(**wanted))
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(each) for each in wrong["loc"])
        raise InputError(f"{error.title} of the analysis: {where}: {wrong['msg']}, not {wrong['input']!r}") from error
    return limits, detectors


def _about(run: Run, name: str, frame: pd.DataFrame) -> dict[str, Any]:
    """Return what the run says of a series, with the votes per image beside an accuracy."""
    about = run.about(name)
    if name == "knn.accuracy" and "knn.correct" in run and "bank" in frame:
        images = len(run.about("knn.correct")["labels"])
        if 0 < images * len(frame) <= LARGEST_VOTES:
            votes = run["knn.correct"]
            whole = votes[votes.notna().all(axis=1)].astype("uint8")
            about |= {"correct": whole, "correct_label": "bank"}
    return about

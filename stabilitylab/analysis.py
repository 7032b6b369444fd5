"""From a run to events, episodes, lags and findings; it can run again with other parameters, and loads no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field, ValidationError

from stabilitylab import parameters, plugins, telling
from stabilitylab.calibration import Calibration
from stabilitylab.couplings import COLUMNS as COUPLINGS
from stabilitylab.couplings import couplings
from stabilitylab.detection import detect
from stabilitylab.disk.atomic import replace, write_json
from stabilitylab.episodes import follow, group, layer_magnitudes
from stabilitylab.errors import InputError
from stabilitylab.findings import Episode, Event, Finding
from stabilitylab.leads import COLUMNS, lags
from stabilitylab.phrasing import rounded
from stabilitylab.run import Run
from stabilitylab.sampling import blind_span, limit_lags
from stabilitylab.schema import SCHEMA
from stabilitylab.signals import leading_layer, signals_of

__all__ = ["Analysis", "Parameters", "analyze", "layer_magnitudes"]


class Parameters(parameters.Parameters):
    """How events are joined and compared; the detectors have parameters of their own."""

    episode_gap: int = Field(20, ge=0)
    """Steps without an onset after which a new episode begins."""
    window: int = Field(100, ge=1)
    """Steps within which an event of a later layer is matched with one of the first layer."""
    near: int = Field(10, ge=0)
    """Steps within which events of two layers count as associated."""
    horizon: int = Field(100, ge=1)
    """Steps after an event within which another one counts as following it."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Level of the tests, corrected over layers."""
    thresholds: tuple[float, ...] = (4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0)
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
    couplings: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COUPLINGS)))
    """One row for each warning and its target, see `stabilitylab.couplings.couplings`."""
    companions: tuple[Event, ...] = ()
    """Spikes of updates, of Adam's RMS and of the loss, drops of the rank: what couplings are about beside `events`."""
    calibration: Calibration | None = None
    """What the spike detector does with the resampled noise of this run; None where that cannot be said."""

    def save(self, folder: str | Path | None = None) -> Path:
        """Write ``events.parquet``, ``lags.parquet``, ``couplings.parquet`` and ``findings.json``, each whole.

        Args:
            folder: by default ``analysis`` in the run.

        Returns:
            The folder.
        """
        folder = Path(folder) if folder is not None else self.run.path / "analysis"
        folder.mkdir(parents=True, exist_ok=True)
        events = pd.DataFrame([asdict(each) for each in self.events], columns=list(Event.__dataclass_fields__))
        for name, frame in (("events", events), ("lags", self.lags), ("couplings", self.couplings)):
            replace(folder / f"{name}.parquet", partial(frame.to_parquet, index=False))
        content = {
            "schema": SCHEMA,
            "run": self.run.name,
            "parameters": self.parameters,
            "findings": list(self.findings),
        }
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
            tracker.event(each.peak, each.kind, f"{each.kind} in {where}: height {rounded(each.height)}")
        last = max((each.stop for each in self.events), default=0)
        for finding in self.findings:
            tracker.event(last, "finding", f"{finding.kind} ({finding.verdict}): {finding.sentence}")
        tracker.close()


def analyze(run: Run, *, reference: Sequence[Run] = (), **parameters: Any) -> Analysis:
    """Run every installed detector on the series that the run holds, and say what follows from the events.

    Args:
        run: may lack any series, be short, or be still written.
        reference: runs known to be good, with which the accuracy is compared at equal steps.
        **parameters: fields of `Parameters`, and for a detector a mapping under its name
            (``spike={"min_ratio": 2}``).

    Raises:
        InputError: if a parameter is unknown or out of range, a series of the run is damaged, or a reference holds no
            accuracy to compare with.
    """
    limits, detectors = _build(parameters)
    seen = detect(run, detectors, reference, limits.seed)
    events, layers = list(seen.events), run.layers
    gradients = seen.frames.get("gradients.norm", pd.DataFrame())
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
            magnitudes=gradients,
        )
        table = limit_lags(table, blind_span(gradients.index.to_numpy()))
    signals = signals_of(run, events, leading_layer(run), detectors["spike"], detectors["dip"])
    coupled = couplings(
        signals,
        horizon=limits.horizon,
        near=limits.near,
        gap=limits.episode_gap,
        alpha=limits.alpha,
        draws=limits.draws,
        seed=limits.seed,
    )
    companions = tuple(sorted({event for each in signals.values() for event in each.events} - set(events)))
    used = limits.model_dump() | {name: each.parameters.model_dump() for name, each in detectors.items()}
    evidence = telling.Evidence(
        run, seen.frames, seen.events, tuple(episodes), table, seen.resolution, seen.compared, used, coupled,
        companions, seen.drifted, seen.trials, seen.calibration,
    )  # fmt: skip
    told = tuple(telling.tell(evidence))
    return Analysis(run, seen.events, tuple(episodes), table, told, used, coupled, companions, seen.calibration)


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

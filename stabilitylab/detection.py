"""Every installed detector over the series of a run that it looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.calibration import Calibration, calibrate
from stabilitylab.detectors import collapse, dip, divergence, drift, spike
from stabilitylab.episodes import layer_magnitudes
from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.run import Run
from stabilitylab.trials import Trials, collapse_trials, dip_trials, divergence_trials

__all__ = ["Detected", "detect"]

LARGEST_VOTES = 2**29
"""Bytes of votes per image that are read at most; beyond it the binomial error is used."""


@dataclass(frozen=True)
class Detected:
    """What the detectors found, and what they say of what they could have found."""

    events: tuple[Event, ...]
    """Ordered by start."""
    frames: Mapping[str, pd.DataFrame]
    """The series that were there, gradients layer by layer."""
    resolution: Mapping[str, spike.Resolution]
    compared: Mapping[str, dip.Compared]
    drifted: Mapping[str, tuple[drift.Own | None, drift.Compared | None]]
    trials: Mapping[str, Trials | None]
    calibration: Calibration | None


def detect(run: Run, detectors: Mapping[str, Any], reference: Sequence[Run], seed: int) -> Detected:
    """Give each detector the series that it looks at.

    Args:
        run: may lack any series.
        detectors: by name.
        reference: runs known to be good, with which the accuracy is compared.
        seed: of what is drawn to try the detectors.
    """
    curves = _references(run, reference)
    events: list[Event] = []
    frames: dict[str, pd.DataFrame] = {}
    resolution: dict[str, spike.Resolution] = {}
    calibration: Calibration | None = None
    compared: dict[str, dip.Compared] = {}
    drifted: dict[str, tuple[drift.Own | None, drift.Compared | None]] = {}
    trials: dict[str, Trials | None] = {}
    for detector in detectors.values():
        for name in detector.series:
            if name not in run:
                continue
            if name not in frames:
                frames[name] = layer_magnitudes(run) if name == "gradients.norm" else run[name]
                if name == "knn.accuracy":
                    _check_parts(run, frames[name])
            if isinstance(detector, spike.Detector):
                found, resolution = detector.examine(name, frames[name])
                calibration = calibrate(frames[name], found, resolution, detector, seed)
            elif isinstance(detector, dip.Detector):
                about = _about(run, name, frames[name])
                found, compared = detector.examine(name, frames[name], about)
                trials[name] = _tried(frames[name], about, found, detector, seed)
            elif isinstance(detector, drift.Detector):
                about = _about(run, name, frames[name]) | {"references": curves}
                if name in trials:  # the dips are known
                    about["falls"] = [each for each in events if each.series == name]
                found, drifted = detector.examine(name, frames[name], about)
            else:
                about = _about(run, name, frames[name])
                found = detector.detect(name, frames[name], about)
                if isinstance(detector, collapse.Detector):
                    trials[name] = collapse_trials(frames[name], about, found, detector, seed)
                elif isinstance(detector, divergence.Detector) and not frames[name].empty:
                    first = [each for each in found if each.label == str(frames[name].columns[0])]
                    trials[name] = divergence_trials(frames[name].iloc[:, 0], first, detector, seed)
            events += found
    return Detected(tuple(sorted(events)), frames, resolution, compared, drifted, trials, calibration)


def _references(run: Run, references: Sequence[Run]) -> list[pd.DataFrame]:
    """Return the accuracy of each reference."""
    for each in references:
        if "knn.accuracy" not in each or each["knn.accuracy"].empty:
            raise InputError(f"{each.path} cannot be a reference: it holds no knn.accuracy")
        if each.path.resolve() == run.path.resolve():
            raise InputError(f"{run.path} cannot be its own reference; name other runs")
    curves = [each["knn.accuracy"] for each in references]
    for each, curve in zip(references, curves, strict=True):
        _check_parts(each, curve)
    return curves


def _check_parts(run: Run, accuracy: pd.DataFrame) -> None:
    """Refuse an accuracy that is not a part of 1, such as one in percent."""
    values = accuracy.to_numpy(dtype=float)
    wrong = values[np.isfinite(values) & ((values < 0) | (values > 1 + 1e-6))]
    if len(wrong):
        raise InputError(
            f"knn.accuracy of {run.path} holds {wrong[0]:g}, and accuracies are parts of 1: divide one in percent by "
            "100 where it is recorded (stabilitylab import does so)"
        )


def _tried(
    frame: pd.DataFrame, about: Mapping[str, Any], events: Sequence[Event], detector: dip.Detector, seed: int
) -> Trials | None:
    """Return what the detector of dips does on the column that is told."""
    label = "bank" if "bank" in frame or frame.empty else str(frame.columns[0])
    if label not in frame:
        return None
    known = about if about.get("correct_label", label) == label else {**about, "correct": None}
    return dip_trials(
        dip.measured(frame[label]), known, [each for each in events if each.label == label], detector, seed
    )


def _about(run: Run, name: str, frame: pd.DataFrame) -> dict[str, Any]:
    """Return what the run says of a series, with the votes per image beside an accuracy, and the spread of features."""
    about = run.about(name)
    if name in collapse.Detector.series:
        about |= {"feature_std": collapse.deviation(run, name)}
    if name == "knn.accuracy" and "knn.correct" in run and "bank" in frame:
        images = len(run.about("knn.correct")["labels"])
        if 0 < images * len(frame) <= LARGEST_VOTES:
            votes = run["knn.correct"]
            whole = votes[votes.notna().all(axis=1)].astype("uint8")
            about |= {"correct": whole, "correct_label": "bank"}
    return about

"""What is measured beside the gradients, one curve each: updates, Adam's RMS, the loss, the accuracy, the rank.

A curve is one column of numbers, so that many million steps fit; its events are those of the detectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stabilitylab.detectors import dip, spike
from stabilitylab.episodes import CELLS, layer_magnitudes
from stabilitylab.findings import Event
from stabilitylab.run import Run
from stabilitylab.sampling import spacing
from stabilitylab.stats.spectrum import effective_rank

__all__ = ["SIGNALS", "Signal", "curve_of", "leading_layer", "signals_of"]

SIGNALS = ("gradient", "update", "adam", "loss", "accuracy", "rank of representation", "rank of projection")
"""Every signal; those of gradient, update and Adam are of one layer."""

SERIES = {
    "gradient": "gradients.norm",
    "update": "updates.ratio",
    "adam": "adam.rms",
    "loss": "training.loss",
    "accuracy": "knn.accuracy",
}


FALLS = ("dip", "step", "drop")


@dataclass(frozen=True)
class Signal:
    """The events of one signal, and how finely it was measured."""

    name: str
    series: str
    label: str
    events: tuple[Event, ...] = ()
    every: int = 1
    """Steps between its measurements."""
    first: int = 0
    last: int = 0
    missing: str = ""
    """Why there is no such signal; empty where there is one."""


def leading_layer(run: Run) -> str | None:
    """Return the layer that sees the input, or, where it has no gradient (frozen), the first one that has."""
    if "gradients.norm" not in run:
        return run.layers.first or None
    names = run.layers.names
    for name in dict.fromkeys([run.layers.first, *names]):
        frame = layer_magnitudes(run, "gradients.norm", [name])
        if name in frame and (frame[name] > 0).any():
            return name
    return None


def curve_of(run: Run, name: str, layer: str | None) -> pd.Series | None:
    """Return a signal: index ``step``, named after its column; None where it was not recorded.

    Args:
        run: may lack any series.
        name: one of `SIGNALS`.
        layer: of gradient, update and Adam.
    """
    if name.startswith("rank of "):
        return _rank(run, name.removeprefix("rank of "))
    series = SERIES[name]
    if series not in run:
        return None
    labels = [str(each) for each in run.about(series)["labels"]]
    if name == "gradient":
        frame = layer_magnitudes(run, series, [layer]) if layer else pd.DataFrame()
        return frame.get(layer)
    if name in ("update", "adam"):
        return _layer_ratio(run, series, labels, layer)
    if not labels:
        return None
    label = "bank" if name == "accuracy" and "bank" in labels else labels[0]
    return run.read(series, [label])[label]


def _layer_ratio(run: Run, series: str, labels: list[str], layer: str | None) -> pd.Series | None:
    """Return the ratio of a layer: the quadratic mean over its tensors, each over its own median.

    A spike of one tensor shows, whatever the level of the others: that of a bias may be a hundred times that of a
    weight. A tensor that has no number at a step, or an infinite one (zeros that change), does not count there; the
    layer has none where no tensor has.
    """
    members = [each for each in run.layers.parameters(layer) if each in labels] if layer else []
    total, count, steps = np.zeros(0), np.zeros(0), None
    for column in _columns(run, series, members):
        values = column.to_numpy(dtype=float)
        known = np.isfinite(values)
        usual = float(np.median(values[known & (values > 0)])) if (known & (values > 0)).any() else 0.0
        if steps is None:
            steps, total, count = column.index, np.zeros(len(values)), np.zeros(len(values))
        if usual > 0:
            length = min(len(values), len(total))  # a run that is being written may have grown
            known, steps, total, count = known[:length], steps[:length], total[:length], count[:length]
            total[known] += (values[:length][known] / usual) ** 2
            count[known] += 1
    if steps is None:
        return None
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return pd.Series(np.sqrt(mean), steps, name=layer)


def _columns(run: Run, series: str, names: list[str]) -> Iterator[pd.Series]:
    """Yield columns of a series, the first one read alone, then so many together as hold no more than `CELLS`."""
    at, size = 0, 1
    while at < len(names):
        frame = run.read(series, names[at : at + size])
        yield from (frame[name] for name in names[at : at + size])
        at, size = at + size, max(1, CELLS // max(len(frame), 1))


def _rank(run: Run, tap: str) -> pd.Series | None:
    """Return the effective rank of an embedding as it was measured, or from its spectrum."""
    if "spectrum.rank" in run and tap in run.about("spectrum.rank")["labels"]:
        return run.read("spectrum.rank", [tap])[tap]
    if f"spectrum.{tap}" not in run:
        return None
    frame = run[f"spectrum.{tap}"]
    values = frame.to_numpy(dtype=float)
    whole = np.isfinite(values).all(axis=1)
    ranks = np.full(len(values), np.nan)
    ranks[whole] = effective_rank(np.maximum(values[whole], 0.0))  # rounding makes eigenvalues of zero negative
    return pd.Series(ranks, frame.index, name=tap)


def signals_of(
    run: Run, events: Iterable[Event], layer: str | None, spikes: spike.Detector, dips: dip.Detector
) -> dict[str, Signal]:
    """Return every signal with its events; one curve is in memory at a time.

    Gradient spikes and falls of the accuracy are taken from the events found already; updates, Adam's RMS and the loss
    are given to the spike detector, the effective rank to the dip detector, which knows nothing of its error but its
    own fluctuation. What is not finite is no event: it reaches every series in the same step.

    Args:
        run: may lack any series.
        events: of the analysis.
        layer: of gradient, update and Adam.
        spikes: with the parameters of the analysis.
        dips: likewise.
    """
    found = list(events)
    signals = {}
    for name in SIGNALS:
        series = SERIES.get(name, "spectrum.rank")
        curve = curve_of(run, name, layer)
        if curve is None or len(curve) == 0:
            what = series if name in SERIES else f"spectrum.{name.removeprefix('rank of ')}"
            reason = f"{what} holds nothing of it" if what in run else f"{what} was not recorded"
            signals[name] = Signal(name, series, "", missing=reason)
            continue
        label, steps = str(curve.name), curve.index.to_numpy()
        if name in ("gradient", "accuracy"):
            kinds = ("spike",) if name == "gradient" else FALLS
            own = [each for each in found if each.series == series and each.label == label and each.kind in kinds]
        elif name in SERIES:
            values = _positive(curve.to_numpy(dtype=float)) if name == "loss" else curve.to_numpy(dtype=float)
            own = spikes.detect(series, pd.DataFrame({label: values}, index=curve.index), {})
            own = [each for each in own if each.kind == "spike"]
        else:
            own = dips.detect(series, pd.DataFrame({label: curve}), {})
        own = [each for each in own if np.isfinite(each.height)]
        signals[name] = Signal(name, series, label, tuple(own), spacing(steps), int(steps[0]), int(steps[-1]))
    return signals


def _positive(loss: np.ndarray) -> np.ndarray:
    """Return a loss that has a logarithm: as it is, or, if it is not always positive, in units of its fluctuation.

    The exponential of a tenth of them, so that the detector of log magnitudes sees a linear scale on which 1.5 times
    the level are four standard deviations.
    """
    finite = loss[np.isfinite(loss)]
    if len(finite) < 2 or (finite > 0).all():
        return loss
    scale = 1.05 * float(np.median(np.abs(np.diff(finite))))  # of normal noise the standard deviation
    if scale == 0:
        return np.where(np.isfinite(loss), 1.0, loss)
    with np.errstate(invalid="ignore"):
        return np.exp(np.clip(0.1 * (loss - np.median(finite)) / scale, -500, 500))

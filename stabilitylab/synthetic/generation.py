"""From parameters to a whole run, in memory and on disk, with its truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.disk.atomic import write_json
from stabilitylab.findings import to_json
from stabilitylab.run import RunWriter
from stabilitylab.synthetic import curves, spectra
from stabilitylab.synthetic.gradients import companions, gradients
from stabilitylab.synthetic.parameters import Parameters
from stabilitylab.synthetic.truth import Phase, Synthetic

__all__ = ["TRUTH", "synthesize", "truth_of", "write"]

TRUTH = "truth.json"
"""The file of a run folder that says what was planted."""


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
    broken = list(given.nonfinite)
    log, events, leaders = gradients(given, names, rng)
    magnitudes = np.exp(log)
    magnitudes[broken] = np.nan
    norms = np.repeat(magnitudes / np.sqrt(given.tensors), given.tensors, axis=1).astype(np.float32)
    loss, in_loss, after_loss = curves.loss(given, leaders, rng)
    accuracy, votes, in_accuracy, after_accuracy = curves.accuracy(given, leaders, rng)
    made, in_spectra, after_spectra = spectra.spectra(given, leaders, rng)
    events += in_loss + in_accuracy + in_spectra
    couplings = after_loss + after_accuracy + after_spectra
    series = {
        "gradients.norm": _frame(norms, np.arange(given.steps), list(of)),
        "training.loss": _frame(loss[:, None], np.arange(given.steps), ["loss"]),
        "knn.accuracy": accuracy,
        "knn.correct": votes,
    }
    about: dict[str, dict[str, Any]] = {"knn.accuracy": {"samples": given.images}}
    at = np.arange(0, given.steps, given.spectrum_every)
    for tap, values in made.items():
        series[f"spectrum.{tap}"] = _frame(values, at, [str(each) for each in range(given.dimensions)])
        about[f"spectrum.{tap}"] = {"samples": 64 * given.dimensions, "dimensions": given.dimensions}
    if given.rank and made:
        series["spectrum.rank"] = _frame(spectra.ranks(made), at, list(made))
    for name in [each for each, wanted in (("updates.ratio", given.updates), ("adam.rms", given.adam)) if wanted]:
        steps, values, own, coupling = companions(given, names, leaders, name)
        values[np.isin(steps, broken)] = np.nan
        repeated = np.repeat(values, given.tensors, axis=1).astype(np.float32)  # a ratio: the same in each tensor
        series[name] = _frame(repeated, steps, list(of))
        events += own
        couplings += coupling
    layers = {"names": names, "of": of, "first": names[0]}
    phases = tuple(Phase(*each, given.phase_coupled, given.phase_rate) for each in given.phases)
    return Synthetic(series, about, layers, tuple(sorted(events)), given, tuple(couplings), phases)


def _frame(values: np.ndarray, steps: np.ndarray, labels: list[str]) -> pd.DataFrame:
    return pd.DataFrame(values, index=pd.Index(steps, dtype="int64", name="step"), columns=labels)


def write(path: str | Path, chosen: Synthetic | Parameters | None = None, **fields: Any) -> Synthetic:
    """Write a synthetic run as a run folder and return it with its truth, which stands in ``truth.json`` too.

    Raises:
        InputError: if the folder holds a run already, or cannot be written.
    """
    made = chosen if isinstance(chosen, Synthetic) else synthesize(chosen, **fields)
    header = {"layers": dict(made.layers), "config": {"synthetic": made.parameters.model_dump(mode="json")}}
    writer = RunWriter(path, header)
    write_json(Path(path) / TRUTH, truth_of(made))
    for name, frame in made.series.items():
        if len(frame):
            writer.declare(name, list(frame.columns), **made.about.get(name, {}))
            writer.write(name, frame.index.to_numpy(), frame.to_numpy())
    writer.close("completed")
    return made


def truth_of(made: Synthetic) -> dict[str, Any]:
    """Return the content of ``truth.json``.

    Returns:
        ``schema``: 1. ``events``: what was planted, each with the fields of `stabilitylab.findings.Event`, ordered by
        start; ``label`` is a layer, or a column of the series. ``lags``: layer to its delay in steps, positive where
        it follows the first one. ``couplings``: ``series`` and ``kind`` of the events that go with gradient spikes of
        the first layer, their ``lag`` in steps (negative: before), and the first steps of the ``spikes`` that have
        one. ``phases``: ``start``, ``stop`` (the step after the last), ``coupled``, ``rate``. ``parameters``: every
        field of `Parameters`. Numbers that are not finite are the strings ``inf``, ``-inf`` and ``nan``.
    """
    content = {
        "schema": 1,
        "events": list(made.truth),
        "lags": made.lags,
        "couplings": list(made.couplings),
        "phases": list(made.phases),
        "parameters": made.parameters.model_dump(mode="json"),
    }
    return dict(to_json(content))

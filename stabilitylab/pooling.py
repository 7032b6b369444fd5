"""Several runs of one configuration as one body of evidence: lags pooled within runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from stabilitylab.analysis import Analysis
from stabilitylab.episodes import layer_magnitudes
from stabilitylab.errors import InputError
from stabilitylab.findings import Episode, Finding
from stabilitylab.leads import COLUMNS, lags
from stabilitylab.phrasing import ending, joined
from stabilitylab.sampling import blind_span, limit_lags
from stabilitylab.telling.leads import say_depth, say_lead

__all__ = ["Pooled", "pool"]


@dataclass(frozen=True)
class Pooled:
    """What several runs say together."""

    runs: tuple[str, ...]
    """Their names."""
    lags: pd.DataFrame
    """One row for each later layer, see `stabilitylab.leads.lags`."""
    findings: tuple[Finding, ...]
    """``lead`` and ``order over depth``; none where no run has a spike."""


def pool(analyses: Sequence[Analysis]) -> Pooled:
    """Return lags and findings of several runs of one configuration, such as seeds, pooled within runs.

    Events are matched, joined into clusters and moved at random within their run; tests, intervals and corrections
    stand on the clusters of all runs.

    Args:
        analyses: of different runs that have the same layers, made with the same parameters.

    Raises:
        InputError: if there is none, one is given twice, or layers or parameters differ.
    """
    if not analyses:
        raise InputError("there is no run to pool; give one or more")
    model = analyses[0]
    for at, each in enumerate(analyses):
        _fits(model, each)
        if each.run.path.resolve() in [other.run.path.resolve() for other in analyses[:at]]:
            raise InputError(f"the run {each.run.name} is given twice: its spikes would count twice")
    layers, limits = model.run.layers, model.parameters
    with_gradients = [each for each in analyses if not each.lags.empty]
    episodes: list[Episode] = [episode for each in analyses for episode in each.episodes]
    names = tuple(each.run.name for each in analyses)
    if not with_gradients:
        return Pooled(names, pd.DataFrame(columns=list(COLUMNS)), ())
    seen = {name for each in with_gradients for name in each.lags["layer"]}
    frames = [layer_magnitudes(each.run) for each in with_gradients]
    table = lags(
        [[event for event in each.events if _is_spike(event.kind, event.series)] for each in with_gradients],
        [name for name in layers.names if name in seen or name == layers.first],
        layers.first,
        window=limits["window"],
        near=limits["near"],
        gap=limits["episode_gap"],
        alpha=limits["alpha"],
        thresholds=limits["thresholds"],
        draws=limits["draws"],
        seed=limits["seed"],
        magnitudes=frames,
    )
    table = limit_lags(table, max(blind_span(each.index.to_numpy()) for each in frames))
    if not episodes:
        return Pooled(names, table, ())
    depth = [_unless_one_contradicts(each, analyses) for each in say_depth(episodes, layers.names, limits)]
    return Pooled(names, table, (say_lead(table, limits), *depth))


def _unless_one_contradicts(pooled: Finding, analyses: Sequence[Analysis]) -> Finding:
    """Return the finding without its claim if a run alone claims the opposite."""
    opposite = {"deeper later": "deeper sooner", "deeper sooner": "deeper later"}.get(pooled.verdict)
    against = [
        each.run.name
        for each in analyses
        for own in each.findings
        if own.kind == pooled.kind and own.verdict == opposite
    ]
    if not against:
        return pooled
    alone = f"{joined(against)}, taken alone, say{ending(len(against))} the opposite"
    sentence = f"{pooled.sentence} No order is claimed of them together: {alone}."
    return replace(pooled, verdict="none", sentence=sentence)


def _is_spike(kind: str, series: str) -> bool:
    return kind == "spike" and series == "gradients.norm"


def _fits(model: Analysis, other: Analysis) -> None:
    """Refuse a run that cannot be pooled with the first one."""
    ours, theirs = model.run.layers, other.run.layers
    pair = f"{model.run.name} and {other.run.name} cannot be pooled"
    if ours.names != theirs.names:
        only = [
            f"only {run.run.name} has {', '.join(names)}"
            for run, names in (
                (model, [name for name in ours.names if name not in theirs.names]),
                (other, [name for name in theirs.names if name not in ours.names]),
            )
            if names
        ]
        raise InputError(f"{pair}: their layers differ: {'; '.join(only) or 'they are in another order'}")
    if ours.first != theirs.first:
        raise InputError(f"{pair}: the first layer of one is {ours.first}, of the other {theirs.first}")
    for name, value in model.parameters.items():
        if other.parameters.get(name) != value:
            raise InputError(f"{pair}: they were analyzed with {name}={value!r} and {other.parameters.get(name)!r}")

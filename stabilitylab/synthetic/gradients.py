"""Gradient norms of each layer, the spikes in them, and what goes with those spikes in updates and Adam's RMS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.phrasing import count
from stabilitylab.synthetic.noise import bursts, noise, spike_shape, stream, trend
from stabilitylab.synthetic.parameters import Parameters
from stabilitylab.synthetic.truth import Coupling

__all__ = ["Planted", "companions", "coupled", "gradients"]


class Planted(NamedTuple):
    """Log norms of each layer, the spikes in them, and where those of the first layer begin."""

    log: np.ndarray
    events: list[Event]
    leaders: tuple[int, ...]
    """First steps of the spikes of the first layer that the other layers share."""


def gradients(given: Parameters, names: Sequence[str], rng: np.random.Generator) -> Planted:
    """Return log norms of shape (T, layers) with spikes."""
    log = trend(given.trend, given.steps)[:, None] + given.sd * _noise(given, rng)
    log += np.linspace(0, -2, given.layers)  # layers have levels of their own
    shared = [*given.spikes, *_random_spikes(given), *_phase_spikes(given, 0, given.phase_coupled)]
    heights = np.exp(given.height_noise * stream(given.seed, 1).standard_normal(len(shared)))
    heights = _each(given.heights, given.layers) * heights[:, None]
    events: list[Event] = []
    taken = np.zeros(log.shape, dtype=bool)
    taken[list(given.nonfinite)] = True
    for column, name in enumerate(names):
        lag = int(_each(given.lags, given.layers)[column])
        later = stream(given.seed, 100 + column)
        for number, step in enumerate(shared):
            drawn = rng if number < len(given.spikes) else later
            late = round(given.timing_noise * drawn.standard_normal()) if column else 0
            if column > 0 and drawn.random() < given.missed:
                continue
            found = _plant(log, taken, given, (name, column), step + lag + late, float(heights[number, column]))
            if found is None and number < len(given.spikes) and not late:
                raise InputError(
                    f"the spike at step {step + lag:,} of {name} lies on another one, or on a step of nonfinite: each "
                    f"takes {count(given.length + given.ramp, 'step')}"
                )
            events += found or []
        for step in _phase_spikes(given, 200 + column, not given.phase_coupled):
            height = float(_each(given.heights, given.layers)[column])
            events += _plant(log, taken, given, (name, column), step, height) or []
    delay = int(_each(given.lags, given.layers)[0])
    leaders = {each.start for each in events if each.label == names[0]} & {step + delay for step in shared}
    return Planted(log, events, tuple(sorted(leaders)))


def _noise(given: Parameters, rng: np.random.Generator) -> np.ndarray:
    """Return noise of variance one where nothing is changed, shape (T, layers)."""
    shape = (given.steps, given.layers)
    values = noise(given.noise, shape, rng, given.autocorrelation, given.freedom)
    if given.shared:
        common = noise(given.noise, (given.steps, 1), stream(given.seed, 2), given.autocorrelation, given.freedom)
        values = np.sqrt(1 - given.shared) * values + np.sqrt(given.shared) * common
    if given.bursts > 1:
        values[bursts(shape, stream(given.seed, 3))] *= given.bursts
    if given.noise_change_at is not None:
        values[given.noise_change_at :] *= given.noise_change
    return values * _each(given.loudness, given.layers)


def _random_spikes(given: Parameters) -> list[int]:
    """Return steps apart from each other and from the named spikes.

    Raises:
        InputError: if there is no room for so many.
    """
    room = np.ones(given.steps, dtype=bool)

    def take(step: int) -> None:
        room[max(step - given.spacing + 1, 0) : max(step + given.spacing, 0)] = False

    for step in given.spikes:
        take(step)
    found: list[int] = []
    for step in stream(given.seed, 4).permutation(given.steps).tolist() if given.random_spikes else ():
        if len(found) == given.random_spikes:
            break
        if room[step]:
            take(step)
            found.append(step)
    if len(found) < given.random_spikes:
        raise InputError(
            f"random_spikes is {given.random_spikes:,}, but only {len(found):,} found room in {given.steps:,} steps, "
            f"drawn at random and spacing = {given.spacing:,} apart: ask for fewer or more steps, or a smaller spacing"
        )
    return sorted(found)


def _phase_spikes(given: Parameters, purpose: int, wanted: bool) -> list[int]:
    """Return steps in the unstable phases at which spikes begin; they do not overlap."""
    rng = stream(given.seed, 1000 + purpose)
    found: list[int] = []
    for start, stop in given.phases if wanted else ():
        inside = np.flatnonzero(rng.random(max(min(stop, given.steps) - start, 0)) < given.phase_rate) + start
        for step in inside.tolist():
            if not found or step - found[-1] > given.length + given.ramp:
                found.append(step)
    return found


def _plant(
    log: np.ndarray, taken: np.ndarray, given: Parameters, layer: tuple[str, int], start: int, height: float
) -> list[Event] | None:
    """Add a spike to a column and return its event: none outside of the run or of no height; None on another."""
    name, column = layer
    shape = spike_shape(height, given.length, given.ramp)
    if not 0 <= start < len(log) - len(shape) or min(height, _each(given.heights, given.layers)[column]) <= 1:
        return []
    if taken[start : start + len(shape), column].any():
        return None
    taken[start : start + len(shape), column] = True
    half = int(np.argmax(shape >= np.log(height) / 2))
    log[start : start + len(shape), column] += shape
    times = (start, start + half, start + given.ramp, start + len(shape) - 1)
    return [Event(*times, "spike", "gradients.norm", name, height, np.inf)]


def coupled(given: Parameters, leaders: Sequence[int], purpose: int) -> tuple[int, ...]:
    """Return which gradient spikes take part in a coupling."""
    takes = stream(given.seed, purpose).random(len(leaders)) < given.coupled_share
    return tuple(step for step, part in zip(leaders, takes.tolist(), strict=True) if part)


def companions(
    given: Parameters, names: Sequence[str], leaders: Sequence[int], series: str
) -> tuple[np.ndarray, np.ndarray, list[Event], list[Coupling]]:
    """Return steps and values (T, layers) of ``updates.ratio`` or ``adam.rms``, with their spikes before the leaders'.

    The noise of each is that of the gradients, drawn anew. A spike of a series that is measured every k steps lasts
    for k steps, so that it is seen.
    """
    update = series == "updates.ratio"
    every = 1 if update else given.adam_every
    lead, level, purpose = (given.update_lead, 1e-3, 10) if update else (given.adam_lead, 1.0, 20)
    log = np.log(level) + given.sd * _noise(given, stream(given.seed, purpose))
    steps = np.arange(0, given.steps, every)
    if lead is None:
        return steps, np.exp(log[::every]), [], []
    rise, events = np.log(given.coupled_height), []
    wanted = coupled(given, leaders, purpose + 1)
    taken = set()
    delays = _each(given.lags, given.layers) - given.lags[0]
    for column, name in enumerate(names):
        for step in wanted:
            start = step - lead + int(delays[column])
            seen = steps[(steps >= start) & (steps < start + every)]
            if start < 0 or not len(seen):
                continue
            taken.add(step)
            log[start : start + every, column] += rise
            first, last = int(seen[0]), int(seen[-1])
            events.append(Event(first, first, first, last, "spike", series, name, given.coupled_height, np.inf))
    return steps, np.exp(log[::every]), events, [Coupling(series, "spike", -lead, tuple(sorted(taken)))]


def _each(values: Sequence[Any], number: int) -> np.ndarray:
    """Return one value for each layer."""
    return np.broadcast_to(np.asarray(values), (number,))

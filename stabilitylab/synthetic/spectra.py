"""Spectra of embeddings, their effective rank, and what was planted in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stabilitylab.findings import Event
from stabilitylab.stats.spectrum import effective_rank
from stabilitylab.synthetic.gradients import coupled
from stabilitylab.synthetic.noise import stream
from stabilitylab.synthetic.parameters import Parameters
from stabilitylab.synthetic.truth import Coupling

__all__ = ["ranks", "spectra"]


def spectra(
    given: Parameters, leaders: Sequence[int], rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], list[Event], list[Coupling]]:
    """Return the eigenvalues of each tap, descending, of shape (T, dimensions)."""
    steps = np.arange(0, given.steps, given.spectrum_every)
    law = np.arange(1, given.dimensions + 1) ** -0.5
    taken: list[int] = []
    events: list[Event] = []
    dropped = np.zeros(len(steps), dtype=bool)
    for spike in coupled(given, leaders, 32) if given.rank_follow is not None else ():
        start = spike + (given.rank_follow or 0)
        inside = (steps >= start) & (steps < start + given.rank_length)
        dropped |= inside
        if inside.any():
            taken.append(spike)
            first, last = int(steps[inside][0]), int(steps[inside][-1])
            events += [
                Event(first, first, first, last, "drop", "spectrum.rank", tap, given.rank_drop, np.inf)
                for tap in given.taps
            ]
    made: dict[str, np.ndarray] = {}
    for number, tap in enumerate(given.taps):
        own = rng if tap == "projection" else stream(given.seed, 40 + number)
        values = law * np.exp(0.05 * own.standard_normal((len(steps), given.dimensions)))
        values[dropped] = _lowered(values[dropped], given.rank_drop)
        if given.collapse_at is not None and tap == given.collapse_tap:
            until = given.collapse_at + (given.collapse_length or given.steps)
            after = (steps >= given.collapse_at) & (steps < until)
            values[np.ix_(after, np.arange(given.dimensions) >= given.dimensions - given.dead)] *= 1e-8
            if after.any():
                first, last = int(steps[after][0]), int(steps[after][-1])
                label = str(given.dimensions - given.dead)
                events.append(
                    Event(first, first, first, last, "collapse", f"spectrum.{tap}", label, float(given.dead), np.inf)
                )
        made[tap] = -np.sort(-values, axis=1)
    couplings = []
    if given.rank_follow is not None:
        couplings = [Coupling("spectrum.rank", "drop", given.rank_follow, tuple(taken))]
    return made, events, couplings


def ranks(made: dict[str, np.ndarray]) -> np.ndarray:
    """Return the effective rank of each tap, shape (T, taps), as the probe ``spectrum`` measures it."""
    return np.stack([effective_rank(values) for values in made.values()], axis=1)


def _lowered(values: np.ndarray, part: float) -> np.ndarray:
    """Return spectra whose effective rank is lower by a part: a power of them, which leaves no direction dead."""
    if not len(values):
        return values
    wanted = (1 - part) * effective_rank(values)
    low, high = np.ones(len(values)), np.full(len(values), 64.0)
    for _ in range(50):  # the rank falls with the power
        middle = (low + high) / 2
        falls = effective_rank(values ** middle[:, None]) > np.maximum(wanted, 1.0)
        low, high = np.where(falls, middle, low), np.where(falls, high, middle)
    return values ** low[:, None]

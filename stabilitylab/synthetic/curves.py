"""The loss and the accuracy, with what was planted in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stabilitylab.findings import Event
from stabilitylab.synthetic.gradients import coupled
from stabilitylab.synthetic.parameters import Parameters
from stabilitylab.synthetic.truth import Coupling

__all__ = ["accuracy", "loss"]


def loss(
    given: Parameters, leaders: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, list[Event], list[Coupling]]:
    """Return the loss, shape (T,)."""
    time = np.arange(given.steps)
    values = 2.0 + 3.0 * np.exp(-time / 300) + 0.05 * rng.standard_normal(given.steps)
    events, couplings = [], []
    if given.loss_follow is not None:
        taken = tuple(s for s in coupled(given, leaders, 30) if 0 <= s + given.loss_follow < given.steps)
        for start in (step + given.loss_follow for step in taken):
            values[start] *= given.coupled_height
            times = (start, start, start, start)
            events.append(Event(*times, "spike", "training.loss", "loss", given.coupled_height, np.inf))
        couplings.append(Coupling("training.loss", "spike", given.loss_follow, taken))
    if given.diverge_at is not None:
        start, last = given.diverge_at, given.steps - 1
        values[start:] += 3.0
        events.append(Event(start, start, start, last, "divergence", "training.loss", "loss", 3.0, np.inf))
    for step in given.nonfinite:
        values[step] = np.nan
        events.append(Event(step, step, step, step, "divergence", "training.loss", "loss", np.inf, np.inf))
    return values, events, couplings


def accuracy(
    given: Parameters, leaders: Sequence[int], rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame, list[Event], list[Coupling]]:
    """Return accuracy and votes: each image has a difficulty of its own and answers mostly as it did before."""
    steps = np.arange(0, given.steps, given.knn_every)
    right = 0.1 + 0.85 * (1 - np.exp(-steps / 150))
    events: list[Event] = []
    for start in given.dips:
        _lower(right, events, steps, (start, start + given.dip_length), "dip", given.depth)
    taken = []
    for spike in coupled(given, leaders, 31) if given.dip_follow is not None else ():
        start = spike + (given.dip_follow or 0)
        if _lower(right, events, steps, (start, start + given.dip_length), "dip", given.depth):
            taken.append(spike)
    for start in given.accuracy_steps:
        _lower(right, events, steps, (start, given.steps), "step", given.step_depth)
    if given.degrade_at is not None:
        loss_so_far = np.clip((steps - given.degrade_at) / (given.steps - 1 - given.degrade_at), 0, 1)
        right -= given.degrade_by * loss_so_far
        _lower(right, events, steps, (given.degrade_at, given.steps), "drift", given.degrade_by, lower=False)
    difficulty = rng.random(given.images)
    moved = difficulty + 0.02 * rng.standard_normal((len(steps), given.images))
    votes = (moved < right[:, None]).astype(np.uint8)
    index = pd.Index(steps, dtype="int64", name="step")
    bank = votes.mean(axis=1)
    queue = np.clip(bank + 0.003 * rng.standard_normal(len(steps)), 0, 1)
    queue[steps < 50] = np.nan
    frame = pd.DataFrame({"bank": bank, "queue": queue}, index=index)
    images = pd.DataFrame(votes, index=index, columns=[str(each) for each in range(given.images)])
    couplings = []
    if given.dip_follow is not None:
        couplings = [Coupling("knn.accuracy", "dip", given.dip_follow, tuple(taken))]
    return frame, images, events, couplings


def _lower(
    right: np.ndarray,
    events: list[Event],
    steps: np.ndarray,
    between: tuple[int, int],
    kind: str,
    depth: float,
    lower: bool = True,
) -> bool:
    """Lower the accuracy between two steps, the second one left out, and note the measurements that show it, if any."""
    inside = (steps >= between[0]) & (steps < between[1])
    if not inside.any():
        return False
    if lower:
        right[inside] -= depth
    first, last = int(steps[inside][0]), int(steps[inside][-1])
    peak = last if kind == "drift" else first
    events.append(Event(first, first, peak, last, kind, "knn.accuracy", "bank", depth, np.inf))
    return True

"""How often the accuracy is said to fall after spikes that have nothing to do with it, and how small a fall is found.

``python tests/benchmarks/aftermath_errors.py [runs]``; prints shares at a level of 5 %, asserts nothing. Curves of
6,000 steps with a fluctuation of half a point, white or with a memory of .8 from measurement to measurement, and ones
that are measured in patches. Falls last 40 steps and begin so many steps after each spike.
"""

from __future__ import annotations

import sys
import time
from itertools import product

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from stabilitylab.episodes import aftermath
from stabilitylab.findings import Episode, Event

STEPS, NOISE = 6000, 0.005
EVERY, MEMORY = (1, 5, 20, 40), (0.0, 0.8)
SPIKES = ((6, "anywhere"), (20, "anywhere"), (20, "regular"))
FALLS, LATE = (0.004, 0.006, 0.01), (0, 20, 60)


def episodes(starts: np.ndarray) -> list[Episode]:
    events = (Event(t, t, t, t, "spike", "gradients.norm", "a", 4.0, 20.0) for t in np.sort(starts).tolist())
    return [Episode(each.start, each.stop, (each,), ("a",)) for each in events]


def curve(steps: np.ndarray, memory: float, rng: np.random.Generator) -> np.ndarray:
    white = rng.standard_normal(len(steps))
    return 0.8 - 0.3 * np.exp(-steps / 800) + NOISE * lfilter([np.sqrt(1 - memory**2)], [1, -memory], white)


def places(number: int, how: str, rng: np.random.Generator) -> np.ndarray:
    if how == "regular":
        return 400 + 260 * np.arange(number) + rng.integers(0, 100)
    return rng.integers(300, STEPS - 200, number)


def main(runs: int = 300) -> None:
    begun, rng = time.process_time(), np.random.default_rng(1)
    print(f"{runs} runs; part of them with p <= 0.05 where nothing falls")
    for every, memory, (number, how) in product(EVERY, MEMORY, SPIKES):
        steps = np.arange(0, STEPS, every)
        p = [
            aftermath(episodes(places(number, how, rng)), pd.Series(curve(steps, memory, rng), steps), rng, draws=200).p
            for _ in range(runs)
        ]
        print(f"every {every:2d}, memory {memory:.1f}, {number:2d} spikes {how:9}: {np.mean(np.array(p) <= 0.05):.3f}")
    for every, patch, period in ((5, 60, 400), (10, 100, 1000), (10, 120, 500)):
        steps = np.concatenate([np.arange(at, at + patch, every) for at in range(0, 20_000, period)])
        at = np.arange(period, 20_000, period) + patch // 2
        p = [aftermath(episodes(at), pd.Series(curve(steps, 0.0, rng), steps), rng, draws=200).p for _ in range(runs)]
        print(f"patches of {patch} steps every {period}: {np.mean(np.array(p) <= 0.05):.3f}", flush=True)
    print("part of the runs in which a fall is found, measured every 20 steps")
    steps = np.arange(0, STEPS, 20)
    for number, fall, late in product((6, 12), FALLS, LATE):
        found = []
        for _ in range(runs):
            at = places(number, "anywhere", rng)
            values = curve(steps, 0.0, rng)
            values -= fall * np.any((steps > at[:, None] + late) & (steps <= at[:, None] + late + 40), axis=0)
            found.append(aftermath(episodes(at), pd.Series(values, steps), rng, draws=200).p <= 0.05)
        print(f"{number:2d} spikes, {100 * fall:.1f} points, {late:2d} steps later: {np.mean(found):.2f}", flush=True)
    print(f"{time.process_time() - begun:.0f} s of CPU")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

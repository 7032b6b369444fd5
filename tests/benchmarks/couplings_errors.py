"""How often two kinds of events that have only an unstable phase in common are called coupled.

``python tests/benchmarks/couplings_errors.py [runs]``; prints shares of one pair tested alone, asserts nothing.

An event is moved by up to 150 steps (1.5 horizons), so that near the edges of a phase some are moved out of it: of a
phase of 1,000 steps 7 % of the events, of 300 steps a quarter. By chance, then, fewer meet than truly do, and the p of
being coupled alone is too small in phases shorter than some ten such widths; with moves that are folded back at the
edges of the phase, which are not known, it holds its level. A horizon of 100 steps cannot do with smaller moves, which
would leave most true followers where they are counted. The verdicts hold, because each of them needs a second test
beside it: an order by the signs of matched events, or nearness by moves of at most 40 steps.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from stabilitylab.couplings import couplings
from stabilitylab.findings import Event
from stabilitylab.signals import Signal

PHASES = ((300, 8), (300, 12), (600, 8), (600, 12), (1000, 12), (1000, 20), (3000, 20))
"""Steps, and events of each kind in it; five more anywhere in 10,000 steps."""

CLAIMS = ("warns", "together", "follows")
LAST = 10_000


def signal(name: str, times: np.ndarray) -> Signal:
    events = [Event(t, t, t, t, "spike", name, "a", 4.0, 20.0) for t in np.unique(times).tolist()]
    return Signal(name, name, "a", tuple(events), 1, 0, LAST)


def main(runs: int = 400) -> None:
    begun = time.process_time()
    print(f"{runs} runs; part of them with p <= 0.05 (moved one by one, in blocks, the larger; near), and with a claim")
    for length, number in PHASES:
        rng = np.random.default_rng(7)
        rows = []
        for seed in range(runs):
            given = {
                name: signal(name, np.r_[rng.integers(4000, 4000 + length, number), rng.integers(0, LAST, 5)])
                for name in ("update", "gradient")
            }
            rows.append(couplings(given, pairs=[("update", "gradient")], draws=400, seed=seed).iloc[0])
        parts = [np.mean([row[name] <= 0.05 for row in rows]) for name in ("p_jitter", "p_shift", "p", "p_near")]
        claims = np.mean([row["verdict"] in CLAIMS for row in rows])
        print(
            f"phase of {length:5,} steps, {number:2d} events: {', '.join(f'{each:.3f}' for each in parts)}; "
            f"claims {claims:.3f}",
            flush=True,
        )
    print(f"{time.process_time() - begun:.0f} s of CPU")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

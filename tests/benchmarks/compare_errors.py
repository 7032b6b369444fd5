"""How often a comparison of two groups claims a difference: where there is none, and where there is one.

Six measures of two groups of runs, drawn from one distribution; in the second part one of them is shifted by so many
standard deviations. ``python tests/benchmarks/compare_errors.py [repeats]``; prints shares, asserts nothing. Of 24
cells at a level of 5 % with 400 repeats the highest is expected near 7 %: see it again with 3,000 (``3000``).
"""

from __future__ import annotations

import sys
import time

import numpy as np
import pandas as pd

from stabilitylab.compare.contrast import contrast, corrected

MEASURES = ("spikes_per_10k", "tallest", "deepest", "final_accuracy", "rank", "area_lost")
REPEATS = 400
SIZES = (3, 4, 6)
DRAWS = {
    "gaussian": lambda rng, size: 10 + rng.normal(0, 1, size),
    "counts": lambda rng, size: 1.0 + rng.poisson(2, size),
    "rare counts": lambda rng, size: 1.0 + rng.poisson(0.3, size),
    "exponential": lambda rng, size: 1.0 + rng.exponential(1, size),
}


def share(draw: object, size: int, paired: bool, shift: float, repeats: int = REPEATS) -> float:
    """Return in which part of the comparisons any difference (with a shift: that one, rightly) is claimed."""
    claimed = 0
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        one, other = (pd.DataFrame({name: draw(rng, size) for name in MEASURES}) for _ in range(2))  # type: ignore[operator]
        other["rank"] += shift * np.std(draw(rng, 1000))  # type: ignore[operator]
        pairs = [(at, at) for at in range(size)] if paired else []
        verdicts = corrected(contrast(one, other, pairs, ("a", "b"), seed), 0.05).set_index("measure")["verdict"]
        claimed += verdicts["rank"] == "higher" if shift else verdicts.isin(["higher", "lower"]).any()
    return claimed / repeats


def main(repeats: int = REPEATS) -> None:
    begun = time.process_time()
    error = (0.05 * 0.95 / repeats) ** 0.5
    print(
        f"share of {repeats} comparisons that claim any difference where there is none (goal: at most 0.05; standard "
        f"error there {error:.3f})"
    )
    print(f"{'':14}" + "".join(f"{size:>4} pairs {size:>3}+{size:<3}" for size in SIZES))
    for name, draw in DRAWS.items():
        cells = [f"{share(draw, size, paired, 0, repeats):8.3f}" for size in SIZES for paired in (True, False)]
        print(f"{name:14}" + " ".join(cells))
    print("share of 200 that find a shift by 3 standard deviations in one of the six")
    for name, draw in DRAWS.items():
        cells = [f"{share(draw, size, paired, 3, 200):8.3f}" for size in SIZES for paired in (True, False)]
        print(f"{name:14}" + " ".join(cells))
    print(f"{time.process_time() - begun:.0f} s of CPU")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

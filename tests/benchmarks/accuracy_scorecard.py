"""How often the detectors of accuracy, spectra and loss are wrong, and what they find: printed tables.

``python tests/benchmarks/accuracy_scorecard.py [dips] [drift] [collapse] [divergence] [--curves N]``; all of it takes
about six minutes of CPU with the 40 curves of each cell that are the default. Dips are 5 measurements long; the drift
begins after 30 % of a curve that is flat from 5 % on. Everything is seeded; nothing is asserted.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from accuracy_curves import SHAPES, level, measured, wobble

from stabilitylab.detectors import collapse, dip, divergence, drift
from stabilitylab.stats.spectrum import dead_directions

LENGTH = 300
WOBBLES = {
    "none": (0.0, 0.0), "0.5 pt white": (0.005, 0.0), "1 pt, 0.5": (0.01, 0.5), "0.5 pt, 0.9": (0.005, 0.9),
    "1 pt, 0.97": (0.01, 0.97),
}  # fmt: skip
IMAGES = ((200, True), (200, False), (1000, True), (1000, False), (10_000, True), (10_000, False))
HEAD = "".join(f"{number:>7,}{' paired' if paired else '       '}" for number, paired in IMAGES)


def rate(detector, truth, images, paired, curves, hit=None):
    """Return the mean number of events a curve, or the part of the curves with an event for which ``hit`` holds."""
    curves = max(4, curves // 8) if images == 10_000 and paired else curves
    count = 0
    for seed in range(curves):
        rng = np.random.default_rng(seed)
        events = detector.detect("knn.accuracy", *measured(truth(rng), images, paired, rng))
        count += any(map(hit, events)) if hit else len(events)
    return count / curves


def row(name, values):
    print(f"  {name:<28}" + "".join(f"{value:>10.2f}    " for value in values), flush=True)


def dips(curves):
    found = dip.Detector()
    print(f"dips: false ones a curve of {LENGTH} measurements\n  {'shape, wobble':<28}{HEAD}")
    for shape in SHAPES:
        for name, (sd, memory) in WOBBLES.items():
            truth = lambda rng: level(shape, LENGTH) + wobble(sd, memory, LENGTH, rng)  # noqa: E731, B023
            row(f"{shape}, {name}", [rate(found, truth, *each, curves) for each in IMAGES])
    print(f"dips: part found\n  {'depth, wobble':<28}{HEAD}")
    for name, (sd, memory) in list(WOBBLES.items())[:4]:
        for depth in (0.005, 0.01, 0.02, 0.03, 0.05):

            def truth(rng):
                curve = level("saturating", LENGTH) + wobble(sd, memory, LENGTH, rng)  # noqa: B023
                curve[200:205] -= depth  # noqa: B023
                return curve

            near = lambda event: abs(event.start - 2000) <= 50  # noqa: E731
            row(f"{100 * depth:.1f} pt, {name}", [rate(found, truth, *each, curves, near) for each in IMAGES])


def drifts(curves):
    found = drift.Detector()
    for fall in (0.0, 0.01, 0.03, 0.06):
        print(f"drift: events a curve that loses {100 * fall:.0f} points\n  {'shape, wobble':<28}{HEAD}")
        for shape in SHAPES if fall == 0 else ("early peak",):
            for name, (sd, memory) in WOBBLES.items():
                lost = fall * np.clip((np.arange(LENGTH) / LENGTH - 0.3) / 0.7, 0, 1)
                truth = lambda rng: level(shape, LENGTH) - lost + wobble(sd, memory, LENGTH, rng)  # noqa: E731, B023
                row(f"{shape}, {name}", [rate(found, truth, *each, curves) for each in IMAGES])


def collapses(curves):
    rng = np.random.default_rng(0)
    ratios = (0.5, 0.9, 1.0, 1.1, 2, 5, 20, 100)
    print("collapse: mean number of dead directions found in one spectrum; N / d:", *ratios)
    for dimensions in (16, 64, 128):
        for alpha in (0.0, 1.0, 2.0):
            for dead in (0, dimensions // 10 + 1, dimensions // 2):
                deviations = np.arange(1, dimensions + 1) ** (-alpha / 2)
                deviations[dimensions - dead :] *= 1e-3
                means = []
                for ratio in ratios:
                    samples = round(ratio * dimensions)
                    clouds = [
                        rng.standard_normal((samples, dimensions)) * deviations for _ in range(max(3, curves // 10))
                    ]
                    spectra = np.array([np.linalg.eigvalsh(np.cov(each.T))[::-1] for each in clouds])
                    means.append(dead_directions(np.maximum(spectra, 0), samples).mean())
                row(f"d {dimensions}, law {alpha:.0f}, {dead} dead", means)
    steps = 20
    falls = []
    for _ in range(curves):
        rows = [np.linalg.eigvalsh(np.cov(rng.standard_normal((200, 64)).T))[::-1] for _ in range(steps)]
        frame = pd.DataFrame(np.maximum(rows, 0), columns=[str(each) for each in range(64)])
        falls.append(len(collapse.Detector().detect("spectrum.projection", frame, {"samples": 200})))
    print(f"  false events in {steps} spectra of white noise, 200 samples, 64 dimensions: {np.mean(falls):.2f}")


def divergences(curves):
    time_ = np.arange(1500)
    learned = 2 + 3 * np.exp(-time_ / 200)
    bumps = sum(np.where((time_ >= at) & (time_ < at + 20), 4.0, 0.0) for at in (300, 600, 900, 1440))
    quiet = {
        "a warm-up, then a fall": 2 + np.where(time_ < 300, time_ / 150, 2 * np.exp(-(time_ - 300) / 300)),
        "a filling queue": 2 + 3 * (1 - np.exp(-time_ / 100)),
        "a queue after a first fall": 2 + 3 * np.exp(-time_ / 30) + 1.5 * (1 - np.exp(-time_ / 200)),
        "a restart": learned + np.where(time_ >= 700, 1.5 * np.exp(-np.maximum(time_ - 700, 0) / 60), 0),
        "warm restarts": 2 + 0.4 * np.cos(np.pi * (time_ % 500) / 500),
        "spikes that recover": 2 + bumps,
        "a steady slow rise": 2 + time_ / 500,
    }
    gone = {
        "a jump of ten noises": 2 + 0.5 * (time_ >= 900),
        "a jump near the end": 2 + 2.0 * (time_ >= 1380),
        "running away": 2 + np.exp(np.clip(time_ - 900, 0, None) / 80) - 1,
        "all that was learned is lost": learned + np.clip((time_ - 700) / 500, 0, 1) * 6,
        "swings that grow tenfold": learned + np.where(time_ > 700, 10 ** ((time_ - 700) / 800), 0) * np.sin(time_ / 6),
        "half a point lost slowly": learned + np.clip((time_ - 700) / 800, 0, 1) / 2,
        "one step not finite": np.where(time_ == 700, np.nan, 2.0),
    }
    for title, cases in (("false", quiet), ("found", gone)):
        print(f"divergence: part of the losses in which it is {title}")
        for name, truth in cases.items():
            frames = [truth + 0.05 * np.random.default_rng(seed).standard_normal(1500) for seed in range(curves)]
            row(name, [np.mean([bool(_diverged(each)) for each in frames])])


def _diverged(values):
    return divergence.Detector().detect("training.loss", pd.DataFrame({"loss": values}), {})


PARTS = {"dips": dips, "drift": drifts, "collapse": collapses, "divergence": divergences}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    parser.add_argument("--curves", type=int, default=40)
    given = parser.parse_args()
    for part in given.parts:
        begin = time.process_time()
        PARTS[part](given.curves)
        print(f"({part}: {time.process_time() - begin:.0f} s of CPU)\n")

"""Scorecard of lead and lag: errors under four nulls, power, coverage of the interval, and the time of the surrogates.

``python tests/benchmarks/lag_scorecard.py [--runs 1000] [--detected 200] [--seed 0] [--only nulls detected ...]``

Nulls, of a first layer and five later ones: *independent* layers; independent layers that share an *unstable phase*;
*common* events at lag 0 with timing noise; common events at lag 0 of *unequal* heights (100x and 8x) and ramps, where
a taller event is also noticed sooner. The first two are nulls of the association as well. Event lists make many
runs; the rows "detected" go through the spike detector instead. A claim is a run that says of any layer that the first
one leads or follows it. Of *regular* spikes, which are followed after more than half the time to the next, a claim is
the wrong sign.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from stabilitylab.detectors import spike
from stabilitylab.episodes import group
from stabilitylab.findings import Event, Finding
from stabilitylab.leads import WIDTHS, lags
from stabilitylab.stats.lag import median_interval
from stabilitylab.synthetic import synthesize
from stabilitylab.telling.leads import say_depth

NAMES = list("abcdef")
STEPS = 10_000
ALPHA = 0.05
LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5)

NOISES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal, sd 2": lambda rng, number: 2 * rng.standard_normal(number),
    "normal, sd 5": lambda rng, number: 5 * rng.standard_normal(number),
    "Student (2), x 2": lambda rng, number: 2 * rng.standard_t(2, number),
    "normal, sd 0.7": lambda rng, number: 0.7 * rng.standard_normal(number),
}
"""Timing noise in steps."""

Make = Callable[[np.random.Generator], list[Event]]


def event(label: str, onset: float, height: float = 4.0, peak: float | None = None, score: float = 20.0) -> Event:
    at, top = round(float(onset)), round(float(onset if peak is None else peak))
    return Event(at, at, top, max(at, top), "spike", "gradients.norm", label, height, score)


def independent(rng: np.random.Generator) -> list[Event]:
    return [event(name, t) for name in NAMES for t in np.unique(rng.integers(0, STEPS, 25))]


def shared_phase(rng: np.random.Generator, length: int = 3000) -> list[Event]:
    times = {name: np.r_[rng.integers(2000, 2000 + length, 20), rng.integers(0, STEPS, 4)] for name in NAMES}
    return [event(name, t) for name in NAMES for t in np.unique(times[name])]


def short_phases(rng: np.random.Generator, number: int, length: int, events: int) -> list[Event]:
    """Independent layers that have events in several short phases alone, in all layers the same ones."""
    begins = 500 + np.arange(number) * (STEPS // number) + rng.integers(0, 1000, number)
    times = {name: (begins[:, None] + rng.integers(0, length, (number, events))).ravel() for name in NAMES}
    return [event(name, t) for name in NAMES for t in np.unique(times[name])]


def regular(rng: np.random.Generator, number: int = 25) -> list[Event]:
    """Spikes every 100 steps, with a deviation of 20, which later layers follow after 60."""
    times = 200 + np.cumsum(100 + 20 * rng.standard_normal(number))
    return [event(name, t + 60 * (name != "a")) for name in NAMES for t in times]


def bursty_phase(rng: np.random.Generator) -> list[Event]:
    """Independent layers whose events come in bursts of one to four, 40 steps long."""
    events = []
    for name in NAMES:
        bursts = rng.integers(2000, 5000, 10)
        times = np.concatenate([each + rng.integers(0, 40, rng.integers(1, 5)) for each in bursts])
        events += [event(name, t) for t in np.unique(times)]
    return events


def common(rng: np.random.Generator, number: int = 12, lag: float = 0.0, noise: float = 2.0) -> list[Event]:
    """All layers at once, each with timing noise of its own, the first one too."""
    times = 200 + 300 * np.arange(number) + rng.integers(0, 100, number)
    events = []
    for name in NAMES:
        moved = times + noise * rng.standard_normal(number) + (lag if name != NAMES[0] else 0.0)
        events += [event(name, t, 4 * np.exp(0.3 * rng.standard_normal())) for t in moved]
    return events


def delayed(rng: np.random.Generator, number: int = 12, lag: float = 5.0, noise: float = 2.0) -> list[Event]:
    """Later layers after the first one, with timing noise."""
    times = 200 + 300 * np.arange(number)
    events = [event("a", t) for t in times]
    for name in NAMES[1:]:
        events += [event(name, t) for t in times + lag + noise * rng.standard_normal(number)]
    return events


def unequal(rng: np.random.Generator, number: int = 12) -> list[Event]:
    """Heights of 100 and 8 in turn, from spike to spike too; a linear ramp of 10 passes half of the log rise sooner."""
    times = 200 + 300 * np.arange(number)
    events = []
    for at, name in enumerate(NAMES):
        for t in times:
            height = (100.0 if at % 2 == 0 else 8.0) * np.exp(0.3 * rng.standard_normal())
            half = 10 * (np.sqrt(height) - 1) / (height - 1)
            moved = t + 2 * rng.standard_normal()
            events.append(event(name, moved + half, height, moved + 10, 10 * np.log(height)))
    return events


def detected(frame: pd.DataFrame) -> list[Event]:
    events = spike.Detector().detect("gradients.norm", frame, {})
    return [each for each in events if each.kind == "spike"]


def planted(rng: np.random.Generator, **fields: object) -> tuple[pd.DataFrame, list[Event]]:
    made = synthesize(layers=6, seed=int(rng.integers(2**31)), images=2, knn_every=1000, **fields)  # type: ignore[arg-type]
    frame = made.series["gradients.norm"]
    frame.columns = pd.Index(NAMES)
    return frame, detected(frame)


def linear_ramps(rng: np.random.Generator) -> tuple[pd.DataFrame, list[Event]]:
    """Common spikes of 100x and 8x that rise in equal steps of the norm itself over 10 steps."""
    values = np.exp(0.1 * rng.standard_normal((4000, 6)))
    ramp = np.append(np.arange(1, 11) / 10, [1.0, 1.0])
    for start in range(200, 3800, 300):
        for layer in range(6):
            height = 100.0 if layer % 2 == 0 else 8.0
            values[start : start + 12, layer] *= 1 + (height - 1) * ramp
    frame = pd.DataFrame(values, columns=NAMES, index=pd.RangeIndex(4000, name="step"))
    return frame, detected(frame)


def shares(p: pd.Series) -> str:
    """Return the part of the p-values below each of some levels, and the largest excess over all levels."""
    known = p.dropna().to_numpy(dtype=float)
    parts = ", ".join(f"{(known <= level).mean():.3f}" for level in LEVELS)
    return f"p <= {', '.join(f'{level:g}' for level in LEVELS)}: {parts}; most above {excess(known):.3f}"


def excess(p: np.ndarray) -> float:
    """Return by how much more p-values lie below some level than it says, at most: one side of the KS distance."""
    p = np.sort(p[np.isfinite(p)])
    return float((np.arange(1, len(p) + 1) / len(p) - p).max(initial=0.0))


def errors(name: str, make: Make, runs: int, seed: int, associated: bool) -> None:
    """Print how often anything is claimed, and how the p-values are distributed."""
    rng = np.random.default_rng(seed)
    tables, trends = [], []
    for _ in range(runs):
        events = make(rng)
        tables.append(lags(events, NAMES, "a", draws=400))
        trends.append(say_depth(group(events, NAMES, 20), NAMES, {"seed": 0, "alpha": ALPHA, "episode_gap": 20})[0])
    print(f"{name:24s} {judged(tables)}")
    print(f"{'':24s} {trended(trends)}")
    if associated:
        print(f"{'':24s} {association_errors(tables)}")


def judged(tables: list[pd.DataFrame]) -> str:
    claims = np.mean([each["verdict"].isin(["leads", "follows"]).any() for each in tables])
    family = np.mean([(each["p_adjusted"] <= ALPHA).any() for each in tables])
    whole = pd.concat(tables)
    known = whole["p"].notna()
    single, wilcoxon = (whole.loc[known, "p"] <= ALPHA).mean(), (whole["p_wilcoxon"].dropna() <= ALPHA).mean()
    verdicts = ", ".join(f"{name} {part:.3f}" for name, part in whole["verdict"].value_counts(normalize=True).items())
    return (
        f"claims {claims:.3f}  sign test over layers {family:.3f}, of one layer {single:.3f} ({shares(whole['p'])})  "
        f"Wilcoxon, corrected, of one layer {wilcoxon:.3f}  matched {whole['matched'].mean():.1f}"
        f"\n{'':24s} verdicts: {verdicts}"
    )


def trended(trends: list[Finding]) -> str:
    page = pd.Series([each.numbers["p"] for each in trends])
    claims = np.mean([each.verdict in ("deeper later", "deeper sooner") for each in trends])
    return f"depth trend: claims {claims:.3f}; Page's p alone: {shares(page)}"


def association_errors(tables: list[pd.DataFrame]) -> str:
    whole = pd.concat(tables)
    said = []
    for name in (*(f"p_near_{width}" for width in WIDTHS), "p_near_shift"):
        values = whole[name].to_numpy(dtype=float)
        said.append(f"{name[7:]}: {(values <= ALPHA).mean():.3f} (most above {excess(values):.3f})")
    family = np.mean([(each["p_near_adjusted"] <= ALPHA).any() for each in tables])
    return f"association: over layers {family:.3f}; per layer by width {', '.join(said)}"


def through_detector(name: str, make: Callable[..., tuple[pd.DataFrame, list[Event]]], runs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables, agreed = [], []
    for _ in range(runs):
        frame, events = make(rng)
        tables.append(lags(events, NAMES, "a", draws=400, magnitudes=frame))
        agreed.append(tables[-1]["agrees"].mean())
    print(f"{name:24s} {judged(tables)}\n{'':24s} second opinion agrees {np.nanmean(agreed):.3f}")


def power(name: str, make: Make, runs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = pd.concat([lags(make(rng), NAMES, "a", draws=200) for _ in range(runs)])
    covered = ((whole["low"] <= 5) & (whole["high"] >= 5)).mean()
    print(f"{name:24s} leads {(whole['verdict'] == 'leads').mean():.3f} of the layers, interval covers {covered:.3f}")


def coverage(runs: int, seed: int) -> None:
    """Print how often the 95 % interval holds the true lag of 5; lags in whole steps."""
    rng = np.random.default_rng(seed)
    print("coverage     events: ", "  ".join(f"{number:>5d}" for number in (5, 8, 12, 25, 50)))
    for name, noise in NOISES.items():
        row = [covers(runs, partial(single, rng, noise, n)) for n in (5, 8, 12, 25, 50)]
        print(f"{name:20s}  ", "  ".join(f"{each:.3f}" for each in row))
    print("  (0.7 steps: nearly all lags are the same whole number, and an interval that holds it covers more often)")
    for shared in (0.5, 2.0):
        row = [covers(runs, partial(clustered, rng, n, shared)) for n in (5, 8, 12, 25, 50)]
        print(f"clusters of 1-4, {shared:3.1f}  ", "  ".join(f"{each:.3f}" for each in row))


def single(
    rng: np.random.Generator, noise: Callable[[np.random.Generator, int], np.ndarray], number: int
) -> tuple[np.ndarray, np.ndarray]:
    return 5 + np.round(noise(rng, number)), np.arange(number)


def clustered(rng: np.random.Generator, number: int, shared: float) -> tuple[np.ndarray, np.ndarray]:
    """Return lags and clusters; those of a cluster have a deviation in common, besides their own of 2 steps."""
    members = np.repeat(np.arange(number), rng.integers(1, 5, number))
    own = shared * rng.standard_normal(number)[members] + 2 * rng.standard_normal(len(members))
    return 5 + np.round(own), members


def covers(runs: int, draw: Callable[[], tuple[np.ndarray, np.ndarray]]) -> float:
    ends = np.array([median_interval(*draw()) for _ in range(runs)])
    return float(((ends[:, 0] <= 5) & (ends[:, 1] >= 5)).mean())


def speed() -> None:
    rng = np.random.default_rng(0)
    names = [f"blocks.{each}" for each in range(150)]
    times = np.sort(rng.choice(np.arange(100, 199_000, 60), 100, replace=False))
    values = np.exp(0.1 * rng.standard_normal((200_000, 150)))
    events = []
    for at, name in enumerate(names):
        moved = times + rng.integers(0, 5, 100)
        values[moved, at] *= 4
        events += [event(name, t) for t in moved]
    frame = pd.DataFrame(values, columns=names, index=pd.RangeIndex(len(values), name="step"))
    begin = time.process_time()
    lags(events, names, names[0], draws=2000)
    plain = time.process_time() - begin
    begin = time.process_time()
    lags(events, names, names[0], draws=2000, magnitudes=frame)
    print(
        f"150 layers x 100 events, 2,000 draws, {len(WIDTHS)} widths and blocks: {plain:.1f} s of CPU; with the "
        f"second opinion {time.process_time() - begin:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--detected", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=["nulls", "detected", "power", "coverage", "speed"])
    chosen = parser.parse_args()
    runs, seed = chosen.runs, chosen.seed
    if "nulls" in chosen.only:
        errors("independent", independent, runs, seed, associated=True)
        errors("unstable phase", shared_phase, runs, seed + 1, associated=True)
        errors("phase of 600 steps", partial(shared_phase, length=600), runs, seed + 2, associated=True)
        errors("2 phases of 200 steps", partial(short_phases, number=2, length=200, events=12), runs, seed + 6, True)
        errors("3 phases of 100 steps", partial(short_phases, number=3, length=100, events=8), runs, seed + 7, True)
        errors("regular, 60 of 100 later", regular, runs, seed + 8, associated=False)
        errors("bursts in a phase", bursty_phase, runs, seed + 3, associated=True)
        errors("common", common, runs, seed + 4, associated=False)
        errors("unequal heights", unequal, runs, seed + 5, associated=False)
    if "detected" in chosen.only:
        rate = {"phases": ((2000, 5000),), "phase_rate": 0.007, "steps": 8000}
        spikes = tuple(range(200, 3800, 300))
        noisy = {"steps": 4000, "spikes": spikes, "heights": (100.0, 8.0, 100.0, 8.0, 100.0, 8.0), "ramp": 10}
        through_detector("detected, phase", partial(planted, **rate), chosen.detected, seed + 10)
        through_detector(
            "detected, unequal", partial(planted, timing_noise=2.0, length=2, **noisy), chosen.detected, seed + 11
        )
        through_detector("detected, linear ramps", linear_ramps, chosen.detected, seed + 12)
        lead = {"steps": 4000, "spikes": spikes, "lags": (0, 5, 5, 5, 5, 5), "timing_noise": 2.0, "heights": (5.0,)}
        through_detector("detected, lag 5", partial(planted, **lead), chosen.detected, seed + 13)
        through_detector(
            "detected, lag 5, ramps", partial(planted, **(lead | {"ramp": 6, "length": 4})), chosen.detected, seed + 14
        )
    if "power" in chosen.only:
        for number in (8, 12, 25):
            power(f"lag 5, {number} events", partial(delayed, number=number), max(runs // 4, 1), seed + 20)
    if "coverage" in chosen.only:
        coverage(runs, seed + 30)
    if "speed" in chosen.only:
        speed()


if __name__ == "__main__":
    main()

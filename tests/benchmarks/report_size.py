"""Size of report.html, CPU time and memory to write it, and time until Chromium has drawn it.

``python tests/benchmarks/report_size.py [steps] [tensors] [episodes] [folder]``; a million steps x 150 tensors x 400
episodes if not given; the limit is 5 MB. The events are planted, not detected: what the detector costs is measured by
analysis_speed.py. A fourth argument names a folder in which the run is left.
"""

from __future__ import annotations

import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from chromium import PROGRAM, Chromium

from stabilitylab.analysis import Analysis
from stabilitylab.episodes import group
from stabilitylab.findings import Event, Finding
from stabilitylab.leads import lags
from stabilitylab.report import page, write
from stabilitylab.run import Run, RunWriter

CHUNK = 50_000


def record(folder: Path, steps: int, tensors: int, starts: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Write noise with a spike of four steps in every layer at each start, a layer a tensor."""
    names = ["patch_embed", *(f"blocks.{each}" for each in range(tensors - 1))]
    layers = {"names": names, "of": {f"{name}.weight": name for name in names}, "first": names[0]}
    writer = RunWriter(folder, {"layers": layers})
    writer.declare("gradients.norm", list(layers["of"]))
    writer.declare("training.loss", ["loss"])
    writer.declare("knn.accuracy", ["bank", "queue"], samples=500)
    for low in range(0, steps, CHUNK):
        at = np.arange(low, min(low + CHUNK, steps))
        norms = np.exp(0.2 * rng.standard_normal((len(at), tensors), dtype=np.float32))
        for start in starts[(starts >= low) & (starts < low + CHUNK - 4)]:
            norms[start - low : start - low + 4] *= 20
        writer.write("gradients.norm", at, norms)
        writer.write("training.loss", at, 2 + 0.1 * rng.standard_normal((len(at), 1)))
        writer.write("knn.accuracy", at[::10], 0.8 + 0.01 * rng.standard_normal((len(at[::10]), 2)))
    writer.close("completed")
    return names


def analysis_of(folder: Path, names: list[str], starts: np.ndarray) -> Analysis:
    """Return the analysis that knows the planted spikes."""
    spikes = [
        Event(s, s, s, s + 3, "spike", "gradients.norm", name, 20.0, 15.0) for s in starts.tolist() for name in names
    ]
    finding = Finding("spikes", f"{len(starts)} gradient spikes.", "spikes", {"episodes": len(starts)})
    table = lags(spikes[: len(names) * 50], names, names[0], draws=100)
    episodes = tuple(group(spikes, names, 20))
    return Analysis(Run(folder), tuple(sorted(spikes)), episodes, table, (finding,), {"horizon": 100})


def main(steps: int = 1_000_000, tensors: int = 150, episodes: int = 400, keep: str = "") -> None:
    rng = np.random.default_rng(0)
    starts = np.linspace(0.01 * steps, 0.98 * steps, episodes).astype(int)
    folder = Path(keep or tempfile.mkdtemp())
    names = record(folder, steps, tensors, starts, rng)
    analysis = analysis_of(folder, names, starts)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    size = len(page(analysis, {}).encode())
    bare = time.process_time() - begin
    path = write(analysis)
    whole = time.process_time() - begin - bare
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{steps:,} steps x {tensors} tensors, {len(analysis.episodes)} episodes, {len(analysis.events):,} events")
    print(f"without pictures {size / 1e6:.2f} MB, {bare:.1f} s CPU; with them {path.stat().st_size / 1e6:.2f} MB, "
          f"{whole:.1f} s CPU; peak memory {before / 2**20:.2f} GiB before, {after / 2**20:.2f} after")  # fmt: skip
    if PROGRAM:
        browser = Chromium(Path(tempfile.mkdtemp()))
        for width in (1600, 390):
            begin = time.perf_counter()
            browser.open(path, width=width)
            print(f"drawn at {width} px after {time.perf_counter() - begin:.1f} s (wall)")
        browser.close()
    if not keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:5])

"""Time and peak memory of `analyze` on a run of 100,000 steps x 150 tensors, in a process of its own.

``python tests/benchmarks/analysis_speed.py [steps] [tensors] [layers]``; the limits are 15 s and 1.5 GB.
Beside it, in the same process, pandas' rolling median and MAD of one layer, times the number of layers.

``python tests/benchmarks/analysis_speed.py --detector [steps] [labels] [apart]``: the spike detector alone, 1,000,000
steps x 150 labels by default, time and memory above the input; the limits are 10 s and 3 GB on two idle cores.
A spike every ``apart`` steps, 1,500 by default: with ``1000000 1 10`` there are 100,000 in one column.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(path: str) -> None:
    begin = time.perf_counter()
    from stabilitylab.analysis import analyze
    from stabilitylab.run import Run

    imported = time.perf_counter()
    analysis = analyze(Run(path))
    done = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"import {imported - begin:5.1f} s   analyze {done - imported:5.1f} s   peak memory {memory:.2f} GiB")
    print(f"{len(analysis.events)} events, {len(analysis.episodes)} episodes")
    print(" ", analysis.findings[1].sentence)
    rolling(path, done - imported)


def rolling(path: str, ours: float) -> None:
    import numpy as np

    from stabilitylab.episodes import layer_magnitudes
    from stabilitylab.run import Run

    frame = np.log(layer_magnitudes(Run(path)))
    begin = time.perf_counter()
    column = frame.iloc[:10_000, 0]
    level = column.rolling(500).median()
    (column - level).abs().rolling(500).median()
    theirs = (time.perf_counter() - begin) * len(frame) / 10_000 * frame.shape[1]
    print(
        f"pandas rolling median and MAD of as much: {theirs:.1f} s, {theirs / ours:.1f} times as long (part measured)"
    )


def detector(steps: int = 1_000_000, labels: int = 150, apart: int = 1500) -> None:
    import numpy as np
    import pandas as pd

    from stabilitylab.detectors.spike import Detector

    rng = np.random.default_rng(0)
    values = np.exp(0.25 * rng.standard_normal((steps, labels), dtype=np.float32))
    values[1000::apart] *= 6
    frame = pd.DataFrame(values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.perf_counter(), time.process_time()
    events = Detector().detect("gradients.norm", frame, {})
    wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    print(f"{steps:,} steps x {labels} labels: {wall:.1f} s, {cpu:.1f} s of CPU, {1e9 * cpu / values.size:.0f} ns a")
    print(f"sample, {memory:.2f} GiB above the input; {len(events):,} events")
    column = pd.Series(np.log(values[:20_000, 0].astype(float)))
    cpu_of_theirs = time.process_time()
    level = column.rolling(500).median()
    (column - level).abs().rolling(500).median()
    theirs = (time.process_time() - cpu_of_theirs) * values.size / len(column)
    print(f"pandas rolling median and MAD of as much: {theirs:.0f} s of CPU, {theirs / cpu:.1f} times (part measured)")
    cpu_of_theirs = time.process_time()
    column[:3000].rolling(500).apply(lambda window: np.median(np.abs(window - np.median(window))), raw=True)
    theirs += (time.process_time() - cpu_of_theirs) * values.size / 2501 - theirs / 2
    print(f"  with the MAD around the window's own median, by rolling.apply: {theirs:,.0f} s, {theirs / cpu:.0f} times")


def main(steps: int = 100_000, tensors: int = 150, layers: int = 15) -> None:
    from stabilitylab import synthetic

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        each = tensors // layers
        spikes = tuple(range(1000, steps - 1000, 2000))
        lags = tuple(range(layers))
        begin = time.perf_counter()
        synthetic.write(path, steps=steps, layers=layers, tensors=each, spikes=spikes, lags=lags, images=200)
        print(
            f"{steps:,} steps x {layers * each} tensors, {layers} layers, {time.perf_counter() - begin:.1f} s to write"
        )
        subprocess.run([sys.executable, __file__, "measure", str(path)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2])
    elif sys.argv[1:2] == ["--detector"]:
        detector(*map(int, sys.argv[2:]))
    else:
        main(*map(int, sys.argv[1:]))

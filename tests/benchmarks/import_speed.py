"""What importing a large log costs: CPU time and the most memory, for logs of growing length.

``python tests/benchmarks/import_speed.py [--columns 150] [--steps 20000 100000]`` writes logs of many
columns of gradient norms, wide and long, shuffled and as TensorBoard events, imports each in a process of its
own, and prints the process CPU time, the peak of the resident memory, that of a process that imports 10 rows, and
whether the values came back exactly.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

LOGS = ("log.csv", "log.parquet", "shuffled.parquet", "long.parquet", "events")


def write(folder: Path, kind: str, steps: int, columns: int, events: int) -> tuple[Path, int]:
    """Write a log and return where, and how many values it holds."""
    steps = min(steps, events) if kind == "events" else steps
    rng = np.random.default_rng(0)
    names = [f"grad_norm/blocks.{each // 12}.part{each % 12}.weight" for each in range(columns)]
    frame = pd.DataFrame(rng.lognormal(size=(steps, columns)), columns=names)
    frame.insert(0, "step", np.arange(steps))
    path = folder / kind
    if kind == "log.csv":
        frame.to_csv(path, index=False)
    elif kind == "events":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(path)) as writer:
            for row in frame.itertuples(index=False):
                for name, value in zip(names, row[1:], strict=True):
                    writer.add_scalar(name, value, row[0])
    else:
        if kind == "shuffled.parquet":
            frame = frame.sample(frac=1, random_state=0)
        if kind == "long.parquet":
            frame = frame.melt("step", var_name="name")
        frame.to_parquet(path, index=False)
    return path, steps * columns


def measure(source: Path, out: Path) -> None:
    """Import, in a process of its own, and print the cost."""
    from stabilitylab.importing import import_run

    started = time.process_time()
    import_run([source], out)
    seconds = time.process_time() - started
    # what getrusage says counts the parent's memory too, until the new program begins
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(f"{seconds:.1f} {int(peak) / 1024:.0f}")


def exact(source: Path, out: Path) -> bool:
    """Compare the first and the last column with what was written; events hold float32."""
    from stabilitylab.run import Run

    found = Run(out)["gradients.norm"]
    rng = np.random.default_rng(0)
    expected = rng.lognormal(size=found.shape)
    if source.name == "events":
        expected = expected.astype("float32")
    ordered = sorted(
        found.columns, key=lambda name: [int("".join(filter(str.isdigit, p)) or -1) for p in name.split(".")]
    )
    return bool(np.array_equal(found[ordered].to_numpy(), expected))


def main() -> None:
    """Print a line for each log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--columns", type=int, default=150)
    parser.add_argument("--steps", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--events", type=int, default=2_000, help="steps of the event file at most")
    parser.add_argument("--logs", nargs="+", choices=LOGS, default=LOGS)
    parser.add_argument("--only", nargs=2, type=Path, metavar=("SOURCE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(*options.only)
        return
    print(f"{'log':18}{'values':>12}{'CPU s':>8}{'values/s':>12}{'peak MB':>9}  exact")
    for steps in [10, *options.steps]:
        for kind in options.logs if steps > 10 else LOGS[:1]:
            with tempfile.TemporaryDirectory() as folder:
                source, values = write(Path(folder), kind, steps, options.columns, options.events)
                out = Path(folder) / "run"
                words = [sys.executable, __file__, "--only", str(source), str(out)]
                printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
                seconds, peak = map(float, printed.split())
                rate = values / max(seconds, 1e-9)
                print(f"{kind:18}{values:12,}{seconds:8.1f}{rate:12,.0f}{peak:9,.0f}  {exact(source, out)}", flush=True)


if __name__ == "__main__":
    main()

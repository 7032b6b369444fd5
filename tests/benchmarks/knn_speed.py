"""CPU seconds and memory to find and to vote among the nearest neighbors in a large bank, against other libraries.

Run as ``python tests/benchmarks/knn_speed.py`` with faiss-cpu and lightly installed (``pip install faiss-cpu
lightly``; without one its line is left out). 10,000 queries in a bank of 100,000 x 384 normalized random features,
two threads each, in one run and taking turns; the best of the rounds counts. Random features are the case that products
of integers help most; where many entries are nearer to each other than their rounding, and on a processor without
AVX512-VNNI, ours is a product in float32 (``ours, float32``). faiss searches its flat index of inner
products; lightly predicts the classes of 256 queries at a time, as its benchmarks call it, and ours votes too there.
The OpenBLAS in faiss-cpu is old and takes new processors for old ones, which halves its speed; with
OPENBLAS_CORETYPE=Haswell it does not, and the benchmark says which kernels it has.
Memory is the most that a process of its own needs above the features. CPU time of
both threads; other work on the machine, which takes caches and bandwidth, still slows all of them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn.functional import normalize

from stabilitylab.evaluation import knn
from stabilitylab.evaluation.knn import neighbors, vote

THREADS, ROUNDS, CLASSES, TEMPERATURE = 2, 2, 1000, 0.07
QUERIES, BANK, WIDTH = 10_000, 100_000, 384


def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    queries, bank = (normalize(torch.randn(n, WIDTH, generator=generator), dim=1) for n in (QUERIES, BANK))
    return queries, bank, torch.randint(CLASSES, (BANK,), generator=generator)


def searches(k: int) -> dict[str, Callable[[], object]]:
    """The ways to search, each ready to be called."""
    queries, bank, labels = features()
    found: dict[str, Callable[[], object]] = {
        "ours": lambda: neighbors(queries, bank, k),
        "ours, float32": lambda: knn._exact(queries, bank, k, knn.CELLS),
    }
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(THREADS)
        index = faiss.IndexFlatIP(WIDTH)
        index.add(bank.numpy())
        found["faiss"] = lambda: index.search(queries.numpy(), k)

    def ours_with_votes() -> object:
        similarity, rows = neighbors(queries, bank, k)
        return vote(similarity, labels[rows], CLASSES, [(k, TEMPERATURE)])

    found["ours, votes"] = ours_with_votes
    if find_spec("lightly"):
        from lightly.utils.benchmarking import knn_predict

        turned = bank.T.contiguous()
        found["lightly"] = lambda: [
            knn_predict(part, turned, labels, CLASSES, k, TEMPERATURE)[:, 0] for part in queries.split(256)
        ]
    return found


def kernels() -> str:
    """The processor that faiss's OpenBLAS takes this one for, which decides its speed, and who said so."""
    if not find_spec("faiss"):
        return "no faiss"
    from threadpoolctl import threadpool_info

    import_module("faiss")  # which loads its library
    found = {
        each["architecture"] for each in threadpool_info() if "faiss" in each["filepath"] and "architecture" in each
    }
    told = os.environ.get("OPENBLAS_CORETYPE")
    return f"{', '.join(sorted(found)) or 'not known'}{f' (OPENBLAS_CORETYPE={told})' if told else ''}"


def highest() -> float:
    """The most megabytes that this process held since the peak was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def peak(name: str, k: int) -> float:
    """Megabytes that one search needs above what its features and its index take, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, name, str(k)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    print(f"load {os.getloadavg()[0]:.1f}; {THREADS} threads; {QUERIES:,} queries, bank {BANK:,} x {WIDTH}")
    print(f"kernels of the OpenBLAS that faiss brings: {kernels()}")
    for k in (20, 200):
        ways = searches(k)
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):
            for name, search in ways.items():
                start = time.process_time()
                search()
                best[name] = min(best[name], time.process_time() - start)
        for name, seconds in best.items():
            print(f"k {k:>3}  {name:<13} {seconds:>7.1f} s  {peak(name, k):>6.0f} MB above the features")
        for ours, theirs in (("ours", "faiss"), ("ours, votes", "lightly")):
            if theirs in best:
                print(f"k {k:>3}  {theirs} / {ours}: {best[theirs] / best[ours]:.2f} x")


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    if len(sys.argv) > 1:
        search = searches(int(sys.argv[2]))[sys.argv[1]]
        Path("/proc/self/clear_refs").write_text("5")  # making the features needed more: the peak starts anew (Linux)
        before = highest()
        search()
        print(highest() - before)
    else:
        main()

"""Process time of the couplings of a long run, in parts and beside the whole analysis: ``[steps] [spikes]``.

Only the columns of one layer are read, so that the number of layers does not matter; the limit is a few seconds.
"""

import sys
import tempfile
import time
from pathlib import Path


def main(steps: int = 1_000_000, spikes: int = 400) -> None:
    from stabilitylab import plots, synthetic
    from stabilitylab.analysis import analyze
    from stabilitylab.couplings import couplings
    from stabilitylab.detectors import dip, spike
    from stabilitylab.run import Run
    from stabilitylab.signals import leading_layer, signals_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        synthetic.write(
            path, steps=steps, layers=2, tensors=4, spikes=tuple(range(1000, steps - 1000, steps // spikes)),
            updates=True, update_lead=5, adam=True, adam_lead=25, loss_follow=3, dip_follow=20, rank=True,
            rank_follow=60, images=200, knn_every=50, spectrum_every=500,
        )  # fmt: skip
        run = Run(path)
        begin = time.process_time()
        analysis = analyze(run)
        whole = time.process_time() - begin
        begin = time.process_time()
        signals = signals_of(run, analysis.events, leading_layer(run), spike.Detector(), dip.Detector())
        read = time.process_time() - begin
        begin = time.process_time()
        table = couplings(signals)
        tested = time.process_time() - begin
        begin = time.process_time()
        plots.picture("couplings", [analysis], Path(folder) / "couplings.png")
        drawn = time.process_time() - begin
    print(f"{steps:,} steps, {spikes} spikes: analyze {whole:.1f} s of process time; of it reading and detecting "
          f"{read:.1f} s, surrogates {tested:.1f} s; the picture {drawn:.1f} s")  # fmt: skip
    print(table["verdict"].value_counts().to_dict())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))

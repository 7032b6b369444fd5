"""Truth: what was asked for; the moments of each noise in closed form; a run that reads back as it was written."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest

from stabilitylab import synthetic
from stabilitylab.run import Run


@pytest.mark.parametrize("kind", get_args(synthetic.Noise))
def test_noise_has_variance_one(kind):
    values = synthetic.noise(kind, (40000, 2), np.random.default_rng(0))
    if kind == "bursty":
        quiet = np.median(np.abs(values)) / 0.6745
        assert quiet == pytest.approx(1.0, abs=0.15)
        assert np.mean(np.abs(values) > 4) > 0.005
    else:
        assert values.std() == pytest.approx(1.0, abs=0.03)
    lagged = np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1]
    assert lagged == pytest.approx(0.5 if kind == "autocorrelated" else 0.0, abs=0.03)


def test_spikes_are_where_the_truth_says():
    made = synthetic.synthesize(
        steps=500, layers=3, sd=0.0, spikes=(100, 300), heights=(4.0, 8.0, 2.0), lags=(0, 5, -3), ramp=2, length=3
    )
    log = np.log(made.series["gradients.norm"].to_numpy(dtype=float))
    level = np.median(log, axis=0)
    assert len(made.of("spike")) == 6
    for event in made.of("spike"):
        column = made.layers["names"].index(event.label)
        rise = log[:, column] - level[column]
        assert rise[event.peak] == pytest.approx(np.log(event.height), abs=1e-6)
        assert rise[event.onset] >= np.log(event.height) / 2 > rise[event.onset - 1]
        assert rise[event.start] > 1e-3 > rise[event.start - 1]
        assert rise[event.stop] > 1e-3 > rise[event.stop + 1]


def test_lags_are_those_planted():
    made = synthetic.synthesize(steps=2000, layers=2, spikes=tuple(range(100, 1900, 100)), lags=(0, 7))
    first, later = ([e.onset for e in made.of("spike") if e.label == name] for name in made.layers["names"])
    assert set(np.subtract(later, first)) == {7}


def test_one_seed_gives_one_run():
    one, other = (synthetic.synthesize(steps=200, seed=3, spikes=(50,)) for _ in range(2))
    for name, frame in one.series.items():
        pd.testing.assert_frame_equal(frame, other.series[name])
    different = synthetic.synthesize(steps=200, seed=4).series["training.loss"]
    assert not different.equals(one.series["training.loss"])


def test_a_written_run_reads_back(tmp_path):
    made = synthetic.write(
        tmp_path / "run", steps=120, layers=3, tensors=2, nonfinite=(60,), dips=(50,), collapse_at=80
    )
    run = Run(tmp_path / "run")
    assert set(run.series) == set(made.series)
    for name, frame in made.series.items():
        pd.testing.assert_frame_equal(run[name], frame, check_index_type=False)
    assert run.layers.first == "patch_embed"
    assert len(run.layers.parameters("blocks.0")) == 2
    assert run.config["synthetic"]["steps"] == 120
    assert {each.kind for each in made.truth} == {"divergence", "dip", "collapse"}


@pytest.mark.parametrize("wrong", [{"heights": (1.0, 2.0)}, {"steps": 0}, {"no_such": 1}, {"dead": 99}])
def test_refuses_what_makes_no_run(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        synthetic.synthesize(**wrong)

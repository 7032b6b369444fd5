"""Truth: a slow twin of the level, closed forms of the normal and Student distributions, and invariances."""

import naive
import numpy as np
import pytest
from scipy import stats

from stabilitylab.stats.robust import (
    PRIOR,
    autocorrelation,
    past,
    past_level,
    past_scale,
    runs_of,
    tail_chance,
    tail_shape,
    tail_threshold,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_level_equals_the_slow_twin(rng):
    values = np.cumsum(rng.standard_normal(150)) * 0.2 + rng.standard_normal(150)
    expected = [naive.level(values, at) for at in range(150)]
    np.testing.assert_allclose(past_level(values, np.ones(150, bool)), expected, rtol=1e-12)


def test_level_of_what_is_masked_is_frozen(rng):
    values = rng.standard_normal(200)
    valid = np.ones(200, bool)
    valid[100:140] = False
    changed = values.copy()
    changed[100:140] = 1e6
    np.testing.assert_array_equal(past_level(values, valid), past_level(changed, valid))
    level = past_level(values, valid)
    assert np.unique(level[100:140]).size == 1


def test_level_uses_the_past_alone(rng):
    values = rng.standard_normal(300)
    later = values.copy()
    later[200:] = 1e3
    np.testing.assert_array_equal(
        past(values, np.ones(300, bool)).innovation[:200], past(later, np.ones(300, bool)).innovation[:200]
    )


def test_level_follows_a_line_and_never_falls_below_a_step_down():
    line = 0.05 * np.arange(200.0)
    np.testing.assert_allclose(past_level(line, np.ones(200, bool))[64:], line[64:], atol=1e-9)
    falling = past_level(-line, np.ones(200, bool))[64:]
    assert np.all(np.abs(falling + line[64:]) < 0.8 + 1e-9)  # 16 steps of lag at most
    step = np.where(np.arange(200) < 100, 1.0, 0.0)
    assert np.all(past_level(step, np.ones(200, bool))[24:] >= -1e-12)


def test_scale_of_normal_noise_is_its_standard_deviation(rng):
    scale, count = past_scale(3.0 * rng.standard_normal(20000), np.ones(20000, bool))
    assert np.isnan(scale[:16]).all()
    assert np.median(scale[1000:]) == pytest.approx(3.0, rel=0.06)  # block medians of eight: 4 % high
    assert count[10] == 10
    assert count.max() == 512


def test_autocorrelation_of_an_autoregression(rng):
    values = np.zeros(30000)
    for at, each in enumerate(rng.standard_normal(29999)):
        values[at + 1] = 0.5 * values[at] + each
    estimate = autocorrelation(values, np.ones(30000, bool), np.full(30000, values.std()))
    assert np.median(estimate) == pytest.approx(0.5, abs=0.05)
    white = autocorrelation(rng.standard_normal(30000), np.ones(30000, bool), np.ones(30000))
    assert np.median(white) < 0.06


@pytest.mark.parametrize("rate", [1e-3, 5e-5])
def test_threshold_of_normal_and_student_noise(rng, rate):
    unit = stats.norm.ppf(0.75)
    normal = tail_threshold(tail_shape(rng.standard_normal(200_000)), rate)
    assert normal == pytest.approx(-stats.norm.ppf(rate), rel=0.06)
    student = rng.standard_t(5, 200_000)
    quantile = -stats.t.ppf(rate, 5) / stats.t.ppf(0.75, 5) * unit
    spread = np.median(np.abs(student)) / unit
    assert tail_threshold(tail_shape(student / spread), rate) == pytest.approx(quantile, rel=0.12)


def test_threshold_is_not_raised_by_the_spikes_it_is_for(rng):
    noise = rng.standard_normal(5000)
    spiked = noise.copy()
    spiked[::50] = 30.0
    usual = tail_threshold(tail_shape(noise), 5e-5)
    assert tail_threshold(tail_shape(spiked), 5e-5) == pytest.approx(usual, rel=0.1)


def test_a_long_upper_tail_is_taken_for_what_is_looked_for(rng):
    noise = rng.standard_normal(5000)
    often = rng.random(5000) < 0.15
    noise[often] += rng.exponential(4.0, int(often.sum()))
    assert tail_threshold(tail_shape(noise), 5e-5) <= tail_threshold(PRIOR, 5e-5) < 9


def test_chance_is_the_inverse_of_the_threshold():
    assert tail_chance(tail_threshold(0.0, 5e-5), 0.0) == pytest.approx(5e-5, rel=1e-6)
    assert tail_chance(tail_threshold(0.2, 5e-5), 0.2) == pytest.approx(5e-5, rel=1e-6)
    assert tail_chance(3.0, 0.0) == pytest.approx(stats.norm.sf(3.0), rel=0.01)


def test_after_is_the_depth_of_a_burst_and_nothing_in_the_aftermath_of_a_spike(rng):
    quiet = rng.standard_normal((2000, 40))
    burst, aftermath = quiet.copy(), quiet.copy()
    burst[1000:1060] *= 4
    aftermath[1000:1060] += 2 + rng.exponential(6.0, (60, 40))
    valid = np.ones(2000, bool)
    after = [np.mean([past(each, valid).after[1000] for each in values.T]) for values in (quiet, burst, aftermath)]
    assert after[0] == pytest.approx(1.0, abs=0.2)
    assert after[1] == pytest.approx(4.0, abs=0.8)
    assert after[2] < 0.1


def test_threshold_without_evidence_is_that_of_heavy_tails():
    expected = -stats.t.ppf(5e-5, 1 / 0.15) / stats.t.ppf(0.75, 1 / 0.15) * stats.norm.ppf(0.75)
    assert tail_threshold(PRIOR, 5e-5) == pytest.approx(expected, rel=1e-6)
    for nothing in (np.empty(0), np.zeros(1000), np.full(100, np.nan)):
        assert tail_shape(nothing) == PRIOR


def test_innovation_has_no_units(rng):
    values = rng.standard_normal(500)
    valid = np.ones(500, bool)
    np.testing.assert_allclose(past(values, valid).innovation, past(1e3 * values + 7, valid).innovation, rtol=1e-6)


def test_runs():
    first, last = runs_of(np.array([True, True, False, True]))
    assert first.tolist() == [0, 3]
    assert last.tolist() == [1, 3]

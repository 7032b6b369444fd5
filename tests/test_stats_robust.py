"""Truth: a slow twin of the level, closed forms of the normal and Student distributions, and invariances."""

import naive
import numpy as np
import pytest
from scipy import signal, stats

from stabilitylab.stats.level import past_level
from stabilitylab.stats.past import again, past, wandering
from stabilitylab.stats.robust import fold, past_median, runs_of, unfold
from stabilitylab.stats.tails import PRIOR, evidence_of, normal_prior, pooled, shape_of_sum, tail_of

NONE = np.empty(0, dtype=int)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100])
def test_folding_is_undone(length):
    values = np.arange(float(length))
    assert fold(values).shape[0] == 8
    np.testing.assert_array_equal(unfold(fold(values), length), values)
    assert np.isfinite(fold(values)).sum() == length


@pytest.mark.parametrize("wander", [0.0, 0.05, 0.2])
def test_level_equals_the_slow_twin(wander, rng):
    values = np.cumsum(rng.standard_normal(400)) * wander + rng.standard_normal(400)
    at = range(0, 400, 7)
    expected = [naive.level(values, each) for each in at]
    np.testing.assert_allclose(past_level(values, np.ones(400, bool))[at], expected, rtol=1e-12, atol=1e-12)


def test_a_steady_level_stands_on_a_longer_past_than_one_that_moves(rng):
    """A mean of 256 normal values has an error of 0.06, one of 32 of 0.18; medians of blocks a quarter more."""
    noise = rng.standard_normal((20, 2000))
    waves = 2 * np.sin(2 * np.pi * np.arange(2000) / 500)
    every = np.ones(2000, bool)
    error = np.std([past_level(each, every)[400:] for each in noise])
    assert 0.06 < error < 0.18
    lag = np.mean([past_level(each + waves, every)[400:] - waves[400:] for each in noise], axis=0)
    assert np.abs(lag).max() < 0.75  # 32 steps of lag are 0.8 where the wave is steepest


def test_level_of_what_is_masked_is_frozen(rng):
    values = rng.standard_normal(200)
    valid = np.ones(200, bool)
    valid[96:140] = False
    changed = values.copy()
    changed[96:140] = 1e6
    np.testing.assert_array_equal(past_level(values, valid), past_level(changed, valid))
    level = past_level(values, valid)
    assert np.unique(level[104:144]).size == 1  # from the first block after the one in which it begins


def test_level_uses_the_past_alone(rng):
    values = rng.standard_normal(304)
    later = values.copy()
    later[200:] = 1e3
    one, other = past(fold(values), NONE), past(fold(later), NONE)
    for name in ("residual", "whitened"):
        np.testing.assert_array_equal(getattr(one, name)[:, :25], getattr(other, name)[:, :25])
    np.testing.assert_array_equal(one.scale[:26], other.scale[:26])


def test_level_follows_a_line_and_never_falls_below_a_step_down():
    line = 0.05 * np.arange(200.0)
    np.testing.assert_allclose(past_level(line, np.ones(200, bool))[64:], line[64:], atol=1e-9)
    falling = past_level(-line, np.ones(200, bool))[64:]
    assert np.all(np.abs(falling + line[64:]) < 0.8 + 1e-9)  # 16 steps of lag at most
    step = np.where(np.arange(200) < 100, 1.0, 0.0)
    assert np.all(past_level(step, np.ones(200, bool))[24:] >= -1e-12)


def test_running_median_is_that_of_all_until_there_are_enough(rng):
    values = rng.standard_normal(300)
    found = past_median(values)
    np.testing.assert_allclose(found[:64], [np.median(values[: each + 1]) for each in range(64)])
    exact = np.array([np.median(values[each - 63 : each + 1]) for each in range(64, 300)])
    assert np.abs(found[64:] - exact).max() < 0.35  # by eights: two standard errors of a median of 64


def test_scale_of_normal_noise_is_its_standard_deviation(rng):
    found = past(fold(3.0 * rng.standard_normal(20000)), NONE)
    assert np.isnan(found.scale[:5]).all()  # 24 samples for a level, 16 more
    assert np.median(found.scale[100:]) == pytest.approx(3.0, rel=0.06)
    assert found.samples.max() == 512


def test_autocorrelation_of_an_autoregression(rng):
    values = np.zeros(30000)
    for at, each in enumerate(rng.standard_normal(29999)):
        values[at + 1] = 0.5 * values[at] + each
    assert np.median(past(fold(values), NONE).autocorrelation) == pytest.approx(0.5, abs=0.06)
    assert np.median(past(fold(rng.standard_normal(30000)), NONE).autocorrelation) < 0.08


def test_the_sum_of_matched_residuals_is_the_matched_filter(rng):
    """A rise of five samples raises their sum by its energy in whitened noise, the sample after it included."""
    values = np.zeros(4000)
    for at, each in enumerate(rng.standard_normal(3999)):
        values[at + 1] = 0.5 * values[at] + each
    raised = values.copy()
    raised[3000:3005] += 3.0
    plain, other = (past(fold(each), NONE) for each in (values, raised))
    phi = plain.autocorrelation[375]
    gained = unfold(other.matched() - plain.matched(), 4000)
    assert np.abs(gained[100:2999]).max() == 0  # the sample before it alone is touched
    assert gained[3000:3005].sum() == pytest.approx(3.0 * (1 + 4 * (1 - phi) ** 2 + phi**2), rel=1e-6)


@pytest.mark.parametrize("loud", [2.5, 4.0])
def test_a_burst_is_met_by_a_scale_of_its_own_and_a_long_spike_is_not(loud, rng):
    quiet = rng.standard_normal((2000, 40))
    burst, up = quiet.copy(), quiet.copy()
    burst[1000:1064] *= loud
    up[1016:1022] += 10.0
    ratio = []
    for values in (quiet, burst, up):
        found = [past(fold(each), NONE) for each in values.T]
        ratio.append(np.median([each.local[127] / each.scale[127] for each in found]))
    assert ratio[0] == 1
    assert loud <= ratio[1] <= 1.7 * loud  # rather too much: the loudest of the windows counts
    assert ratio[2] < 1.3


@pytest.mark.parametrize("rate", [1e-3, 5e-5])
def test_threshold_of_normal_and_student_noise(rng, rate):
    normal = tail_of(rng.standard_normal(200_000))
    assert normal.threshold(rate) == pytest.approx(-stats.norm.ppf(rate), rel=0.03)
    student = tail_of(3.0 * rng.standard_t(5, 200_000))
    assert student.threshold(rate) == pytest.approx(-3.0 * stats.t.ppf(rate, 5), rel=0.06)
    assert student.chance(student.threshold(rate)) == pytest.approx(rate, rel=1e-6)


def test_threshold_is_not_raised_by_the_spikes_it_is_for(rng):
    noise = rng.standard_normal(5000)
    spiked = noise.copy()
    spiked[::50] = 30.0
    assert tail_of(spiked).threshold(5e-5) == pytest.approx(tail_of(noise).threshold(5e-5), rel=0.1)


def test_a_long_upper_tail_is_taken_for_what_is_looked_for(rng):
    noise = rng.standard_normal(5000)
    often = rng.random(5000) < 0.15
    noise[often] += rng.exponential(4.0, int(often.sum()))
    assert tail_of(noise).shape <= PRIOR


def test_a_long_lower_tail_alone_does_not_raise_the_threshold(rng):
    left = np.log(rng.chisquare(2, 20_000)) / 2  # the norm of two normal entries
    found, mirrored = tail_of(left).threshold(1e-4), tail_of(-left).threshold(1e-4)
    assert np.quantile(left, 0.9999) < found < np.quantile(left, 0.9999) + 3 * left.std()
    assert mirrored > 1.5 * found
    assert tail_of(rng.standard_t(4, 20_000)).shape > 0.15  # long on both sides


def test_a_sample_learns_from_others_and_not_from_itself(rng):
    normal = [evidence_of(rng.standard_normal(2000)) for _ in range(10)]
    heavy = evidence_of(rng.standard_t(3, 2000))
    each, further = pooled(np.array([one.both for one in [*normal, heavy]]), normal_prior(PRIOR))
    alone, helped = normal[0].tail(PRIOR).shape, normal[0].tail(PRIOR, each[0]).shape
    assert helped < min(0.06, alone)
    assert heavy.tail(PRIOR, each[-1]).shape > 0.1  # one that is plainly different is believed
    without = pooled(np.array([one.both for one in normal]), normal_prior(PRIOR))[1]
    np.testing.assert_allclose(each[-1], without, atol=1e-6)
    np.testing.assert_allclose(np.exp(further).sum(), 1, rtol=1e-9)


@pytest.mark.parametrize("freedom", [6, 10, 1000])
def test_the_excess_kurtosis_of_a_sum_is_that_of_one_over_their_number(freedom):
    excess = 6 / (1 / shape_of_sum(1 / freedom, 6) - 4)  # of Student's t
    assert excess == pytest.approx(stats.t.stats(freedom, moments="k") / 6, rel=1e-9)
    assert shape_of_sum(0.4, 6) == 0.4  # no fourth moment: a sum is as wild as one


def test_threshold_without_evidence_is_that_of_heavy_tails():
    expected = -stats.t.ppf(5e-5, 1 / 0.15) / stats.t.ppf(0.75, 1 / 0.15) * stats.norm.ppf(0.75)
    for nothing in (np.empty(0), np.zeros(1000), np.full(100, np.nan)):
        assert tail_of(nothing).threshold(5e-5) == pytest.approx(expected, rel=1e-6)


def test_whitened_residuals_have_the_unit_of_the_values(rng):
    values = rng.standard_normal(504)
    one, other = past(fold(values), NONE), past(fold(1e3 * values + 7), NONE)
    np.testing.assert_allclose(1e3 * one.whitened / one.scale, other.whitened / (other.scale / 1e3), rtol=1e-6)


def test_noise_that_wanders_is_wider_than_its_blocks_by_the_ratio_that_is_stated(rng):
    for phi in (0.7, 0.9):
        series = signal.lfilter([1], [1, -phi], rng.standard_normal(400_000))
        blocks = series.reshape(-1, 8)
        ratio = series.std() / np.sqrt(blocks.var(axis=1, ddof=1).mean())
        assert wandering(np.array([phi]))[0] == pytest.approx(ratio, rel=0.02)
    assert wandering(np.array([0.0, 0.3, 0.5])).tolist() == [1, 1, 1]


def test_runs():
    first, last = runs_of(np.array([True, True, False, True]))
    assert first.tolist() == [0, 3]
    assert last.tolist() == [1, 3]


def test_what_is_masked_later_is_left_out_of_what_follows(rng):
    clean = rng.standard_normal(80_000)
    raised = clean.copy()
    raised[40_000:40_100] += 6
    further = np.arange(40_000, 40_100)
    before, new = (past(fold(raised), masked) for masked in (NONE, further))
    found = again(past(fold(raised), NONE), fold(raised), further, further // 8)
    near = slice(40_104 // 8, 40_104 // 8 + 12)  # the level
    reach = slice(40_104 // 8, 40_104 // 8 + 100)  # the scale
    level = fold(raised)[:, near] - found.residual[:, near]
    assert np.sqrt(np.mean(level**2)) < 1.1 * np.sqrt(np.mean((fold(raised)[:, near] - new.residual[:, near]) ** 2))
    assert np.abs(before.residual[:, near]).mean() > 1.5 * np.abs(found.residual[:, near]).mean()
    assert np.abs(found.scale[reach] - 1).max() < 0.2
    for field, other in zip(found, before, strict=True):
        np.testing.assert_array_equal(field[..., :5000], other[..., :5000])
        np.testing.assert_array_equal(field[..., 5013 + 1024 :], other[..., 5013 + 1024 :])

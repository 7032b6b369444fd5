"""Truth: slow twins that count one by one, the drawing of the sign, closed forms of moved times and of medians."""

import naive
import numpy as np
import pytest
from scipy import stats

from stabilitylab.stats.difference import holm
from stabilitylab.stats.surrogates import jitter
from stabilitylab.stats.triggered import course, excess, moved_into, num_within


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_counting_equals_the_slow_twin_and_the_drawing(rng):
    assert num_within(np.array([10.0]), np.array([[15.0]]), 1, 5).tolist() == [1]  # the target follows: positive
    assert num_within(np.array([10.0]), np.array([[5.0]]), 1, 5).tolist() == [0]
    for low, high in ((0.5, 40.5), (-40.5, -0.5), (-10, 25), (0, 0)):
        times = np.unique(rng.integers(0, 900, 30)).astype(float)
        others = np.sort(rng.integers(0, 900, (20, 12)).astype(float), axis=1)
        slow = [naive.num_within(times, row, low, high) for row in others]
        assert num_within(times, others, low, high).tolist() == slow
    assert num_within(np.empty(0), others, 0, 1).tolist() == [0] * 20
    assert num_within(times, np.empty((3, 0)), 0, 1).tolist() == [0] * 3


def test_no_moved_time_leaves_the_record():
    assert moved_into(np.array([[-3.0, 5.0, 104.0]]), 0, 100).tolist() == [[3.0, 5.0, 96.0]]


def test_the_excess_of_independent_times_is_no_more_often_significant_than_it_says(rng):
    windows = ((0.5, 100.5), (-100.5, -0.5), (-10.5, 10.5))
    p = []
    for _ in range(300):
        times, others = (np.sort(rng.integers(0, 10_000, 15)).astype(float) for _ in "ab")
        moved = moved_into(jitter(others, 150, 200, rng), 0, 10_000)
        p.append(excess(times, others, moved, windows).p)
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5


@pytest.mark.parametrize("number", [2, 5])
def test_p_of_events_that_all_have_a_partner_is_the_covered_share_to_their_number(rng, number):
    """Moved by up to 150 steps, each still follows within 100 steps with a chance of a third."""
    times = np.arange(1000.0, 1000.0 * (number + 1), 1000)
    moved = moved_into(jitter(times + 5, 150, 20_000, rng), 0, 7000)
    found = excess(times, times + 5, moved, ((0.5, 100.5),))
    assert found.counts.tolist() == [number]
    assert found.expected[0] == pytest.approx(number / 3, rel=0.02)
    assert found.p == found.p_smallest == pytest.approx(3.0**-number, rel=0.25)  # three standard errors


def test_holm_by_hand():
    p = np.array([0.04, 0.01, 0.03, 0.005])
    np.testing.assert_allclose(holm(p), [0.06, 0.03, 0.06, 0.02])
    assert holm(np.empty(0)).tolist() == []


class TestCourse:
    def test_a_planted_response_stands_where_it_was_planted(self, rng):
        steps, times = np.arange(8000), np.arange(500, 7500, 500)
        values = 3.0 + 0.1 * rng.standard_normal(8000)
        values[times + 7] += 2.0
        found = course(steps, values, times, rng)
        at = found.offsets.tolist().index(7)
        assert found.median[at] == pytest.approx(2.0, abs=0.15)
        assert found.low[at] > found.chance_high[at]
        others = np.delete(np.arange(len(found.offsets)), at)
        assert np.mean(found.median[others] > found.chance_high[others]) < 0.1
        assert np.mean(found.median[others] < found.chance_low[others]) < 0.1
        np.testing.assert_allclose(found.each[:, at], [values[t + 7] - np.median(values[t - 50 : t]) for t in times])

    def test_the_interval_of_the_median_is_that_of_its_order_statistics(self, rng):
        steps, times = np.arange(5000), np.arange(300, 4700, 300)
        found = course(steps, rng.standard_normal(5000), times, rng, draws=10)
        ordered = np.sort(found.each, axis=0)
        np.testing.assert_allclose(found.low, ordered[stats.binom.ppf(0.025, len(times), 0.5).astype(int) - 1])

    def test_what_is_measured_seldom_shifted_in_unit_or_missing(self, rng):
        steps, times = np.arange(0, 20_000, 50), np.arange(1013, 19_000, 1000)
        values = 5 + 0.01 * rng.standard_normal(len(steps))
        for time in times:
            values[(steps >= time + 60) & (steps < time + 200)] -= 1.0
        values[::7] = np.nan
        found = course(steps, values, times, np.random.default_rng(1), every=50)
        assert found.offsets.tolist() == [-25.5, 24.5, 74.5, 124.5, 174.5]  # the middle of what counts together
        assert found.median[found.offsets < 50] == pytest.approx(0, abs=0.05)
        assert found.median[found.offsets > 100] == pytest.approx(-1, abs=0.05)
        moved = course(steps + 77, values + 100, times + 77, np.random.default_rng(1), every=50)
        np.testing.assert_allclose(moved.median, found.median, atol=1e-9)
        np.testing.assert_allclose(moved.chance_low, found.chance_low, atol=1e-9)

    def test_nothing_is_said_of_nothing(self, rng):
        steps = np.arange(100)
        for values, times in ((np.full(100, np.nan), np.array([50])), (np.ones(100), np.empty(0, dtype=int))):
            assert np.isnan(course(steps, values, times, rng).median).all()
        one = course(steps, np.ones(100), np.array([90]), rng, draws=5)
        assert np.isnan(one.low).all()
        assert np.isnan(one.median[one.offsets > 9]).all()

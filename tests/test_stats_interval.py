"""Truth: scipy's Student t, the table of the sign test, and how often an interval holds what it should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stabilitylab.stats.interval import Interval, mean_interval, median_interval


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).normal(3, 2, 12)
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    np.testing.assert_allclose(mean_interval(values), (values.mean(), low, high), rtol=1e-12)


@pytest.mark.parametrize(("number", "left_out"), [(6, 0), (8, 0), (9, 1), (12, 2), (20, 5), (30, 9)])
def test_the_interval_of_a_median_leaves_out_what_the_table_says(number: int, left_out: int) -> None:
    values = np.random.default_rng(number).permutation(number).astype(float)
    assert median_interval(values) == ((number - 1) / 2, left_out, number - 1 - left_out)


def test_too_few_values_have_no_bounds() -> None:
    for number in range(1, 6):
        assert np.isnan(median_interval(np.ones(number))[1:]).all()
    assert np.isnan(mean_interval(np.ones(1))[1:]).all()
    assert not median_interval(np.ones(3)).differs_from_zero
    assert not np.isnan(mean_interval(np.arange(2.0))).any()


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
def test_95_percent_of_the_intervals_hold_the_true_value(interval) -> None:
    rng = np.random.default_rng(0)
    held = [found.low <= 1 <= found.high for found in (interval(rng.normal(1, 1, 12)) for _ in range(4000))]
    assert np.mean(held) > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 4000)  # three standard errors
    if interval is median_interval:  # also without a mean: one machine pauses, the other does not
        heavy = [interval(rng.standard_cauchy(12)) for _ in range(4000)]
        assert np.mean([found.low <= 0 <= found.high for found in heavy]) > 0.94


def test_the_sign_of_a_difference() -> None:
    assert Interval(1, 0.5, 2).differs_from_zero
    assert Interval(-1, -2, -0.5).differs_from_zero
    assert not Interval(1, -0.5, 2).differs_from_zero

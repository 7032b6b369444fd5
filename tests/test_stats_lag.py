"""Truth: the drawing of the sign, slow twins, binomial tables, and simulation under the null."""

import naive
import numpy as np
import pytest
from scipy import stats

from stabilitylab.stats.lag import (
    cluster,
    match,
    max_flip_p,
    mean_ranks,
    median_interval,
    medians_of,
    sign_p,
    signed_ranks,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_matching_equals_the_slow_twin(rng):
    for _ in range(30):
        first, later = (np.sort(rng.integers(0, 1000, rng.integers(0, 20))).astype(float) for _ in range(2))
        first, later = np.unique(first), np.unique(later)
        assert match(first, later, 60).tolist() == [list(pair) for pair in naive.match(first, later, 60)]


def test_matching_is_one_to_one_and_symmetric(rng):
    first, later = (np.unique(rng.uniform(0, 1000, 40)) for _ in range(2))
    pairs = match(first, later, 100)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert np.array_equal(match(later, first, 100)[:, ::-1], pairs)


def test_sign_test_equals_scipy():
    lags = np.array([1, 2, 3, 4, -1, 0, 0, 5, 6, 7])
    assert sign_p(lags) == pytest.approx(stats.binomtest(7, 8).pvalue)
    assert sign_p(np.zeros(9)) == 1.0


def test_clusters_begin_after_a_gap():
    assert cluster(np.array([1.0, 5, 30, 45, 100]), 20).tolist() == [0, 0, 1, 1, 2]


def test_max_statistic_equals_the_slow_twin(rng):
    signs = rng.integers(-1, 2, (7, 3)).astype(float)
    np.testing.assert_allclose(max_flip_p(signs, rng), naive.max_sign_p(signs))


def test_max_statistic_of_one_layer_is_the_sign_test(rng):
    signs = np.array([1, 1, 1, 1, 1, 1, -1, 1.0])[:, None]
    assert max_flip_p(signs, rng)[0] == pytest.approx(sign_p(signs[:, 0]))
    many = np.where(rng.random((40, 1)) < 0.7, 1.0, -1.0)
    assert max_flip_p(many, rng)[0] == pytest.approx(sign_p(many[:, 0]), abs=0.02)


def test_max_statistic_holds_its_level_over_dependent_layers(rng):
    rejected = 0
    for _ in range(300):
        shared = rng.standard_normal((12, 1))
        rejected += max_flip_p(np.sign(shared + rng.standard_normal((12, 8))), rng).min() <= 0.05
    assert rejected / 300 <= 0.08  # 5 % and two standard errors


@pytest.mark.parametrize(("number", "steps"), [(12, 1), (25, 1), (50, 1), (8, 0.01)])
def test_interval_of_the_median_covers_it_in_92_to_98_percent(rng, number, steps):
    """Timing noise of two steps; lags in whole steps, and as good as continuous. 1,000 draws err by 0.7 %."""
    covered = 0
    for _ in range(1000):
        lags = 5 + steps * np.round(2 * rng.standard_normal(number) / steps)
        low, high = median_interval(lags, np.arange(number))
        covered += low <= 5 <= high
    assert 0.92 <= covered / 1000 <= 0.98


@pytest.mark.parametrize("shared", [0.5, 2.0])
def test_interval_over_clusters_of_several_covers_the_median(rng, shared):
    covered = 0
    for _ in range(300):
        members = np.repeat(np.arange(12), rng.integers(1, 5, 12))
        lags = 5 + np.round(shared * rng.standard_normal(12)[members] + 2 * rng.standard_normal(len(members)))
        low, high = median_interval(lags, members)
        covered += low <= 5 <= high
    assert 0.92 <= covered / 300 <= 0.988  # 98 % and one standard error


def test_interval_of_clusters_counts_clusters(rng):
    centers = rng.standard_normal(8)
    once = median_interval(centers, np.arange(8))
    assert median_interval(np.repeat(centers, 10), np.repeat(np.arange(8), 10)) == once
    assert np.isnan(median_interval(np.repeat(centers[:4], 10), np.repeat(np.arange(4), 10))).all()


def test_interval_encloses_the_median_and_is_a_step_wide_at_most_where_all_tie(rng):
    for number in (5, 6, 30, 301):
        low, high = median_interval(np.full(number, 3.0), np.arange(number))
        assert 2.5 <= low <= 3 <= high <= 3.5
        lags = rng.integers(-1, 2, number).astype(float)
        low, high = median_interval(lags, np.arange(number))
        assert low <= np.median(lags) <= high


def test_ranks_equal_scipy(rng):
    values = rng.integers(-3, 4, (12, 4)).astype(float)
    np.testing.assert_array_equal(mean_ranks(values), stats.rankdata(values, axis=1))
    values[rng.random(values.shape) < 0.3] = np.nan
    np.testing.assert_array_equal(mean_ranks(values), stats.rankdata(values, axis=1, nan_policy="omit"))


def test_signed_ranks_make_wilcoxon(rng):
    lags = rng.permutation(np.arange(1, 12)).astype(float) * rng.choice([-1, 1, 1], 11)
    lags = np.append(lags, 0.0)[:, None]
    assert max_flip_p(signed_ranks(lags), rng)[0] == pytest.approx(stats.wilcoxon(lags[:11, 0], method="exact").pvalue)


def test_medians_of_episodes():
    medians = medians_of([np.array([2.0, -1.0, 3.0])], [np.array([0, 0, 2])], 3)
    np.testing.assert_array_equal(medians[:, 0], [0.5, np.nan, 3.0])

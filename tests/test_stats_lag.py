"""Truth: the drawing of the sign, slow twins, binomial tables, and simulation under the null."""

import naive
import numpy as np
import pytest
from scipy import stats

from stabilitylab.stats.lag import (
    association,
    cluster,
    jitter,
    match,
    max_sign_p,
    median_interval,
    shift_blocks,
    sign_p,
    signs_of,
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
    np.testing.assert_allclose(max_sign_p(signs, rng), naive.max_sign_p(signs))


def test_max_statistic_of_one_layer_is_the_sign_test(rng):
    signs = np.array([1, 1, 1, 1, 1, 1, -1, 1.0])[:, None]
    assert max_sign_p(signs, rng)[0] == pytest.approx(sign_p(signs[:, 0]))
    many = np.where(rng.random((40, 1)) < 0.7, 1.0, -1.0)
    assert max_sign_p(many, rng)[0] == pytest.approx(sign_p(many[:, 0]), abs=0.02)


def test_max_statistic_holds_its_level_over_dependent_layers(rng):
    rejected = 0
    for _ in range(300):
        shared = rng.standard_normal((12, 1))
        rejected += max_sign_p(np.sign(shared + rng.standard_normal((12, 8))), rng).min() <= 0.05
    assert rejected / 300 <= 0.08  # 5 % and two standard errors


@pytest.mark.parametrize("number", [6, 12, 25])
def test_interval_of_the_median_covers_it(rng, number):
    covered = 0
    for _ in range(800):
        low, high = median_interval(5 + rng.standard_normal(number), np.arange(number), rng)
        covered += low <= 5 <= high
    assert 0.93 <= covered / 800 <= 0.985


def test_interval_of_clusters_is_wider_than_that_of_as_many_single_values(rng):
    centers = np.repeat(rng.standard_normal(8), 10)
    clustered = median_interval(centers, np.repeat(np.arange(8), 10), rng)
    single = median_interval(centers + 1e-6 * rng.standard_normal(80), np.arange(80), rng)
    assert clustered[1] - clustered[0] > single[1] - single[0]
    assert np.isnan(median_interval(np.array([1.0, 2.0]), np.arange(2), rng)).all()


def test_association_counts_as_the_slow_twin(rng):
    first, later = np.sort(rng.uniform(0, 2000, 15)), np.sort(rng.uniform(0, 2000, 12))
    moved = jitter(later, 200, 50, rng)
    seen = association(first, later, moved, 20)
    assert seen.together == naive.near(first, later, 20)
    chance = [naive.near(first, row, 20) for row in moved]
    assert seen.expected == pytest.approx(np.mean(chance))
    assert seen.p == pytest.approx((1 + sum(each >= seen.together for each in chance)) / 51)


@pytest.mark.parametrize(
    "surrogate", [lambda t, rng: jitter(t, 200, 200, rng), lambda t, rng: shift_blocks(t, 500, 200, rng)]
)
def test_association_of_independent_series_in_a_shared_phase_is_not_found(rng, surrogate):
    found = 0
    for _ in range(300):
        first, later = (np.sort(np.concatenate([rng.uniform(2000, 5000, 15), rng.uniform(0, 10000, 3)])) for _ in "ab")
        found += association(first, later, surrogate(later, rng), 10).p <= 0.05
    assert found / 300 <= 0.06


def test_shifted_blocks_stay_in_their_blocks(rng):
    times = np.sort(rng.uniform(0, 5000, 30))
    moved = shift_blocks(times, 500, 20, rng)
    assert np.array_equal(moved // 500, np.broadcast_to(times // 500, moved.shape))


def test_signs_of_episodes():
    signs = signs_of([np.array([2.0, -1.0, 3.0])], [np.array([0, 0, 2])], 3)
    assert signs[:, 0].tolist() == [0.0, 0.0, 1.0]

"""Truth: SciPy's Page test of complete tables, invariance, and simulation under the null."""

import numpy as np
import pytest
from scipy import stats

from stabilitylab.stats.page import page_trend


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("slope", [0.0, 0.3, -0.3])
def test_complete_tables_equal_scipy(rng, slope):
    values = rng.standard_normal((14, 6)) + slope * np.arange(6)
    trend = page_trend(values, rng)
    later = stats.page_trend_test(values, method="asymptotic").pvalue
    sooner = stats.page_trend_test(values[:, ::-1], method="asymptotic").pvalue
    assert trend.p == pytest.approx(min(1.0, 2 * min(later, sooner)))
    assert (trend.z > 0) == (later < sooner)
    rho = [stats.spearmanr(row, np.arange(6)).statistic for row in values]
    assert trend.correlation == pytest.approx(np.mean(rho))
    assert (trend.rows, trend.values, trend.ties) == (14, 84, 0)


def test_the_approximation_is_near_the_exact_test_with_five_rows(rng):
    values = rng.standard_normal((5, 6)) + 0.4 * np.arange(6)
    exact = stats.page_trend_test(values, method="exact").pvalue
    assert page_trend(values, rng).p / 2 == pytest.approx(exact, rel=0.4, abs=2e-4)


def test_an_empty_layer_and_a_tied_episode_say_nothing(rng):
    values = np.cumsum(rng.random((6, 5)), axis=1)
    plain = page_trend(values, rng)
    wider = np.insert(values, 2, np.nan, axis=1)
    more = np.vstack([wider, np.full((3, 6), 7.0), np.full((2, 6), np.nan)])
    assert page_trend(more, rng) == plain
    assert plain.correlation == 1.0
    assert plain.p_mirror == plain.p_smallest == 2 / 2**6


def test_ties_share_their_rank():
    trend = page_trend(np.array([[1.0, 1, 2, 2]] * 5), np.random.default_rng(0))
    assert (trend.values, trend.ties) == (20, 10)
    assert trend.correlation == pytest.approx(stats.spearmanr([1, 1, 2, 2], range(4)).statistic)


def test_nothing_to_rank(rng):
    for values in (np.empty((0, 5)), np.full((4, 5), np.nan), np.ones((4, 5)), np.array([[1.0, 2, np.nan]])):
        trend = page_trend(values, rng)
        assert (trend.rows, trend.p, trend.p_mirror) == (0, 1.0, 1.0)


def test_no_trend_is_found_seldom_though_layers_miss_tie_and_go_together(rng):
    """Whole steps, a third missing: 5 %. Neighbors with shared noise: only the mirrored p-value holds its level."""
    page, mirrored = [], []
    for _ in range(200):
        values = np.round(2 * rng.standard_normal((10, 8)))
        values[rng.random(values.shape) < 0.3] = np.nan
        page.append(page_trend(values, rng).p <= 0.05)
        waves = np.cumsum(rng.standard_normal((10, 8)), axis=1)
        mirrored.append(page_trend(waves, rng).p_mirror <= 0.05)
    assert 0.01 <= np.mean(page) <= 0.06 + 2 * (0.05 * 0.95 / 200) ** 0.5
    assert np.mean(mirrored) <= 0.06 + 2 * (0.05 * 0.95 / 200) ** 0.5

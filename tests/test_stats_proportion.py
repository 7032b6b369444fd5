"""Truth: the formula of McNemar worked by hand, tables, and the sampling distributions themselves."""

import numpy as np
import pytest

from stabilitylab.stats.proportion import mcnemar_z, normal_quantile, standard_error, two_proportion_z


def test_mcnemar_is_lost_minus_gained_over_the_root_of_both():
    before = np.array([1] * 12 + [0] * 3 + [1] * 50)
    after = np.array([0] * 12 + [1] * 3 + [1] * 50)
    assert mcnemar_z(before, after) == pytest.approx(9 / np.sqrt(15))
    assert mcnemar_z(before, before) == 0.0


def test_mcnemar_of_no_change_is_standard_normal():
    rng = np.random.default_rng(0)
    before, after = rng.random((2, 4000, 200)) < 0.7
    z = mcnemar_z(before, after)
    assert abs(z.mean()) < 0.06
    assert z.std() == pytest.approx(1.0, abs=0.05)


def test_two_proportions_of_no_change_are_standard_normal():
    rng = np.random.default_rng(0)
    before, after = rng.binomial(500, 0.8, (2, 20000)) / 500
    assert two_proportion_z(before, after, 500).std() == pytest.approx(1.0, abs=0.03)


def test_standard_error_is_binomial_and_never_zero():
    assert standard_error(0.3, 10_000) == pytest.approx(np.sqrt(0.21 / 10_000), rel=1e-3)
    assert standard_error(1.0, 100) > 0


def test_normal_quantile_of_a_table():
    assert normal_quantile(0.025) == pytest.approx(1.959964, abs=1e-6)

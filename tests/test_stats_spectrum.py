"""Truth: closed forms of ranks and laws, eigenvalues of simulated white noise, and spectra built with a known rank."""

import numpy as np
import pytest

from stabilitylab.stats.spectrum import (
    alpha_req,
    dead_directions,
    effective_rank,
    feature_std,
    marchenko_pastur_quantiles,
    participation_ratio,
    power_law,
    rankme,
    stable_rank,
)


def spectrum_of(data):
    return np.clip(np.linalg.eigvalsh(np.cov(data.T, dtype=float))[::-1], 0, None)


def spectrum(rng, samples, deviations):
    return spectrum_of(rng.standard_normal((samples, len(deviations))) * deviations)[None]


def test_effective_rank_of_equal_directions_is_their_number():
    assert effective_rank(np.ones(7)) == pytest.approx(7.0)
    assert effective_rank(np.array([5.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert effective_rank(np.array([[1.0, 1.0, 0.0], [3e9, 3e9, 3e9]])) == pytest.approx([2.0, 3.0])
    assert np.isnan(effective_rank(np.zeros(4)))
    halves = np.array([0.5, 0.25, 0.25])
    assert effective_rank(halves) == pytest.approx(2**1.5)


@pytest.mark.parametrize("measure", [effective_rank, rankme, participation_ratio, stable_rank])
@pytest.mark.parametrize("wrong", [[-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_a_rank_refuses_what_is_no_spectrum(measure, wrong):
    with pytest.raises(ValueError, match="singular values"):
        measure(np.array(wrong))


@pytest.mark.parametrize("measure", [effective_rank, rankme, participation_ratio, stable_rank])
def test_every_rank_is_the_number_of_equal_directions_whatever_their_unit_and_order(measure):
    values = np.array([np.ones(7), [1, 1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    expected = [7, 3, 1]
    tolerance = 2e-5  # RankMe adds 1e-7 to each share
    assert measure(values) == pytest.approx(expected, rel=tolerance)
    assert measure(1e-12 * values) == pytest.approx(expected, rel=tolerance)
    assert measure(values[:, ::-1]) == pytest.approx(expected, rel=tolerance)
    assert np.isnan(measure(np.zeros(7)))


def test_the_ranks_of_a_spectrum_of_two_sizes():
    values = np.array([4.0, 2.0, 2.0])  # shares 1/2, 1/4, 1/4
    assert participation_ratio(values) == pytest.approx(1 / (1 / 4 + 1 / 16 + 1 / 16))
    assert stable_rank(values) == pytest.approx(2.0)
    assert rankme(values) == pytest.approx(2**1.5, rel=1e-6)


def test_rankme_as_defined_exceeds_the_dimension_a_little():
    assert 1000 < rankme(np.ones(1000)) < 1001


def test_an_uncentered_rank_is_low_where_the_mean_is_large():
    cloud = np.random.default_rng(0).standard_normal((4000, 128)) + 20.0
    uncentered = np.linalg.svd(cloud, compute_uv=False)
    centered = np.linalg.svd(cloud - cloud.mean(axis=0), compute_uv=False)
    assert effective_rank(centered) == pytest.approx(127, abs=1)
    assert effective_rank(uncentered) == pytest.approx(10, abs=1)
    assert rankme(uncentered) == pytest.approx(10, abs=1)
    assert rankme(centered) == pytest.approx(127, abs=1)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dimensions", [20, 64, 100, 300])
def test_alpha_is_that_of_the_law_and_positive_where_the_spectrum_falls(alpha, dimensions):
    rank = np.arange(1, dimensions + 1)
    law = 7.0 * rank**-alpha
    assert alpha_req(law) == pytest.approx(alpha, abs=1e-9)
    others = np.where(rank < 10, 3 * law, np.where(rank > 100, law / 3, law))
    assert alpha_req(others) == pytest.approx(alpha, abs=1e-9)
    assert alpha_req(np.stack([law, law**2])) == pytest.approx([alpha, 2 * alpha], abs=1e-9)


def test_alpha_weighs_each_rank_by_its_inverse():
    rank = np.arange(1.0, 101)
    values = np.exp(-0.05 * rank)
    ranks = np.arange(10, 101)
    slope = np.polyfit(np.log(ranks), np.log(values[9:]), 1, w=np.sqrt(1 / ranks))[0]  # polyfit squares its weights
    assert alpha_req(values) == pytest.approx(-slope, rel=1e-9)


def test_alpha_of_too_few_directions_is_unknown():
    assert np.isnan(alpha_req(np.ones(11)))
    assert alpha_req(np.ones(12)) == pytest.approx(0)
    assert np.isnan(alpha_req(np.r_[1.0, np.zeros(99)]))
    assert np.isnan(alpha_req(np.r_[np.ones(11), np.full(89, 1e-13)]))  # what rounding makes of zero


def test_alpha_does_not_count_the_direction_that_a_layer_norm_takes_away():
    cloud = (np.random.default_rng(0).standard_normal((4000, 64)) * np.arange(1, 65) ** -0.5).astype(np.float32)
    normalized = cloud - cloud.mean(axis=1, keepdims=True)
    normalized /= normalized.std(axis=1, keepdims=True)
    values = spectrum_of(normalized)
    assert values[-1] > 0  # rounding
    assert alpha_req(values) == pytest.approx(alpha_req(values[:-1]))
    assert 0.8 < alpha_req(values) < 1.4


def test_alpha_of_what_is_not_finite_is_unknown():
    assert np.isnan(alpha_req(np.full(100, np.nan)))


def test_the_deviation_of_normalized_features():
    rng = np.random.default_rng(0)
    cloud = rng.standard_normal((5000, 64)) * rng.uniform(0.1, 10, (5000, 1))
    assert feature_std(cloud) == pytest.approx(1 / 8, rel=0.01)
    assert feature_std(np.ones((10, 4))) == pytest.approx(0, abs=1e-15)
    assert feature_std(np.eye(2)) == pytest.approx(0.5)  # 1 and 0 in each dimension
    assert feature_std(np.zeros((5, 3))) == 0
    assert np.isnan(feature_std(np.array([[1.0, np.inf], [1.0, 2.0]])))


@pytest.mark.parametrize(("samples", "dimensions"), [(2000, 200), (300, 250), (101, 400)])
def test_marchenko_pastur_is_what_white_noise_has(samples, dimensions):
    rng = np.random.default_rng(0)
    seen = spectrum(rng, samples, np.ones(dimensions))[0]
    expected = marchenko_pastur_quantiles(samples, dimensions)
    assert np.sum(expected > 0) == min(dimensions, samples - 1)
    np.testing.assert_allclose(seen, expected, atol=0.03 * seen[0])


def test_power_law_is_recovered():
    rank = np.arange(1, 51)
    intercept, slope = power_law((3.0 * rank**-1.7)[None], np.array([50]))
    assert slope[0] == pytest.approx(-1.7)
    assert np.exp(intercept[0]) == pytest.approx(3.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize(("samples", "dimensions"), [(200, 16), (64, 64), (50, 128), (450, 96), (160, 160)])
def test_a_power_law_is_steep_and_not_dead(alpha, samples, dimensions):
    rng = np.random.default_rng(1)
    deviations = np.arange(1, dimensions + 1) ** (-alpha / 2)
    assert dead_directions(spectrum(rng, samples, deviations), samples)[0] <= 1


@pytest.mark.parametrize("dead", [4, 8])
def test_dead_directions_are_counted(dead):
    rng = np.random.default_rng(2)
    deviations = np.ones(16)
    deviations[16 - dead :] = 1e-3
    assert dead_directions(spectrum(rng, 500, deviations), 500)[0] == dead
    assert dead_directions(spectrum(rng, 500, 1e-6 * deviations), 500)[0] == dead


def test_directions_beyond_the_samples_do_not_count():
    rng = np.random.default_rng(3)
    assert dead_directions(spectrum(rng, 40, np.ones(128)), 40)[0] == 0


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.25, 1.0])
def test_an_exponential_spectrum_is_steep_and_not_dead(rate: float) -> None:
    spectrum = np.exp(-rate * np.arange(96))[None]
    assert dead_directions(spectrum, 2000).tolist() == [0]
    cliff = spectrum.copy()
    cliff[:, 48:] *= 1e-6  # a fall that the spectrum did not announce
    assert dead_directions(cliff, 2000).tolist() == [48]

"""Truth: closed forms of ranks, eigenvalues of simulated white noise, and spectra built with a known rank."""

import numpy as np
import pytest

from stabilitylab.stats.spectrum import (
    dead_directions,
    effective_rank,
    marchenko_pastur_quantiles,
    power_law,
)


def spectrum(rng, samples, deviations):
    data = rng.standard_normal((samples, len(deviations))) * deviations
    return np.clip(np.linalg.eigvalsh(np.cov(data.T))[::-1], 0, None)[None]


def test_effective_rank_of_equal_directions_is_their_number():
    assert effective_rank(np.ones(7)) == pytest.approx(7.0)
    assert effective_rank(np.array([5.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert effective_rank(np.array([[1.0, 1.0, 0.0], [3e9, 3e9, 3e9]])) == pytest.approx([2.0, 3.0])
    assert np.isnan(effective_rank(np.zeros(4)))
    halves = np.array([0.5, 0.25, 0.25])
    assert effective_rank(halves) == pytest.approx(2**1.5)


@pytest.mark.parametrize("wrong", [[-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_effective_rank_refuses_what_is_no_spectrum(wrong):
    with pytest.raises(ValueError, match="singular values"):
        effective_rank(np.array(wrong))


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

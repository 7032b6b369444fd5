"""Truth: the drawing of the sign, numpy's correlation of single windows, and shifts that were planted."""

import numpy as np
import pytest

from stabilitylab.stats.correlation import TAPER, most_alike, windows


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def curves(rng, lag, height=4.0, noise=0.1, number=12):
    """Log magnitudes of a first and a later layer, and where the spikes of the first begin."""
    centers = np.arange(200, 200 + 250 * number, 250)
    first, later = noise * rng.standard_normal((2, centers[-1] + 300))
    for at in centers:
        first[at : at + 3] += np.log(4.0)
        later[at + lag : at + lag + 3] += np.log(height)
    return first, later, centers


def measured(first, later, centers, rng):
    return most_alike(windows(first, centers, 50), windows(later, centers, 150), 100, rng, draws=200)


@pytest.mark.parametrize("lag", [0, 5, -5, 60])
@pytest.mark.parametrize("height", [2.0, 100.0])
def test_the_drawing(rng, lag, height):
    found = measured(*curves(rng, lag, height), rng)
    assert found == (lag, lag, lag, 12)  # positive where the later layer follows, whatever the heights


def test_one_window_equals_numpy(rng):
    one, other = np.abs(rng.standard_normal((2, 1, 301)))
    one = one[:, 100:201]
    products = np.correlate(other[0], one[0], mode="valid") * (1 - TAPER * np.abs(np.arange(-100, 101)) / 100)
    found = most_alike(np.repeat(one, 5, axis=0), np.repeat(other, 5, axis=0), 100, rng, draws=20)
    assert found.lag == np.argmax(products) - 100


def test_what_is_not_finite_or_outside_is_no_spike(rng):
    first, later, centers = curves(rng, 5)
    first[centers[0] - 20], later[centers[1] + 40], later[centers[2] + 40] = np.inf, -np.inf, np.nan
    assert measured(first, later, centers, rng).lag == 5
    assert windows(np.ones(10), np.array([0, 9]), 20).tolist() == [[0.0] * 41] * 2


def test_too_few_and_empty_curves_say_nothing(rng):
    first, later, centers = curves(rng, 5)
    few = measured(first, later, centers[:4], rng)
    assert np.isnan(few[:3]).all()
    assert few.windows == 4
    assert np.isnan(measured(first, np.ones(len(first)), centers, rng).lag)

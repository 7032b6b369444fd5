"""Truth: the binomial distribution, all orders counted one by one, and simulation under the null."""

from itertools import permutations

import numpy as np
import pytest
from scipy.stats import binom

from stabilitylab.stats.precedence import precedence


def claims(rng, number, counts):
    """Return one p of sooner and one of later of independent hits, so many of each layer, in each of many episodes."""
    layers = [np.repeat(np.arange(len(counts)), counts) for _ in range(number)]
    times = [rng.permutation(60)[: len(layer)].astype(float) for layer in layers]
    found = precedence(layers, times, times, rng)
    return found.p_sooner, found.p_later


def test_of_one_hit_a_layer_it_is_the_sign_test():
    layers, times = [np.arange(4)] * 10, [np.array([0.0, 1, 2, 3])] * 9 + [np.array([9.0, 1, 2, 3])]
    found = precedence(layers, times, times, np.random.default_rng(0))
    assert (found.sooner, found.later) == (9, 1)
    assert found.p_sooner == pytest.approx(binom.sf(8, 10, 0.5))
    assert found.p_later == pytest.approx(binom.sf(0, 10, 0.5))
    tied = precedence([np.arange(3)], [np.zeros(3)], [np.zeros(3)], np.random.default_rng(0))
    assert tied == (0, 0, 1.0, 1.0)


def test_the_chance_is_that_of_all_orders():
    """Layer 0 hit once, the others three times and once: of all orders in which it is sooner or later."""
    layer, time = np.array([0, 1, 1, 1, 2]), np.arange(5.0)
    counts = {1: 0, -1: 0, 0: 0}
    for order in permutations(layer.tolist()):
        first = [order.index(each) for each in range(3)]
        before, after = sum(first[0] < each for each in first), sum(first[0] > each for each in first)
        counts[(before > after) - (before < after)] += 1
    exact = counts[1] / (counts[1] + counts[-1])
    told = [precedence([layer], [time], [time], np.random.default_rng(seed)).p_sooner for seed in range(50)]
    assert np.mean(told) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("counts", [(1, 4, 4, 4), (5, 1, 1, 1, 1), (2, 2, 2)])
def test_busy_layers_are_not_said_to_come_first(counts):
    rng = np.random.default_rng(0)
    p = np.array([claims(rng, 25, counts) for _ in range(300)])
    assert ((p <= 0.05).mean(axis=0) <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5).all()


def test_a_layer_that_begins_and_is_hit_again_is_sooner():
    layers = [np.array([0, 1, 2, 3, 0])] * 40
    times = [np.array([0.0, 3, 4, 5, 16])] * 40
    found = precedence(layers, times, times, np.random.default_rng(0))
    assert found.sooner == 40
    assert found.p_sooner < 0.01 < 0.99 < found.p_later

"""Truth: a slow twin, invariance of clusters and blocks, and simulation under the null."""

import naive
import numpy as np
import pytest

from stabilitylab.stats.surrogates import association, jitter, shift_blocks


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_association_counts_as_the_slow_twin(rng):
    first = np.sort(rng.integers(0, 2000, 15)).astype(float)
    others = [np.unique(rng.integers(0, 2000, 12)).astype(float) for _ in range(3)]
    moved = jitter(first, 200, 50, rng)
    seen = association(first, [*others, np.empty(0)], moved, 20)
    chance = np.array([[naive.near(row, each, 20.5) for row in moved] for each in others])
    assert seen.together.tolist() == [*(naive.near(first, each, 20) for each in others), 0]
    np.testing.assert_allclose(seen.expected[:3], chance.mean(axis=1))
    at_least = (chance >= seen.together[:3, None]).sum(axis=1)
    np.testing.assert_allclose(seen.p[:3], (1 + at_least) / 51)
    assert (seen.p_adjusted >= seen.p).all()


@pytest.mark.parametrize("surrogate", [jitter, shift_blocks])
def test_independent_series_in_a_shared_phase_are_not_associated(rng, surrogate):
    """Of 200 runs, at most 6 % may find any of four series associated; the limit adds a standard error."""
    found = 0
    for _ in range(200):
        first, *others = (np.sort(np.r_[rng.uniform(2000, 5000, 15), rng.uniform(0, 10000, 3)]) for _ in range(5))
        moved = surrogate(first, 200 if surrogate is jitter else 500, 200, rng)
        found += association(first, others, moved, 10).p_adjusted.min() <= 0.05
    assert found / 200 <= 0.06 + (0.06 * 0.94 / 200) ** 0.5


def test_bursts_are_moved_as_a_whole(rng):
    """Events of a burst are one piece of evidence: moved one by one, bursts that meet by chance count several times."""
    times = np.array([100.0, 103.0, 108.0, 500.0, 507.0, 900.0])
    clusters = np.array([0, 0, 0, 1, 1, 2])
    moved = jitter(times, 200, 40, rng, clusters)
    assert np.abs(moved - times).max() <= 200
    within = np.diff(moved, axis=1)[:, [0, 1, 3]]
    np.testing.assert_allclose(within, np.broadcast_to(np.diff(times)[[0, 1, 3]], within.shape))
    false = {True: 0, False: 0}
    for _ in range(200):
        bursts = [np.sort((each[:, None] + np.arange(4) * 8).ravel()) for each in rng.uniform(0, 4000, (2, 12))]
        names = np.cumsum(np.diff(bursts[0], prepend=bursts[0][0]) > 20)
        for whole in false:
            surrogates = jitter(bursts[0], 200, 200, rng, names if whole else None)
            false[whole] += association(bursts[0], bursts[1:], surrogates, 10).p[0] <= 0.05
    assert false[True] / 200 <= 0.06 + (0.06 * 0.94 / 200) ** 0.5
    assert false[False] > 1.5 * false[True]


def test_a_true_association_is_found_at_all_widths(rng):
    times = np.sort(rng.choice(np.arange(0, 6000, 60), 25, replace=False)).astype(float)
    for width in (50, 100, 200, 400):
        assert association(times, [times + 3], jitter(times, width, 500, rng), 10).p_adjusted[0] <= 0.01


def test_shifted_blocks_stay_in_their_blocks(rng):
    times = np.sort(rng.uniform(0, 5000, 30))
    moved = shift_blocks(times, 500, 20, rng)
    assert np.array_equal(moved // 500, np.broadcast_to(times // 500, moved.shape))


def test_nothing_to_associate(rng):
    empty = np.empty(0)
    assert association(empty, [np.array([1.0])], jitter(empty, 200, 10, rng), 5).together.tolist() == [0]
    assert len(association(np.array([1.0]), [], np.ones((10, 1)), 5).p) == 0

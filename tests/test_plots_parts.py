"""Truth: closed forms, and slow twins of thinning."""

from __future__ import annotations

import numpy as np
import pytest
from plot_cases import INF, NAN
from plot_runs import layer_names

from stabilitylab.findings import Event
from stabilitylab.layers import layers_of
from stabilitylab.plots import _thinning as thinning
from stabilitylab.plots._choice import first_middle_last
from stabilitylab.plots._level import relative
from stabilitylab.plots._words import count, ordinal, shorten

# the pure functions


@pytest.mark.parametrize("seed", range(5))
def test_thinning_keeps_what_a_slow_loop_over_bins_would_keep(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=20_011)
    values[rng.integers(0, len(values), 40)] = rng.choice([NAN, INF, -INF, 90.0, -90.0], 40)
    rows = set(thinning.thin(values, 1000).tolist())
    assert len(rows) <= 1000
    bins = np.array_split(np.arange(len(values)), 998 // 5)
    place = thinning.bins_of(len(values), len(bins))
    for number in range(len(bins)):
        inside = np.flatnonzero(place == number)
        finite = inside[np.isfinite(values[inside])]
        assert {finite[values[finite].argmax()], finite[values[finite].argmin()]} <= rows
        for mask in (np.isnan(values[inside]), values[inside] == INF, values[inside] == -INF):
            assert not mask.any() or inside[mask][0] in rows


def test_thinning_never_loses_a_lone_spike_or_a_lone_nan():
    for at in (0, 1, 49_999, 50_000, 99_998, 99_999):
        for value in (7.0, -7.0, NAN, INF, -INF):
            values = np.sin(np.arange(100_000) / 1000)
            values[at] = value
            assert at in thinning.thin(values, 500)


def test_thinning_of_special_series():
    assert thinning.thin(np.empty(0)).tolist() == []
    assert thinning.thin(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]
    assert len(thinning.thin(np.full(10_000, NAN), 100)) <= 100
    assert len(thinning.thin(np.ones(10_000), 100)) <= 100
    with pytest.raises(ValueError, match="at least 8"):
        thinning.thin(np.ones(10), 7)


def test_pool_max_is_the_maximum_of_each_bin():
    values = np.array([1.0, NAN, 5.0, NAN, NAN, 2.0, INF])
    pooled = thinning.pool_max(values, np.array([0, 0, 0, 1, 1, 3, 3]), 5)
    np.testing.assert_array_equal(pooled, [5.0, NAN, NAN, INF, NAN])


def test_tallest_keeps_the_tallest_of_each_place():
    steps, heights = np.arange(10_000), np.random.default_rng(0).random(10_000)
    heights[[3, 7000]] = 5.0, INF
    chosen = thinning.tallest(steps, heights, 100)
    assert len(chosen) == 100
    assert {3, 7000} <= set(chosen.tolist())
    assert thinning.tallest(steps[:7], heights[:7], 100).tolist() == list(range(7))


def test_widen_joins_and_covers():
    spans = np.array([[50.0, 50.0], [0.0, 10.0], [8.0, 20.0], [51.0, 51.0]])
    assert thinning.widen(spans, 4).tolist() == [[0, 20], [48, 53]]
    assert thinning.widen(np.empty((0, 2)), 4).shape == (0, 2)


def test_spread_moves_labels_apart_and_no_further():
    assert thinning.spread(np.array([1.0, 5.0]), 1.0, 0.0, 10.0).tolist() == [1.0, 5.0]
    np.testing.assert_allclose(thinning.spread(np.array([5.0, 5.0, 5.0]), 1.0, 0.0, 10.0), [4, 5, 6])
    placed = thinning.spread(np.random.default_rng(0).random(10) * 0.1 + 9.9, 0.5, 0.0, 10.0)
    assert placed.min() >= 0
    assert placed.max() <= 10 + 1e-9
    assert np.diff(np.sort(placed)).min() >= 0.5 - 1e-9


def test_relative_is_one_on_a_constant_and_the_ratio_in_a_spike():
    steps, values = np.arange(100, 600), np.full(500, 0.3)
    values[300:390] = 0.9  # so long that a level which is not frozen would rise to it
    values[400] = NAN
    spike = Event(400, 400, 400, 489, "spike", "gradients.norm", "a", 3.0, 10.0)
    expected = np.ones(500)
    expected[300:390] = 3.0
    expected[400] = NAN
    np.testing.assert_allclose(relative(steps, values, [spike]), expected, rtol=1e-12)
    np.testing.assert_allclose(relative(steps, 1e-30 * values, [spike]), expected, rtol=1e-9)
    assert np.isnan(relative(steps, np.zeros(500))).all()
    np.testing.assert_allclose(relative(steps[:5], np.full(5, 2.0)), 1.0)


def test_first_middle_last_stand_for_depth():
    layers = layers_of([f"{name}.weight" for name in layer_names(150)])
    assert first_middle_last(layers, layers.names) == ("patch_embed", "blocks.72", "blocks.145")
    frozen = [name for name in layers.names if name != "patch_embed"]
    assert first_middle_last(layers, frozen) == ("blocks.0", "blocks.73", "blocks.145")
    assert first_middle_last(layers, ["norm", "projector"]) == ("norm", "projector")


def test_words():
    assert [count(number, "dip") for number in (0, 1, 2000)] == ["no dips", "1 dip", "2,000 dips"]
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 22, 103)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "22nd", "103rd",
    ]  # fmt: skip
    assert shorten("abc", 10) == "abc"
    assert len(shorten("a" * 50 + "z", 20)) == 20
    assert shorten("a" * 50 + "z", 20).endswith("z")


# every picture

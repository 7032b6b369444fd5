"""Truth: the root of a sum of squares, `math.hypot`, which stays in the range of numbers, and planted falls."""

import math

import numpy as np
import pandas as pd
import pytest
from test_analysis import event

from stabilitylab import episodes
from stabilitylab.episodes import aftermath, expected_followers, group, layer_magnitudes
from stabilitylab.run import Run, RunWriter


def test_magnitude_of_a_layer_is_the_root_of_the_sum_of_squares(tmp_path):
    writer = RunWriter(
        tmp_path / "r", {"layers": {"names": ["x", "y"], "of": {"a": "x", "b": "x", "c": "y"}, "first": "x"}}
    )
    writer.declare("gradients.norm", ["a", "b", "c"])
    values = np.array([[3, 4, 1], [np.nan, 4, 1], [np.inf, 4, 1], [0, 0, 0], [3e30, 4e30, 1]], dtype=np.float32)
    writer.write("gradients.norm", np.arange(5), values)
    writer.close("completed")
    frame = layer_magnitudes(Run(tmp_path / "r"))
    np.testing.assert_allclose(frame["x"], [5, np.nan, np.inf, 0, 5e30], rtol=1e-6)
    np.testing.assert_allclose(frame["y"], [1, 1, 1, 0, 1])


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e-20, 1.0, 1e100, 1e153, 1e200, 1e307])
def test_magnitudes_do_not_leave_the_range_of_numbers_when_squared(tmp_path, size):
    writer = RunWriter(tmp_path / "r", {"layers": {"names": ["x"], "of": {"a": "x", "b": "x"}, "first": "x"}})
    writer.declare("gradients.norm", ["a", "b"])
    values = size * np.array([[3, 4], [0, 2], [np.nan, 1], [1, np.inf], [0, 0]], dtype=float)
    writer.write("gradients.norm", np.arange(5), values)
    writer.close("completed")
    found = layer_magnitudes(Run(tmp_path / "r"))["x"]
    np.testing.assert_allclose(found, [math.hypot(*row) if row[0] == row[0] else np.nan for row in values], rtol=1e-12)


@pytest.mark.parametrize(("cells", "most"), [(4_000_000, 2), (60, 20), (1, 40)])
def test_many_layers_of_a_short_run_are_read_together(tmp_path, monkeypatch, cells, most):
    """Reading one layer at a time took 61 s of the processor for 1,250 layers of 200 steps."""
    of = {f"{layer}.{name}": str(layer) for layer in range(40) for name in "ab"}
    writer = RunWriter(tmp_path / "r", {"layers": {"names": list(map(str, range(40))), "of": of, "first": "0"}})
    writer.declare("gradients.norm", list(of))
    values = np.random.default_rng(0).lognormal(size=(10, 80))
    writer.write("gradients.norm", np.arange(10), values)
    writer.close("completed")
    read, asked = Run.read, []
    monkeypatch.setattr(Run, "read", lambda run, name, labels, **rest: asked.append(labels) or read(run, name, labels))
    monkeypatch.setattr(episodes, "CELLS", cells)
    found = layer_magnitudes(Run(tmp_path / "r"))
    np.testing.assert_allclose(found, np.hypot(values[:, ::2], values[:, 1::2]), rtol=1e-12)
    assert found.columns.tolist() == list(map(str, range(40)))
    assert len(asked) <= most
    assert max(len(each) for each in asked) * 10 <= max(cells, 20)


class TestEpisodes:
    def test_grouping(self):
        episodes = group([event("b", 100), event("a", 100, 3.0), event("b", 110, 9.0), event("c", 300)], "abc", 20)
        assert [(each.start, each.stop, each.first_layers) for each in episodes] == [
            (100, 110, ("a", "b")),  # b at 100 too, though its tallest comes later
            (300, 300, ("c",)),
        ]
        assert [each.height for each in episodes[0].events] == [3.0, 9.0]  # one for each layer, the tallest
        (early,) = group([event("b", 98), event("a", 100, 3.0), event("b", 110, 9.0)], "abc", 20)
        assert early.first_layers == ("b",)
        assert group([], "abc", 20) == []

    def test_small_falls_after_many_spikes_are_seen_in_their_mean(self):
        rng = np.random.default_rng(0)
        steps = np.arange(0, 6000, 10)
        times = rng.integers(300, 5700, 8)
        episodes = group([event("a", int(t)) for t in times], "a", 20)
        found, false = [], []
        for _ in range(100):
            values = 0.97 + 0.006 * rng.standard_normal(600)
            false.append(aftermath(episodes, pd.Series(values, steps), rng, draws=200).p <= 0.05)
            for each in episodes:
                values[(steps > each.start) & (steps <= each.start + 20)] -= 0.01
            seen = aftermath(episodes, pd.Series(values, steps), rng, draws=200)
            found.append(seen.p <= 0.05)
        assert seen.episodes >= 5
        assert np.mean(false) <= 0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5
        assert np.mean(found) >= 0.9

    @pytest.mark.parametrize(("later", "every"), [(0, 5), (20, 5), (60, 5), (60, 20)])
    def test_a_fall_that_comes_late_within_the_horizon_is_found_where_it_is(self, later, every):
        rng = np.random.default_rng(0)
        steps = np.arange(0, 6000, every)
        values = 0.8 + 0.005 * rng.standard_normal(len(steps))
        starts = np.arange(500, 5500, 260)
        for at in starts:
            values[(steps > at + later) & (steps <= at + later + 40)] -= 0.05
        episodes = group([event("a", int(each)) for each in starts], "a", 20)
        seen = aftermath(episodes, pd.Series(values, steps), rng, draws=200)
        assert seen.episodes == len(starts)
        assert seen.fall == pytest.approx(0.05, abs=0.006)
        assert later < seen.delay <= later + 40
        assert seen.p < 0.01

    def test_measurements_in_patches_are_no_evidence(self):
        """Twelve measurements in sixty steps, every four hundred, around each spike."""
        rng = np.random.default_rng(0)
        steps = np.concatenate([np.arange(at, at + 60, 5) for at in range(0, 8000, 400)])
        episodes = group([event("a", at + 30) for at in range(400, 8000, 400)], "a", 20)
        curves = (pd.Series(0.8 + 0.005 * rng.standard_normal(len(steps)), steps) for _ in range(100))
        p = np.array([aftermath(episodes, curve, rng, draws=200).p for curve in curves])
        assert np.mean(p <= 0.05) <= 0.05 + 2 * (0.05 * 0.95 / 100) ** 0.5

    def test_an_unstable_phase_that_spikes_and_dips_share_is_no_evidence(self):
        """Seven spikes and three falls, each anywhere in each of three phases of 500 steps."""
        rng = np.random.default_rng(0)
        steps, phases = np.arange(0, 5000, 20), (1000, 2600, 4000)
        p = {"fall": [], "followers": []}
        for _ in range(200):
            values = 0.8 + 0.004 * rng.standard_normal(len(steps))
            spikes = np.concatenate([rng.integers(at, at + 500, 7) for at in phases])
            dips = np.concatenate([rng.integers(at, at + 500, 3) for at in phases])
            for at in dips:
                values[(steps >= at) & (steps < at + 100)] -= 0.06
            episodes = group([event("a", int(each)) for each in spikes], "a", 20)
            p["fall"].append(aftermath(episodes, pd.Series(values, steps), rng, draws=200).p)
            others = [event("k", int(each)) for each in dips]
            p["followers"].append(expected_followers(episodes, others, 100, (0, 4999))[2])
        for each in p.values():
            assert np.mean(np.array(each) <= 0.05) <= 0.05 + 2 * (0.05 * 0.95 / 200) ** 0.5

    def test_the_aftermath_of_nothing(self):
        rng = np.random.default_rng(0)
        curve = pd.Series(np.ones(20), np.arange(20))
        assert aftermath([], curve, rng).episodes == 0
        assert aftermath(group([event("a", 2)], "a", 20), curve, rng).episodes == 0  # nothing before
        assert aftermath(group([event("a", 18)], "a", 20), curve, rng).episodes == 0  # nothing after
        one = aftermath(group([event("a", 10)], "a", 20), curve, rng)
        assert (one.episodes, one.fall, one.p) == (1, 0.0, 1.0)

    def test_followers_by_chance_are_the_covered_share_of_time(self):
        episodes = group([event("a", t) for t in (1000, 2000, 3000)], "a", 20)
        dips = [event("k", 1050), event("k", 2500)]
        seen, expected, p = expected_followers(episodes, dips, 100, (0, 10000), widths=(500,))
        assert seen == 1
        assert expected == pytest.approx(0.1 + 0.1)  # 100 of the 1000 steps around each
        assert p == pytest.approx(1 - 0.9 * 0.9)

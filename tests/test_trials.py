"""Truth: dips and collapses planted into noise that this module makes; closed forms of areas and blocks."""

import numpy as np
import pandas as pd
import pytest
from accuracy_curves import level, measured, wobble

from stabilitylab.detectors import collapse, dip, divergence
from stabilitylab.findings import Event
from stabilitylab.stats.area import area_below
from stabilitylab.stats.blocks import block_bootstrap
from stabilitylab.trials import collapse_trials, dip_trials, divergence_trials


class TestDips:
    def detect(self, truth, images, paired, rng):
        return dip.Detector().detect("knn.accuracy", *measured(truth, images, paired, rng))

    @pytest.mark.parametrize(
        ("images", "paired", "depth"), [(10_000, False, 0.02), (1000, True, 0.03), (1000, False, 0.07)]
    )
    def test_power(self, images, paired, depth):
        seen = 0
        for seed in range(5):
            rng = np.random.default_rng(seed)
            truth = level("saturating", 150)
            truth[100:105] -= depth
            seen += any(abs(each.start - 1000) <= 20 for each in self.detect(truth, images, paired, rng))
        assert seen >= 4

    @pytest.mark.parametrize(("sd", "memory"), [(0.01, 0.5), (0.005, 0.9)])
    def test_no_dips_in_curves_that_wander(self, sd, memory):
        """At most 0.05 a curve; 4 or more of 20 have a probability of 2 %."""
        false = 0
        for seed in range(20):
            rng = np.random.default_rng(seed)
            false += len(self.detect(level("two rises", 150) + wobble(sd, memory, 150, rng), 10_000, False, rng))
        assert false <= 3

    def test_the_area_is_depth_times_length(self):
        rng = np.random.default_rng(0)
        truth = np.full(150, 0.9)
        truth[100:104] -= 0.2
        frame, about = measured(truth, 100_000, False, rng)
        (event,) = dip.Detector().detect("knn.accuracy", frame, about)
        assert dip.area_lost(event, frame["bank"]) == pytest.approx(0.2 * 40, rel=0.03)

    def test_an_area_by_hand(self):
        steps, values = np.array([0, 10, 30, 40]), np.array([1.0, 0.5, np.nan, 0.75])
        assert area_below(steps, values, 10, 40, 1.0) == 0.5 * 20 + 0.25 * 10
        assert area_below(steps[:0], values[:0], 0, 10, 1.0) == 0


class TestTrials:
    def test_rate_and_power_are_those_of_many_fresh_curves(self):
        """What is said of one run, against 40 new runs of the same noise with a dip of 5 points somewhere."""
        rng = np.random.default_rng(0)
        truth = level("early peak", 200)
        frame, about = measured(truth, 1000, True, rng)
        told = dip_trials(frame["bank"], about, [], dip.Detector())
        fresh = 0
        for seed in range(40):
            own = np.random.default_rng(100 + seed)
            lower = truth.copy()
            at = int(own.integers(30, 180))
            lower[at : at + 5] -= 0.05
            events = dip.Detector().detect("knn.accuracy", *measured(lower, 1000, True, own))
            fresh += any(abs(each.start - 10 * at) < 50 for each in events)
        assert told.found[0.05] == pytest.approx(fresh / 40, abs=0.2)
        assert told.found[0.01] <= told.found[0.02] <= told.found[0.05]
        assert told.expected <= 0.5

    def test_too_short_a_curve_says_nothing(self):
        frame, about = measured(np.full(40, 0.9), 500, False, np.random.default_rng(0))
        assert dip_trials(frame["bank"], about, [], dip.Detector()) is None

    def test_planted_collapse_is_found_where_samples_can_show_it(self):
        rng = np.random.default_rng(0)
        for samples in (1600, 17, 8):  # 8: seven directions can be measured, the others are zero
            rows = [np.linalg.eigvalsh(np.cov(rng.standard_normal((samples, 16)).T))[::-1] for _ in range(12)]
            frame = pd.DataFrame(np.maximum(rows, 0), columns=[str(each) for each in range(16)])
            told = collapse_trials(frame, {"samples": samples}, [], collapse.Detector())
            assert told.alarms == 0
            assert samples < 1600 or set(told.found.values()) == {1.0}
        assert collapse_trials(frame[["0"]], {}, [], collapse.Detector()).found == {}  # none would be left

    def test_planted_jumps_of_the_loss_are_found_as_often_as_in_fresh_losses(self):
        def loss(rng):
            return pd.Series(2 + 3 * np.exp(-np.arange(800) / 100) + wobble(0.05, 0.5, 800, rng))

        detector = divergence.Detector()
        told = divergence_trials(loss(np.random.default_rng(0)), [], detector)
        assert told.alarms == 0
        for size in (5.0, 20.0):
            found = 0
            for seed in range(10):
                rng = np.random.default_rng(100 + seed)
                values, at = loss(rng), int(rng.integers(400, 700))
                values[at:] += size * 0.05
                events = detector.detect("training.loss", values.to_frame("loss"), {})
                found += any(abs(each.start - at) < 5 for each in events)
            assert told.found[size] == pytest.approx(found / 10, abs=0.35)
        assert told.found[20.0] > 0.9 > told.found[5.0]
        assert divergence_trials(loss(np.random.default_rng(0))[:200], [], detector) is None

    def test_what_happened_is_not_taken_for_a_false_alarm(self):
        values = np.ones((40, 16))
        values[20:, 8:] = 1e-8
        frame = pd.DataFrame(values, columns=[str(each) for each in range(16)])
        events = collapse.Detector().detect("spectrum.projection", frame, {"samples": 1000})
        assert isinstance(events[0], Event)
        assert collapse_trials(frame, {"samples": 1000}, events, collapse.Detector()).alarms == 0

    def test_blocks_keep_their_neighbors(self):
        drawn = block_bootstrap(np.arange(100), 95, 10, np.random.default_rng(0))
        assert len(drawn) == 95
        assert (np.diff(drawn) == 1).sum() >= 85


def test_a_loss_that_runs_away_diverges_and_one_that_rises_steadily_does_not():
    rng, time = np.random.default_rng(0), np.arange(1500)
    noise = 0.05 * rng.standard_normal(1500)
    away = 2 + np.exp(np.clip(time - 900, 0, None) / 80) - 1
    for values, found in ((away, 1), (2 + time / 500, 0), (2 + 3 * (1 - np.exp(-time / 100)), 0)):
        events = divergence.Detector().detect("training.loss", pd.DataFrame({"loss": values + noise}), {})
        assert len(events) == found
        assert all(each.start > 900 for each in events)

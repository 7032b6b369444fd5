"""Truth: slow falls planted into curves of known noise; curves that only rise and wander; Student's t of scipy."""

import numpy as np
import pandas as pd
import pytest
from accuracy_curves import SHAPES, level, measured, wobble
from scipy.stats import t as student

from stabilitylab import synthetic
from stabilitylab.analysis import analyze
from stabilitylab.detectors import drift
from stabilitylab.errors import InputError
from stabilitylab.run import Run, RunWriter
from stabilitylab.stats.fall import largest_falls, risen, stretch_means, wandering
from stabilitylab.stats.reference import against, reached, running_level

LENGTH = 200


def detect(frame, about):
    return drift.Detector(drift.Parameters(draws=299)).detect("knn.accuracy", frame, about)


def falling(size, begin=0.3):
    return size * np.clip((np.arange(LENGTH) / LENGTH - begin) / (1 - begin), 0, 1)


class TestOwnPast:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_nothing_in_curves_that_rise_saturate_and_wander(self, shape):
        """Measured over more curves the chance is at most 1 % each; 3 or more of 12 have a probability of 0.02 %."""
        false = 0
        for seed in range(4):
            for sd, memory in ((0.0, 0.0), (0.005, 0.0), (0.01, 0.5)):
                rng = np.random.default_rng(seed)
                curve = level(shape, LENGTH) + wobble(sd, memory, LENGTH, rng)
                false += bool(detect(*measured(curve, 2000, False, rng)))
        assert false <= 2

    @pytest.mark.parametrize("length", [40, 150])
    def test_a_curve_that_wanders_slowly_is_seldom_taken_for_one_that_falls(self, length):
        """Measured in 2,000 curves: 11 % in 40 measurements, where 7 or more of 30 have a probability of 4 %."""
        false = 0
        for seed in range(30):
            rng = np.random.default_rng(seed)
            curve = 0.8 + wobble(0.01, 0.97, length, rng)
            false += bool(detect(*measured(curve, 10_000, False, rng)))
        assert false <= 6

    def test_the_chance_that_is_told_is_that_of_the_slowest_wandering(self):
        """Of 200 curves 22 are expected: more than the 10 of ``alpha``, fewer than the 25 of `AT_WORST` and 2.3 sd."""
        false = 0
        for seed in range(200):
            rng = np.random.default_rng(seed)
            frame, about = measured(0.8 + wobble(0.01, 0.99, 50, rng), 10_000, False, rng)
            false += bool(detect(frame, {**about, "falls": []}))
        assert 200 * drift.Parameters().alpha < false <= 200 * drift.AT_WORST * drift.Parameters().alpha + 11

    def test_six_points_are_found_in_a_curve_that_wanders(self):
        found = 0
        for seed in range(10):
            rng = np.random.default_rng(seed)
            curve = level("early peak", LENGTH) - falling(0.06) + wobble(0.01, 0.5, LENGTH, rng)
            found += bool(detect(*measured(curve, 10_000, False, rng)))
        assert found >= 8

    def test_dips_that_are_known_are_not_looked_for_again(self, monkeypatch):
        frame, about = measured(level("early peak", LENGTH), 2000, False, np.random.default_rng(0))
        monkeypatch.setattr(drift.dip.Detector, "detect", lambda *_: pytest.fail("searched again"))
        assert detect(frame, {**about, "falls": []}) == []

    @pytest.mark.parametrize("paired", [True, False])
    def test_six_points_lost_with_a_smooth_curve(self, paired):
        for seed in range(4):
            rng = np.random.default_rng(seed)
            curve = level("early peak", LENGTH) - falling(0.06) + wobble(0.002, 0.0, LENGTH, rng)
            (event,) = detect(*measured(curve, 2000, paired, rng))
            assert (event.kind, event.label, event.stop) == ("drift", "bank", 10 * (LENGTH - 1))
            assert 600 <= event.start <= 1200
            assert event.height == pytest.approx(0.05, abs=0.012)

    def test_dips_and_steps_are_no_drift(self):
        for seed in range(4):
            rng = np.random.default_rng(seed)
            dip, step = np.zeros((2, LENGTH))
            dip[100:130] = 0.1
            step[100:] = 0.08
            for fall in (dip, step):
                assert detect(*measured(level("saturating", LENGTH) - fall, 2000, False, rng)) == []

    def test_what_is_infinite_was_not_measured_and_whole_numbers_are_accuracies_too(self):
        rng = np.random.default_rng(0)
        curve = level("early peak", LENGTH) - falling(0.06) + wobble(0.002, 0.0, LENGTH, rng)
        frame, _ = measured(curve, 2000, False, rng)
        missing, infinite = frame.copy(), frame.copy()
        missing.iloc[50], infinite.iloc[50] = np.nan, np.inf
        assert detect(infinite, {}) == detect(missing, {})
        whole = pd.DataFrame({"bank": np.repeat([0, 1, 0, 1], 50)})
        assert detect(whole, {}) == detect(whole.astype(float), {})

    def test_no_fall_is_promised_that_does_not_count_or_cannot_be(self):
        frame = pd.DataFrame({"bank": np.full(LENGTH, 0.8)})
        _, told = drift.Detector().examine("knn.accuracy", frame, {})
        assert told["bank"][0].reach == pytest.approx(0.005 * 0.8)
        frame["bank"] = 0.01 + np.random.default_rng(0).standard_normal(LENGTH)
        _, told = drift.Detector().examine("knn.accuracy", frame, {})
        assert told["bank"][0].reach == np.inf

    def test_a_fall_that_comes_back_ends(self):
        rng = np.random.default_rng(0)
        there_and_back = 0.08 * np.interp(np.arange(LENGTH), [60, 110, 130, 180], [0, 1, 1, 0])
        (event,) = detect(*measured(0.9 - there_and_back, 5000, False, rng))
        assert 600 <= event.start <= event.onset <= event.peak <= event.stop < 1900

    def test_what_sampling_explains_is_none(self):
        """Of 50 images three are lost: one after the other, and none changes its mind otherwise."""
        votes = np.ones((LENGTH, 50), dtype=np.uint8)
        for image, begin in enumerate((80, 110, 140)):
            votes[begin:, image] = 0
        index = pd.Index(10 * np.arange(LENGTH), name="step")
        frame = pd.DataFrame({"bank": votes.mean(axis=1)}, index=index)
        assert detect(frame, {"samples": 50, "correct": pd.DataFrame(votes, index=index)}) == []


class TestReferences:
    def runs(self, number, rng):
        return [measured(level("saturating", LENGTH) + 0.004 * rng.standard_normal(), 2000, False, rng)[0]
                for _ in range(number)]  # fmt: skip

    def test_a_run_that_stays_behind_is_found_and_one_like_them_is_not(self):
        rng = np.random.default_rng(0)
        references = self.runs(4, rng)
        slower = level("saturating", LENGTH) - 0.06 * np.clip(np.arange(LENGTH) / 100, 0, 1)
        frame, about = measured(slower, 2000, False, rng)
        events = detect(frame, {**about, "references": references})
        (behind,) = [each for each in events if each.stop == 10 * (LENGTH - 1)]
        assert behind.height == pytest.approx(0.06, abs=0.015)
        like, about = self.runs(1, rng)[0], about
        assert detect(like, {**about, "references": references}) == []
        _, told = drift.Detector().examine("knn.accuracy", frame, {**about, "references": references[:2]})
        assert told["bank"][1].references == 2
        assert np.isnan(told["bank"][1].low)  # only a difference

    def test_other_lengths_and_schedules_are_compared_at_equal_steps(self):
        rng = np.random.default_rng(1)
        references = [each.iloc[:: 1 + at] for at, each in enumerate(self.runs(3, rng))]
        frame, about = measured(level("saturating", LENGTH)[:120] - 0.08, 2000, False, rng)
        (event,) = detect(frame, {**about, "references": references})
        assert (event.start, event.stop) == (0, 1190)

    def test_the_interval_is_the_prediction_interval_of_student(self):
        rng = np.random.default_rng(2)
        references, curve = rng.standard_normal((5, 3)), rng.standard_normal(3)
        low = against(curve, references, 0.025).low
        expected = student.ppf(0.025, 4) * references.std(axis=0, ddof=1) * np.sqrt(1 + 1 / 5)
        np.testing.assert_allclose(low, expected)

    def test_the_analysis_of_runs(self, tmp_path):
        for seed in range(4):
            synthetic.write(tmp_path / f"good{seed}", steps=800, layers=2, seed=seed)
        synthetic.write(tmp_path / "bad", steps=1500, layers=2, seed=9, degrade_at=400, degrade_by=0.1)
        good = [Run(tmp_path / f"good{seed}") for seed in range(4)]
        found = {each.kind: each for each in analyze(Run(tmp_path / "bad"), reference=good[1:]).findings}["drift"]
        assert found.verdict == "drift"
        assert found.numbers["difference"] < found.numbers["lowest_expected"] < 0
        found = {each.kind: each for each in analyze(good[0], reference=good[1:]).findings}["drift"]
        assert found.verdict == "none"
        with pytest.raises(InputError, match="cannot be its own reference"):
            analyze(good[0], reference=good)
        synthetic.write(tmp_path / "percent", steps=200, layers=2)
        writer = RunWriter(tmp_path / "percent", {}, 200)
        writer.declare("knn.accuracy", ["bank"])
        writer.write("knn.accuracy", np.array([200]), np.array([[87.5]]))
        writer.close("completed")
        for run, beside in ((Run(tmp_path / "percent"), []), (good[0], [Run(tmp_path / "percent")])):
            with pytest.raises(
                InputError, match=r"knn\.accuracy of .*percent holds 87\.5, .* divide one in percent by 100"
            ):
                analyze(run, reference=beside)


class TestNumerics:
    def test_the_largest_fall_is_that_of_a_slow_search(self):
        rng = np.random.default_rng(0)
        for _ in range(20):
            means = rng.standard_normal(40).cumsum()
            size, before, after = largest_falls(means)
            levels = [means[at : at + 8].mean() for at in range(33)]
            assert size == pytest.approx(max(levels[i] - levels[j] for j in range(33) for i in range(max(0, j - 7))))
            assert size == pytest.approx(levels[before] - levels[after])

    @pytest.mark.parametrize("memory", [0.0, 0.5])
    def test_wandering_is_measured_whatever_the_slope(self, memory):
        rng = np.random.default_rng(0)
        curves = [wobble(1.0, memory, 64, rng) for _ in range(12)]
        found = [wandering(each - 0.5 * np.arange(64)) for each in curves]
        for one, other in zip(curves, found, strict=True):
            np.testing.assert_allclose(wandering(one).chance, other.chance, atol=1e-6)
        likely = [float(each.chance @ (each.memory * (1 - each.white))) for each in found]  # of neighbors
        assert np.median(likely) == pytest.approx(memory, abs=0.25)
        drawn = np.concatenate([each.draw(64, 50, rng) for each in found])
        assert np.median(np.diff(drawn).std(axis=1)) == pytest.approx(np.sqrt(2 * (1 - memory)), rel=0.1)

    def test_stretches_and_levels(self):
        means, begins = stretch_means(np.arange(10.0), 3)
        assert begins.tolist() == [0, 3, 6]
        assert means.tolist() == [1.0, 4.0, 7.5]
        assert running_level(np.arange(5.0), 2).tolist() == [0, 0.5, 1.5, 2.5, 3.5]
        assert reached(np.array([0.0, 0.5, 0.89, 0.91, 1.0])) == 3
        assert risen(np.array([1.0, 3.0, 2.0])).tolist() == [1, 2.5, 2.5]

"""Truth: events planted by each detector's own example and by this module; noise, in which nothing must be found."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stabilitylab import plugins
from stabilitylab.detectors import collapse, dip, divergence, spike
from stabilitylab.errors import InputError
from stabilitylab.findings import Event
from stabilitylab.synthetic import noise, spike_shape, trend

DETECTORS = sorted(plugins.names("detectors"))


@pytest.fixture(params=DETECTORS)
def detector(request):
    return plugins.load("detectors", request.param)()


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def found(detector, name, frame, about, expected):
    """The events that are one of the expected, by kind, label and overlap, and the others."""
    events = detector.detect(name, frame, about)
    hits = []
    for truth in expected:
        near = [e for e in events if (e.kind, e.label) == (truth.kind, truth.label) and e.start <= truth.stop]
        near = [e for e in near if e.stop >= truth.start]
        hits.append(min(near, key=lambda e: abs(e.start - truth.start), default=None))
    return hits, [each for each in events if each not in hits]


class TestContract:
    """Every installed detector."""

    def test_finds_its_own_example_in_steps(self, detector, rng):
        name, frame, about, expected = detector.example(rng)
        hits, others = found(detector, name, frame, about, expected)
        assert None not in hits
        assert others == []
        for hit, truth in zip(hits, expected, strict=True):
            assert isinstance(hit, Event)
            assert hit.series == name
            assert hit.start <= hit.onset <= hit.peak <= hit.stop
            assert hit.onset == truth.onset

    def test_speaks_in_steps(self, detector):
        name, frame, about, _ = detector.example(np.random.default_rng(1))
        plain = detector.detect(name, frame, about)
        sparse = frame.set_axis(frame.index * 10 + 3, axis=0)
        for one, other in zip(plain, detector.detect(name, sparse, about), strict=True):
            assert [other.start, other.onset, other.peak, other.stop] == [
                10 * each + 3 for each in (one.start, one.onset, one.peak, one.stop)
            ]

    def test_does_not_depend_on_units(self, detector):
        name, frame, about, _ = detector.example(np.random.default_rng(2))
        if name == "knn.accuracy":
            about = {}  # a fraction has no other unit, unless it is a score
        plain = detector.detect(name, frame, about)
        for factor in (1e-6, 1e6):
            scaled = detector.detect(name, frame * factor, about)
            assert [(e.start, e.stop, e.kind) for e in scaled] == [(e.start, e.stop, e.kind) for e in plain]

    def test_is_not_blinded_by_one_nan(self, detector):
        name, frame, about, expected = detector.example(np.random.default_rng(3))
        frame = frame.astype(float)
        frame.iloc[len(frame) // 4] = np.nan
        hits, _ = found(detector, name, frame, about, expected)
        assert None not in hits

    def test_nothing_in_nothing(self, detector):
        name, frame, about, _ = detector.example(np.random.default_rng(4))
        assert detector.detect(name, frame.iloc[:0], about) == []
        assert detector.detect(name, frame.iloc[:1], about) == []
        assert detector.detect(name, frame.iloc[:, :0], about) == []

    def test_nothing_in_the_quiet_part_of_its_example(self, detector):
        for seed in range(10):
            name, frame, about, expected = detector.example(np.random.default_rng(seed))
            quiet = frame[frame.index < min(each.start for each in expected)]
            assert detector.detect(name, quiet, about) == []

    def test_refuses_unknown_parameters(self, detector):
        kind = type(detector.parameters)
        with pytest.raises(ValueError, match="no_such"):
            kind(no_such=1)
        assert all(each.description for each in kind.model_fields.values())


def log_frame(log):
    return pd.DataFrame(np.exp(log), index=pd.RangeIndex(len(log), name="step"))


def spikes(log, **parameters):
    return spike.Detector(spike.Parameters(**parameters)).detect("gradients.norm", log_frame(log), {})


class TestSpike:
    @pytest.mark.parametrize("kind", ["gaussian", "student", "autocorrelated", "bursty"])
    @pytest.mark.parametrize("level", ["flat", "warmup", "decay", "waves", "drop"])
    def test_false_alarms(self, kind, level, rng):
        """At most 1 in 10,000 samples over all; the limit here is that of a Poisson count at a rate of one."""
        log = trend(level, 2000)[:, None] + 0.2 * noise(kind, (2000, 10), rng)
        assert len(spikes(log)) <= 6  # 2 expected at that rate; 7 or more have a probability of 0.5 %

    def test_false_alarms_of_short_series(self, rng):
        log = 0.2 * noise("gaussian", (200, 150), rng)
        assert len(spikes(log)) <= 6

    @pytest.mark.parametrize("kind", ["gaussian", "autocorrelated"])
    @pytest.mark.parametrize(("height", "sd", "power"), [(2.0, 0.1, 0.9), (3.0, 0.15, 0.9), (4.0, 0.2, 0.9)])
    def test_power(self, kind, height, sd, power, rng):
        log = sd * noise(kind, (2000, 10), rng)
        at = np.arange(150, 1950, 200)
        log[at] += np.log(height)
        events = spikes(log)
        seen = {(each.label, each.peak) for each in events}
        assert sum((column, step) in seen for column in range(10) for step in at) == 0  # labels are strings
        assert sum((str(column), step) in seen for column in range(10) for step in at) >= power * 90

    @pytest.mark.parametrize(("length", "ramp"), [(1, 0), (3, 0), (1, 4), (10, 3)])
    def test_onset_is_the_half_rise(self, length, ramp, rng):
        log = 0.1 * noise("gaussian", (1500, 10), rng)
        shape = spike_shape(6.0, length, ramp)
        at = np.arange(200, 1400, 150)
        for start in at:
            log[start : start + len(shape)] += shape[:, None]
        half = int(np.argmax(shape >= np.log(6) / 2))
        onsets = np.array([each.onset for each in spikes(log)])
        errors = [np.abs(onsets - (start + half)).min() for start in at]
        assert len(onsets) == 10 * len(at)
        assert np.mean(np.array(errors) <= 1) >= 0.95

    def test_equal_spikes_in_a_row_do_not_blind_it(self, rng):
        log = 0.1 * noise("gaussian", (1000, 1), rng)
        at = np.arange(300, 700, 20)
        log[at] += np.log(4)
        assert [each.peak for each in spikes(log)] == at.tolist()

    def test_from_the_fiftieth_step_on(self, rng):
        log = 0.1 * noise("gaussian", (120, 40), rng)
        log[50] += np.log(4)
        assert sum(each.peak == 50 for each in spikes(log)) >= 36
        rising = log + trend("warmup", 120)[:, None]
        rising[90] += np.log(8)
        assert sum(each.peak == 90 for each in spikes(rising)) >= 36

    def test_not_finite_is_a_spike_of_infinite_height(self, rng):
        for bad in (np.nan, np.inf):
            log = 0.1 * noise("gaussian", (400, 1), rng)
            log[200:203] = bad
            log[300] += np.log(5)
            first, second = spikes(log)
            assert (first.start, first.onset, first.peak, first.stop) == (200, 200, 200, 202)
            assert first.height == np.inf
            assert second.peak == 300
            assert second.height == pytest.approx(5, rel=0.4)

    def test_not_finite_at_the_very_first_steps(self):
        values = np.ones((50, 1))
        values[2] = np.inf
        (event,) = spike.Detector().detect("gradients.norm", pd.DataFrame(values), {})
        assert event.start == event.stop == 2

    def test_a_level_that_shifts_for_good_ends_and_is_followed(self, rng):
        log = 0.1 * noise("gaussian", (1500, 1), rng)
        log[500:] += np.log(4)
        log[1000] += np.log(4)
        shift, after = spikes(log)
        assert (shift.kind, shift.start) == ("shift", 500)
        assert shift.stop == 500 + spike.Parameters().patience - 1
        assert (after.kind, after.peak) == ("spike", 1000)
        assert after.height == pytest.approx(4, rel=0.4)

    def test_zeros_constants_and_missing_rows(self, rng):
        assert spikes(np.full((500, 1), -np.inf)) == []  # zeros
        assert spikes(np.zeros((500, 1))) == []
        constant = np.zeros((500, 1))
        constant[300] = np.log(2)
        assert [each.peak for each in spikes(constant)] == [300]
        late = 0.1 * noise("gaussian", (500, 2), rng)
        late[:100, 0] = np.nan
        assert spikes(late) == []  # a column that was not recorded before step 100, as the other one was
        (event,) = spikes(late[:, :1])
        assert (event.start, event.stop, event.height) == (0, 99, np.inf)  # nothing else was recorded: not finite
        gaps = 0.1 * noise("gaussian", (900, 1), rng)
        gaps[300:500:2] = -np.inf
        gaps[701] += np.log(5)
        frame = log_frame(gaps)
        frame = frame[(frame.index < 550) | (frame.index >= 650)]
        assert [each.peak for each in spike.Detector().detect("gradients.norm", frame, {})] == [701]

    def test_a_fall_is_no_spike_and_neither_is_the_way_back_from_a_short_one(self, rng):
        log = 0.1 * noise("gaussian", (1000, 1), rng)
        log[400] -= np.log(10)
        log[600:] -= np.log(5)
        assert spikes(log) == []

    @pytest.mark.parametrize(("height", "part"), [(10.0, 0.75), (30.0, 0.9)])
    def test_a_layer_with_unstable_phases_is_seen_to_spike(self, height, part, rng):
        """Phases of 40 steps, a seventh of the time: shocks before, a spike, and an aftermath that stays up.

        Some of the lower ones pass for a burst of noise, which is the price of few false alarms in bursts.
        """
        log = 0.25 * noise("gaussian", (3000, 10), rng)
        at = np.arange(200, 2900, 300)
        for start in at:
            shocks = np.where(rng.random((8, 10)) < 0.3, np.log(rng.uniform(1.3, height / 3, (8, 10))), 0.0)
            calm, wild = rng.uniform(1, 1.6, (40, 10)), rng.uniform(1.5, height / 2.5, (40, 10))
            aftermath = np.log(np.where(rng.random((40, 10)) < 0.35, wild, calm))
            aftermath *= np.exp(-np.arange(40) / 25)[:, None]
            log[start - 8 : start] += shocks
            log[start + 1 : start + 40] += aftermath[1:]
            log[start] += np.log(height)
        events = spikes(log)
        seen = [any(e.label == str(c) and e.peak == t for e in events) for c in range(10) for t in at]
        timed = [any(e.label == str(c) and abs(e.onset - t) <= 1 for e in events) for c in range(10) for t in at]
        assert np.mean(seen) >= part
        assert np.mean(timed) >= part - 0.05

    def test_the_foot_of_a_tall_spike_is_no_burst_of_noise(self, rng):
        # as a block of a real training rose, in times its level
        shape = [
            2,
            2.3,
            2.3,
            2.5,
            1.9,
            2.7,
            4.7,
            3.2,
            2.1,
            43,
            3.4,
            3.1,
            2.2,
            2.1,
            1.5,
            1.6,
            1.7,
            1.4,
            1.8,
            1.5,
            1.8,
            1.7,
        ]
        log = 0.15 * noise("autocorrelated", (2000, 40), rng)
        for start in (600, 1200, 1700):
            log[start : start + len(shape)] += np.log(shape)[:, None]
        tall = [each for each in spikes(log) if each.height > 15 and each.peak in (609, 1209, 1709)]
        assert len(tall) == 120

    def test_a_foreshock_is_not_the_onset_of_the_main_rise(self, rng):
        log = 0.05 * noise("gaussian", (600, 1), rng)
        log[[400, 402], 0] += np.log([5, 20])
        log[500:503, 0] += np.log([5, 12, 20])
        first, second = spikes(log)
        assert (first.start, first.onset, first.peak) == (400, 402, 402)
        assert (second.start, second.onset, second.peak) == (500, 500, 502)

    def test_chance_is_that_of_the_smallest_ratio_where_it_decides(self, rng):
        log = 0.1 * noise("gaussian", (3000, 4), rng)
        _, usual = spike.Detector(spike.Parameters(min_ratio=1.1)).examine("gradients.norm", log_frame(log))
        nominal = 4 * 0.3 * spike.Parameters().false_alarms
        assert nominal <= sum(each.chance for each in usual.values()) <= 1.4 * nominal  # the three sums overlap
        _, high = spike.Detector(spike.Parameters(min_ratio=2)).examine("gradients.norm", log_frame(log))
        assert sum(each.chance for each in high.values()) < 0.05

    def test_spikes_close_together_are_one(self, rng):
        log = 0.1 * noise("gaussian", (500, 1), rng)
        log[[200, 203]] += np.log(5)
        (event,) = spikes(log)
        assert (event.start, event.stop) == (200, 203)
        assert len(spikes(log, merge_gap=0)) == 2

    def test_resolution_is_what_is_found_in_nine_of_ten_cases(self, rng):
        log = 0.15 * noise("gaussian", (3000, 4), rng)
        _, resolution = spike.Detector().examine("gradients.norm", log_frame(log))
        at = np.arange(100, 2900, 50)
        for column in range(4):
            log[at, column] += np.log(resolution[str(column)].ratio)
        assert 0.75 <= len(spikes(log)) / (4 * len(at)) <= 1.0  # the planted ones widen the upper tail a little

    def test_columns_of_the_same_noise_learn_their_tails_from_each_other(self, rng):
        """The threshold of each comes nearer to that of normal noise, 3.95; heavy tails of the others are believed."""

        def thresholds(kind, columns):
            log = log_frame(0.2 * noise(kind, (2000, 12), rng)).iloc[:, columns]
            _, seen = spike.Detector().examine("gradients.norm", log)
            return np.array([each.threshold for each in seen.values()])

        normal = -stats.norm.ppf(0.65 * spike.Parameters().false_alarms / 1e4)
        together, alone = thresholds("gaussian", slice(None)), thresholds("gaussian", slice(1))
        assert normal - 0.1 < together.mean() < normal + 0.5
        assert alone[0] > together.mean() + 0.2
        assert thresholds("student", slice(None)).min() > together.max() + 1

    def test_the_order_of_columns_does_not_matter_and_a_long_series_stands_alone(self, rng):
        log = 0.2 * noise("student", (1500, 5), rng)
        log[300::400] += np.log(6)
        forward, backward = log_frame(log), log_frame(log).iloc[:, ::-1]
        find = spike.Detector().detect
        assert find("gradients.norm", forward, {}) == find("gradients.norm", backward, {})
        long = log_frame(0.2 * noise("gaussian", (spike.ALONE + 1, 2), rng))
        whole = find("gradients.norm", long, {})
        assert whole == sorted(each for label in long for each in find("gradients.norm", long[[label]], {}))


class TestDip:
    def curve(self, rng, samples, length=150):
        steps = np.arange(length) * 10
        truth = 0.1 + 0.85 * (1 - np.exp(-steps / rng.choice([100, 500, 2000])))
        return pd.DataFrame({"bank": rng.binomial(samples, truth) / samples}, index=pd.Index(steps, name="step"))

    @pytest.mark.parametrize("samples", [100, 2000])
    def test_rising_curves_have_no_dips(self, samples, rng):
        for about in ({}, {"samples": samples}):
            events = [dip.Detector().detect("knn.accuracy", self.curve(rng, samples), about) for _ in range(40)]
            assert sum(map(len, events)) <= (6 if not about else 3)

    def test_same_images_see_what_the_binomial_error_hides(self, rng):
        images, steps = 400, np.arange(100) * 10
        difficulty = rng.random(images)
        right = np.where((steps >= 600) & (steps < 650), 0.885, 0.92)
        votes = (difficulty + 0.01 * rng.standard_normal((100, images)) < right[:, None]).astype(np.uint8)
        index = pd.Index(steps, name="step")
        frame = pd.DataFrame({"bank": votes.mean(axis=1)}, index=index)
        paired = dip.Detector().detect(
            "knn.accuracy", frame, {"samples": images, "correct": pd.DataFrame(votes, index=index)}
        )
        assert [(each.kind, each.start, each.stop) for each in paired] == [("dip", 600, 640)]
        assert dip.Detector().detect("knn.accuracy", frame, {"samples": images}) == []

    def test_a_fall_that_is_open_at_the_end_is_neither_dip_nor_step(self, rng):
        frame = self.curve(rng, 5000)
        frame.iloc[-5:] -= 0.3
        (event,) = dip.Detector().detect("knn.accuracy", frame, {"samples": 5000})
        assert event.kind == "drop"

    def test_two_low_measurements_count_together(self, rng):
        steps = np.arange(150) * 10
        found = {1: 0, 2: 0}
        for length in found:
            for _ in range(40):
                values = 0.9 + 0.01 * rng.standard_normal(150)
                values[100 : 100 + length] = 0.9 - 0.053
                frame = pd.DataFrame({"bank": values}, index=pd.Index(steps, name="step"))
                events = dip.Detector().detect("knn.accuracy", frame, {})
                found[length] += any(each.start == 1000 for each in events)
        assert found[2] > found[1]

    def test_votes_count_only_where_they_cover_the_curve(self, rng):
        frame = self.curve(rng, 2000)
        frame.iloc[100:105] -= 0.1
        every = pd.DataFrame((rng.random((150, 400)) < 0.9).astype(np.uint8), index=frame.index)
        for votes, paired in ((every.iloc[:0], 0), (every.iloc[:, :0], 0), (every.iloc[:60], 60)):
            about = {"samples": 2000, "correct": votes}
            events, compared = dip.Detector().examine("knn.accuracy", frame, about)
            assert [(each.kind, each.start) for each in events] == [("dip", 1000)]
            assert compared["bank"].judged > 100
            assert max(paired - 20, 0) <= compared["bank"].paired <= paired

    def test_a_constant_curve_and_a_perfect_one(self):
        for value in (0.0, 0.5, 1.0):
            assert (
                dip.Detector().detect("knn.accuracy", pd.DataFrame({"bank": np.full(80, value)}), {"samples": 50}) == []
            )

    def test_refuses_percent(self, rng):
        with pytest.raises(InputError, match="between 0 and 1"):
            dip.Detector().detect("knn.accuracy", 100 * self.curve(rng, 100), {"samples": 100})


class TestCollapse:
    def spectra(self, rng, deviations, samples=300):
        rows = []
        for each in deviations:
            data = rng.standard_normal((samples, len(each))) * each
            rows.append(np.clip(np.linalg.eigvalsh(np.cov(data.T))[::-1], 0, None))
        frame = pd.DataFrame(np.array(rows), index=pd.Index(50 * np.arange(len(rows)), name="step"))
        return frame.set_axis([str(each) for each in range(frame.shape[1])], axis=1)

    def detect(self, frame, samples=300):
        return collapse.Detector().detect("spectrum.projection", frame, {"samples": samples})

    def test_complete(self, rng):
        scale = np.where(np.arange(20) < 12, 1.0, 1e-5)
        (event,) = self.detect(self.spectra(rng, scale[:, None] * np.ones(16)))
        assert (event.label, event.start, event.stop) == ("0", 600, 950)

    def test_growing_out_of_random_weights_is_none(self, rng):
        deviations = np.ones((20, 16))
        deviations[:8, 6:] = 1e-3
        assert self.detect(self.spectra(rng, deviations)) == []

    def test_low_rank_from_the_first_to_the_last_measurement_is_one(self, rng):
        deviations = np.ones((20, 16))
        deviations[:, 6:] = 1e-3
        (event,) = self.detect(self.spectra(rng, deviations))
        assert (event.label, event.start, event.height) == ("6", 0, 10.0)

    @pytest.mark.parametrize("dimensions", [16, 64, 400])
    def test_steep_spectra_and_few_samples_are_none(self, dimensions, rng):
        rows = np.tile(np.arange(1, dimensions + 1) ** -0.9, (4, 1))
        assert self.detect(self.spectra(rng, rows)) == []

    def test_one_null_direction_of_a_normalization_is_none(self, rng):
        deviations = np.ones((10, 64))
        deviations[:, -1] = 0
        assert self.detect(self.spectra(rng, deviations)) == []


class TestDivergence:
    def detect(self, values):
        return divergence.Detector().detect("training.loss", pd.DataFrame({"loss": values}), {})

    def test_nothing_in_losses_that_fall_rise_slowly_or_wander(self, rng):
        time = np.arange(1500)
        for seed in range(40):
            rng = np.random.default_rng(seed)
            falling = 4 * np.exp(-time / 200) + 0.1 * rng.standard_t(5, 1500)
            wander = 0.01 * np.cumsum(rng.standard_normal(1500))
            for values in (falling, -falling, falling + wander):
                assert self.detect(values) == []

    def test_a_spike_that_returns_is_none(self, rng):
        values = 2 + 0.05 * rng.standard_normal(800)
        values[400:430] += 3
        assert self.detect(values) == []

    def test_not_finite_from_the_first_step_on(self, rng):
        values = 2 + 0.05 * rng.standard_normal(300)
        values[:3] = np.nan
        (event,) = self.detect(values)
        assert (event.start, event.stop, event.height) == (0, 2, np.inf)
        (event,) = self.detect(np.full(300, np.nan))
        assert (event.start, event.stop) == (0, 299)

    def test_slowly_losing_all_that_was_learned(self, rng):
        time = np.arange(2000)
        values = 2.3 - 1.5 * np.clip(time / 500, 0, 1) + 4 * np.clip((time - 1000) / 800, 0, 1)
        (event,) = self.detect(values + 0.05 * rng.standard_normal(2000))
        assert 1200 < event.start < 1500
        assert event.stop == 1999

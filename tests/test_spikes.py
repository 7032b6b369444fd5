"""Truth: spikes planted by this module; noise, trends and steps, in which nothing must be found."""

import numpy as np
import pandas as pd
import pytest
from scipy import signal, stats

from stabilitylab.detectors import spike
from stabilitylab.synthetic import noise, spike_shape, trend


@pytest.fixture
def rng():
    return np.random.default_rng(7)


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

    @pytest.mark.parametrize(("weights", "most"), [
        ((0.7,), 3), ((0.8,), 3), ((0.9,), 5), ((0.95,), 5), ((0.5, 0.3), 5), ((0.2, 0.2, 0.2, 0.2), 5)
    ])  # fmt: skip
    def test_false_alarms_where_noise_wanders(self, weights, most, rng):
        """Nominally 0.5 in 10,000; an estimated autocorrelation of one sample leaves some of a longer memory."""
        log = signal.lfilter([1], [1, *(-each for each in weights)], rng.standard_normal((4000, 20)), axis=0)
        log = 0.25 * log[100:] / log[100:].std()
        assert len(spikes(log)) <= most * log.size / 1e4
        log[500::400] += np.log(20.0)
        found = {(each.label, each.peak) for each in spikes(log)}
        assert np.mean([(str(column), at) in found for column in range(20) for at in range(500, 3900, 400)]) > 0.98

    @pytest.mark.parametrize(("entries", "height"), [(2, 60.0), (4, 12.0), (16, 4.0)])
    def test_spikes_of_a_layer_of_few_entries(self, entries, height, rng):
        """Its norm is often far below its level and never far above."""
        log = np.log(rng.chisquare(entries, (3000, 10))) / 2
        assert len(spikes(log)) <= 2
        log[500::500] += np.log(height)
        found = {(each.label, each.peak) for each in spikes(log)}
        assert np.mean([(str(column), at) in found for column in range(10) for at in range(500, 3000, 500)]) > 0.9

    @pytest.mark.parametrize("length", [60, 80, 100, 130, 200])
    def test_false_alarms_of_short_series(self, length, rng):
        log = 0.2 * noise("gaussian", (length, 30_000 // length), rng)
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

    def test_spikes_on_a_level_that_shifts_for_good_are_found_beside_it(self, rng):
        log = 0.1 * noise("gaussian", (1500, 20), rng)
        log[500:] += np.log(1.8)
        log[500] += np.log(4)
        log[560] += np.log(3)
        for column in log.T:
            found = [each for each in spikes(column[:, None]) if 500 <= each.start < 700]
            first, shift, second = sorted(found, key=lambda each: (each.start, -each.height))
            assert (first.kind, first.onset, second.kind) == ("spike", 500, "spike")
            assert first.stop <= 503
            assert first.height == pytest.approx(4 * 1.8, rel=0.4)  # to the level before
            assert (second.onset, second.height) == (560, pytest.approx(3, rel=0.4))  # to the one that stays
            assert (shift.kind, shift.start, shift.onset, shift.stop) == ("shift", 500, 500, 699)
            assert shift.height == pytest.approx(1.8, rel=0.15)

    def test_a_rise_that_decays_slowly_is_a_spike_besides(self, rng):
        for decay in (60, 120, 250):
            log = 0.1 * noise("gaussian", (1500, 20), rng)
            log[500:] += np.log(10) * np.exp(-np.arange(1000) / decay)[:, None]
            found = [each for each in spikes(log) if each.start == 500]
            assert sum((each.kind, each.onset) == ("spike", 500) for each in found) == 20
            shifts = sum(each.kind == "shift" for each in found)
            assert shifts >= 15 if decay > 60 else shifts == 0

    @pytest.mark.parametrize(("since", "kinds"), [(120, {"shift"}), (170, {"spike"}), (197, {"spike"})])
    def test_a_rise_that_stays_to_the_end_is_a_shift_once_it_has_settled(self, since, kinds, rng):
        log = 0.2 * rng.standard_normal((200, 10))
        log[since:] += np.log(300.0)
        assert {each.kind for each in spikes(log)} == kinds
        log[150] += np.log(100.0)  # on the level that has settled, or before it rises
        assert sum((each.kind, each.peak) == ("spike", 150) for each in spikes(log)) == 10

    def test_a_spike_that_decays_up_to_the_end_is_none(self, rng):
        log = 0.2 * rng.standard_normal((300, 10))
        log[230:] += np.log(30.0) * np.exp(-np.arange(70) / 15)[:, None]
        assert {each.kind for each in spikes(log)} == {"spike"}

    @pytest.mark.parametrize("kind", ["gaussian", "student", "autocorrelated", "bursty"])
    def test_a_shift_itself_is_no_spike(self, kind, rng):
        log = 0.1 * noise(kind, (1000, 100), rng)
        log[500:] += np.log(2.5)
        found = [each for each in spikes(log) if 500 <= each.start < 700]
        assert sum(each.kind == "shift" for each in found) >= 97
        assert sum(each.kind == "spike" for each in found) <= 4  # in 20,000 samples

    def test_a_spike_across_the_end_of_a_shift_is_told_once(self, rng):
        for begin in (680, 690, 695, 699, 700, 705):
            log = 0.1 * noise("gaussian", (1000, 1), rng)
            log[500:] += 1
            log[begin : begin + 20] += 2
            found = [each for each in spikes(log) if each.kind == "spike" and 600 < each.start < 800]
            assert len(found) == 1

    def test_a_level_that_settles_a_little_lower_is_no_spike(self, rng):
        log = 0.1 * noise("gaussian", (1000, 100), rng)
        log[500:] += 1
        log[650:] -= 0.25  # by less than the smallest ratio
        found = [each for each in spikes(log) if 450 <= each.start < 800]
        assert sum(each.kind == "shift" for each in found) == 100
        assert sum(each.kind == "spike" for each in found) <= 4

    def test_what_comes_much_later_changes_nothing(self, rng):
        log = 0.12 * noise("gaussian", (60_000, 1), rng)
        log[20_000:] += 0.7 + 1.5 * np.exp(-np.arange(40_000) / 80)[:, None]
        log[20_300:30_000:150] += 0.6
        before = [each for each in spikes(log) if each.start < 40_000]
        log[55_000:55_060] += 0.8
        assert [each for each in spikes(log) if each.start < 40_000] == before
        assert ("spike", 20_000) in [(each.kind, each.start) for each in before]
        assert len(before) > 40

    def test_zeros_constants_and_missing_rows(self, rng):
        assert spikes(np.full((500, 1), -np.inf)) == []  # zeros
        assert spikes(np.zeros((500, 1))) == []
        constant = np.zeros((500, 1))
        constant[300] = np.log(2)
        assert [each.peak for each in spikes(constant)] == [300]
        late = 0.1 * noise("gaussian", (500, 2), rng)
        late[:100, 0] = -np.inf
        assert spikes(late) == []  # no gradient before step 100, as of a parameter that thawed
        late[:100, 0] = np.nan
        (event,) = spikes(late)
        assert (event.start, event.stop, event.height) == (0, 99, np.inf)
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

    @pytest.mark.parametrize("height", [10.0, 30.0])
    def test_a_layer_with_unstable_phases_is_seen_to_spike(self, height, rng):
        """Phases of 40 steps, a seventh of the time: shocks before, a spike, and an aftermath that stays up."""
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
        assert np.mean(seen) >= 0.9
        assert np.mean(timed) >= 0.85

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

    def test_a_long_aftermath_does_not_hide_a_tall_spike(self, rng):
        log = 0.15 * noise("gaussian", (1500, 20), rng)
        at = np.arange(300, 1400, 150)
        log[at] += np.log(5.6)  # more than eleven standard deviations
        for after in range(1, 19):
            log[at + after] += 0.45
        seen = {(each.label, each.peak) for each in spikes(log)}
        assert np.mean([(str(column), step) in seen for column in range(20) for step in at]) >= 0.95

    @pytest.mark.parametrize("length", [40, 150])
    @pytest.mark.parametrize(("steps", "columns", "begin"), [(1500, 100, 1000), (60_000, 12, 40_000)])
    def test_a_long_spike_does_not_raise_the_level_for_the_next_one(self, rng, length, steps, columns, begin):
        log = 0.25 * noise("gaussian", (steps, columns), rng)
        log[begin : begin + length] += np.log(6)
        at = begin + length + 15
        log[at] += np.log(8)  # more than eight standard deviations
        events = spikes(log)
        assert {(str(column), True) for column in range(columns)} <= {
            (each.label, each.start <= begin + 2 and each.stop >= begin + length - 4) for each in events
        }
        after = {each.label for each in events if begin + length < each.start <= at <= each.stop}
        assert len(after) >= 0.9 * columns

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
        assert 0.8 <= len(spikes(log)) / (4 * len(at)) <= 1.0

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


@pytest.mark.parametrize("back", [900, 670])
def test_a_spike_out_of_a_trough_does_not_swallow_the_next(back):
    """The level is that of the trough of 60 samples, and what follows lies 1.35 times above it for a time."""
    rng = np.random.default_rng(0)
    log = 0.05 * rng.standard_normal((900, 20))
    log[440:500] -= 0.3
    log[back:] -= 0.3
    for at in (500, 620):
        log[at : at + 60] += 2.3 * np.exp(-np.arange(60) / 6)[:, None]
    events = spike.Detector().detect("gradients.norm", pd.DataFrame(np.exp(log)), {})
    for label in range(20):
        assert [each.peak for each in events if each.label == str(label) and each.height > 3] == [500, 620]

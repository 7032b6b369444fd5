"""Truth: events planted by each detector's own example and by this module; noise, in which nothing must be found."""

import numpy as np
import pandas as pd
import pytest

from stabilitylab import plugins
from stabilitylab.detectors import collapse, dip, divergence
from stabilitylab.errors import InputError
from stabilitylab.findings import Event

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

    @pytest.mark.parametrize(("period", "length"), [(9, 3), (12, 5), (10, 4)])
    def test_dips_that_come_often_do_not_pass_for_the_fluctuation(self, period, length, rng):
        values = 0.8 + 0.005 * rng.standard_normal(120)
        starts = np.arange(20, 110, period)
        for at in starts:
            values[at : at + length] -= 0.1
        frame = pd.DataFrame({"bank": values}, index=pd.Index(10 * np.arange(120), name="step"))
        events = dip.Detector().detect("knn.accuracy", frame, {})
        hit = [any(each.start <= 10 * (at + length) and each.stop >= 10 * at for each in events) for at in starts]
        assert np.mean(hit) >= 0.8
        assert all(each.height == pytest.approx(0.1, abs=0.03) for each in events)

    @pytest.mark.parametrize("kind", ["white", "memory", "walk", "held", "rounded", "up and back"])
    def test_noise_has_no_sharp_falls(self, kind, rng):
        """With an edge of three usual changes there are five in the walk, with one of two about fifty in it."""
        found, without = [], []
        for _ in range(60):
            noise = rng.standard_normal(200)
            for at in range(1, 200):
                noise[at] += {"memory": 0.9, "walk": 1.0}.get(kind, 0.0) * noise[at - 1]
            values = 0.5 + 0.003 * (np.repeat(noise[:100], 2) if kind == "held" else noise)
            values[100:102] += 0.1 * (kind == "up and back")
            values = np.round(values, 3) if kind == "rounded" else values
            frame = pd.DataFrame({"bank": values}, index=pd.Index(10 * np.arange(200), name="step"))
            found += dip.Detector().detect("knn.accuracy", frame, {})
            without += dip.Detector(dip.Parameters(edge=1e9)).detect("knn.accuracy", frame, {})
        assert len(found) <= len(without) + 1
        assert all(each.height > 0 for each in found)

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

    def test_a_lasting_fall_after_the_early_rise_stands_out_of_thirty_measurements(self, rng):
        steps = np.arange(30) * 100
        found = {0.0: 0, 0.15: 0}
        for depth in found:
            for _ in range(40):
                truth = 0.1 + 0.8 * (1 - np.exp(-8 * np.arange(30) / 30)) - depth * (steps >= 1500)
                values = rng.binomial(1000, truth) / 1000
                frame = pd.DataFrame({"bank": values}, index=pd.Index(steps, name="step"))
                events = dip.Detector().detect("knn.accuracy", frame, {"samples": 1000})
                found[depth] += any(abs(each.start - 1500) <= 100 for each in events)
        assert found[0.0] == 0
        assert found[0.15] >= 36

    @pytest.mark.parametrize("length", [8, 12, 13, 16, 20, 40])
    def test_a_deep_fall_is_seen_early_where_there_are_enough_measurements(self, length, rng):
        """A fall to chance, for good or for two measurements, is a hundred standard errors of 10,000 images."""
        judged = length - dip.EARLY if length >= dip.FEWEST_MEASUREMENTS else 0
        for at in (3, 5, 7, length - 1):
            for until in {at + 2, length}:
                truth = 0.3 + 0.5 * (1 - np.exp(-np.arange(length) / 4))
                truth[at:until] = 0.1
                frame = pd.DataFrame({"bank": rng.binomial(10_000, truth) / 10_000})
                events, compared = dip.Detector().examine("knn.accuracy", frame, {"samples": 10_000})
                assert compared["bank"].judged == judged
                # of a short curve most of the fluctuation that is known is of the fall
                if not judged or (length >= 20 or at == length - 1):
                    assert [each.start for each in events] == ([at] if judged else [])

    @pytest.mark.parametrize("length", [13, 20, 45])
    def test_a_rise_and_the_noise_of_its_beginning_are_no_falls(self, length, rng):
        found = []
        for _ in range(150):
            truth = 0.2 + 0.6 * (1 - np.exp(-np.arange(length) / 6)) + 0.02 * rng.standard_normal(length)
            frame = pd.DataFrame({"bank": rng.binomial(1000, truth) / 1000})
            found += dip.Detector().detect("knn.accuracy", frame, {"samples": 1000})
        assert len(found) <= 3

    def test_a_slow_way_back_is_no_second_dip_and_a_second_fall_is_one(self, rng):
        steps = np.arange(300)
        for again in (False, True):
            truth = np.full(300, 0.8)
            truth -= 0.2 * np.exp(-(steps - 150) / 8) * (steps >= 150)
            truth -= 0.2 * again * ((steps >= 163) & (steps < 168))
            frame = pd.DataFrame({"bank": rng.binomial(20_000, truth) / 20_000})
            found = dip.Detector().detect("knn.accuracy", frame, {"samples": 20_000})
            assert [(each.kind, each.start) for each in found] == [("dip", 150), ("dip", 163)][: 1 + again]
            assert found[0].stop == 162 if again else found[0].stop > 160  # it lasts as long as it is seen
        half = np.where(steps < 150, 0.8, 0.72) - 0.12 * (
            (steps >= 150) & (steps < 160)
        )  # comes back in part, for good
        frame = pd.DataFrame({"bank": rng.binomial(20_000, half) / 20_000})
        found = dip.Detector().detect("knn.accuracy", frame, {"samples": 20_000})
        assert [each.kind for each in found] == ["dip", "step"]

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
        for seed in range(20):
            rng = np.random.default_rng(seed)
            falling = 4 * np.exp(-time / 200) + 0.1 * rng.standard_t(5, 1500)
            wander = 0.01 * np.cumsum(rng.standard_normal(1500))
            for values in (falling, -falling, falling + wander):
                assert self.detect(values) == []

    def test_a_spike_that_returns_is_none(self, rng):
        values = 2 + 0.05 * rng.standard_normal(800)
        values[400:430] += 3
        assert self.detect(values) == []

    @pytest.mark.parametrize("shape", ["zero", "to zero", "restarts", "queue", "queue after a fall", "swings"])
    def test_nothing_in_losses_of_other_shapes(self, shape):
        time = np.arange(1500)
        values = {
            "zero": np.zeros(1500),
            "to zero": 3 * np.exp(-time / 100) * (time < 800),
            "restarts": 2 + 0.4 * np.cos(np.pi * (time % 500) / 500),
            "queue": 2 + 3 * (1 - np.exp(-time / 100)),
            "queue after a fall": 2 + 3 * np.exp(-time / 30) + 1.5 * (1 - np.exp(-time / 200)),
            "swings": 2 + 0.3 * np.sin(2 * np.pi * time / 300),
        }[shape]
        assert self.detect(values) == []
        assert self.detect(values + 0.05 * np.random.default_rng(0).standard_normal(1500)) == []

    @pytest.mark.parametrize("ago", [12, 30, 60, 99])
    def test_a_rise_at_the_end_may_come_back(self, ago, rng):
        values = 2 + 0.05 * rng.standard_normal(600)
        values[-ago:] += 2
        (event,) = self.detect(values)
        assert (event.kind, event.start, event.stop) == ("rise", 600 - ago, 599)
        (event, _) = self.detect(np.append(values, [np.nan] * 5))  # and did not where the loss breaks down
        assert event.kind == "divergence"
        assert self.detect(np.append(values, 2 + 0.05 * rng.standard_normal(20))) == []

    def test_what_was_learned_is_lost_whatever_the_tails_and_the_way(self):
        time = np.arange(1500)
        learned, plateau = 3 + 4 * np.exp(-time / 200), np.log(4096)
        since = np.clip(time - 800, 0, None)
        lost = {
            "at once": np.where(time < 800, learned, plateau),
            "slowly": np.where(time < 800, learned, plateau - (plateau - 3) * np.exp(-since / 100)),
            "faster and faster": learned + np.expm1(since / 150),
            "in swings": learned + np.where(time > 800, 0.1 * np.exp(since / 120) * np.abs(np.sin(time / 5)), 0),
        }
        for seed in range(3):
            noise = 0.05 * np.random.default_rng(seed).standard_t(3, 1500)
            for values in lost.values():
                (event,) = self.detect(values + noise)
                assert (event.kind, event.start >= 800, event.stop) == ("divergence", True, 1499)

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
        assert event.kind == "divergence"
        assert 1000 <= event.start < 1500
        assert event.stop == 1999

    def test_a_part_of_what_was_learned_is_lost_slowly(self):
        """A third of it, in a straight line or ever faster, and still going on; a run-away told from its slow start."""
        time = np.arange(4000)
        learned, since = 1 + 3 * np.exp(-time / 600), np.clip(time - 2000, 0, None)
        for seed in range(5):
            noise = 0.05 * np.random.default_rng(seed).standard_t(5, 4000)
            for lost in (since / 2000, np.expm1(since / 800) / np.expm1(2.5)):
                (event,) = self.detect(learned + lost + noise)
                assert (event.kind, event.stop) == ("rise", 3999)
                assert 2000 <= event.start < 3900
                assert event.height == pytest.approx(1, abs=0.4)
            (event,) = self.detect(learned + np.expm1(since / 150) + noise)
            assert event.kind == "divergence"
            assert 2000 <= event.start < 2500

    def test_a_rise_that_comes_to_rest_is_none(self):
        time = np.arange(3000)
        for seed in range(5):
            noise = 0.05 * np.random.default_rng(seed).standard_t(5, 3000)
            rest = 1 + 3 * np.exp(-time / 100) + 1.0 * (1 - np.exp(-np.clip(time - 600, 0, None) / 250))
            assert self.detect(rest + noise) == []
            assert self.detect(4 + np.log(1 + time / 60) + noise) == []  # of a queue, and never fell

    def test_a_slow_rise_after_a_long_plateau_and_beside_one_outlier(self):
        time = np.arange(5000)
        for seed in range(4):
            values = 1 + 2 * np.exp(-time / 250) + np.clip(time - 4250, 0, None) / 750
            values += 0.02 * np.random.default_rng(seed).standard_normal(5000)
            values[4800] += 40
            (event,) = self.detect(values)
            assert (event.kind, event.height) == ("rise", pytest.approx(1, abs=0.15))
            assert 4250 < event.start < 4500

"""Truth: planted orders, what must not be claimed, invariance, and simulation under the null."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from stabilitylab.episodes import group
from stabilitylab.findings import Event
from stabilitylab.leads import depth_trend, lags, side_by_side
from stabilitylab.telling.evidence import Evidence
from stabilitylab.telling.leads import say_depth, say_lead, tell_origin

PARAMETERS = {
    "window": 100, "near": 10, "alpha": 0.05, "thresholds": (4.0, 10.0), "draws": 200, "seed": 0, "episode_gap": 20,
}  # fmt: skip


def event(label, onset, height=4.0, peak=None, score=20.0):
    peak = onset if peak is None else peak
    return Event(onset, onset, peak, peak, "spike", "gradients.norm", label, height, score)


def events(label, times, **fields):
    return [event(label, int(each), **fields) for each in times]


def table(*spikes, names="ab", **fields):
    return lags([each for some in spikes for each in some], list(names), names[0], draws=200, **fields)


def delayed(rng, number=12, names="abc", lag=5):
    times = 200 + 300 * np.arange(number)
    first = events(names[0], times)
    return first + [e for n in names[1:] for e in events(n, times + lag + np.round(2 * rng.standard_normal(number)))]


TIMES = np.arange(100, 4000, 100)


class TestDoubts:
    def test_a_sign_that_turns_among_events_of_similar_height_is_inconclusive(self):
        tall, similar = TIMES[:30], TIMES[30:36]
        later = events("b", tall + 5, height=80.0) + events("b", similar - 5, height=4.4)
        row = table(events("a", TIMES[:36]), later).iloc[0]
        assert row["p_adjusted"] <= 0.05
        assert row["low"] > 0
        assert (row["similar"], row["lag_similar"]) == (6, -5)
        assert (row["verdict"], "similar height" in row["reason"]) == ("inconclusive", True)
        alike = table(events("a", TIMES[:36]), events("b", TIMES[:36] + 5, height=4.4)).iloc[0]
        assert (alike["verdict"], alike["lag_similar"]) == ("leads", 5)

    @pytest.mark.parametrize("threshold", [4.5, 9.5])
    def test_a_sign_that_turns_at_any_threshold_from_4_to_10_is_inconclusive(self, threshold):
        weak, clear = TIMES[:30], TIMES[30:36]
        first = events("a", weak, score=threshold - 0.6) + events("a", clear, score=threshold + 0.6)
        later = events("b", weak + 5, score=threshold - 0.6) + events("b", clear - 5, score=threshold + 0.6)
        row = table(first, later).iloc[0]
        assert (row["lag_least"], row["lag_most"]) == (-5, 5)
        assert (row["verdict"], "threshold" in row["reason"]) == ("inconclusive", True)

    def test_several_spikes_of_a_cluster_are_one_piece_of_evidence(self):
        times = np.concatenate([each + np.arange(0, 60, 12) for each in (500, 1500, 2500)])
        row = table(events("a", times), events("b", times + 5)).iloc[0]
        assert (row["matched"], row["clusters"], row["p_smallest"]) == (15, 3, 0.25)
        assert row["verdict"] == "inconclusive"
        assert row["p"] == 0.25

    def test_ties_cannot_lower_p(self):
        row = table(events("a", TIMES[:12]), events("b", TIMES[:9]), events("b", TIMES[9:12] + 1)).iloc[0]
        assert (row["ties"], row["p_smallest"], row["p"]) == (9, 0.25, 0.25)
        assert row["verdict"] == "together"

    def test_heights_that_shift_onsets_alone_make_no_lead(self):
        """A linear ramp of 10 steps to 100x is half way up, on the log scale, two steps before one to 8x."""
        rng = np.random.default_rng(3)
        claimed, by_onset = 0, 0
        times = 200 + 300 * np.arange(12)
        for _ in range(60):
            spikes = []
            for at, name in enumerate("abcd"):
                height = (100.0, 8.0, 8.0, 100.0)[at] * np.exp(0.3 * rng.standard_normal(12))
                half = 10 * (np.sqrt(height) - 1) / (height - 1)
                starts = times + 2 * rng.standard_normal(12)
                onsets, peaks = np.round(starts + half), np.round(starts + 10)
                spikes += [
                    event(name, *map(int, (o,)), float(h), int(p))
                    for o, h, p in zip(onsets, height, peaks, strict=True)
                ]
            found = table(spikes, names="abcd")
            claimed += found["verdict"].isin(["leads", "follows"]).any()
            by_onset += (found["p_wilcoxon"] <= 0.05).any()
        assert by_onset > 12  # onsets alone would claim an order
        assert claimed <= 0.06 * 60 + (60 * 0.06 * 0.94) ** 0.5


class TestRegularSpikes:
    @pytest.mark.parametrize(("lag", "scatter"), [(60, 20), (60, 5), (60, 0), (80, 20), (-60, 20)])
    def test_the_nearest_is_no_partner_where_the_other_side_keeps_its_distance(self, lag, scatter):
        """Every later spike follows 60 steps after; the nearest one lies 40 before."""
        times = 200 + np.cumsum(100 + np.round(scatter * np.random.default_rng(0).standard_normal(40)))
        found = table(events("a", times), events("b", times + lag))
        assert (found["verdict"] == "inconclusive").all()
        assert "as well be the partners: b" in say_lead(found, PARAMETERS).sentence

    @pytest.mark.parametrize("lag", [-20, 1, 5, 20])
    def test_a_short_lag_of_regular_spikes_is_believed(self, lag):
        found = table(events("a", TIMES), events("b", TIMES + lag)).iloc[0]
        assert (found["verdict"], found["lag"]) == ("leads" if lag > 0 else "follows", lag)


class TestAssociation:
    def test_the_p_of_each_width_and_of_blocks(self):
        rng = np.random.default_rng(0)
        times = np.sort(rng.choice(np.arange(0, 8000, 80), 25, replace=False))
        row = table(events("a", times), events("b", times + 3)).iloc[0]
        names = ["p_near_25", "p_near_50", "p_near_100", "p_near_200", "p_near_400", "p_near_shift", "p_near_adjusted"]
        assert row["near"] == 25 > 2 * row["near_by_chance"]
        assert (row[names].astype(float) == 1 / 201).all()

    def test_independent_layers_are_said_to_be_so(self):
        rng = np.random.default_rng(1)
        spikes = [e for n in "ab" for e in events(n, np.unique(rng.integers(2000, 4000, 25)))]
        found = table(spikes)
        assert found["p_near_adjusted"].iloc[0] > 0.05
        sentence = say_lead(found, PARAMETERS).sentence
        assert "Not clearly more often than by chance within 10 steps of a spike of a: b" in sentence

    def test_short_phases_in_common_are_no_association(self):
        rng = np.random.default_rng(0)
        said = []
        for _ in range(40):
            begins = np.array([1000, 6000])[:, None]
            of = {name: np.unique(begins + rng.integers(0, 200, (2, 12))) for name in "abcdef"}
            found = table(*(events(name, of[name]) for name in "abcdef"), names="abcdef")
            said.append((found["p_near_adjusted"] <= 0.05).any())
        assert np.mean(said) <= 0.05 + 2 * (0.05 * 0.95 / 40) ** 0.5


class TestPooling:
    def test_a_run_that_goes_the_other_way_leaves_the_order_open(self):
        runs = [events("a", TIMES[:8]) + events("b", TIMES[:8] + lag) for lag in (4, 4, 4, 4, 4, -4)]
        found = lags(runs, ["a", "b"], "a", draws=200)
        row = found.iloc[0]
        assert row["p_adjusted"] < 0.01
        assert (row["runs"], row["runs_agree"], row["most_of_one_run"]) == (6, 5, 8)
        assert row["verdict"] == "inconclusive"
        sentence = say_lead(found, PARAMETERS).sentence
        assert "6 runs, in which the order is the same in 5; one run has 8 of them" in sentence
        assert "In one of the runs, taken alone, the order is the other way around: b" in sentence
        assert lags(runs[:5], ["a", "b"], "a", draws=200).iloc[0]["verdict"] == "leads"

    def test_runs_too_short_alone_lead_together(self):
        runs = [events("a", TIMES[:4]) + events("b", TIMES[:4] + 5) for _ in range(3)]
        assert table(runs[0]).iloc[0]["verdict"] == "too few events"
        row = lags(runs, ["a", "b"], "a", draws=200).iloc[0]
        assert (row["matched"], row["clusters"], row["lag"], row["verdict"]) == (12, 12, 5, "leads")

    def test_nothing_reaches_from_one_run_into_another(self):
        runs = [events("a", TIMES), events("b", TIMES + 5)]
        row = lags(runs, ["a", "b"], "a", draws=200).iloc[0]
        assert (row["matched"], row["near"], row["near_by_chance"]) == (0, 0, 0)
        line, moves = side_by_side([[], *runs, [], runs[0]], 900)
        assert moves[:2] == [0, 0]
        assert all(each % 500 == 0 for each in moves)
        onsets = np.sort([each.onset for each in line])
        assert (np.diff(onsets) >= 900).sum() == 2

    def test_one_run_in_a_list_is_that_run_and_the_order_of_runs_does_not_matter(self):
        rng = np.random.default_rng(0)
        runs = [delayed(rng, number) for number in (3, 5, 4)]
        pd.testing.assert_frame_equal(lags([runs[0]], list("abc"), "a"), lags(runs[0], list("abc"), "a"))
        one, other = (lags(each, list("abc"), "a") for each in (runs, runs[::-1]))
        shown = ["matched", "clusters", "lag", "low", "high", "p_adjusted", "near", "verdict"]
        pd.testing.assert_frame_equal(one[shown], other[shown])

    def test_no_run_and_no_spike(self):
        for nothing in ([], [[]], [[], []]):
            found = lags(nothing, ["a", "b"], "a")
            assert found["verdict"].tolist() == ["too few events"]
            assert found["matched"].tolist() == [0]


class TestSecondOpinion:
    def curves(self, lag, every=1, steps=4000):
        rng = np.random.default_rng(0)
        values = np.exp(0.05 * rng.standard_normal((steps, 2)))
        values[TIMES[:30], 0] *= 5
        values[TIMES[:30] + lag, 1] *= 50
        return pd.DataFrame(values, columns=["a", "b"], index=pd.RangeIndex(0, steps * every, every, name="step"))

    def test_it_agrees_and_disagrees(self):
        spikes = events("a", TIMES[:30]) + events("b", TIMES[:30] + 5)
        row = table(spikes, magnitudes=self.curves(5)).iloc[0]
        assert (row["lag_alike"], row["low_alike"], row["high_alike"], row["agrees"]) == (5, 5, 5, 1)
        other = table(spikes, magnitudes=self.curves(-4))
        assert (other.iloc[0]["lag_alike"], other.iloc[0]["agrees"], other.iloc[0]["verdict"]) == (-4, 0, "leads")
        assert "disagrees: b -4 steps [-4, -4]" in say_lead(other, PARAMETERS).sentence

    def test_it_speaks_in_steps_and_pools_runs(self):
        spikes = events("a", 10 * TIMES[:30]) + events("b", 10 * TIMES[:30] + 50)
        assert table(spikes, magnitudes=self.curves(5, every=10)).iloc[0]["lag_alike"] == 50
        halves = [events("a", TIMES[:30]) + events("b", TIMES[:30] + 5)] * 2
        found = lags(halves, ["a", "b"], "a", draws=200, magnitudes=[self.curves(5)] * 2)
        assert found.iloc[0]["lag_alike"] == 5

    def test_without_curves_or_with_a_gap_it_says_nothing(self):
        spikes = events("a", TIMES[:6]) + events("b", TIMES[:6] + 5)
        frame = self.curves(5)
        for given in (None, frame[["b"]], frame.iloc[::2].iloc[[0, 5, 9]], frame.drop(index=TIMES[:6] + 40)):
            assert np.isnan(table(spikes, magnitudes=given).iloc[0][["lag_alike", "agrees"]].astype(float)).all()


class TestDepth:
    def told(self, spikes, names):
        (found,) = say_depth(group(spikes, names, 20), names, PARAMETERS)
        return found

    def test_order_is_seen_with_layers_missing_and_not_without_order(self):
        rng = np.random.default_rng(0)
        spikes = [event(n, int(t) + 2 * at) for at, n in enumerate("abcde") for t in TIMES[:12] if rng.random() > 0.3]
        found = self.told(spikes, "abcde")
        assert (found.verdict, round(found.numbers["correlation"], 6)) == ("deeper later", 1.0)
        assert self.told([event(e.label, 10000 - e.onset) for e in spikes], "abcde").verdict == "deeper sooner"
        shuffled = [event(n, int(t) + int(rng.integers(0, 9))) for n in "abcde" for t in TIMES[:12]]
        assert self.told(shuffled, "abcde").verdict == "none"

    def test_onsets_without_peaks_make_no_order(self):
        spikes = [event(n, int(t) + at, peak=int(t) + 10) for at, n in enumerate("abcde") for t in TIMES[:12]]
        assert self.told(spikes, "abcde").verdict == "none"

    def test_too_few_ties_and_what_is_not_finite(self):
        assert self.told([event(n, int(t)) for n in "abcde" for t in TIMES[:12]], "abcde").verdict == "too few events"
        broken = [event(n, 100 * t + at, height=np.inf) for at, n in enumerate("abc") for t in range(1, 9)]
        assert depth_trend(group(broken, "abc", 20), "abc").rows == 0
        assert say_depth([], "ab", PARAMETERS) == []


def test_a_first_layer_between_two_others_is_said_to_be_so():
    first = [event("a", at) for at in TIMES]
    found = table(first, events("b", TIMES - 6), events("c", TIMES + 6), names="abc")
    said = say_lead(found, PARAMETERS)
    assert said.verdict == "in between"
    assert "a leads c by +6 steps" in said.sentence
    assert "follows b by +6 steps" in said.sentence


class TestOrigin:
    """Spikes of six layers within 20 steps of each other, 25 times, in 100 runs."""

    def claims(self, onsets, peaks=None, more=()):
        """Return how often each verdict is reached; ``onsets`` and ``peaks`` draw the times of the six layers."""
        rng = np.random.default_rng(0)
        layers = SimpleNamespace(first="a", names=list("abcdef"))
        frames = {"gradients.norm": pd.DataFrame(index=pd.RangeIndex(6000))}
        verdicts = Counter()
        for _ in range(100):
            spikes = list(more)
            for at in range(200, 5200, 200):
                times = onsets(rng)
                later = times + 5 if peaks is None else peaks(rng)
                both = zip("abcdef", at + times, at + later, strict=True)
                spikes += [event(layer, int(onset), peak=int(peak)) for layer, onset, peak in both]
            known = Evidence(
                SimpleNamespace(layers=layers), frames, tuple(sorted(spikes)), tuple(group(spikes, "abcdef", 20)),
                pd.DataFrame(), {}, {}, {"alpha": 0.05, "episode_gap": 20, "seed": 0},
            )  # fmt: skip
            (found,) = tell_origin(known)
            verdicts[found.verdict] += 1
        return verdicts

    @pytest.mark.parametrize("kind", ["independent", "deep ones later or sooner", "all later or all sooner"])
    def test_no_layer_is_named_where_the_order_is_chance(self, kind):
        """Independent layers begin five times in six in another layer than the first."""

        def onsets(rng):
            if kind == "independent":
                return rng.integers(0, 20, 6)
            if kind == "deep ones later or sooner":
                return np.round(rng.standard_normal(6) * np.arange(1, 7)).astype(int)
            return np.where(np.arange(6) > 0, rng.integers(2, 10) * rng.choice([-1, 1]), 0)

        found = self.claims(onsets)
        assert found["first layer"] + found["other layers"] <= 10 + 2 * 3  # two claims at five percent, of 100

    def test_the_first_layer_is_named_where_onsets_and_peaks_say_so(self):
        def sooner(rng):
            return np.append(0, rng.integers(0, 12, 5))

        assert self.claims(sooner)["first layer"] >= 90
        assert self.claims(lambda rng: 12 - sooner(rng))["other layers"] >= 90
        again = [event("a", at + 16, height=9.0) for at in range(200, 5200, 200)]  # taller than the first, and late
        assert self.claims(sooner, more=again)["first layer"] >= 90
        assert self.claims(sooner, lambda rng: rng.integers(12, 20, 6))["first layer"] <= 5 + 2 * 2.2  # taller only

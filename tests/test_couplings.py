"""Truth: what `stabilitylab.synthetic` planted, the drawing of the sign of a lead, and simulation under the null."""

import numpy as np
import pandas as pd
import pytest

from stabilitylab import signals, synthetic
from stabilitylab.analysis import analyze
from stabilitylab.couplings import COLUMNS, couplings, onsets
from stabilitylab.detectors import dip, spike
from stabilitylab.episodes import layer_magnitudes
from stabilitylab.findings import Event
from stabilitylab.run import Run, RunWriter
from stabilitylab.signals import SIGNALS, Signal, curve_of, leading_layer, signals_of

PAIR = [("update", "gradient")]
CLAIMS = ("warns", "together", "follows")


def signal(name, times, every=1, last=20_000):
    seen = np.unique(-(-np.asarray(times, dtype=int) // every) * every)  # seen at the next measurement
    events = [Event(t, t, t, t, "spike", name, "a", 4.0, 20.0) for t in seen.tolist()]
    return Signal(name, name, "a", tuple(events), every, 0, last)


def coupled(warning, target, every=(1, 1), **options):
    given = {"update": signal("update", warning, every[0]), "gradient": signal("gradient", target, every[1])}
    return couplings(given, pairs=PAIR, draws=400, **options).iloc[0]


TIMES = np.arange(400, 12 * 400 + 400, 400)


class TestOrder:
    def test_the_drawing(self):
        row = coupled(TIMES, TIMES + 5)
        assert (row["verdict"], row["lead"], row["matched"]) == ("warns", 5, 12)  # the target follows: positive
        assert (row["precision"], row["recall"], row["later"]) == (1, 1, 12)
        row = coupled(TIMES, TIMES - 5)
        assert (row["verdict"], row["lead"], row["precision"], row["recall"]) == ("follows", -5, 0, 0)
        row = coupled(TIMES, TIMES)
        assert (row["verdict"], row["lead"], row["ties"]) == ("together", 0, 12)

    def test_an_early_warning_is_found_at_any_distance_within_the_horizon(self):
        for lead in (1, 30, 95):
            row = coupled(TIMES, TIMES + lead)
            assert (row["verdict"], row["lead"]) == ("warns", lead)
        assert coupled(TIMES, TIMES + 190)["verdict"] == "no better than chance"

    @pytest.mark.parametrize(("lag", "verdict"), [(0, "together"), (5, "together"), (20, "warns"), (-20, "follows")])
    def test_an_order_closer_than_the_spacing_is_none(self, lag, verdict):
        rng = np.random.default_rng(0)
        times = TIMES + rng.integers(0, 50, 12)
        row = coupled(times, times + lag, every=(1, 10))
        assert row["verdict"] == verdict
        assert row["horizon"] == 109
        assert ("9 steps" in row["reason"]) == (verdict == "together")

    def test_a_warning_seen_late_claims_no_target_that_may_have_come_after_it(self):
        rng = np.random.default_rng(0)
        times = TIMES + rng.integers(0, 50, 12)
        assert coupled(times, times - 3, every=(10, 1))["verdict"] == "together"
        assert coupled(times, times - 15, every=(10, 1))["verdict"] == "follows"

    def test_precision_and_recall_are_those_planted(self):
        rng = np.random.default_rng(0)
        warnings = np.arange(500, 19_500, 500)  # 38 of them, every second one is followed, and 5 targets come alone
        targets = np.r_[warnings[::2] + rng.integers(3, 8, 19), warnings[1:10:2] - 200]
        row = coupled(warnings, targets)
        assert (row["warnings"], row["targets"], row["followed"], row["preceded"]) == (38, 24, 19, 19)
        assert (row["precision"], row["recall"]) == (0.5, 19 / 24)
        assert row["precision"] > 2 * row["precision_by_chance"]
        assert row["verdict"] == "warns"

    def test_nobody_is_warned_twice_of_the_same(self):
        events = signal("a", [100, 105, 121, 160]).events
        assert onsets(events, 20).tolist() == [100, 160]
        assert onsets([], 20).tolist() == []
        row = coupled(np.r_[TIMES, TIMES + 2], TIMES + 5)
        assert (row["warnings"], row["verdict"], row["lead"]) == (12, "warns", 5)

    def test_invariant_to_a_shift_in_time_and_to_the_other_couplings(self):
        rng = np.random.default_rng(1)
        given = {name: signal(name, np.sort(rng.integers(0, 9000, 12))) for name in SIGNALS}
        whole = couplings(given, draws=200)
        assert tuple(whole.columns) == COLUMNS
        given["adam"] = Signal("adam", "adam.rms", "", missing="adam.rms was not recorded")
        less = couplings(given, draws=200)
        names = ["matched", "lead", "low", "p", "p_near", "precision"]
        pd.testing.assert_frame_equal(whole[names].iloc[:6], less[names].iloc[:6])
        assert (less["verdict"].iloc[6:] == "not recorded").all()
        shifted = coupled(TIMES + 1, TIMES + 6)
        assert (shifted["verdict"], shifted["lead"]) == ("warns", 5)


class TestRestraint:
    def test_what_follows_after_more_than_half_the_spacing_has_no_order(self):
        times = 200 + np.cumsum(100 + np.round(10 * np.random.default_rng(0).standard_normal(45)))
        row = coupled(times, times + 60)
        assert row["p_order_adjusted"] < 0.01
        assert row["verdict"] not in ("warns", "follows")
        assert coupled(times, times + 20)["verdict"] == "warns"

    def test_few_events_say_so(self):
        assert coupled(TIMES[:4], TIMES + 5)["verdict"] == "too few events"
        row = coupled(TIMES[:5], TIMES[:5] + 40)
        assert row["verdict"] == "too few events"  # five cannot claim an order: two in 32
        assert "order" in row["reason"]
        assert coupled(TIMES[:5], TIMES[:5])["verdict"] == "together"

    @pytest.mark.parametrize("unrest", [(2000, 5000, 20), (4000, 4600, 12)])
    def test_independent_events_that_share_an_unstable_phase_are_not_coupled(self, unrest):
        """Over all couplings of a run at most 5 % may claim anything; the limit adds two standard errors."""
        rng = np.random.default_rng(2)
        low, high, number = unrest
        every = {"accuracy": 10, "adam": 10, "rank of projection": 50}
        claims = []
        for seed in range(30):
            given = {
                name: signal(
                    name, np.r_[rng.integers(low, high, number), rng.integers(0, 10_000, 5)], every.get(name, 1), 10_000
                )
                for name in SIGNALS
            }
            claims.append(couplings(given, draws=400, seed=seed)["verdict"].isin(CLAIMS).any())
        assert np.mean(claims) <= 0.05 + 2 * (0.05 * 0.95 / 30) ** 0.5

    def test_coupled_events_within_a_phase_are_found(self):
        rng = np.random.default_rng(3)
        found = 0
        for _ in range(20):
            times = np.sort(np.r_[rng.choice(np.arange(2000, 5000, 60), 15, replace=False), rng.integers(0, 10_000, 3)])
            later = times + 5 + np.round(2 * rng.standard_normal(18)).astype(int)
            found += coupled(times, later)["verdict"] == "warns"
        assert found >= 18


PLANTED = {
    "steps": 9000, "layers": 2, "tensors": 2, "images": 200, "random_spikes": 14, "spacing": 300,
    "updates": True, "update_lead": 5,
    "adam": True, "adam_lead": 25, "loss_follow": 3, "dip_follow": 20, "rank": True, "rank_follow": 60,
}  # fmt: skip


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "r"
    synthetic.write(path, **PLANTED)
    return analyze(Run(path))


def verdicts(table):
    return {(row.warning, row.target): row.verdict for row in table.itertuples()}


def without_the_rest(run):
    """The couplings of a run without the other parts of its analysis, which take longer."""
    detector = spike.Detector()
    events = detector.detect("gradients.norm", layer_magnitudes(run), {})
    return verdicts(couplings(signals_of(run, events, leading_layer(run), detector, dip.Detector()), draws=400))


class TestAnalyze:
    def test_what_was_planted_is_found_through_the_detectors(self, analysis):
        table = analysis.couplings.set_index(["warning", "target"])
        known = table.drop(index=("gradient", "rank of representation"))
        assert set(known["verdict"]) == {"warns"}
        assert table.loc[("gradient", "rank of representation"), "reason"] == (
            "spectrum.representation was not recorded"
        )
        assert table.loc[("update", "gradient"), "lead"] == 5
        assert table.loc[("gradient", "loss"), "lead"] == 3
        assert 20 <= table.loc[("gradient", "accuracy"), "lead"] <= 29
        assert 60 <= table.loc[("gradient", "rank of projection"), "lead"] <= 109
        assert 16 <= table.loc[("adam", "gradient"), "lead"] <= 25

    def test_it_is_told_in_one_finding_and_saved(self, analysis):
        (told,) = [each for each in analysis.findings if each.kind == "couplings"]
        assert told.verdict == "coupled"
        assert "warn of loss spikes, lead +3 steps" in told.sentence
        assert told.numbers["verdicts"]["update > gradient"] == "warns"
        folder = analysis.save()
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / "couplings.parquet"), analysis.couplings, check_dtype=False
        )

    def test_other_findings_and_episodes_do_not_see_these_events(self, analysis):
        series = {each.series for each in analysis.events}
        assert series.isdisjoint({"updates.ratio", "adam.rms", "training.loss", "spectrum.rank"})
        assert {each.series for each in analysis.companions} == {
            "updates.ratio", "adam.rms", "training.loss", "spectrum.rank",
        }  # fmt: skip
        assert all(each.series == "knn.accuracy" for one in analysis.episodes for each in one.followed_by)

    def test_a_reverse_order_is_told_as_such(self, tmp_path):
        synthetic.write(tmp_path / "r", **PLANTED | {"update_lead": -6, "adam_lead": 0, "loss_follow": 0})
        found = without_the_rest(Run(tmp_path / "r"))
        assert found["update", "gradient"] == "follows"
        assert found["adam", "gradient"] == found["gradient", "loss"] == "together"

    def test_what_was_not_planted_is_not_claimed(self, tmp_path):
        nothing = dict.fromkeys(("update_lead", "adam_lead", "loss_follow", "dip_follow", "rank_follow"))
        synthetic.write(tmp_path / "r", **PLANTED | nothing)
        analysis = analyze(Run(tmp_path / "r"), draws=400)
        assert set(verdicts(analysis.couplings).values()) <= {"too few events", "no better than chance", "not recorded"}
        (told,) = [each for each in analysis.findings if each.kind == "couplings"]
        assert told.verdict == "too few events"


def write(path, series, layers=("x", "y")):
    of = {f"{layer}.{part}": layer for layer in layers for part in ("weight", "bias")}
    writer = RunWriter(path, {"layers": {"names": list(layers), "of": of, "first": layers[0] if layers else ""}})
    for name, (steps, columns) in series.items():
        writer.declare(name, list(columns))
        writer.write(name, steps, np.stack(list(columns.values()), axis=1))
    writer.close("completed")
    return Run(path)


class TestSignals:
    def test_the_ratio_of_a_layer_is_the_quadratic_mean_over_its_tensors_each_over_its_median(self, tmp_path):
        weight, bias = np.array([1e-3, 1e-3, 5e-3, 1e-3, np.nan]), np.array([np.inf, 0.2, 0.2, np.nan, np.nan])
        run = write(tmp_path / "r", {"updates.ratio": (np.arange(5), {"x.weight": weight, "x.bias": bias})})
        curve = curve_of(run, "update", "x")
        np.testing.assert_allclose(curve, [1, 1, np.sqrt((25 + 1) / 2), 1, np.nan])
        assert curve.name == "x"
        assert curve_of(run, "update", "y") is None
        assert curve_of(run, "loss", "x") is None

    def test_a_frozen_first_layer_gives_way_to_the_first_that_has_a_gradient(self, tmp_path):
        zero, one = np.zeros(5), np.ones(5)
        run = write(tmp_path / "r", {"gradients.norm": (np.arange(5), {"x.weight": zero, "y.weight": one})})
        assert leading_layer(run) == "y"
        assert leading_layer(write(tmp_path / "s", {"gradients.norm": (np.arange(5), {"x.weight": zero})})) is None
        assert leading_layer(write(tmp_path / "t", {})) == "x"

    def test_the_rank_is_computed_where_only_the_spectrum_was_recorded(self, tmp_path):
        values = {"0": np.array([1.0, 1.0, np.nan]), "1": np.array([1.0, 0.0, 1.0])}
        run = write(tmp_path / "r", {"spectrum.projection": (np.array([0, 50, 100]), values)})
        np.testing.assert_allclose(curve_of(run, "rank of projection", None), [2, 1, np.nan])

    def test_a_loss_below_zero_has_spikes_too(self, tmp_path):
        rng = np.random.default_rng(0)
        loss, gradient = -0.9 + 0.02 * rng.standard_normal(6000), np.exp(0.1 * rng.standard_normal(6000))
        times = np.arange(300, 5700, 450)
        gradient[times] *= 5
        loss[times + 4] += 0.4
        run = write(
            tmp_path / "r",
            {"gradients.norm": (np.arange(6000), {"x.weight": gradient}),
             "training.loss": (np.arange(6000), {"loss": loss})},
        )  # fmt: skip
        assert without_the_rest(run)["gradient", "loss"] == "warns"

    @pytest.mark.parametrize("layers", [("x", "y"), ()])
    def test_runs_of_nothing_have_nothing_coupled(self, tmp_path, layers):
        analysis = analyze(write(tmp_path / "r", {}, layers))
        assert set(analysis.couplings["verdict"]) == {"not recorded"}
        assert "couplings" not in {each.kind for each in analysis.findings}


def test_a_layer_of_many_tensors_is_the_same_however_many_are_read_together(tmp_path, monkeypatch):
    synthetic.write(tmp_path / "r", layers=2, tensors=7, steps=300, spikes=(150,))
    run = Run(tmp_path / "r")
    labels, layer = run.about("gradients.norm")["labels"], run.layers.first
    together = signals._layer_ratio(run, "gradients.norm", labels, layer)
    monkeypatch.setattr(signals, "CELLS", 1)
    pd.testing.assert_series_equal(signals._layer_ratio(run, "gradients.norm", labels, layer), together)
    assert together.idxmax() == 150

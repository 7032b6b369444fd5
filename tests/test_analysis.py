"""Truth: what `stabilitylab.synthetic` planted, the drawing of the sign of a lag, and simulation under the null."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from stabilitylab import synthetic
from stabilitylab.analysis import analyze
from stabilitylab.errors import InputError
from stabilitylab.findings import Event, Finding, from_json
from stabilitylab.leads import lags
from stabilitylab.run import Run, RunWriter


def event(label, onset, height=4.0, peak=None, score=20.0):
    peak = onset if peak is None else peak
    return Event(onset, onset, peak, peak, "spike", "gradients.norm", label, height, score)


def planted(first, later, names=("first", "later")):
    return lags(
        [event(names[0], int(t)) for t in first] + [event(names[1], int(t)) for t in later], names, names[0], draws=200
    )


def make(path, **fields):
    synthetic.write(path, **fields)
    return Run(path)


def finding(analysis, kind):
    return next(each for each in analysis.findings if each.kind == kind)


class TestLags:
    def test_the_drawing(self):
        first = np.arange(100, 1300, 100)
        row = planted(first, first + 5).iloc[0]
        assert row["lag"] == 5
        assert row["verdict"] == "leads"  # later layer follows: positive
        assert planted(first, first - 5).iloc[0]["lag"] == -5
        assert planted(first, first - 5).iloc[0]["verdict"] == "follows"
        assert planted(first, first).iloc[0]["verdict"] == "together"
        assert planted(first, first).iloc[0]["ties"] == 12

    def test_fewer_than_five_say_nothing(self):
        first = np.arange(100, 500, 100)
        row = planted(first, first + 5).iloc[0]
        assert row["verdict"] == "too few events"
        assert np.isnan(row["low"])

    def test_five_can_be_together_and_cannot_lead(self):
        first = np.arange(100, 600, 100)
        assert planted(first, first).iloc[0]["verdict"] == "together"
        row = planted(first, first + 5).iloc[0]
        assert row["verdict"] == "inconclusive"
        assert row["p_smallest"] == 2 / 32

    def test_onset_and_peak_must_agree(self):
        times = np.arange(100, 1300, 100)
        events = [event("a", int(t), peak=int(t) + 20) for t in times] + [event("b", int(t) + 5) for t in times]
        row = lags(events, ["a", "b"], "a", draws=200).iloc[0]
        assert (row["lag"], row["lag_peak"], row["verdict"]) == (5, -15, "inconclusive")

    def test_a_sign_that_turns_with_the_threshold_is_inconclusive(self):
        times = np.arange(100, 3100, 100)
        small, large = times[:20], times[20:]
        events = [event("a", int(t), score=5) for t in small] + [event("b", int(t) + 5, score=5) for t in small]
        events += [event("a", int(t), score=9) for t in large] + [event("b", int(t) - 5, score=9) for t in large]
        row = lags(events, ["a", "b"], "a", draws=200).iloc[0]
        assert (row["verdict"], "threshold" in row["reason"]) == ("inconclusive", True)

    def test_what_is_not_finite_says_nothing(self):
        events = [event(name, int(t), height=np.inf, score=np.inf) for name in "ab" for t in np.arange(100, 1300, 100)]
        assert lags(events, ["a", "b"], "a", draws=200).iloc[0]["matched"] == 0

    def test_invariant_to_time_and_to_the_order_of_layers(self):
        rng = np.random.default_rng(0)
        first = np.arange(100, 1600, 100)
        later = {name: first + lag + rng.integers(-2, 3, 15) for name, lag in (("b", 5), ("c", 0), ("d", -8))}

        def table(order, shift):
            events = [event("a", int(t) + shift) for t in first]
            events += [event(name, int(t) + shift) for name in order for t in later[name]]
            return lags(events, ["a", *order], "a", draws=200).set_index("layer")[["lag", "low", "verdict"]]

        plain = table("bcd", 0)
        pd.testing.assert_frame_equal(plain, table("bcd", 12345))
        pd.testing.assert_frame_equal(plain, table("dcb", 0).loc[list("bcd")])

    def test_type_one_error_of_independent_layers_in_a_shared_phase(self):
        """Of 200 runs of 5 later layers, at most 6 % may claim an order; the limit adds two standard errors."""
        rng = np.random.default_rng(1)
        claimed = 0
        names = list("abcdef")
        for _ in range(200):
            times = {n: np.unique(np.r_[rng.integers(2000, 5000, 20), rng.integers(0, 10000, 4)]) for n in names}
            events = [event(n, int(t)) for n in names for t in times[n]]
            verdicts = lags(events, names, "a", draws=100)["verdict"]
            claimed += verdicts.isin(["leads", "follows"]).any()
        assert claimed <= 0.06 * 200 + 2 * (200 * 0.06 * 0.94) ** 0.5

    def test_power_and_coverage_with_twelve_events(self):
        """Lag 5, timing noise 2, five later layers: found in at least 90 %, covered in 92 to 99 %."""
        rng = np.random.default_rng(2)
        leads, covered = [], []
        first = np.arange(200, 200 + 12 * 300, 300)
        for _ in range(100):
            events = [event("a", int(t)) for t in first]
            for name in "bcdef":
                events += [event(name, int(t)) for t in first + 5 + np.round(2 * rng.standard_normal(12))]
            table = lags(events, list("abcdef"), "a", draws=100)
            leads += list(table["verdict"] == "leads")
            covered += list((table["low"] <= 5) & (table["high"] >= 5))
        assert np.mean(leads) >= 0.9
        assert 0.92 <= np.mean(covered) <= 0.99  # rounded lags lie on the ends of the interval


class TestAnalyze:
    def test_finds_what_was_planted(self, tmp_path):
        run = make(
            tmp_path / "r", steps=3000, layers=4, tensors=3, sd=0.1, spikes=tuple(range(200, 2600, 200)),
            heights=(3.0, 6.0, 3.0, 4.0), lags=(0, 5, 0, -6), dips=(1210,), collapse_at=2000, diverge_at=2800,
        )  # fmt: skip
        analysis = analyze(run)
        table = analysis.lags.set_index("layer")
        assert table["verdict"].to_dict() == {"blocks.0": "leads", "blocks.1": "together", "blocks.2": "follows"}
        assert table["lag"].to_dict() == {"blocks.0": 5, "blocks.1": 0, "blocks.2": -6}
        assert table.loc["blocks.1", "near"] == 12 > 3 * table.loc["blocks.1", "near_by_chance"]
        assert len(analysis.episodes) == finding(analysis, "spikes").numbers["episodes"] == 12
        assert finding(analysis, "where spikes begin").numbers["begin_in"] == {"blocks.2": 12}
        dips = finding(analysis, "dips")
        assert (dips.numbers["dips"], dips.numbers["after_spike"]) == (1, 1)
        assert any(each.followed_by for each in analysis.episodes)
        collapse = finding(analysis, "collapse")
        assert (collapse.verdict, collapse.numbers["dead"], collapse.numbers["since"]) == ("dimensional", 6, 2000)
        assert finding(analysis, "divergence").events[0].start == 2800
        assert "representation" in finding(analysis, "not judged").sentence

    def test_a_lead_over_one_layer_of_many_is_said_to_be_one(self, tmp_path):
        planted = {"steps": 3000, "layers": 4, "spikes": tuple(range(200, 2800, 200)), "heights": (5.0,)}
        lead = finding(analyze(make(tmp_path / "r", lags=(0, 6, 0, 0), **planted)), "lead")
        assert (lead.verdict, lead.numbers["judged"]) == ("leads some layers", 3)
        assert finding(analyze(make(tmp_path / "s", lags=(0, 6, 7, 0), **planted)), "lead").verdict == "leads"

    @pytest.mark.parametrize(
        ("lags", "verdict"), [((0, 0, 0), "together"), ((0, 5, 5), "first layer"), ((5, 0, 5), "other layers")]
    )
    def test_where_spikes_begin_is_decided_by_lone_starts(self, tmp_path, lags, verdict):
        run = make(tmp_path / "r", steps=3000, layers=3, spikes=tuple(range(200, 2800, 200)), lags=lags)
        found = finding(analyze(run, draws=200), "where spikes begin")
        assert found.verdict == verdict
        assert found.numbers["several_begin_together"] == (13 if verdict == "together" else 0)

    def test_few_lone_starts_are_no_single_layer(self, tmp_path):
        run = make(tmp_path / "r", steps=1200, layers=2, spikes=(200, 400, 600, 800), lags=(0, 5))
        assert finding(analyze(run, draws=200), "where spikes begin").verdict == "no single layer"

    @pytest.mark.parametrize("first", [0, 100])
    def test_a_loss_that_is_not_finite_is_counted_in_steps(self, tmp_path, first):
        run = make(tmp_path / "r", steps=600, layers=2, nonfinite=(*range(first, first + 7), 400))
        found = finding(analyze(run), "divergence")
        assert (found.verdict, found.numbers["not_finite"], found.numbers["first"]) == ("diverged", 8, first)
        assert "not finite at 8 steps" in found.sentence
        assert "stayed finite" not in found.sentence
        assert finding(analyze(run), "spikes").numbers["tallest"] == np.inf

    def test_what_is_never_finite(self, tmp_path):
        found = finding(analyze(make(tmp_path / "r", steps=60, layers=2, nonfinite=tuple(range(60)))), "divergence")
        assert (found.verdict, found.numbers["not_finite"]) == ("diverged", 60)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_where_nothing_is_finite_nothing_is_denied(self, tmp_path, value):
        made = synthetic.synthesize(steps=400, layers=2, knn_every=4, spectrum_every=4)
        series = {name: frame * value + value for name, frame in made.series.items() if name != "knn.correct"}
        broken = synthetic.Synthetic(series, {}, made.layers, (), made.parameters)
        synthetic.write(tmp_path / "r", broken)
        analysis = analyze(Run(tmp_path / "r"))
        assert {finding(analysis, kind).verdict for kind in ("dips", "drift", "collapse")} == {"not judged"}
        assert "of 2 layers" in finding(analysis, "spikes").sentence

    def test_a_short_run_says_that_it_is_too_short_to_diverge(self, tmp_path):
        found = finding(analyze(make(tmp_path / "r", steps=140, layers=2)), "divergence")
        assert found.verdict == "not judged"
        assert "cannot be judged" in found.sentence
        found = finding(analyze(make(tmp_path / "s", steps=140, layers=2, diverge_at=60)), "divergence")
        assert (found.verdict, found.numbers["first"]) == ("rising", 60)
        assert "whether it will cannot be told" in found.sentence

    def test_spikes_of_the_loss_and_a_slow_rise_are_told(self, tmp_path):
        made = synthetic.synthesize(steps=3000, layers=2)
        loss = made.series["training.loss"].copy()
        loss.iloc[1000, 0] += 3.0
        loss.iloc[1600, 0] += 5.0
        quiet = synthetic.Synthetic({**made.series, "training.loss": loss}, {}, made.layers, (), made.parameters)
        synthetic.write(tmp_path / "r", quiet)
        found = finding(analyze(Run(tmp_path / "r"), draws=200), "divergence")
        assert (found.verdict, found.numbers["spikes"]) == ("none", 2)
        assert "2 spikes that came back, the tallest" in found.sentence
        assert "at step 1,600" in found.sentence
        loss.iloc[2000:, 0] += np.linspace(0, 1.5, 1000)
        rising = synthetic.Synthetic({**made.series, "training.loss": loss}, {}, made.layers, (), made.parameters)
        synthetic.write(tmp_path / "s", rising)
        found = finding(analyze(Run(tmp_path / "s"), draws=200), "divergence")
        assert found.verdict == "rising"
        assert "It rises slowly, and still did where the record ends" in found.sentence

    def test_a_layer_that_lost_its_gradient_is_named(self, tmp_path):
        made = synthetic.synthesize(steps=600, layers=3)
        norms = made.series["gradients.norm"].copy()
        norms.iloc[400:, 1] = 0.0
        norms.iloc[560:, 2] = 0.0  # too short to tell
        synthetic.write(
            tmp_path / "r",
            synthetic.Synthetic({"gradients.norm": norms}, {}, made.layers, (), made.parameters),
        )
        found = finding(analyze(Run(tmp_path / "r"), draws=200), "spikes")
        assert found.numbers["silent"] == {made.layers["names"][1]: 400}
        assert f"exactly zero: of {made.layers['names'][1]} from step 400 on" in found.sentence

    def test_no_layer_is_tallest_where_all_are_not_finite(self, tmp_path):
        analysis = analyze(make(tmp_path / "r", steps=600, layers=3, nonfinite=(400,)), draws=200)
        assert "the largest: 3 layers alike, first at step 400, not finite" in finding(analysis, "spikes").sentence
        assert "tallest_layer" not in finding(analysis, "spikes").numbers
        assert finding(analysis, "where spikes begin").numbers["tallest_in"] == {}

    @pytest.mark.parametrize("measurements", [11, 12, 13, 20])
    def test_few_measurements_are_said_to_be_no_judgement(self, tmp_path, measurements):
        made = make(tmp_path / "r", steps=10 * measurements, layers=2, knn_every=10)
        found = finding(analyze(made), "dips")
        assert found.numbers["judged"] == (measurements - 3 if measurements >= 13 else 0)
        assert found.verdict == ("not judged" if measurements < 13 else "none")
        assert ("where there are 13" if measurements < 13 else "beyond its fluctuation") in found.sentence

    def test_a_curve_in_which_no_fall_could_stand_out_is_not_judged(self, tmp_path):
        made = synthetic.synthesize(steps=200, layers=2, knn_every=10)
        accuracy = made.series["knn.accuracy"]
        accuracy.iloc[:, :] = np.tile([[0.9], [0.1]], (len(accuracy) // 2, accuracy.shape[1]))
        synthetic.write(
            tmp_path / "r", synthetic.Synthetic(dict(made.series), made.about, made.layers, made.truth, made.parameters)
        )
        found = finding(analyze(Run(tmp_path / "r"), draws=200), "dips")
        assert (found.verdict, "fluctuates so much in 20" in found.sentence) == ("not judged", True)

    def test_votes_that_do_not_cover_the_curve_are_said(self, tmp_path):
        made = synthetic.synthesize(steps=2000, layers=2, dips=(1500,), depth=0.2)
        series = dict(made.series) | {"knn.correct": made.series["knn.correct"].loc[:300]}
        synthetic.write(
            tmp_path / "r", synthetic.Synthetic(series, made.about, made.layers, made.truth, made.parameters)
        )
        found = finding(analyze(Run(tmp_path / "r")), "dips")
        assert found.numbers["dips"] == 1
        assert 0 < found.numbers["paired"] < found.numbers["judged"]
        assert "binomial" in found.method

    def test_a_probe_that_was_switched_off_is_told(self, tmp_path):
        synthetic.write(tmp_path / "r", steps=200, layers=2)
        header = json.loads((tmp_path / "r" / "run.json").read_text())
        header["disabled"] = {"knn": {"step": 120, "traceback": "Traceback ...\nValueError: no neighbors\n"}}
        (tmp_path / "r" / "run.json").write_text(json.dumps(header))
        sentence = finding(analyze(Run(tmp_path / "r")), "not judged").sentence
        assert "the probe knn was switched off at step 120: ValueError: no neighbors" in sentence

    def test_a_run_that_names_no_layers(self, tmp_path):
        made = synthetic.synthesize(steps=300, layers=2, spikes=(200,))
        none = {"names": [], "of": {}, "first": ""}
        synthetic.write(tmp_path / "r", synthetic.Synthetic(made.series, made.about, none, (), made.parameters))
        analysis = analyze(Run(tmp_path / "r"))
        assert "names no layers" in finding(analysis, "not judged").sentence
        assert analysis.episodes == ()

    def test_a_quiet_run_says_so_and_what_it_could_have_seen(self, tmp_path):
        analysis = analyze(make(tmp_path / "r", steps=1500, layers=5))
        assert analysis.events == ()
        assert {each.kind: each.verdict for each in analysis.findings} == {
            "spikes": "none", "dips": "none", "drift": "none", "collapse": "none", "divergence": "none",
            "not judged": "not judged",
        }  # fmt: skip
        assert "No gradient spike" in finding(analysis, "spikes").sentence
        assert max(finding(analysis, "spikes").numbers["resolution"].values()) < 2.2
        assert set(analysis.lags["verdict"]) == {"too few events"}

    @pytest.mark.parametrize("heights", [(100.0, 8.0), (8.0, 100.0), (3.0, 12.0)])
    @pytest.mark.parametrize("lag", [0, 5])
    def test_unequal_heights_make_no_lag(self, tmp_path, heights, lag):
        run = make(
            tmp_path / "r", steps=3000, layers=2, spikes=tuple(range(200, 2800, 150)), heights=heights,
            lags=(0, lag), ramp=10, length=2, seed=5,
        )  # fmt: skip
        row = analyze(run, draws=200).lags.iloc[0]
        assert abs(row["lag"] - lag) <= 1
        assert row["verdict"] == ("leads" if lag else "together")

    @pytest.mark.parametrize("steps", [1, 2, 10, 30, 60, 100])
    def test_short_runs_claim_nothing(self, tmp_path, steps):
        analysis = analyze(make(tmp_path / "r", steps=steps, layers=3))
        assert analysis.events == ()
        assert all(each.verdict in ("none", "not judged") for each in analysis.findings)

    @pytest.mark.parametrize("only", ["gradients.norm", "training.loss", "knn.accuracy", "spectrum.projection"])
    def test_one_series_alone(self, tmp_path, only):
        made = synthetic.synthesize(steps=900, layers=3, spikes=(200,), dips=(600,), collapse_at=400, diverge_at=400)
        alone = synthetic.Synthetic({only: made.series[only]}, made.about, made.layers, made.truth, made.parameters)
        synthetic.write(tmp_path / "r", alone)
        analysis = analyze(Run(tmp_path / "r"))
        assert {each.series for each in analysis.events} == {only}
        assert "was not recorded" in finding(analysis, "not judged").sentence

    def test_a_run_without_any_series(self, tmp_path):
        RunWriter(tmp_path / "r", {"layers": {"names": ["x"], "of": {"a": "x"}, "first": "x"}}).close("completed")
        analysis = analyze(Run(tmp_path / "r"))
        assert [each.kind for each in analysis.findings] == ["not judged"]
        analysis.save()

    def test_a_first_layer_without_gradient_is_named(self, tmp_path):
        made = synthetic.synthesize(steps=400, layers=3, spikes=(200,))
        made.series["gradients.norm"]["patch_embed.weight"] = np.float32(0)
        synthetic.write(tmp_path / "r", made)
        analysis = analyze(Run(tmp_path / "r"))
        assert "patch_embed has no gradient" in finding(analysis, "not judged").sentence
        assert len(analysis.episodes) == 1

    def test_resumed_run_with_a_gap(self, tmp_path):
        made = synthetic.synthesize(steps=1000, layers=2, spikes=(700,))
        frame = made.series["gradients.norm"]
        header = {"layers": dict(made.layers)}
        for first, rows in ((0, frame.iloc[:300]), (300, frame.iloc[350:])):
            writer = RunWriter(tmp_path / "r", header, first_step=first)
            writer.declare("gradients.norm", list(frame.columns))
            writer.write("gradients.norm", rows.index.to_numpy(), rows.to_numpy())
            writer.close("interrupted")
        assert {each.peak for each in analyze(Run(tmp_path / "r")).events} == {700}

    def test_save_and_read_back(self, tmp_path):
        analysis = analyze(
            make(tmp_path / "r", steps=1500, layers=3, spikes=tuple(range(200, 1400, 150)), nonfinite=(77,))
        )
        folder = analysis.save()
        assert folder == tmp_path / "r" / "analysis"
        events = pd.read_parquet(folder / "events.parquet")
        assert [from_json(Event, row) for row in events.to_dict("records")] == list(analysis.events)
        pd.testing.assert_frame_equal(pd.read_parquet(folder / "lags.parquet"), analysis.lags, check_dtype=False)
        content = json.loads((folder / "findings.json").read_text())
        assert [from_json(Finding, each).sentence for each in content["findings"]] == [
            each.sentence for each in analysis.findings
        ]
        assert sorted(path.name for path in folder.iterdir()) == [
            "couplings.parquet", "events.parquet", "findings.json", "lags.parquet",
        ]  # fmt: skip

    def test_parameters_reach_the_detectors_and_are_recorded(self, tmp_path):
        run = make(tmp_path / "r", steps=600, layers=2, spikes=(300,), heights=(3.0,))
        assert analyze(run, spike={"min_ratio": 5}).episodes == ()
        analysis = analyze(run, window=50)
        assert len(analysis.episodes) == 1
        assert analysis.parameters["window"] == 50
        assert analysis.parameters["spike"]["min_ratio"] == 1.5

    @pytest.mark.parametrize(
        "wrong", [{"no_such": 1}, {"spike": {"no_such": 1}}, {"spike": {"min_ratio": 0.5}}, {"window": "x"}]
    )
    def test_refuses_wrong_parameters(self, tmp_path, wrong):
        with pytest.raises(InputError, match=next(iter(wrong)) if "spike" not in wrong else "no_such|min_ratio"):
            analyze(make(tmp_path / "r", steps=10), **wrong)

    def test_same_run_same_findings(self, tmp_path):
        run = make(tmp_path / "r", steps=1500, layers=3, spikes=tuple(range(200, 1400, 100)), timing_noise=3.0)
        one, other = analyze(run), analyze(run)
        assert one.findings == other.findings
        pd.testing.assert_frame_equal(one.lags, other.lags)


def test_events_that_differ_in_anything_differ_and_are_sorted_by_all_that_places_them():
    one, other, later = event("b", 100), event("a", 100), event("a", 200)
    assert one != other
    assert event("a", 100, height=2.0) != event("a", 100, height=3.0)
    assert len({one, other, event("b", 100)}) == 2
    assert sorted([later, one, other]) == [other, one, later]


def test_analysis_loads_no_torch():
    code = "import sys, stabilitylab.analysis, stabilitylab.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Truth: what was asked for; the moments of each noise in closed form; a run that reads back as it was written."""

import json
from itertools import pairwise
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from stabilitylab import InputError, analyze, synthetic
from stabilitylab.cli import main
from stabilitylab.detectors import collapse
from stabilitylab.findings import Event, from_json
from stabilitylab.run import Run
from stabilitylab.stats.spectrum import effective_rank


@pytest.mark.parametrize("kind", get_args(synthetic.Noise))
def test_noise_has_variance_one(kind):
    values = synthetic.noise(kind, (40000, 2), np.random.default_rng(0))
    if kind == "bursty":
        quiet = np.median(np.abs(values)) / 0.6745
        assert quiet == pytest.approx(1.0, abs=0.15)
        assert np.mean(np.abs(values) > 4) > 0.005
    else:
        assert values.std() == pytest.approx(1.0, abs=0.03)
    lagged = np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1]
    assert lagged == pytest.approx(0.5 if kind == "autocorrelated" else 0.0, abs=0.03)


def test_spikes_are_where_the_truth_says():
    made = synthetic.synthesize(
        steps=500, layers=3, sd=0.0, spikes=(100, 300), heights=(4.0, 8.0, 2.0), lags=(0, 5, -3), ramp=2, length=3
    )
    log = np.log(made.series["gradients.norm"].to_numpy(dtype=float))
    level = np.median(log, axis=0)
    assert len(made.of("spike")) == 6
    for event in made.of("spike"):
        column = made.layers["names"].index(event.label)
        rise = log[:, column] - level[column]
        assert rise[event.peak] == pytest.approx(np.log(event.height), abs=1e-6)
        assert rise[event.onset] >= np.log(event.height) / 2 > rise[event.onset - 1]
        assert rise[event.start] > 1e-3 > rise[event.start - 1]
        assert rise[event.stop] > 1e-3 > rise[event.stop + 1]


def test_lags_are_those_planted():
    made = synthetic.synthesize(steps=2000, layers=2, spikes=tuple(range(100, 1900, 100)), lags=(0, 7))
    first, later = ([e.onset for e in made.of("spike") if e.label == name] for name in made.layers["names"])
    assert set(np.subtract(later, first)) == {7}


@pytest.mark.parametrize(
    "fields",
    [
        {"updates": True, "update_lead": 3}, {"loss_follow": 1999}, {"dip_follow": -600}, {"dip_follow": 1990},
        {"rank": True, "rank_follow": 1900}, {"adam": True, "adam_lead": 600},
    ],
)  # fmt: skip
def test_the_truth_names_no_coupling_that_fell_outside_of_the_run(fields):
    made = synthetic.synthesize(spikes=(1, 500), **fields)
    (coupling,) = made.couplings
    at = {each.start - coupling.lag for each in made.of(coupling.kind, coupling.series) if each.label != "queue"}
    assert len(coupling.spikes) < 2
    assert len(at) == len(coupling.spikes)


@pytest.mark.parametrize("seed", range(3))
def test_spikes_do_not_lie_on_each_other_nor_on_what_is_not_finite(seed):
    made = synthetic.synthesize(
        layers=4, spikes=(900,), random_spikes=10, phases=((300, 700),), phase_rate=0.2, length=4, ramp=2, seed=seed,
        nonfinite=(400, 1200), timing_noise=3.0, lags=(0, 1, 2, 3), heights=(4.0, 4.0, 1.0, 4.0),
    )  # fmt: skip
    for layer in made.layers["names"]:
        own = sorted((each.start, each.stop) for each in made.of("spike", "gradients.norm") if each.label == layer)
        assert all(stop < start for (_, stop), (start, _) in pairwise(own))
        assert not any(start <= step <= stop for start, stop in own for step in (400, 1200))
        assert bool(own) == (layer != "blocks.1")  # whose spikes have a height of 1
    with pytest.raises(InputError, match="the spike at step 903 of patch_embed lies on another one"):
        synthetic.synthesize(spikes=(900, 903), length=5)


def test_one_seed_gives_one_run():
    one, other = (synthetic.synthesize(steps=200, seed=3, spikes=(50,)) for _ in range(2))
    for name, frame in one.series.items():
        pd.testing.assert_frame_equal(frame, other.series[name])
    different = synthetic.synthesize(steps=200, seed=4).series["training.loss"]
    assert not different.equals(one.series["training.loss"])


def test_a_written_run_reads_back(tmp_path):
    made = synthetic.write(
        tmp_path / "run", steps=120, layers=3, tensors=2, nonfinite=(60,), dips=(50,), collapse_at=80
    )
    run = Run(tmp_path / "run")
    assert set(run.series) == set(made.series)
    for name, frame in made.series.items():
        pd.testing.assert_frame_equal(run[name], frame, check_index_type=False)
    assert run.layers.first == "patch_embed"
    assert len(run.layers.parameters("blocks.0")) == 2
    assert run.config["synthetic"]["steps"] == 120
    assert {each.kind for each in made.truth} == {"divergence", "dip", "collapse"}


@pytest.mark.parametrize("wrong", [{"heights": (1.0, 2.0)}, {"steps": 0}, {"no_such": 1}, {"dead": 99}])
def test_refuses_what_makes_no_run(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        synthetic.synthesize(**wrong)


# ---- noise


@pytest.mark.parametrize("kind", ["gaussian", "student", "bursty"])
def test_autocorrelation_goes_with_any_noise(kind):
    values = synthetic.noise(kind, (60000, 2), np.random.default_rng(1), autocorrelation=0.8)
    if kind != "bursty":
        assert values.std() == pytest.approx(1.0, abs=0.03)
    for lag in (1, 3):  # the autocorrelation of an AR(1) process
        assert np.corrcoef(values[lag:, 0], values[:-lag, 0])[0, 1] == pytest.approx(0.8**lag, abs=0.05)
    starts = [synthetic.noise("gaussian", (2, 2000), np.random.default_rng(seed), 0.9) for seed in range(2)]
    assert np.std(starts) == pytest.approx(1.0, abs=0.03)  # stationary from the first step on


def log_residuals(**fields):
    made = synthetic.synthesize(steps=20000, layers=3, sd=0.2, images=2, **fields)
    log = np.log(made.series["gradients.norm"].to_numpy(dtype=float))
    return (log - np.median(log, axis=0)) / 0.2


def test_noise_changes_with_layer_time_and_company():
    values = log_residuals(loudness=(1.0, 2.0, 0.5), noise_change_at=12000, noise_change=3.0)
    assert values[:12000].std(axis=0) == pytest.approx([1, 2, 0.5], rel=0.05)
    assert values[12000:].std(axis=0) == pytest.approx([3, 6, 1.5], rel=0.05)
    correlation = np.corrcoef(log_residuals(shared=0.6).T)
    assert correlation[np.triu_indices(3, 1)] == pytest.approx([0.6] * 3, abs=0.03)
    heavy = log_residuals(noise="student", freedom=3.0, bursts=4.0)
    assert np.mean(np.abs(heavy) > 6) > 5 * np.mean(np.abs(log_residuals(noise="student")) > 6)


# ---- what goes with what


def test_couplings_are_at_their_distance_and_move_nothing_else():
    fields = {"steps": 3000, "layers": 3, "lags": (0, 2, 5), "random_spikes": 12, "sd": 0.05, "seed": 4}
    plain = synthetic.synthesize(**fields)
    more = {"updates": True, "update_lead": 3, "adam": True, "adam_lead": 20, "loss_follow": 4, "dip_follow": 25}
    made = synthetic.synthesize(**fields, **more, rank=True, rank_follow=10, coupled_share=0.7)
    pd.testing.assert_frame_equal(plain.series["gradients.norm"], made.series["gradients.norm"])
    first = [each.start for each in made.of("spike", "gradients.norm") if each.label == "patch_embed"]
    assert len(first) == 12
    assert min(np.diff(first)) >= 50
    lags = {each.series: each.lag for each in made.couplings}
    assert lags == {
        "training.loss": 4, "knn.accuracy": 25, "spectrum.rank": 10, "updates.ratio": -3, "adam.rms": -20
    }  # fmt: skip
    every = {"knn.accuracy": 10, "spectrum.rank": 50, "adam.rms": 10}
    for each in made.couplings:
        assert set(each.spikes) < set(first)
        assert len(each.spikes) >= 5
        at = {step + each.lag for step in each.spikes}
        label = {"updates.ratio": "patch_embed", "adam.rms": "patch_embed", "spectrum.rank": "projection"}
        own = [event for event in made.of(each.kind, each.series) if event.label == label.get(each.series, event.label)]
        late = [event.start - max(step for step in at if step <= event.start) for event in own]
        assert len(own) == len([step for step in at if 0 <= step < 3000])
        assert max(late) < every.get(each.series, 1)
    untouched = ~plain.series["training.loss"].index.isin([step + 4 for step in made.couplings[0].spikes])
    assert plain.series["training.loss"][untouched].equals(made.series["training.loss"][untouched])
    ratio = np.log(made.series["updates.ratio"].to_numpy(dtype=float))
    spikes = [event for event in made.of("spike", "updates.ratio") if event.label == "blocks.1"]
    assert {event.start for event in spikes} == {step - 3 + 5 for step in made.couplings[3].spikes}
    for event in spikes:
        assert ratio[event.peak, 2] - np.median(ratio[:, 2]) == pytest.approx(np.log(4), abs=0.25)


def test_more_random_spikes_than_there_is_room_for_are_refused(tmp_path):
    fields = ["--set", "steps=500", "--set", "random_spikes=100"]
    done = CliRunner().invoke(main, ["synthesize", str(tmp_path / "run"), *fields])
    assert done.exit_code == 1
    assert "random_spikes is 100, but only" in done.output
    assert not (tmp_path / "run").exists()


def test_rank_is_that_of_the_spectrum_and_falls_by_the_part_asked_for():
    made = synthetic.synthesize(
        steps=2000, spikes=(500,), rank=True, rank_follow=0, taps=("projection", "representation"), spectrum_every=10
    )
    rank = made.series["spectrum.rank"]
    for tap in ("projection", "representation"):
        expected = effective_rank(made.series[f"spectrum.{tap}"].to_numpy())
        np.testing.assert_allclose(rank[tap], expected)
        drop = next(each for each in made.of("drop") if each.label == tap)
        assert (drop.start, drop.stop) == (500, 640)
        inside = rank.loc[drop.start : drop.stop, tap].mean() / rank.loc[1000:, tap].mean()
        assert inside == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize("coupled", [True, False])
def test_phases_have_more_spikes_and_no_order_unless_coupled(coupled):
    made = synthetic.synthesize(
        steps=6000, layers=2, lags=(0, 4), phases=((2000, 4000),), phase_rate=0.03, phase_coupled=coupled, images=2
    )
    first, later = ({e.start for e in made.of("spike") if e.label == name} for name in made.layers["names"])
    assert min(first) >= 2000
    assert max(first) < 4000
    assert 35 < len(first) < 80  # 60 expected, less those that would overlap
    follow = np.mean([step + 4 in later for step in first])
    assert follow == 1 if coupled else follow < 0.2
    assert made.phases[0].coupled is coupled
    assert made.lags == {"patch_embed": 0, "blocks.0": 4}


@pytest.mark.parametrize("dead", [6, 16])
def test_a_collapse_is_in_its_tap_and_may_end(dead):
    both = ("projection", "representation")
    fields = {"steps": 3000, "layers": 1, "taps": both, "collapse_tap": "representation", "dead": dead}
    made = synthetic.synthesize(collapse_at=1000, collapse_length=800, **fields)
    (planted,) = made.of("collapse")
    assert (planted.series, planted.start, planted.stop) == ("spectrum.representation", 1000, 1750)
    names = [f"spectrum.{tap}" for tap in both]
    none, found = (collapse.Detector().detect(name, made.series[name], made.about[name]) for name in names)
    assert none == []
    assert [(each.label, each.start, each.stop) for each in found] == [(str(16 - dead), 1000, 1750)]


def test_accuracy_steps_and_degrades():
    made = synthetic.synthesize(
        steps=4000, images=8000, accuracy_steps=(1500,), step_depth=0.2, degrade_at=3000, degrade_by=0.1
    )
    curve = made.series["knn.accuracy"]["bank"]
    assert curve.loc[1000:1490].mean() - curve.loc[1500:2990].mean() == pytest.approx(0.2, abs=0.02)
    assert curve.loc[2500:2990].mean() - curve.iloc[-1] == pytest.approx(0.1, abs=0.02)
    assert [(each.kind, each.start, each.stop) for each in made.truth] == [
        ("step", 1500, 3990), ("drift", 3000, 3990)
    ]  # fmt: skip


# ---- the command


def cli(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_writes_a_run_with_its_truth_and_analyze_finds_it(tmp_path):
    (tmp_path / "fields.toml").write_text("steps = 1500\nlayers = 3\nrandom_spikes = 9\n")
    words = [tmp_path / "run", "--config", tmp_path / "fields.toml", "--set", "lags=[0, 6, 9]", "--set", "seed=5"]
    assert cli("synthesize", *words).exit_code == 0
    truth = json.loads((tmp_path / "run" / "truth.json").read_text())
    assert truth["schema"] == 1
    assert truth["lags"] == {"patch_embed": 0, "blocks.0": 6, "blocks.1": 9}
    planted = [from_json(Event, each) for each in truth["events"]]
    assert synthetic.Parameters(**truth["parameters"]) == synthetic.Parameters(
        steps=1500, layers=3, random_spikes=9, lags=(0, 6, 9), seed=5
    )
    found = [each for each in analyze(Run(tmp_path / "run")).events if each.kind == "spike"]
    judged = {(each.start, each.label) for each in planted if each.start > 60}
    assert judged <= {(each.start, each.label) for each in found}
    again = cli("synthesize", *words)
    assert again.exit_code == 1
    assert "holds a run already" in again.output


def test_the_dry_run_says_what_every_field_is_and_writes_nothing(tmp_path):
    result = cli("synthesize", tmp_path / "run", "--dry-run", "--set", "spikes=300")
    assert result.exit_code == 0
    assert not (tmp_path / "run").exists()
    for name, field in synthetic.Parameters.model_fields.items():
        assert f"  {name} = " in result.output
        assert field.description.splitlines()[0] in result.output
    assert "planted in gradients.norm: 6 x spike" in result.output


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("no_such=1", "synthesize.no_such is not known; synthesize has steps"),
        ("steps=0", "synthesize.steps was 0"),
        ("lags=[1, 2]", "lags must have one value or one for each of the 6 layers, not [1, 2]"),
        ("update_lead=3", "update_lead needs updates=true"),
        ("collapse_tap=representation", "collapse_tap is 'representation', which is not among the taps"),
        ("phases=[[50, 20]]", "phases must be pairs"),
        ("steps=1000000000", "must not exceed"),
        ("spikes=[99999]", "spikes of a run of 2,000 steps must lie between 0 and 1,998; 99,999 was given"),
        ("spikes=[5, -1]", "; -1 was given"),
        ("nonfinite=2000", "nonfinite of a run of 2,000 steps must lie between 0 and 1,999; 2,000 was given"),
        ("phases=[[2500, 3000]]", "phases of"),
        ("dips=1995", "dips of a run of 2,000 steps must lie between 0 and 1,990"),
        ("accuracy_steps=1995", "accuracy_steps of"),
        ("degrade_at=1999", "degrade_at of"),
        ("collapse_at=1960", "collapse_at of a run of 2,000 steps must lie between 0 and 1,950"),
        ("diverge_at=-3", "diverge_at of"),
        ("noise_change_at=2000", "noise_change_at of"),
        ("lags=5000", "lags of"),
        ("loss_follow=-2000", "loss_follow of"),
    ],
)
def test_wrong_fields_are_one_clear_line(tmp_path, setting, said):
    more = ["--set", "collapse_at=10"] if setting.startswith("collapse_tap") else []
    result = cli("synthesize", tmp_path / "run", "--set", setting, *more)
    assert result.exit_code == 1
    assert said in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_not_touched(tmp_path):
    synthetic.write(tmp_path / "run", steps=20)
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(InputError, match="holds a run already"):
        synthetic.write(tmp_path / "run", steps=30)
    assert (tmp_path / "run" / "run.json").read_bytes() == before

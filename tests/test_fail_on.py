"""Truth: what was planted in synthetic runs, the comparison of numbers, and the documented exit codes."""

import csv
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from stabilitylab import synthetic
from stabilitylab.analysis import analyze
from stabilitylab.cli import main
from stabilitylab.conditions import NAMES, parse
from stabilitylab.errors import InputError
from stabilitylab.findings import Episode, Event, Finding
from stabilitylab.measures import MEASURES, View, measure, tabulate
from stabilitylab.run import Run

SPIKES = (200, 320, 440, 560, 680, 800)
PAGE = Path(__file__).parents[1] / "docs" / "findings.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("runs")
    planted = {"spikes": SPIKES, "heights": (5.0,), "dips": (610,), "depth": 0.2, "collapse_at": 600, "rank": True}
    synthetic.write(made / "wild", steps=1000, layers=3, **planted)
    quiet = synthetic.synthesize(steps=600, layers=3, seed=1)
    series = {name: quiet.series[name] for name in ("gradients.norm", "training.loss")}
    alone = synthetic.Synthetic(series, quiet.about, quiet.layers, quiet.truth, quiet.parameters)
    synthetic.write(made / "quiet", alone)
    return made


@pytest.fixture(scope="module")
def wild(folder):
    return analyze(Run(folder / "wild"), draws=200)


@pytest.fixture(scope="module")
def quiet(folder):
    return analyze(Run(folder / "quiet"), draws=200)


@pytest.fixture
def told_before(monkeypatch, wild, quiet):
    """The command line takes the analyses that are there."""
    known = {"wild": wild, "quiet": quiet}
    monkeypatch.setattr("stabilitylab.analysis.analyze", lambda run, reference: known[run.name])


def cli(*words):
    result = CliRunner().invoke(main, ["analyze", *map(str, words), "--no-pictures", "--no-report"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def holds(text, analysis):
    return parse(text).judge(analysis).holds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("spikes>5", True), ("spikes > 6", False), ("spikes>=6", True), ("spikes<6", False), ("spikes<=6", True),
        ("spikes==6", True), ("spikes!=6", False), ("tallest>4", True), ("dips==1", True), ("steps>0", False),
        ("final_accuracy<0.5", False), ("deepest>1e-1", True), ("collapses>=1", True), ("collapse==dimensional", True),
        ("collapse == 'complete'", False), ("divergences>0", False), ("diverged==0", True), ("rank<1", False),
        ("lead==leads", False), ("lead!=leads", True), ("where spikes begin==together", True),
        ("recording!=none", False), ("status!=completed", False), ("length==1000", True), ("tallest<inf", True),
    ],
)  # fmt: skip
def test_a_condition_holds_where_it_says_so(wild, text, expected):
    assert holds(text, wild) is expected


def test_a_quiet_run_fulfils_nothing_and_tells_what_it_lacks(quiet):
    assert [holds(text, quiet) for text in ("spikes>0", "tallest>1", "lead==leads", "lead!=none")] == [False] * 4
    for text in (
        "dips>0",
        "final_accuracy<1",
        "area_lost>0",
        "rank<5",
        "collapses>0",
        "collapse==complete",
        "drifts>0",
    ):
        outcome = parse(text).judge(quiet)
        assert outcome.holds is None, text
        assert outcome.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spikes", "no condition"), ("spikes=5", "the operators are >= <= == != > <; the names are length"),
        (">5", "no condition"), ("", "no condition"),
        ("spkes>5", "did you mean spikes"), ("spikes>many", "'many' is none"), ("spikes>nan", "is none"),
        ("lead>5", "takes == or !="), ("lead==lead", "one of leads"), ("status==done", "one of completed"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_by_name(text, message):
    with pytest.raises(InputError, match=message):
        parse(text)


@pytest.mark.usefixtures("told_before")
def test_exit_codes(folder):
    wild, quiet = folder / "wild", folder / "quiet"
    assert cli(wild, "--fail-on", "spikes>6").exit_code == 0
    failed = cli(wild, quiet, "--fail-on", "spikes>5", "--fail-on", "tallest>1000")
    assert failed.exit_code == 3
    assert failed.stderr.strip().splitlines() == [f"failed: {wild}: spikes is 6 (--fail-on 'spikes>5')"]
    missing = cli(wild, quiet, "--fail-on", "dips>0")
    assert missing.exit_code == 1
    assert f"failed: {wild}: dips is 1" in missing.stderr
    assert f"Error: {quiet}: dips: not recorded in this run" in missing.stderr
    assert cli(quiet, "--fail-on", "dips>0", "--allow-missing").exit_code == 0
    assert cli(wild, quiet, "--fail-on", "dips>0", "--allow-missing").exit_code == 3
    usage = cli("nowhere", "--fail-on", "spkes>5")
    assert usage.exit_code == 2
    assert "spikes_per_10k" in usage.stderr


@pytest.mark.usefixtures("told_before")
def test_several_runs_give_one_table_that_machines_can_read(folder, tmp_path, wild, quiet):
    table = tabulate([wild, quiet])
    for suffix in ("csv", "parquet", "json"):
        result = cli(folder / "wild", folder / "quiet", "--table", tmp_path / f"t.{suffix}")
        assert result.exit_code == 0, result.output
    head, *rows = result.output.splitlines()
    assert head.split()[:3] == ["run", "steps", "status"]
    assert rows[0].split()[:4] == ["wild", "1,000", "completed", "6"]
    assert "- 6 gradient spikes" in result.output
    assert "start" not in result.output  # no table of events for each
    found = pd.read_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(found, table, check_dtype=False)
    with open(tmp_path / "t.csv") as file:
        assert [row["spikes"] for row in csv.DictReader(file)] == ["6.0", "0.0"]
    first, second = json.loads((tmp_path / "t.json").read_text())
    assert (first["spikes"], second["dips"], list(first)) == (6, "nan", list(table))
    told = json.loads(cli(folder / "wild", folder / "quiet", "--json").stdout)
    assert [each["measures"]["spikes"] for each in told] == [6, 0]
    wrong = cli(folder / "wild", "--table", "t.xlsx")
    assert wrong.exit_code == 1
    assert "must be one of .csv, .parquet, .json" in wrong.stderr


class TestMeasures:
    def made(self, series, events=(), episodes=(), findings=()):
        class Made:
            """Looks like a run with these series."""

            def __init__(self):
                self.series, self.header, self.status, self.name = tuple(series), {}, "completed", "made"

            def __contains__(self, name):
                return name in series

            def about(self, name):
                return {"labels": list(series[name])}

            def read(self, name, labels=None):
                return series[name] if labels is None else series[name][labels]

            __getitem__ = read

        class Found:
            run, parameters = Made(), {}

        Found.events, Found.episodes, Found.findings = events, episodes, findings
        return Found

    def test_area_is_depth_times_steps_whatever_the_sampling(self):
        """A fall of 0.2 for 30 steps and one of 0.1 for 20 cost 0.2 x 30 + 0.1 x 20."""
        dips = (Finding("dips", "", "dips"),)
        for every in (1, 2, 5, 10):
            steps = np.arange(0, 1000, every)
            curve = np.where((steps >= 300) & (steps < 330), 0.7, np.where((steps >= 340) & (steps < 360), 0.8, 0.9))
            events = tuple(
                Event(start, start, start, stop - every, "dip", "knn.accuracy", "bank", height, 9.0)
                for start, stop, height in ((300, 330, 0.2), (340, 360, 0.1))
            )
            frame = pd.DataFrame({"bank": curve}, index=pd.Index(steps, name="step"))
            found = self.made({"knn.accuracy": frame}, events, findings=dips)
            assert measure(found, ["area_lost"])["area_lost"] == pytest.approx(8.0)
            assert measure(found, ["area_lost"], last=335)["area_lost"] == pytest.approx(6.0)
            assert measure(found, ["dips", "final_accuracy"], last=345) == {
                "dips": 2, "final_accuracy": pytest.approx(0.8)
            }  # fmt: skip

    def test_a_rank_without_its_series_comes_from_the_spectrum(self):
        equal = pd.DataFrame(np.ones((3, 8)), columns=[str(each) for each in range(8)])
        assert measure(self.made({"spectrum.projection": equal}), ["rank"])["rank"] == pytest.approx(8)
        shares = equal * [0.5, 0.25, 0.25, 0, 0, 0, 0, -1e-12]  # of the variance, as `spectrum.rank` has them
        rank = measure(self.made({"spectrum.projection": shares}), ["rank"])["rank"]
        assert rank == pytest.approx(2**1.5)

    @pytest.mark.parametrize(("until", "diverged"), [(199, 1), (150, 0)])
    def test_diverged_is_what_does_not_return(self, until, diverged):
        loss = pd.DataFrame({"loss": np.r_[np.ones(100), np.full(100, np.nan)]})
        event = Event(100, 100, 100, until, "divergence", "training.loss", "loss", np.inf, np.inf)
        found = self.made({"training.loss": loss}, (event,))
        assert View(found).diverged == diverged
        assert View(found, last=90).diverged == 0
        assert measure(found, ["final_loss"])["final_loss"] == np.inf

    def test_rates_count_steps_and_not_rows(self):
        frame = pd.DataFrame({"a": np.ones(100)}, index=pd.Index(np.arange(0, 1000, 10), name="step"))
        event = Event(50, 50, 50, 50, "spike", "gradients.norm", "a", 3.0, 9.0)
        episode = Episode(50, 50, (event,), ("a",))
        found = self.made({"gradients.norm": frame}, (event,), (episode,), (Finding("spikes", "", "spikes"),))
        assert measure(found, ["spikes_per_10k"])["spikes_per_10k"] == pytest.approx(1e4 / 991)


def test_every_name_is_on_the_page():
    text = PAGE.read_text()
    assert [name for name, each in MEASURES.items() if f"| `{name}` | {each.says} |" not in text] == []
    assert {"status", "lead", "collapse"} <= set(NAMES)

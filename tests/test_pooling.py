"""Truth: lags planted in several runs, each too short to show them alone."""

import json

import pytest
from click.testing import CliRunner

from stabilitylab import synthetic
from stabilitylab.analysis import analyze
from stabilitylab.cli import main
from stabilitylab.errors import InputError
from stabilitylab.pooling import pool
from stabilitylab.run import Run

PLANTED = {
    "steps": 1300, "layers": 4, "spikes": (300, 500, 700, 900), "heights": (5.0,), "lags": (0, 4, 6, 8), "images": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    for seed in range(3):
        synthetic.write(folder / f"seed{seed}", seed=seed, **PLANTED)
    synthetic.write(folder / "other", seed=9, **(PLANTED | {"layers": 3, "lags": (0, 4, 6)}))
    synthetic.write(folder / "quiet", seed=9, steps=600, layers=4)
    return folder


@pytest.fixture(scope="module")
def analyses(folders):
    return {path.name: analyze(Run(path), draws=200) for path in sorted(folders.iterdir())}


def test_seeds_say_together_what_none_says_alone(analyses):
    seeds = [analyses[f"seed{seed}"] for seed in range(3)]
    assert all(set(each.lags["verdict"]) == {"too few events"} for each in seeds)
    pooled = pool([*seeds, analyses["quiet"]])
    assert pooled.runs == ("seed0", "seed1", "seed2", "quiet")
    assert pooled.lags["verdict"].tolist() == ["leads"] * 3
    assert pooled.lags["lag"].tolist() == [4, 6, 8]
    assert pooled.lags["matched"].tolist() == pooled.lags["clusters"].tolist() == [12] * 3
    assert (pooled.lags["agrees"] == 1).all()
    assert {each.kind: each.verdict for each in pooled.findings} == {
        "lead": "leads",
        "order over depth": "deeper later",
    }


def test_nothing_is_claimed_of_runs_that_contradict_each_other(tmp_path):
    """Eight spikes in each of six runs run up the depth in five of them, and down in one."""
    several = []
    for seed in range(6):
        lags = (0, 4, 8, 12) if seed else (12, 8, 4, 0)
        planted = PLANTED | {"steps": 2000, "spikes": tuple(range(300, 1900, 200)), "lags": lags}
        synthetic.write(tmp_path / f"run{seed}", seed=seed, **planted)
        several.append(analyze(Run(tmp_path / f"run{seed}"), draws=200))
    lead, depth = pool(several).findings
    assert lead.verdict == "inconclusive"
    assert "6 runs, in which the order is the same in 5" in lead.sentence
    assert depth.verdict == "none"
    assert depth.sentence.endswith("No order is claimed of them together: run0, taken alone, says the opposite.")
    assert [each.verdict for each in pool(several[1:]).findings] == ["leads", "deeper later"]


def test_one_run_pooled_is_that_run(analyses):
    pooled, alone = pool([analyses["seed0"]]), analyses["seed0"]
    assert pooled.lags.equals(alone.lags)
    assert list(pooled.findings) == [each for each in alone.findings if each.kind in ("lead", "order over depth")]


def test_runs_that_cannot_be_pooled_are_refused_by_name(analyses, folders):
    with pytest.raises(InputError, match=r"seed0 and other cannot be pooled: .* only seed0 has blocks\.2"):
        pool([analyses["seed0"], analyses["other"]])
    with pytest.raises(InputError, match="seed1 is given twice"):
        pool([analyses["seed1"], analyses["seed1"]])
    with pytest.raises(InputError, match="analyzed with window=100 and 50"):
        pool([analyses["seed0"], analyze(Run(folders / "seed1"), draws=200, window=50)])
    with pytest.raises(InputError, match="no run to pool"):
        pool([])


def test_quiet_runs_have_nothing_to_pool(analyses):
    pooled = pool([analyses["quiet"]])
    assert pooled.findings == ()
    assert set(pooled.lags["verdict"]) == {"too few events"}


def test_on_the_command_line(folders, analyses, monkeypatch):
    monkeypatch.setattr("stabilitylab.analysis.analyze", lambda run, reference: analyses[run.name])
    words = ["analyze", *(str(folders / f"seed{seed}") for seed in range(3)), "--pool", "--no-pictures", "--no-report"]
    told = CliRunner().invoke(main, words)
    assert told.exit_code == 0, told.output
    assert "3 runs pooled: seed0, seed1, seed2" in told.output
    assert "the later layer follows, in steps" in told.output
    assert "  < 0.001  " in told.output  # smallest p
    assert "less than" not in told.output.partition("- lead")[0]
    assert "lead (leads): By spike onsets, patch_embed leads blocks.0 by +4 steps" in told.output
    listed = json.loads(CliRunner().invoke(main, [*words, "--json"]).output)
    assert listed[-1]["pooled"] == ["seed0", "seed1", "seed2"]
    assert [each["lag"] for each in listed[-1]["lags"]] == [4, 6, 8]
    refused = CliRunner().invoke(main, ["analyze", str(folders / "seed0"), str(folders / "other"), "--pool"])
    assert refused.exit_code == 1
    assert "cannot be pooled" in refused.output

"""Truth: scipy.stats, closed forms, simulation without any difference, and the swap of two groups."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from plot_cases import assert_readable, by_gid
from scipy import stats

from stabilitylab import synthetic
from stabilitylab.analysis import analyze
from stabilitylab.cli import main
from stabilitylab.compare import compare
from stabilitylab.compare.contrast import VERDICTS, contrast, corrected
from stabilitylab.compare.picture import figure_of
from stabilitylab.compare.sentences import headline
from stabilitylab.errors import InputError
from stabilitylab.importing import import_run
from stabilitylab.run import Run
from stabilitylab.stats.difference import excess_error, holm, paired_difference, unpaired_difference

SIX = ("spikes_per_10k", "tallest", "deepest", "final_accuracy", "rank", "diverged")


def rng():
    return np.random.default_rng(0)


class TestDifferences:
    @pytest.mark.parametrize("seed", range(4))
    def test_pairs_as_scipy_has_them(self, seed):
        random = np.random.default_rng(seed)
        one, other = random.normal(0, 1, 7), random.normal(0.8, 1, 7)
        found = paired_difference(one, other, rng())
        test = stats.ttest_rel(other, one)
        assert found[:4] == pytest.approx((np.mean(other - one), *test.confidence_interval(), test.pvalue))
        exact = stats.permutation_test((other - one,), np.mean, permutation_type="samples", n_resamples=9999)
        assert (found.p, found.p_smallest, found.exact) == (pytest.approx(exact.pvalue), 2 / 2**7, True)

    def test_pairs_that_differ_by_ranks_are_wilcoxon(self):
        for signs in ([1, 1, -1, 1, 1, 1, -1, 1], [1] * 8, [-1, 1] * 4):
            apart = np.arange(1, 9) * np.array(signs)
            found = paired_difference(np.zeros(8), apart.astype(float), rng())
            assert found.p == pytest.approx(stats.wilcoxon(apart, method="exact").pvalue)

    @pytest.mark.parametrize(("first", "second"), [(4, 4), (3, 6), (7, 5)])
    def test_groups_as_scipy_has_them(self, first, second):
        random = np.random.default_rng(first)
        one, other = random.normal(0, 1, first), random.normal(1, 2, second)
        found = unpaired_difference(one, other, rng())
        test = stats.ttest_ind(other, one, equal_var=False)
        assert found[:4] == pytest.approx((other.mean() - one.mean(), *test.confidence_interval(), test.pvalue))
        exact = stats.permutation_test(
            (other, one), lambda x, y, axis: x.mean(axis) - y.mean(axis), vectorized=True, n_resamples=9999
        )
        assert found.p == pytest.approx(exact.pvalue)
        far = unpaired_difference(np.arange(first) - 100.0, np.arange(second) + 100.0, rng())
        assert far.p == far.p_smallest

    def test_drawn_arrangements_are_near_the_exact_ones_and_never_zero(self):
        one, other = rng().normal(0, 1, 30), rng().normal(0, 1, 30) + 0.25
        other[:10] -= 0.5
        found = paired_difference(one, other, rng())
        assert not found.exact
        assert found.p == pytest.approx(found.p_t, abs=0.05)
        assert paired_difference(np.zeros(40), np.ones(40), rng()).p == found.p_smallest == 2 / 10000

    def test_swap_turns_the_sign_and_nothing_else(self):
        one, other = rng().normal(0, 1, 6), rng().normal(1, 1, 6) ** 2
        for test in (paired_difference, unpaired_difference):
            there, back = test(one, other, rng()), test(other, one, rng())
            assert there[:3] == pytest.approx((-back.value, -back.high, -back.low))
            assert there[3:] == pytest.approx(back[3:])

    def test_an_infinite_value_counts_as_the_largest(self):
        one, other = np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, np.inf])
        for test in (paired_difference, unpaired_difference):
            found, finite = test(one, other, rng()), test(one, np.array([5.0, 6, 7, 8]), rng())
            assert found.p == pytest.approx(finite.p)
            assert np.isnan([found.value, found.low, found.high, found.p_t]).all()

    def test_one_run_and_equal_runs_have_no_interval(self):
        for test in (paired_difference, unpaired_difference):
            for size in (1, 3):
                found = test(np.zeros(size), np.ones(size), rng())
                assert found.value == 1
                assert np.isnan(found[1:4]).all()
        assert paired_difference(np.zeros(1), np.ones(1), rng()).p == 1

    def test_holm_against_its_definition(self):
        random = np.random.default_rng(1)
        for _ in range(20):
            p = random.random(5) ** 3
            slow = [  # the largest of p times the number of those not yet rejected, over all that are no larger
                min(
                    1,
                    max(
                        q * sum(r > q or i >= j for i, r in enumerate(p) if r >= q) for j, q in enumerate(p) if q <= own
                    ),
                )
                for own in p
            ]
            np.testing.assert_allclose(holm(p), slow)
        np.testing.assert_array_equal(holm(np.array([0.01, np.nan, 0.5])), [0.02, np.nan, 0.5])

    def test_distance_from_the_best_is_the_area_between_the_curves(self):
        one, other = np.linspace(0.2, 0.4, 51), np.linspace(0.3, 0.7, 51)
        found = excess_error(one, other, rng())
        assert found[:3] == pytest.approx((0.1, 0.2, 0.1))
        assert found.low < 0.1 < found.high
        assert found.distance == pytest.approx(stats.ks_2samp(one - 0.2, other - 0.3).statistic)
        back = excess_error(other, one, rng())
        assert back.value == -found.value
        grid = np.linspace(0, 1, 20001)
        curves = [(each - each.min() <= grid[:, None]).mean(axis=1) for each in (one, other)]
        assert np.mean(curves[0] - curves[1]) == pytest.approx(found.value, abs=1e-4)


def claims(sizes, pairs, draw, repeats, shift=0.0):
    """Return in which part of so many comparisons of six measures something is claimed."""
    claimed = 0
    for seed in range(repeats):
        random = np.random.default_rng(seed)
        one, other = (pd.DataFrame({name: draw(random, size) for name in SIX}) for size in sizes)
        other["rank"] += shift
        joint = [(at, at) for at in range(pairs)]
        table = corrected(contrast(one, other, joint, ("a", "b"), seed), 0.05)
        claimed += table["verdict"].isin(["higher", "lower"]).any()
    return claimed / repeats


@pytest.mark.parametrize(("sizes", "pairs"), [((3, 3), 3), ((4, 4), 0), ((6, 6), 6), ((3, 8), 0)])
def test_nothing_is_claimed_of_groups_that_do_not_differ(sizes, pairs):
    """Of all comparisons of six measures at most 5 % claim any difference; the limit adds three standard errors."""
    repeats = 60
    wrong = claims(sizes, pairs, lambda random, size: 1.0 + random.poisson(2, size), repeats)
    assert wrong <= 0.05 + 3 * (0.05 * 0.95 / repeats) ** 0.5


def test_a_large_difference_is_claimed():
    assert claims((6, 6), 6, lambda random, size: 5 + random.normal(0, 1, size), 30, shift=6.0) >= 0.9


@pytest.fixture(scope="module")
def analyses(tmp_path_factory):
    """Name to analyzed run: four seeds of a wild and of a calm setting, a longer, a diverging, an empty one."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    wild = {"steps": 600, "spikes": (150, 250, 350, 450), "heights": (6.0,), "dips": (360,), "depth": 0.3, "rank": True}
    plans = {f"wild{seed}": wild | {"seed": seed} for seed in range(4)}
    plans |= {f"calm{seed}": {"steps": 600, "rank": True, "seed": seed} for seed in range(4)}
    plans |= {"longer": {"steps": 700, "spikes": (650,), "heights": (9.0,), "seed": 0, "layers": 2}}
    plans |= {"broken": {"steps": 300, "nonfinite": tuple(range(200, 300)), "seed": 1}}
    for name, planted in plans.items():
        synthetic.write(folder / name, **({"layers": 1, "taps": ("projection",)} | planted))
        made[name] = analyze(Run(folder / name), draws=100)
    return made


def groups(analyses, **named):
    return {name: [analyses[each] for each in runs.split()] for name, runs in named.items()}


def test_paired_seeds_of_two_settings(analyses):
    found = compare(groups(analyses, wild="wild0 wild1 wild2 wild3", calm="calm3 calm2 calm1 calm0"))
    table = found.table.set_index("measure")
    assert table.loc["spikes_per_10k", ["mean_first", "mean_second", "pairs"]].tolist() == [
        pytest.approx(4e4 / 600), 0, 4
    ]  # fmt: skip
    assert table.loc["spikes_per_10k", "verdict"] == "too few runs"  # no spread, and only sixteen arrangements
    assert table.loc["tallest", "verdict"] == "lower"
    assert table.loc["tallest", "test"] == "Student's t"
    assert table.loc["tallest", "p_smallest"] == 2 / 2**4
    assert table.loc["diverged", "verdict"] == "equal"
    assert set(table["verdict"]) <= set(VERDICTS)
    (sentence,) = found.sentences
    assert "4 paired seeds" in sentence
    assert "calm has 66.7 fewer gradient spikes per 10,000 steps" in sentence or "it has 66.7 fewer" in sentence
    assert any("wild0 with calm0 (seed 0)" in note for note in found.notes)
    assert any("synthetic.depth (0.3 | 0.1)" in note for note in found.notes)
    assert not any("vary besides the seed" in note for note in found.notes)
    by_pair = found.runs.groupby("pair")["seed"].nunique()
    assert by_pair.tolist() == [1, 1, 1, 1]


def test_swapped_groups_have_the_other_sign(analyses):
    there = compare(groups(analyses, wild="wild0 wild1 wild2", calm="calm0 calm1 calm2")).table
    back = compare(groups(analyses, calm="calm0 calm1 calm2", wild="wild0 wild1 wild2")).table
    np.testing.assert_allclose(there["difference"], -back["difference"])
    np.testing.assert_allclose(there["low"], -back["high"])
    np.testing.assert_allclose(there["p_corrected"], back["p_corrected"])
    turned = {"higher": "lower", "lower": "higher"}
    assert there["verdict"].replace(turned).tolist() == back["verdict"].tolist()


def test_lengths_layers_and_lost_partners_are_said(analyses):
    found = compare(groups(analyses, a="wild0 wild1 wild2", b="calm0 calm1 longer"), ["spikes_per_10k", "length"])
    told = " ".join(found.notes)
    assert "Compared over the steps 0 to 599, which all runs have" in told
    assert "the longest goes on to 699" in told
    assert "differ in layers" in told
    assert "Within b these vary besides the seed" in told
    assert found.table.set_index("measure").loc["length", ["mean_first", "mean_second"]].tolist() == [600, 600]
    assert found.runs.set_index("run").loc["longer", "spikes_per_10k"] == 0  # its spike lies beyond
    alone = compare(groups(analyses, a="wild0 wild1 wild2", b="calm0 calm1"), ["rank"])
    assert any(note == "Without a partner, and so not compared: wild2." for note in alone.notes)


def test_a_run_that_diverged_is_a_failure_and_not_missing(analyses):
    found = compare(groups(analyses, a="calm0 calm1 calm2", b="calm3 broken"), ["final_accuracy", "diverged"])
    rows = found.runs.set_index("run")
    assert rows.loc["broken", ["final_accuracy", "diverged"]].tolist() == [0, 1]
    assert rows.loc["calm3", "final_accuracy"] > 0.8
    assert found.table["runs_second"].tolist() == [2, 2]
    told = " ".join(found.notes)
    assert "0 of 3 in a, 1 of 2 in b" in told
    assert "Compared over the steps" not in told  # that it ends early is its failure


def test_what_has_no_partner_counts_neither_in_means_nor_in_words(analyses):
    """All of b but the broken run have a partner."""
    runs = {"a": "calm0 calm2 calm3", "b": "wild0 wild2 broken"}
    found = compare(groups(analyses, **runs), ["spikes_per_10k", "diverged"])
    table = found.table.set_index("measure")
    assert table.loc["diverged", ["mean_second", "runs_second", "pairs", "verdict"]].tolist() == [0, 2, 2, "equal"]
    rows = found.runs[(found.runs["pair"] != -1) & (found.runs["group"] == "b")]
    assert table.loc["spikes_per_10k", "mean_second"] == rows["spikes_per_10k"].mean()
    (sentence,) = compare(groups(analyses, **runs), ["diverged"]).sentences
    assert (
        sentence == "the share of diverged runs is the same in every pair of runs of a and b (2 paired seeds; mean 0)."
    )
    assert any("but broken, without a partner, not at all" in note for note in found.notes)
    every = compare(groups(analyses, **runs), ["diverged"], paired=False)
    assert every.table["mean_second"].tolist() == [pytest.approx(1 / 3)]
    assert not any("not at all" in note for note in every.notes)


def test_a_measure_that_no_pair_tells_is_not_recorded():
    first = pd.DataFrame({"final_accuracy": [0.5, 0.6, 0.4]})
    second = pd.DataFrame({"final_accuracy": [np.nan, np.nan, 0.7, 0.8]})
    (row,) = contrast(first, second, [(0, 0), (1, 1)], ("a", "b"), 0)
    assert (row["verdict"], row["runs_first"], row["pairs"]) == ("not recorded", 0, 0)


def test_pairs_that_agree_are_equal_although_seeds_differ():
    alike = pd.DataFrame({"rank": [3.0, 5.0, 4.0]})
    rows = contrast(alike, alike, [(0, 0), (1, 1), (2, 2)], ("a", "b"), 0)
    assert [row["verdict"] for row in rows] == ["equal"]
    said = headline(corrected(rows, 0.05), 3, 1)
    assert (
        said == "the effective rank at the end is the same in every pair of runs of a and b (3 paired seeds; mean 4)."
    )
    (crossed,) = corrected(contrast(alike, alike, [(0, 1), (1, 2), (2, 0)], ("a", "b"), 0), 0.05)["verdict"]
    assert crossed != "equal"


def test_a_picture_of_measures_that_no_run_tells(tmp_path):
    for name in "ab":
        pd.DataFrame({"loss": np.ones(60)}).rename_axis("step").to_csv(tmp_path / f"{name}.csv")
        import_run([tmp_path / f"{name}.csv"], tmp_path / name)
    code = CliRunner().invoke(
        main, ["compare", str(tmp_path / "a"), "--", str(tmp_path / "b"), "--out", str(tmp_path / "out")]
    )
    assert code.exit_code == 0, code.output
    assert (tmp_path / "out/comparison.png").is_file()


def test_a_picture_of_pairs_that_lack_a_measure(analyses, tmp_path):
    found = compare(groups(analyses, a="calm0 calm1", b="wild0 wild1"), ["tallest", "final_accuracy"])
    found.runs["tallest"] = np.nan
    figure = figure_of(found)
    figure.savefig(tmp_path / "picture.png")
    assert by_gid(figure.axes[0], "pair") == []
    assert figure.axes[0].get_xticks().tolist() == []
    assert len(by_gid(figure.axes[2], "pair")) == 2


def test_an_infinite_loss_is_no_zero_difference():
    first = pd.DataFrame({"final_loss": [0.5, 0.6, 0.4]})
    second = pd.DataFrame({"final_loss": [np.inf, np.inf, np.inf]})
    for pairs in ([], [(0, 0), (1, 1), (2, 2)]):
        (row,) = contrast(first, second, pairs, ("a", "b"), 0)
        assert np.isnan(row["difference"])
        assert row["way"] > 0
    said = headline(corrected(contrast(first, second, [], ("a", "b"), 0), 0.2), 0, 1)
    assert "not finite in some runs, so that only the order of the runs counts: higher than a's" in said


def test_many_settings_are_compared_by_their_distance_from_the_best(tmp_path):
    made = {"a": [], "b": []}
    for at in range(16):
        synthetic.write(tmp_path / f"{at}", steps=30, layers=1, sd=0.1 + at / 100, images=40, seed=at)
        made["ab"[at // 8]].append(analyze(Run(tmp_path / f"{at}"), draws=100))
    found = compare(made, ["final_accuracy"])
    errors = [1 - rows["final_accuracy"] for _, rows in found.runs.groupby("group")]
    means = [(each - each.min()).mean() for each in errors]
    assert found.excess["b"][:3] == pytest.approx((*means, means[1] - means[0]))
    assert "Over different settings the runs of b end" in found.sentences[0]
    assert any("synthetic.sd (8 values)" in note for note in found.notes)
    assert compare({"a": made["a"][:7], "b": made["b"]}, ["final_accuracy"]).excess == {}  # too few


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"a": "wild0"}, "at least two groups"),
        ({"a": "wild0", "b": ""}, "'b' holds no run"),
        ({"a": "wild0", "b": "calm0 wild0"}, "a run counts once"),
    ],
)
def test_wrong_groups_are_refused(analyses, named, message):
    with pytest.raises(InputError, match=message):
        compare(groups(analyses, **named))
    with pytest.raises(InputError, match="no measure is named 'speed'; there are length"):
        compare(groups(analyses, a="wild0", b="calm0"), ["speed"])


def test_the_picture_shows_runs_pairs_and_intervals(analyses):
    found = compare(groups(analyses, wild="wild0 wild1 wild2", calm="calm0 calm1 calm2", longer="longer"))
    figure = figure_of(found)
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == 2 * found.table["measure"].nunique()
    assert len(by_gid(figure.axes[0], "pair")) == 3
    assert sum(len(line.get_xdata()) for line in by_gid(figure.axes[0], "runs")) == 7
    bounded = found.table.dropna(subset=["low", "high"])
    assert len(by_gid(figure, "interval")) == len(bounded) > 0
    assert_readable(figure)


def test_the_command_takes_groups_between_dashes(analyses, tmp_path):
    path = {name: str(each.run.path) for name, each in analyses.items()}
    script = Path(sys.executable).parent / "stabilitylab"

    words = [path["wild0"], path["wild1"], "--", path["calm0"], path["calm1"], "--", path["broken"]]
    words = [
        script,
        "compare",
        *words,
        "--names",
        "wild,calm,broken",
        "--out",
        "out",
        "--json",
        "--measure",
        "rank",
        "--measure",
        "dips",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["group"] for row in told["runs"]] == ["wild"] * 2 + ["calm"] * 2 + ["broken"]
    assert len(told["sentences"]) == 2
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == told
    assert len(pd.read_parquet(tmp_path / "out" / "differences.parquet")) == 4
    for wrong in ([path["wild0"]], [path["wild0"], "--"], ["--"], [path["wild0"], "--", path["calm0"], "--names", "a"]):
        result = CliRunner().invoke(main, ["compare", *wrong])
        assert result.exit_code == 1
        assert len(result.stderr.strip().splitlines()) == 1

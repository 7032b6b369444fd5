"""Truth: what was logged, by the libraries that log; a slow twin in pandas; what `stabilitylab.synthetic` planted."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from torch.utils.tensorboard import SummaryWriter

from stabilitylab import InputError, Run, analyze, synthetic
from stabilitylab.cli import main
from stabilitylab.importing import assembly, import_run, spool, survey, tables
from stabilitylab.importing.sources import find_sources

PAGE = Path(__file__).parents[1] / "docs/importing.md"
NAN, INF = float("nan"), float("inf")


def imported(tmp_path: Path, *sources: Path, **options) -> Run:
    import_run(sources, tmp_path / "run", **options)
    return Run(tmp_path / "run")


def cli(*words: str | Path) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


# ---- TensorBoard


def test_every_value_of_an_event_file_is_there_exactly(tmp_path):
    values = np.random.default_rng(0).lognormal(size=10_500).astype("float32")  # more than TensorBoard keeps of a tag
    values[[5, 70, 71]] = NAN, INF, -INF
    with SummaryWriter(str(tmp_path / "log")) as writer:
        for step, value in enumerate(values.tolist()):
            writer.add_scalar("train/loss", value, step)
        weight = np.random.default_rng(1).normal(size=500)
        writer.add_histogram("blocks.0.weight/grad", weight, 7)
        writer.add_histogram("blocks.0.weight", weight, 7)
        writer.add_text("notes", "text", 0)
    run = imported(tmp_path, tmp_path / "log")
    assert run["training.loss"].index.tolist() == list(range(10_500))
    np.testing.assert_array_equal(run["training.loss"]["loss"], values)
    assert run.about("training.loss")["nonfinite"] == 3
    norms = run["gradients.norm"]["blocks.0.weight"]
    assert norms.index.tolist() == [7]
    assert norms[7] == pytest.approx(np.linalg.norm(weight), rel=1e-12)
    assert set(run.header["imported"]["left_out"]) == {"notes/text_summary", "blocks.0.weight"}


def write_events(folder: Path, scalars: dict[str, dict[int, float]], **options) -> None:
    time.sleep(0.01)  # the names and the clocks of two files must differ
    with SummaryWriter(str(folder), filename_suffix=f".{time.time_ns()}", **options) as writer:
        for tag, column in scalars.items():
            for step, value in column.items():
                writer.add_scalar(tag, value, step)


@pytest.mark.parametrize("purge", [False, True])
def test_a_resumed_run_wins_from_its_first_step(tmp_path, purge):
    log = tmp_path / "log"
    write_events(log, {"loss": dict.fromkeys(range(100), 1.0), "other": {10: 1.0, 60: 1.0, 90: 1.0}})
    write_events(log, {"loss": dict.fromkeys(range(60, 80), 2.0)}, **({"purge_step": 55} if purge else {}))
    run = imported(tmp_path, log)
    first = 55 if purge else 60
    expected = dict.fromkeys(range(first), 1.0) | dict.fromkeys(range(60, 80), 2.0)
    assert run["training.loss"]["loss"].to_dict() == expected
    assert run["imported.other"].index.tolist() == ([10] if purge else [10, 60])
    assert any("replaced by a later file" in note for note in run.header["imported"]["notes"])


def test_a_file_that_was_never_written_is_told(tmp_path):
    write_events(tmp_path, {"loss": dict.fromkeys(range(0, 500, 25), 1.0)})
    write_events(tmp_path, {"loss": dict.fromkeys((*range(450, 900, 25), 1475), 2.0)})
    (tmp_path / "events.out.tfevents.9.x").touch()
    said = cli("import", tmp_path, "--out", tmp_path / "run")
    assert "tfevents.9.x: empty; its writer was killed" in said
    assert "loss -> training.loss loss: 39 values about every 25 steps with gaps of up to 600\n" in said
    assert len(Run(tmp_path / "run")["training.loss"]) == 37


def test_the_tenth_file_of_a_folder_comes_after_the_ninth(tmp_path):
    (tmp_path / "log").mkdir()
    for number in (9, 10):  # tensorboard numbers the writers of a process
        with SummaryWriter(str(tmp_path / str(number))) as writer:
            writer.add_scalar("loss", float(number), 0)
        file = next((tmp_path / str(number)).iterdir())
        file.rename(tmp_path / "log" / f"events.out.tfevents.1700000000.host.1.{number}")
    assert [each.path.name[-2:] for each in find_sources([tmp_path / "log"])] == [".9", "10"]


def test_two_writers_at_once_and_subfolders_are_one_run(tmp_path):
    one, two = (SummaryWriter(str(tmp_path / "log"), filename_suffix=f".{name}") for name in "ab")
    for step in range(20):
        one.add_scalar("loss", 1.0, step)
        two.add_scalar("val/acc", 2.0, step)
        one.add_scalar("shared", 1.0, step)
    two.add_scalar("shared", 5.0, 0)  # no resumption: the other is still writing
    one.add_scalars("both", {"a": 1.0}, 3)
    one.add_scalars("train/grad_norm", {"blocks.0": 2.0, "blocks.1": 4.0}, 3)
    one.close()
    two.close()
    run = imported(tmp_path, tmp_path / "log")
    assert len(run["training.loss"]) == len(run["imported.val_acc"]) == 20
    assert run["imported.shared"]["shared"].tolist() == [5.0] + [1.0] * 19
    assert "both/a" in {label for name in run for label in run.about(name)["labels"]}
    assert run["gradients.norm"].to_dict("list") == {"blocks.0": [2.0], "blocks.1": [4.0]}


def test_what_the_mirror_writes_comes_back_as_it_was(tmp_path):
    from stabilitylab.mirrors.tensorboard import Mirror

    mirror = Mirror(tmp_path)
    rows = np.random.default_rng(0).random((30, 3), dtype="float32")
    mirror.rows("gradients.norm", ["patch_embed.proj.weight", "blocks.0.fc.bias", "head.bias"], np.arange(30), rows)
    mirror.close()
    run = imported(tmp_path, tmp_path / "tensorboard")
    np.testing.assert_array_equal(run["gradients.norm"], rows)
    assert run.layers.names == ("patch_embed", "blocks.0", "head")


# ---- tables and histories


ROWS = [
    {"_step": 0, "loss": 0.1, "acc": None, "note": "a"},
    {"_step": 1, "loss": "NaN", "acc": 0.5, "note": "b"},
    {"_step": 2, "loss": "Infinity", "acc": 1 / 3},
    {"_step": 3, "loss": -INF, "acc": NAN},
]
FORMS = {
    "lines.jsonl": "\n".join(json.dumps(row) for row in ROWS),
    "list.json": json.dumps(ROWS, indent=2),
    "columns.json": pd.DataFrame([{**row, "loss": str(row["loss"])} for row in ROWS]).to_json(double_precision=15),
    "table.csv": "_step,loss,acc,note\n0,0.1,,a\n1,NaN,0.5,b\n2,Infinity,0.3333333333333333,\n3,-inf,nan,\n",
    "semicolons.csv": "\ufeff_step;loss;acc\n0;0.1;\n1; nan;0.5\n2;inf;0.3333333333333333\n3;-Infinity;NaN\n",
    "commas.csv": "_step;loss;acc\n0;0,1;\n1; nan;0,5\n2;inf;0,3333333333333333\n3,0;-Infinity;NaN\n",
    "commas.tsv": "_step\tloss\tacc\n0\t1,0e-1\t\n1\tnan\t,5\n2\tinf\t 0,3333333333333333 \n3\t-inf\tNaN\n",
    "spaces.csv": '_step, "loss" , acc\n0, 0.1, \n1, nan, 0.5\n2, inf, 0.3333333333333333\n3, -inf, NaN\n',
    "comments.csv": "# run 7\n\n_step,loss,acc\n0,0.1,\n1,nan,0.5\n2,inf,0.3333333333333333\n# resumed\n3,-inf,NaN\n",
    "numpy_commas.csv": "#_step;loss;acc\n0;0,1;\n1;nan;0,5\n2;inf;0,3333333333333333\n3;-inf;NaN\n",
    "numpy.csv": "# run 7\n# _step,loss,acc\n0,0.1,\n1,nan,0.5\n2,inf,0.3333333333333333\n3,-inf,NaN\n",
    "long.csv": "step,name,value\n0,loss,0.1\n1,loss,NaN\n1,acc,0.5\n2,acc,0.3333333333333333\n2,loss,inf\n"
    "3,acc,nan\n3,loss,-inf",
    "state.json": json.dumps({"best": None, "log_history": [{**row, "step": row["_step"]} for row in ROWS]}),
}


def test_objects_inside_of_rows_are_columns_with_dotted_names(tmp_path):
    """The same as the flat twin, wherever an object stands; a histogram is one value."""
    histogram = {"_type": "histogram", "values": [1, 2], "bins": [0, 1, 2]}
    nested = [
        {"trainer": {"global_step": step}, "grad": {"layer": {"1": step + 0.5, "2": None}, "mean": {}}, "h": histogram}
        | ({"grad_norm": {"late": 7}} if step == 3 else {})
        for step in range(4)
    ]
    flat = [
        {"trainer/global_step": step, "grad.layer.1": step + 0.5, "h": histogram}
        | ({"grad_norm.late": 7} if step == 3 else {})
        for step in range(4)
    ]
    runs = []
    for name, rows in (("nested", nested), ("flat", flat)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"loss": 1.0} | row) for row in rows))
        import_run([tmp_path / f"{name}.jsonl"], tmp_path / name)
        runs.append(Run(tmp_path / name))
    assert runs[0].series == runs[1].series
    for series in runs[0].series:
        pd.testing.assert_frame_equal(runs[0][series], runs[1][series])
    values = [runs[0][series] for series in runs[0].series]
    assert any(frame.iloc[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5] for frame in values)
    (tmp_path / "twice.json").write_text('[{"step": 0, "a": {"b": 1}, "a.b": 2}]')
    with pytest.raises(InputError, match=r"'a\.b' twice"):
        import_run([tmp_path / "twice.json"], tmp_path / "twice")


@pytest.mark.parametrize("name", FORMS)
def test_one_table_in_every_form(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    run = imported(tmp_path, tmp_path / name)
    np.testing.assert_array_equal(run["training.loss"]["loss"], [0.1, NAN, INF, -INF])
    expected = {1: 0.5, 2: 1 / 3} if name == "columns.json" else {1: 0.5, 2: 1 / 3, 3: NAN}  # pandas has no NaN in JSON
    found = run["imported.acc"]["acc"]
    assert found.index.tolist() == list(expected)
    np.testing.assert_allclose(found, list(expected.values()), rtol=1e-15)  # pandas writes 15 digits
    assert "imported.note" not in run


def test_wandb_histograms_and_its_export_of_a_chart(tmp_path):
    rng = np.random.default_rng(3)
    gradients = [rng.normal(0, 0.1 * (step + 1), 20_000) for step in range(3)]
    rows = []
    for step, gradient in enumerate(gradients):
        counts, edges = np.histogram(gradient, 64)
        histogram = {"_type": "histogram", "values": counts.tolist(), "bins": edges.tolist()}
        packed = {"min": edges[0], "size": edges[1] - edges[0], "count": 64}
        other = {"_type": "histogram", "values": counts.tolist(), "packedBins": packed}
        rows.append({"_step": step, "gradients/fc.weight": histogram, "gradients/fc.bias": other, "_timestamp": 1.5})
    (tmp_path / "history.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = imported(tmp_path, tmp_path / "history.jsonl")
    for label in ("fc.weight", "fc.bias"):
        norms = [np.linalg.norm(each) for each in gradients]
        np.testing.assert_allclose(run["gradients.norm"][label], norms, rtol=0.01)
    assert "estimated" in run.about("gradients.norm")
    assert run.series == ("gradients.norm",)
    chart = '"Step","old-sun-7 - train/loss","old-sun-7 - train/loss__MIN","old-sun-7 - _step"\n"0","1.5","1","0"\n'
    (tmp_path / "chart.csv").write_text(chart)
    import_run([tmp_path / "chart.csv"], tmp_path / "chart")
    assert Run(tmp_path / "chart")["training.loss"]["loss"].tolist() == [1.5]
    assert "old-sun-7 - train/loss__MIN" in Run(tmp_path / "chart").header["imported"]["left_out"]


def test_blocks_and_order_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    names = ["patch_embed.w", "blocks.0.w", "blocks.1.w"]
    long = pd.DataFrame(
        {"step": rng.integers(0, 400, 3000), "name": rng.choice(names, 3000), "value": rng.random(3000)}
    )
    long["name"] = "imported.test/" + long["name"]
    whole = pd.concat([long, pd.DataFrame({"step": range(500), "name": "loss", "value": rng.random(500)})])
    whole = whole.sample(frac=1, random_state=0)
    whole.to_parquet(tmp_path / "log.parquet")
    for module, name, size in (
        (spool, "GROUP", 97),
        (spool, "MOST", 211),
        (assembly, "CELLS", 50),
        (tables, "CELLS", 64),
    ):
        monkeypatch.setattr(module, name, size)
    maps = ["imported.test/(?P<label>.*)=imported.test"]
    run = imported(tmp_path, tmp_path / "log.parquet", maps=maps)
    twin = whole[whole["name"] != "loss"].pivot_table("value", "step", "name", aggfunc="last")
    twin.columns = [name.removeprefix("imported.test/") for name in twin.columns]
    found = run["imported.test"][list(twin.columns)]
    np.testing.assert_array_equal(found, twin)
    assert found.index.tolist() == twin.index.tolist()
    expected = whole[whole["name"] == "loss"].set_index("step")["value"].sort_index()
    np.testing.assert_array_equal(run["training.loss"]["loss"], expected)


def test_a_value_that_is_missing_is_not_one_that_is_not_finite(tmp_path):
    names = ["patch_embed.w", "blocks.0.w", "blocks.1.w", "head.w", "norm.w"]
    frame = pd.DataFrame(np.ones((100, 5)), columns=[f"grad_norm/{name}" for name in names]).astype(object)
    frame.insert(0, "step", range(100))
    frame.iloc[40, 1] = "NaN"  # logged as such
    frame.iloc[50, 2] = None  # not logged
    frame.iloc[70:, 3] = None  # frozen from here on
    frame.iloc[:30, 4] = None  # trained from here on
    frame.loc[frame["step"] % 10 != 0, "grad_norm/norm.w"] = None  # seldom
    frame.iloc[99, 1] = None  # the writer was killed
    frame.to_csv(tmp_path / "log.csv", index=False)
    run = imported(tmp_path, tmp_path / "log.csv")
    norms = run["gradients.norm"]
    assert norms.columns.tolist() == names[:4]
    assert norms.index.tolist() == [step for step in range(99) if step != 50]
    assert np.flatnonzero(norms["patch_embed.w"].isna()).tolist() == [40]
    assert (norms.loc[70:, "blocks.1.w"] == 0).all()
    assert (norms["head.w"] == 0).sum() == 30
    assert len(run["imported.grad_norm_norm_w"]) == 10
    said = " ".join(run.header["imported"]["notes"])
    assert "grad_norm/norm.w is a series of its own" in said
    assert "2 rows of gradients.norm left out" in said
    assert "blocks.1.w ends early" in said


# ---- what an analysis makes of it


def logged(path: Path, every: int, **fields) -> synthetic.Synthetic:
    made = synthetic.synthesize(layers=3, lags=(0, 6, 9), **fields)
    norms = made.series["gradients.norm"].add_prefix("grad_2.0_norm/")
    norms.join(made.series["training.loss"]).iloc[::every].to_csv(path)
    return made


def test_an_analysis_of_an_imported_run_finds_what_was_planted(tmp_path):
    made = logged(tmp_path / "log.csv", 1, steps=1500, random_spikes=9, seed=2)
    analysis = analyze(imported(tmp_path, tmp_path / "log.csv"))
    planted = {(each.start, each.label) for each in made.of("spike") if each.start > 60}
    assert planted <= {(each.start, each.label) for each in analysis.events if each.kind == "spike"}
    lags = analysis.lags.set_index("layer")
    assert lags.loc["blocks.0", ["lag", "verdict"]].tolist() == [6, "leads"]
    (sampling,) = [each for each in analysis.findings if each.kind == "sampling"]
    assert sampling.verdict == "none"
    assert "cannot be seen" not in sampling.sentence


def test_a_run_logged_every_50_steps_says_so_and_claims_no_lag(tmp_path):
    logged(tmp_path / "log.csv", 50, steps=40_000, random_spikes=30, spacing=600, length=120, seed=2, images=2)
    run = imported(tmp_path, tmp_path / "log.csv")
    assert run.about("gradients.norm")["sampling"] == {
        "rows": 800, "first": 0, "last": 39_950, "every": 50, "most_gaps": 50, "largest_gap": 50
    }  # fmt: skip
    analysis = analyze(run)
    assert len(analysis.episodes) > 20
    assert analysis.lags["matched"].min() > 10
    assert set(analysis.lags["verdict"]) <= {"inconclusive", "too few events"}
    assert {each.verdict for each in analysis.findings} & {"leads", "follows", "together", "first layer"} == set()
    (sampling,) = [each for each in analysis.findings if each.kind == "sampling"]
    assert sampling.verdict == "not judged"
    assert "logged every 50 steps" in sampling.sentence
    assert "Lags under 50 steps cannot be seen" in sampling.sentence


def test_a_run_logged_at_odd_times_claims_no_lag_within_its_gaps(tmp_path):
    """Most rows are 4 steps apart, some 60: a lag of 12 steps is none where it may come of a gap."""
    made = synthetic.synthesize(layers=2, lags=(0, 12), steps=20_000, random_spikes=40, spacing=300, length=100, seed=1)
    steps = np.cumsum(np.random.default_rng(0).choice([4, 60], 4000, p=[0.85, 0.15]))
    frame = made.series["gradients.norm"].add_prefix("grad_2.0_norm/").loc[steps[steps < 20_000]]
    frame.to_csv(tmp_path / "log.csv")
    said = cli("import", tmp_path / "log.csv", "--out", tmp_path / "run")
    assert "rows of gradients.norm lie up to 60 steps apart: lags under 60 steps cannot be seen" in said
    analysis = analyze(Run(tmp_path / "run"))
    assert analysis.lags["matched"].min() > 10
    assert set(analysis.lags["verdict"]) == {"inconclusive"}
    (sampling,) = [each for each in analysis.findings if each.kind == "sampling"]
    assert "every 4 steps with gaps of up to 60 (gradients.norm). Lags under 60 steps" in sampling.sentence


def test_an_accuracy_under_another_name_is_judged_as_the_hint_says(tmp_path):
    made = synthetic.synthesize(steps=3000, layers=2, dips=(1500,), depth=0.2)
    accuracy = 100 * made.series["knn.accuracy"][["bank"]]
    accuracy.columns = ["eval acc@1"]
    accuracy.join(made.series["training.loss"]).to_csv(tmp_path / "log.csv")
    assert "dips are sought in eval acc@1 with --map" in cli("import", tmp_path / "log.csv", "--out", tmp_path / "one")
    told = " ".join(cli("analyze", tmp_path / "one", "--no-pictures", "--no-report").split())
    flag = re.search(r"\(eval acc@1 is taken for it if the log is imported with (--map '.*?')\)", told)
    hinted = cli("import", tmp_path / "log.csv", "--out", tmp_path / "two", *shlex.split(flag[1]))
    assert "are sought in" not in hinted
    events = [each for each in analyze(Run(tmp_path / "two"), draws=100).events if each.kind == "dip"]
    assert [(each.start, each.label) for each in events] == [(1500, "bank")]


def test_rows_apart_of_any_series_with_layers_are_told(tmp_path):
    steps = pd.Index(range(0, 5000, 50), name="step")
    frame = pd.DataFrame({f"update_ratio/blocks.{each}.w": 1.0 for each in range(2)}, index=steps)
    frame.to_csv(tmp_path / "log.csv")
    said = cli("import", tmp_path / "log.csv", "--out", tmp_path / "run")
    assert "rows of updates.ratio lie up to 50 steps apart: lags under 50 steps cannot be seen" in said
    (sampling,) = [each for each in analyze(Run(tmp_path / "run"), draws=100).findings if each.kind == "sampling"]
    assert "Lags under 50 steps cannot be seen" in sampling.sentence


@pytest.mark.parametrize("every", [1, 2, 20])
def test_a_run_of_this_package_is_told_what_rows_apart_hide(tmp_path, every):
    made = synthetic.synthesize(steps=200 * every, layers=2)
    series = {name: frame.iloc[::every] for name, frame in made.series.items() if name == "gradients.norm"}
    apart = synthetic.Synthetic(series, {}, made.layers, (), made.parameters)
    synthetic.write(tmp_path / "run", apart)
    findings = analyze(Run(tmp_path / "run"), draws=100).findings
    spanned = "200 steps" if every == 1 else f"{200 * every - every + 1:,} steps (200 of them recorded)"
    assert any(f"found in {spanned} of 2 layers" in each.sentence for each in findings)
    told = [each.sentence for each in findings if each.kind == "sampling"]
    assert len(told) == (every > 1)
    for sentence in told:
        assert f"recorded every {every} steps. Lags under {every} steps cannot be seen" in sentence
        assert f"begun up to {every - 1} step{'s' if every > 2 else ''} before it" in sentence


# ---- the page


def test_the_example_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = dict(re.findall(r"^```(python|sh|text)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    exec(compile(blocks["python"], str(PAGE), "exec"), {})
    commands = [shlex.split(line) for line in blocks["sh"].splitlines()]
    output = " ".join(cli(*words[1:]) for words in commands)
    for line in blocks["text"].splitlines():
        assert line in " ".join(output.split()), line


def test_layers_can_be_put_in_order_and_columns_in_alphabetical_order_are_told(tmp_path):
    names = ["decoder", "encoder", "middle"]
    frame = pd.DataFrame({f"grad_norm/{name}.weight": np.ones(60) for name in names})
    frame.rename_axis("step").to_csv(tmp_path / "log.csv")
    told = cli("import", tmp_path / "log.csv", "--dry-run")
    assert "the layers are in alphabetical order" in told
    said = cli("import", tmp_path / "log.csv", "--out", tmp_path / "run", "--layers", "encoder,middle,decoder")
    assert "alphabetical" not in said
    run = Run(tmp_path / "run")
    assert (run.layers.names, run.layers.first) == (("encoder", "middle", "decoder"), "encoder")
    with pytest.raises(InputError, match="the layers are decoder, encoder, middle; --layers names encoder, head"):
        survey([tmp_path / "log.csv"], layers=["encoder", "head"])

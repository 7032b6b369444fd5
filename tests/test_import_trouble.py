"""Truth: the names that other tools log, as their documentation and code give them; logs broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from test_import import imported
from torch.utils.tensorboard import SummaryWriter

from stabilitylab import InputError, Run
from stabilitylab.cli import main
from stabilitylab.importing import import_run, survey
from stabilitylab.importing.columns import histogram_norm
from stabilitylab.importing.mapping import accuracies, layers_in, parse_maps, place

# ---- the mapping


@pytest.mark.parametrize(
    ("name", "series", "label"),
    [
        ("grad_2.0_norm/model.blocks.0.attn.qkv.weight", "gradients.norm", "model.blocks.0.attn.qkv.weight"),
        ("grad_2.0_norm_total", "gradients.total", "total"),
        ("grad_inf_norm/fc.weight", "gradients.max", "fc.weight"),
        ("gradients/blocks.0.attn.qkv.weight", "gradients.norm", "blocks.0.attn.qkv.weight"),
        ("grad_norm/fc.bias", "gradients.norm", "fc.bias"),
        ("train/grad_norms/fc.bias", "gradients.norm", "fc.bias"),
        ("blocks.3.mlp/grad_norm", "gradients.norm", "blocks.3.mlp"),
        ("train/grad_norm", "gradients.total", "total"),
        ("total_grad_norm", "gradients.total", "total"),
        ("train/loss", "training.loss", "loss"),
        ("train_loss", "training.loss", "loss"),
        ("Loss", "training.loss", "loss"),
        ("loss/train", "training.loss", "loss"),
        ("total_loss", "training.loss", "loss"),
        ("train/loss/total", "training.loss", "loss"),
        ("val/total_loss", "imported.val_total_loss", "val/total_loss"),
        ("train/learning_rate", "training.lr", "lr"),
        ("lr-AdamW/pg1", "training.lr", "AdamW/pg1"),
        ("val/knn_acc", "knn.accuracy", "bank"),
        ("gradients.norm/head.weight", "gradients.norm", "head.weight"),
        ("knn.accuracy/queue", "knn.accuracy", "queue"),
        ("eval_loss", "imported.eval_loss", "eval_loss"),
        ("train_loss_epoch", "imported.train_loss_epoch", "train_loss_epoch"),
        ("val/acc@1", "imported.val_acc_1", "val/acc@1"),
        ("gradient_accumulation", "imported.gradient_accumulation", "gradient_accumulation"),
        ("parameters/fc.weight", "imported.parameters_fc_weight", "parameters/fc.weight"),
        ("損失", "imported.column", "損失"),
    ],
)
def test_what_others_log_goes_where_it_belongs(name, series, label):
    found = place({name: False})[name]
    assert (found.series, found.label) == (series, label)


def test_accuracies_of_others_are_known_by_name():
    held_out = ["val_acc", "val_accuracy", "val/acc1", "eval_accuracy", "eval_top1", "valAcc", "test/acc@1", "acc/val"]
    plain = ["top1", "accuracy", "Acc"]
    none = ["train_acc", "val_loss", "gradient_accumulation", "val_top5", "access", "stop_1", "train/accuracy", "a.cc"]
    assert accuracies([*plain, *none, *held_out]) == [*held_out, *plain]


def test_patterns_of_the_user_come_first_and_nothing_is_lost():
    columns = dict.fromkeys(["g:a.w", "g:b.w", "loss", "objective", "a/b", "a_b", "junk/1"], False)
    maps = parse_maps(["g:(?P<label>.*)=gradients.norm", "objective=training.loss", "junk/.*="])
    found = place(columns, maps)
    assert found["g:b.w"][:2] == ("gradients.norm", "b.w")
    assert found["objective"].series == "training.loss"
    assert found["loss"].series == "imported.loss"
    assert "objective is training.loss already" in found["loss"].why
    assert {found["a/b"].series, found["a_b"].series} == {"imported.a_b", "imported.a_b_2"}
    assert found["junk/1"].series == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_equals"], "--map takes PATTERN=SERIES"),
        (["(=training.loss"], "no regular expression"),
        (["loss=a b"], "no name of a series"),
        (["lss=training.loss"], "matches no column; there are loss, x.w, y.w"),
        ([".\\.w=gradients.norm"], "sends both 'x.w' and 'y.w'"),
    ],
)
def test_wrong_patterns_are_named(words, said):
    with pytest.raises(InputError, match=said.replace("(", "\\(")):
        place({"loss": False, "x.w": False, "y.w": False}, parse_maps(words))


def test_layers_come_in_the_order_of_a_model_from_an_alphabetical_log():
    vit = ["patch_embed.proj.weight", "cls_token", *(f"blocks.{at}.mlp.fc1.weight" for at in range(12)), "head.weight"]
    labels, layers = layers_in(sorted(vit))
    assert layers.names == ("patch_embed", "tokens", *(f"blocks.{at}" for at in range(12)), "head")
    assert sorted(labels) == sorted(vit)
    _, layers = layers_in(["stem", "blocks.0", "blocks.1", "head"])  # layers, not parameters
    assert layers.names == ("stem", "blocks.0", "blocks.1", "head")
    _, layers = layers_in(["patch_embed", "blocks.0", "blocks.1", "norm"])  # though one has the name of a parameter
    assert layers.names == ("patch_embed", "blocks.0", "blocks.1", "norm")
    _, layers = layers_in(["encoder/block_0/kernel", "encoder/block_1/kernel"])
    assert layers.names == ("block_0", "block_1")
    assert layers.of["encoder/block_1/kernel"] == "block_1"


def test_a_histogram_that_is_none_has_no_norm():
    assert np.isnan(histogram_norm("histogram of something"))
    assert np.isnan(histogram_norm('{"values": [1, 2], "bins": [0, 1]}'))
    assert histogram_norm('{"values": [0, 3], "bins": [0, 1, 1]}') == pytest.approx(3**0.5)


# ---- logs that are broken


def parquet(frame: pd.DataFrame) -> bytes:
    return frame.to_parquet()


BROKEN = {
    "empty.csv": (b"", "is empty"),
    "header.csv": (b"step,loss\n", "has a header and no rows"),
    "comments.csv": (b"# run 7\n\n", "nothing but comments"),
    "longer.csv": (b"step,loss\n0,1,\n1,2,\n", "no rows of its 2 cells; 2 rows with another number of cells"),
    "no_step.csv": (b"loss,acc\n1,2\n", "no column of steps; name it with --step, of 'loss', 'acc'"),
    "fraction.csv": (b"step,loss\n0.5,1\n", "step 0.5 is no integer"),
    "twice.csv": (b"step,loss,loss\n0,1,2\n", "two columns that are called 'loss'"),
    "latin.csv": ("step,größe\n0,1\n".encode("latin-1"), "binary, or not UTF-8"),
    "late_latin.csv": (b"step,loss,note\n" + b"0,1,x\n" * 20_000 + b"1,2,\xff\n", "UTF-8"),
    "wide.csv": ("step,loss\n0,1\n".encode("utf-16"), "UTF-16"),
    "picture.png": (b"\x89PNG\r\n\x1a\n\x00\x00", "expected: TensorBoard event files"),
    "pickle.pt": (b"PK\x03\x04\x00\x00", "binary"),
    "one_column.csv": (b"loss\n1\n2\n", "has no column of steps"),
    "text.txt": (b"hello\nworld\n", "is no log that can be imported"),
    "cut.json": (b'[{"step": 0, "loss": 1}, {"step": 1, "lo', "no JSON, or cut off"),
    "numbers.json": (b"[1, 2]", "expected objects, name to value"),
    "nothing.json": (b"[]", "holds no rows"),
    "words.jsonl": (b'{"step": 0, "loss": "high"}', "no number in it that has a step"),
    "deep.json": (b"[" * 100_000, "cut off|nested"),
    "cut.parquet": (b"PAR1" + b"\0" * 40, "no Parquet file"),
    "no_rows.parquet": (parquet(pd.DataFrame({"step": [], "loss": []})), "has no rows"),
    "events.out.tfevents.1.x": (b"not an event file at all", "no event file"),
    "two_runs.csv": (b"run,step,tag,value\na,0,loss,1\nb,0,loss,2\n", "several runs: a, b"),
    "quoted.csv": (b'step,loss\n0,"0,5"\n', "loss is left out .text, such as '0,5'; decimal commas are read where"),
    "thousands.csv": (b"step;loss\n999;0,5\n1,000;0,5\n", "the step '1,000' has a comma"),
    "chart.csv": (b"Step,a - loss,a - loss__MIN,b - loss\n0,1,1,2\n", "several runs: a, b; export the chart of one"),
    "huge_step.csv": (b"step,loss\n1e30,1\n", "beyond"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_log_is_named_in_one_line_and_leaves_nothing(tmp_path, name):
    content, said = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        import_run([tmp_path / name], tmp_path / "run")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_folders_that_are_no_run_are_named(tmp_path):
    for name in ("version_0", "version_1"):
        with SummaryWriter(str(tmp_path / "logs" / name)) as writer:
            writer.add_scalar("loss", 1.0, 0)
    with pytest.raises(InputError, match=r"holds several runs; import one of them: .*version_0, .*version_1"):
        survey([tmp_path / "logs"])
    assert survey([tmp_path / "logs" / "version_1"]).rows()[0]["column"] == "loss"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.pt").touch()
    with pytest.raises(InputError, match=r"no TensorBoard event files and no metrics\.csv; it holds model\.pt"):
        survey([tmp_path / "other"])
    with pytest.raises(InputError, match="does not exist"):
        survey([tmp_path / "missing"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        survey([tmp_path / "pipe"])
    (tmp_path / "a.csv").write_text("step,loss\n0,1\n")
    with pytest.raises(InputError, match="named twice"):
        survey([tmp_path / "a.csv", tmp_path / "." / "a.csv"])


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    with SummaryWriter(str(tmp_path / "log")) as writer:
        writer.add_scalar("loss", 1.0, 0)
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    with pytest.raises(InputError, match=r"pip install 'stabilitylab\[tensorboard\]'"):
        survey([tmp_path / "log"])


def test_cut_ends_odd_rows_and_odd_steps_are_left_out_and_told(tmp_path):
    with SummaryWriter(str(tmp_path / "log")) as writer:
        for step in range(50):
            writer.add_scalar("loss", float(step), step)
    (events,) = (tmp_path / "log").iterdir()
    events.write_bytes(events.read_bytes()[:-9])
    import_run([tmp_path / "log"], tmp_path / "one")
    assert Run(tmp_path / "one")["training.loss"]["loss"].tolist() == list(range(49))
    (tmp_path / "log.csv").write_text(
        "Step,loss,odd\n5,5.0,1\n3,3.0,x\n3.0,3.5,1\n,7,1\n-1,8,1\n4,null,1\n1,1.0,1,9,9\n2,2.0,1\n9,0.\n"
    )
    _, notes = import_run([tmp_path / "log.csv"], tmp_path / "two")
    assert Run(tmp_path / "two")["training.loss"]["loss"].to_dict() == {2: 2.0, 3: 3.5, 5: 5.0}
    said = " ".join([*notes, *Run(tmp_path / "one").header["imported"]["notes"]])
    (tmp_path / "log.jsonl").write_text('{"global_step": 0, "step": 7, "a\\ud800": 1}\n{"global_step": 1, "step"')
    said += " ".join(import_run([tmp_path / "log.jsonl"], tmp_path / "three")[1])
    assert Run(tmp_path / "three")["imported.step"]["step_"].to_dict() == {0: 7}
    for each in (
        "characters at the end that are no whole object",
        "after the last whole record",
        "1 row without a step",
        "1 row with a negative step",
        "2 rows with another number of cells",
        "1 value of odd left out: no numbers",
        "1 other value at a step that had one already",
    ):
        assert each in said, each


def test_files_of_one_run_stand_beside_each_other_or_continue(tmp_path):
    (tmp_path / "a.csv").write_text("step,loss\n0,1\n1,1\n2,1\n3,1\n")
    (tmp_path / "b.csv").write_text("step,loss\n2,2\n3,2\n")
    (tmp_path / "c.jsonl").write_text('{"step": 0, "val": 1}\n{"step": 3, "val": 1}\n')
    import_run([tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.jsonl"], tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run["training.loss"]["loss"].tolist() == [1, 1, 2, 2]
    assert run["imported.val"].index.tolist() == [0, 3]


def test_equal_values_at_a_step_are_no_loss(tmp_path):
    """Lightning writes what it trained and what it validated at a step in rows of their own, each with the epoch."""
    rows = ["epoch,step,train_loss,val_acc", *(f"{at // 20},{at * 50 + 49},{at}.5," for at in range(40))]
    rows[20:20] = ["0,999,,0.25"]
    (tmp_path / "metrics.csv").write_text("\n".join([*rows, "1,1999,,nan", "1,1999,,NaN"]))
    plan, notes = import_run([tmp_path / "metrics.csv"], tmp_path / "run")
    assert not [each for each in notes if "already" in each]
    assert {row["column"]: row["every"] for row in plan.rows()} == {"train_loss": 50, "epoch": 50, "val_acc": 1000}
    (tmp_path / "other.csv").write_text("step,loss\n0,1\n0,nan\n0,1\n0,2\n")
    _, notes = import_run([tmp_path / "other.csv"], tmp_path / "other")
    assert notes == ["3 other values at a step that had one already; the last one counts"]


def test_numbers_with_thousands_are_no_decimals(tmp_path):
    (tmp_path / "log.tsv").write_text("step\tloss\ttokens\n0\t0.5\t1,024\n1\t0.4\t2,048\n")
    plan, _ = import_run([tmp_path / "log.tsv"], tmp_path / "run")
    assert "no number has a point" in plan.left_out["tokens"]
    assert Run(tmp_path / "run").series == ("training.loss",)


def test_what_is_below_zero_is_no_norm(tmp_path):
    (tmp_path / "log.csv").write_text("step,grads/a.weight,grads/b.weight,grads/c.weight\n0,1,-1,-inf\n1,1,1,1\n")
    _, notes = import_run([tmp_path / "log.csv"], tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run["gradients.norm"].columns.tolist() == ["a.weight", "c.weight"]
    assert run["imported.grads_b_weight"].iloc[:, 0].tolist() == [-1, 1]
    assert "grads/b.weight is a series of its own: it holds values below zero, as no norm does" in notes


def test_what_is_beyond_single_precision_is_infinite(tmp_path):
    rows = "".join(f"{step},{'1e308' if step > 1 else '3e38'},{'-1e39' if step else 1}\n" for step in range(4))
    (tmp_path / "log.csv").write_text("step,loss,other\n" + rows)
    plan, notes = import_run([tmp_path / "log.csv"], tmp_path / "run")
    said = "\n".join([*plan.notes(), *notes])
    assert "log.csv: 2 values of loss beyond single precision, taken for infinite" in said
    run = Run(tmp_path / "run")
    assert run["training.loss"]["loss"].tolist() == [3e38, 3e38, np.inf, np.inf]
    assert run["imported.other"].iloc[:, 0].tolist() == [1, -np.inf, -np.inf, -np.inf]


def test_of_two_columns_of_steps_the_first_counts(tmp_path):
    (tmp_path / "log.csv").write_text("step,Step,loss\n3,30,1\n")
    assert survey([tmp_path / "log.csv"]).rows()[0]["first"] == 3


def test_percent_and_epochs_are_told(tmp_path):
    (tmp_path / "summary.csv").write_text("epoch,train_loss,knn\n0,2.0,10\n1,1.5,55.5\n")  # as timm writes it
    _, notes = import_run([tmp_path / "summary.csv"], tmp_path / "run")
    run = Run(tmp_path / "run")
    np.testing.assert_allclose(run["knn.accuracy"]["bank"], [0.1, 0.555])
    assert any("in percent" in note for note in notes)
    assert any("counted in epochs" in note for note in notes)
    assert (
        "train_loss -> training.loss loss: 2 values every epoch\n"
        in cli("import", tmp_path / "summary.csv", "--dry-run").output
    )


# ---- the command


def cli(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_dry_run_shows_the_mapping_and_writes_nothing(tmp_path):
    (tmp_path / "log.csv").write_text("step,train/loss,x.w,val/f1\n0,1,NaN,1\n50,2,3,\n1000,,,2\n")
    before = {each: each.stat().st_mtime_ns for each in tmp_path.rglob("*")}
    words = ["import", tmp_path / "log.csv", "--map", "(?P<label>.*\\.w)=gradients.norm", "--out", tmp_path / "run"]
    result = cli(*words, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "train/loss -> training.loss loss: 2 values about every 50 steps\n" in result.output
    assert "x.w -> gradients.norm x.w: 2 values about every 50 steps, 1 not finite\n" in result.output
    assert "val/f1 -> imported.val_f1: 2 values about every 1,000 steps\n" in result.output
    assert {each: each.stat().st_mtime_ns for each in tmp_path.rglob("*")} == before
    listed = json.loads(cli(*words, "--dry-run", "--json").output)
    assert [each["series"] for each in listed["columns"]] == ["gradients.norm", "training.loss", "imported.val_f1"]
    assert cli(*words).exit_code == 0
    again = cli(*words)
    assert again.exit_code == 1
    assert "holds a run already" in again.output
    assert "--out is missing" in cli("import", tmp_path / "log.csv").output


def test_a_folder_that_is_there_keeps_what_it_holds(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    (tmp_path / "bad.csv").write_text("step,loss\n0.5,1\n")
    with pytest.raises(InputError):
        import_run([tmp_path / "bad.csv"], tmp_path / "run")
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_importing_loads_no_torch_and_writes_nothing_outside(tmp_path):
    rows = "\n".join(f"{step},1" for step in range(10))
    (tmp_path / "log.csv").write_text(f"step,loss\n{rows}\n")
    (tmp_path / "cwd").mkdir()
    code = (
        f"import sys; from stabilitylab.importing import import_run; import_run([{str(tmp_path / 'log.csv')!r}], "
        f"{str(tmp_path / 'run')!r}); sys.exit('torch' in sys.modules)"
    )
    started = time.time_ns()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path / "cwd")
    new = [each for each in tmp_path.rglob("*") if each.stat().st_mtime_ns > started]
    assert all(each.is_relative_to(tmp_path / "run") or each == tmp_path for each in new)
    assert not [each for each in (tmp_path / "run").iterdir() if each.name.startswith(".importing")]


def test_a_run_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    pd.DataFrame({"loss": np.ones(60)}).rename_axis("step").to_csv(tmp_path / "log.csv")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("stabilitylab.importing.assemble", full)
        with pytest.raises(InputError, match="run cannot be written: No space left on device"):
            import_run([tmp_path / "log.csv"], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    import_run([tmp_path / "log.csv"], tmp_path / "run")
    assert len(Run(tmp_path / "run")["training.loss"]) == 60


def test_integers_beyond_those_that_a_float_holds_are_rounded(tmp_path):
    frame = pd.DataFrame({"loss": np.ones(30), "time_ns": 1_795_919_318_296_258_247 + np.arange(30)})
    frame.rename_axis("step").reset_index().to_parquet(tmp_path / "log.parquet")
    run = imported(tmp_path, tmp_path / "log.parquet")
    assert run["imported.time_ns"]["time_ns"].to_numpy() == pytest.approx(1.795919318e18)


def test_values_that_repeat_a_step_are_counted_once(tmp_path):
    pd.DataFrame({"step": np.repeat([5, 6], 30), "loss": np.arange(60)}).to_csv(tmp_path / "log.csv", index=False)
    told = cli("import", tmp_path / "log.csv", "--dry-run").output
    assert "loss -> training.loss loss: 2 values every step" in told
    assert "58 values at a step that had one already; the last one counts" in told


def test_two_runs_are_not_mixed_into_one(tmp_path):
    for name, first in (("a", 0), ("b", 0), ("c", 40)):
        index = pd.RangeIndex(first, first + 60, name="step")
        pd.DataFrame({"loss": np.ones(60)}, index=index).to_csv(tmp_path / f"{name}.csv")
    with pytest.raises(InputError, match=r"b\.csv has the columns of .*a\.csv from its first step on"):
        import_run([tmp_path / "a.csv", tmp_path / "b.csv"], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    import_run([tmp_path / "a.csv", tmp_path / "c.csv"], tmp_path / "run")  # one goes on where the other ended
    assert len(Run(tmp_path / "run")["training.loss"]) == 100


def test_a_table_that_shares_one_column_replaces_nothing_else(tmp_path):
    steps = pd.RangeIndex(200, name="step")
    pd.DataFrame({"loss": np.ones(200), "grad_norm/a.weight": np.ones(200)}, index=steps).to_csv(tmp_path / "a.csv")
    pd.DataFrame({"loss": 2 * np.ones(200), "knn": np.full(200, 0.5)}, index=steps).to_csv(tmp_path / "b.csv")
    run = imported(tmp_path, tmp_path / "a.csv", tmp_path / "b.csv")
    assert len(run["gradients.norm"]) == 200
    assert run["training.loss"]["loss"].unique().tolist() == [2.0]


def test_where_only_the_norm_of_all_gradients_was_logged_it_is_said_how_to_look_at_it(tmp_path):
    pd.DataFrame({"grad_norm": np.ones(60), "loss": np.ones(60)}).rename_axis("step").to_csv(tmp_path / "log.csv")
    told = cli("import", tmp_path / "log.csv", "--dry-run")
    assert "--map grad_norm=gradients.norm" in told.output
    cli("import", tmp_path / "log.csv", "--out", tmp_path / "run", "--map", "grad_norm=gradients.norm")
    assert "gradients.norm" in Run(tmp_path / "run")

"""Truth: what a user must be able to read, on a run whose answer is known."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stabilitylab import RunWriter, __version__
from stabilitylab.cli import main


def cli(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result.exit_code, result.output


def write_run(path: Path, steps: int = 600, spikes: tuple[int, ...] = (300, 420)) -> Path:
    rng = np.random.default_rng(0)
    names = {"patch_embed.w": "patch_embed", "blocks.0.w": "blocks.0", "head.w": "head"}
    header = {"layers": {"names": list(names.values()), "of": names, "first": "patch_embed"}}
    writer = RunWriter(path, header)
    writer.declare("gradients.norm", list(names))
    norms = np.exp(rng.normal(0, 0.1, (steps, 3)))
    for step in spikes:
        norms[step : step + 2] *= 8
    writer.write("gradients.norm", np.arange(steps), norms.astype("float32"))
    writer.declare("knn.accuracy", ["bank", "queue"], samples=400)
    ticks = np.arange(0, steps, 10)
    accuracy = np.round((0.9 + rng.normal(0, 0.003, (len(ticks), 2))) * 400) / 400
    writer.write("knn.accuracy", ticks, accuracy.astype("float32"))
    writer.close("completed")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "one")


@pytest.mark.parametrize(
    "command", ["", "train", "overhead", "probes", "analyze", "plot", "synthesize", "import", "compare", "evaluate"]
)
def test_help_names_every_option_and_loads_nothing_heavy(command: str) -> None:
    words = [*command.split(), "--help"]
    code, output = cli(*words)
    assert code == 0
    assert "Usage" in output
    heavy = ("torch", "timm", "pandas", "matplotlib", "sklearn", "pydantic")
    check = (
        "import sys; from click.testing import CliRunner; from stabilitylab.cli import main; "
        f"CliRunner().invoke(main, {words}); print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_analyze_and_plot_load_no_torch(run: Path) -> None:
    for words in (["analyze", str(run)], ["plot", str(run), "--picture", "gradients"]):
        check = (
            "import sys; from click.testing import CliRunner; from stabilitylab.cli import main; "
            f"result = CliRunner().invoke(main, {words}); assert result.exit_code == 0, result.output; "
            "print([name for name in ('torch', 'timm', 'torchvision', 'sklearn') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"


def test_analyze_tells_and_writes(run: Path) -> None:
    code, output = cli("analyze", run)
    assert code == 0, output
    assert re.search(r"300\s+spike\s+patch_embed\s+300", output)
    assert "2 gradient spikes" in output
    folder = run / "analysis"
    assert {"events.parquet", "lags.parquet", "findings.json"} <= {path.name for path in folder.iterdir()}
    assert (folder / "gradients.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".*"))
    assert "no picture" in output  # this run has no spectrum
    assert "spectrum" in output


def test_analyze_for_machines(run: Path) -> None:
    code, output = cli("analyze", run, "--json", "--no-pictures")
    assert code == 0
    (told,) = json.loads(output)
    assert told["run"] == str(run)
    assert {"spikes", "lead"} <= {finding["kind"] for finding in told["findings"]}
    assert not list((run / "analysis").glob("*.png"))


def test_the_newest_run_is_the_default(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)
    newer = write_run(run.parent / "two", spikes=())
    code, output = cli("analyze", "--no-pictures")
    assert code == 0
    assert output.startswith("two")
    assert "No gradient spike found" in output
    assert (newer / "analysis/findings.json").exists()


def test_pictures_in_every_format_and_of_several_runs(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "runs" / "two")
    for suffix in ("png", "svg", "pdf"):
        out = tmp_path / suffix
        code, output = cli(
            "plot", run, other, "--format", suffix, "--out", out, "--picture", "knn", "--picture", "layers"
        )
        assert code == 0, output
        assert len(list(out.glob(f"*.{suffix}"))) == 3  # one kNN picture of both, one heat map of each


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["analyze", "nowhere"], "nowhere is no run: it does not exist"),
        (["analyze", "nowhere", "--mirror", "tensorbord"], "did you mean tensorboard"),
        (["analyze", "nowhere", "--table", "missing/x.csv"], "--table was missing/x.csv: there is no folder missing"),
        (["analyze", "nowhere", "--table", "."], "its suffix must be one of .csv, .parquet, .json"),
        (["analyze"], "there is no run in ./runs; name one, or make one with 'stabilitylab train'"),
        (["plot", "nowhere"], "nowhere is no run"),
        (["train", "--preset", "digit"], "no preset is named 'digit' (available: digits"),
        (["train", "--set", "optimizer.lrate=1"], "no setting is named 'optimizer.lrate'; did you mean optimizer.lr"),
        (["train", "--resume", "nowhere"], "nowhere is no run"),
        (["train", "--resume", "x", "--preset", "digits"], "--resume takes everything from the run"),
        (["train", "--data", "nowhere"], "nowhere does not exist"),
        (["train", "--set", "train.device=tpu"], "train.device is 'tpu'; available here: cpu"),
        (["train", "--set", "train.seed=99999999999999999999"], "train.seed was 99999999999999999999"),
        (["train", "--set", "optimizer.betas=[0.9,1.0]"], "optimizer.betas was 1.0"),
        (["train", "--set", "optimizer.name=fusedadam"], "optimizer.name is 'fusedadam', which cannot be built here"),
        (["train", "--set", "train.epochs=1e308"], "train.epochs was 1e+308"),
        (["train", "--preset", "moco-v3-vit-s"], "1,438 training images, fewer than one batch"),
    ],
)
def test_wrong_input_gets_one_line_and_an_exit_code(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = cli(*words)
    assert code == 1
    assert message in output
    assert len(output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_torn_run_is_named_and_the_rest_stays_readable(run: Path) -> None:
    (part,) = (run / "series/knn.accuracy").iterdir()
    part.write_bytes(part.read_bytes()[:50])
    code, output = cli("analyze", run, "--no-pictures")
    assert code == 1
    assert "is damaged" in output
    code, output = cli("analyze", run, "--no-pictures", "--skip-damaged")
    assert code == 0
    assert "2 gradient spikes" in output


def test_an_output_folder_that_holds_a_run_is_never_overwritten(run: Path) -> None:
    before = (run / "run.json").read_bytes()
    code, output = cli("train", "--out", run)
    assert code == 1
    assert "holds a run already" in output
    assert (run / "run.json").read_bytes() == before


def test_presets_and_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, output = cli("train", "--presets")
    assert code == 0
    assert output.startswith("digits ")
    code, output = cli("train", "--dry-run", "--set", "optimizer.lr=0.125", "--set", "probes.spectrum=false")
    assert code == 0
    assert "optimizer.lr = 0.125" in output
    assert "Learning rate at the batch size in use" in output
    assert "patch_embed, tokens, blocks.0" in output
    assert "gradients.norm: 88 columns, every 1 steps, 450 rows" in output
    assert re.search(r"log: about \d+\.\d MB", output)
    assert "spectrum.rank" not in output
    assert list(tmp_path.iterdir()) == []
    code, output = cli("train", "--dry-run", "--set", "record.mirror=nosuch")
    assert (code, "no mirror is named 'nosuch'" in output) == (1, True)


def test_a_run_is_not_written_among_images(tmp_path: Path) -> None:
    for name in ("runs", "7"):  # folders of it are classes
        code, output = cli("train", "--data", tmp_path, "--out", tmp_path / name)
        assert (code, "lies in the folder of the images" in output) == (1, True)
    (tmp_path / "train").mkdir()
    for name, refused in (("val/r", True), ("runs", False)):
        code, output = cli("train", "--data", tmp_path, "--out", tmp_path / name)
        assert (code, "lies in the folder of the images" in output) == (1, refused)  # there are no images


def test_version() -> None:
    assert cli("--version") == (0, f"stabilitylab, version {__version__}\n")


def test_a_folder_that_cannot_be_made_is_named_before_any_work(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    other = write_run(tmp_path / "runs" / "two")
    for words in (["plot", run], ["compare", run, "--", other]):
        code, output = cli(*words, "--out", tmp_path / "file" / "out")
        assert code == 1
        assert output.endswith(f"{tmp_path / 'file'} is a file; expected a folder\n")
        assert output.count("\n") == 1  # nothing was told before


def test_a_reader_that_stops_reading_changes_nothing(run: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = Path(sys.executable).parent / "stabilitylab"
    asked = ["analyze", run, "--no-pictures", "--fail-on", "length>1"]
    for words, code in ((["synthesize", "x", "--dry-run"], 0), (asked, 3)):
        done = subprocess.run([script, *words], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == code
        assert "Pipe" not in done.stderr
    assert (run / "analysis" / "findings.json").exists()
    os.close(writing)
    command = [str(script), "analyze", str(run), "--no-pictures"]
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_a_full_disk_names_the_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, output = cli("analyze", run, "--no-pictures")
    assert code == 1
    last = output.splitlines()[-1]
    assert last.startswith(f"Error: {run / 'analysis'}/")
    assert last.endswith(": No space left on device")
    assert list((run / "analysis").iterdir()) == []

"""Truth: what was written must come back bit for bit, whatever happens to the writer."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stabilitylab import parts
from stabilitylab.errors import InputError
from stabilitylab.run import SCHEMA, Run, RunWriter, find_runs

HEADER = {"layers": {"names": ["a", "b"], "of": {"a.w": "a", "b.w": "b"}, "first": "a"}, "config": {"x": 1}}
LABELS = ["a.w", "b.w"]


def writer(path: Path, first_step: int = 0) -> RunWriter:
    made = RunWriter(path, HEADER, first_step)
    made.declare("gradients.norm", LABELS, unit="gradient")
    made.update()
    return made


def rows(first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values that follow from their step alone, with evidence that must not be lost."""
    steps = np.arange(first, stop)
    values = np.stack([np.sin(steps), np.cos(steps)], axis=1).astype("float32")
    values[steps % 7 == 3, 0] = np.nan
    values[steps % 11 == 5, 1] = np.inf
    return steps, values


def assert_holds(frame: pd.DataFrame, stop: int) -> None:
    steps, values = rows(0, stop)
    expected = pd.DataFrame(values, index=pd.Index(steps, name="step"), columns=LABELS)
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)


def test_what_is_written_comes_back_bit_for_bit(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    for first in range(0, 500, 50):
        made.write("gradients.norm", *rows(first, first + 50))
        assert_holds(Run(tmp_path / "r")["gradients.norm"], first + 50)
    made.close("completed")
    run = Run(tmp_path / "r")
    assert_holds(run["gradients.norm"], 500)
    assert run["gradients.norm"].dtypes.eq("float32").all()
    assert (run.status, run.series, run.layers.first) == ("completed", ("gradients.norm",), "a")
    assert run.about("gradients.norm")["unit"] == "gradient"
    assert list(run.read("gradients.norm", ["b.w"]).columns) == ["b.w"]


def test_other_readers_read_it_without_us(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.write("gradients.norm", *rows(0, 50))
    made.write("gradients.norm", *rows(50, 80))
    made.close("completed")
    (part,) = (tmp_path / "r/series/gradients.norm").iterdir()
    assert part.name == "00000000-00000079.parquet"
    assert_holds(pd.read_parquet(part), 80)


def test_many_flushes_leave_few_files(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    for first in range(0, 3000, 5):
        made.write("gradients.norm", *rows(first, first + 5))
    folder = tmp_path / "r/series/gradients.norm"
    assert len(list(folder.iterdir())) <= 3 * parts.FAN
    assert_holds(Run(tmp_path / "r")["gradients.norm"], 3000)
    made.close("completed")
    assert len(list(folder.iterdir())) == 1
    assert_holds(Run(tmp_path / "r")["gradients.norm"], 3000)


def test_a_reader_that_meets_a_part_and_its_merger_counts_rows_once(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.write("gradients.norm", *rows(0, 50))
    folder = tmp_path / "r/series/gradients.norm"
    small = (folder / "00000000-00000049.parquet").read_bytes()
    made.write("gradients.norm", *rows(50, 100))
    parts.merge(folder, parts.list_parts(folder))
    (folder / "00000000-00000049.parquet").write_bytes(small)
    assert_holds(Run(tmp_path / "r")["gradients.norm"], 100)
    made.write("gradients.norm", *rows(100, 120))
    assert_holds(Run(tmp_path / "r")["gradients.norm"], 120)
    assert sorted(path.name for path in folder.iterdir()) == ["00000000-00000099.parquet", "00000100-00000119.parquet"]


@pytest.mark.parametrize("step", [1, 50, 77, 100])
def test_continuing_removes_what_lies_at_or_after_the_step(tmp_path: Path, step: int) -> None:
    made = writer(tmp_path / "r")
    made.write("gradients.norm", *rows(0, 50))
    made.write("gradients.norm", *rows(50, 100))
    made.close("interrupted")
    again = writer(tmp_path / "r", step)
    assert_holds(Run(tmp_path / "r")["gradients.norm"], step)
    again.write("gradients.norm", *rows(step, 130))
    again.close("completed")
    run = Run(tmp_path / "r")
    assert_holds(run["gradients.norm"], 130)
    assert [each["status"] for each in run.header["attempts"]] == ["interrupted", "completed"]


def test_new_columns_of_a_later_attempt_leave_the_old_rows_empty(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.write("gradients.norm", *rows(0, 10))
    made.close("interrupted")
    again = RunWriter(tmp_path / "r", HEADER, 10)
    again.declare("gradients.norm", [*LABELS, "c.w"])
    again.write("gradients.norm", np.arange(10, 20), np.ones((10, 3), "float32"))
    again.close("completed")
    frame = Run(tmp_path / "r")["gradients.norm"]
    assert frame["c.w"].isna().sum() == 10
    assert len(frame) == 20


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    writer(tmp_path / "r").close("completed")
    with pytest.raises(InputError, match="holds a run already"):
        writer(tmp_path / "r")
    with pytest.raises(InputError, match="holds no run to continue at step 5"):
        writer(tmp_path / "other", 5)


def test_the_second_writer_gets_a_clear_error(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    with pytest.raises(InputError, match="is being written by another process"):
        writer(tmp_path / "r", 3)
    made.close("completed")
    writer(tmp_path / "r", 3).close("completed")


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.write("gradients.norm", *rows(0, 10))
    with pytest.raises(ValueError, match="steps must increase"):
        made.write("gradients.norm", *rows(9, 12))
    with pytest.raises(ValueError, match="shape"):
        made.write("gradients.norm", np.arange(10, 12), np.ones((2, 3)))
    with pytest.raises(InputError, match="no name of a series"):
        made.declare("../escape", ["a"])
    made.close("completed")


# ---- what a reader may meet


def test_a_damaged_part_is_named_and_the_rest_stays_readable(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    for first in (0, 50, 100):
        made.write("gradients.norm", *rows(first, first + 50))
    torn = tmp_path / "r/series/gradients.norm/00000050-00000099.parquet"
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"00000050-00000099\.parquet is damaged"):
        Run(tmp_path / "r")["gradients.norm"]
    run = Run(tmp_path / "r", damaged="skip")
    assert len(run["gradients.norm"]) == 100
    assert "00000050-00000099.parquet is damaged" in run.skipped[0]


def test_foreign_and_empty_files(tmp_path: Path) -> None:
    made = writer(tmp_path / "r")
    made.write("gradients.norm", *rows(0, 50))
    folder = tmp_path / "r/series/gradients.norm"
    (folder / "notes.txt").write_text("not ours")
    (folder / ".00000050-00000099.parquet.1.tmp").write_bytes(b"half")
    assert_holds(Run(tmp_path / "r")["gradients.norm"], 50)
    (folder / "00000050-00000099.parquet").touch()
    with pytest.raises(InputError, match="damaged"):
        Run(tmp_path / "r")["gradients.norm"]
    pd.DataFrame({"x": ["text"]}).to_parquet(folder / "00000050-00000099.parquet")
    with pytest.raises(InputError, match="no part of a series"):
        Run(tmp_path / "r")["gradients.norm"]


def test_a_link_out_of_the_run_is_not_followed(tmp_path: Path) -> None:
    for name in ("r", "other"):
        made = writer(tmp_path / name)
        made.write("gradients.norm", *rows(0, 50))
        made.close("completed")
    part = tmp_path / "r/series/gradients.norm/00000000-00000049.parquet"
    part.unlink()
    part.symlink_to(tmp_path / "other/series/gradients.norm" / part.name)
    with pytest.raises(InputError, match="outside the run"):
        Run(tmp_path / "r")["gradients.norm"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run.json"),
        ("{", "is damaged"),
        ("[]", "does not describe a run"),
        ("[" * 100_000, "is damaged"),
        ('{"a": 1}', "no schema version"),
        (json.dumps({"schema": SCHEMA + 1}), f"has schema {SCHEMA + 1}; this version"),
        (json.dumps({"schema": SCHEMA, "layers": [], "series": {}, "attempts": []}), "'layers' is missing or"),
    ],
)
def test_what_is_no_run_gets_a_clear_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Run(tmp_path)


def test_unknown_names_list_what_there_is(tmp_path: Path) -> None:
    writer(tmp_path / "r").close("completed")
    run = Run(tmp_path / "r")
    with pytest.raises(InputError, match=r"has no series 'x'; it has gradients\.norm"):
        run["x"]
    with pytest.raises(InputError, match=r"has no column 'x'; it has a\.w, b\.w"):
        run.read("gradients.norm", ["x"])
    assert run["gradients.norm"].empty
    with pytest.raises(InputError, match="does not exist"):
        Run(tmp_path / "nothing")


def test_the_newest_run_is_found_last(tmp_path: Path) -> None:
    for age, name in ((5, "b"), (9, "a"), (1, "c")):
        writer(tmp_path / name).close("completed")
        then = time.time() - age
        os.utime(tmp_path / name / "run.json", (then, then))
    assert [path.name for path in find_runs(tmp_path)] == ["a", "b", "c"]


# ---- kills and readers beside a writer

WRITING = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_run import rows, writer
    made = writer(Path(sys.argv[1]))
    for first in range(0, 1_000_000, 5):
        made.write("gradients.norm", *rows(first, first + 5))
        print(first + 5, flush=True)
"""


def test_a_kill_at_any_moment_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for attempt in range(8):
        path = tmp_path / str(attempt)
        command = [sys.executable, "-c", textwrap.dedent(WRITING), str(path), str(Path(__file__).parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(float(rng.uniform(0, 0.4)))
            process.send_signal(signal.SIGKILL)
            said = process.stdout.read().split()
        flushed = int(said[-1]) if said else 5
        found = len(Run(path)["gradients.norm"])
        assert flushed <= found <= flushed + 5
        assert_holds(Run(path)["gradients.norm"], found)
        again = writer(path, flushed)
        again.write("gradients.norm", *rows(flushed, flushed + 100))
        again.close("completed")
        assert_holds(Run(path)["gradients.norm"], flushed + 100)
        assert [each["status"] for each in Run(path).header["attempts"]] == ["killed", "completed"]


def _keep_writing(path: Path) -> None:
    made = writer(path)
    for first in range(0, 2000, 5):
        made.write("gradients.norm", *rows(first, first + 5))
    made.close("completed")


def test_a_reader_beside_the_writer_sees_whole_rows_in_order(tmp_path: Path) -> None:
    path = tmp_path / "r"
    process = multiprocessing.get_context("spawn").Process(target=_keep_writing, args=(path,))
    process.start()
    seen = 0
    while process.is_alive():
        if (path / "run.json").exists():
            run = Run(path)
            frame = run["gradients.norm"] if "gradients.norm" in run else pd.DataFrame()
            assert len(frame) >= seen
            if len(frame):
                assert_holds(frame, len(frame))
            seen = len(frame)
    process.join()
    assert process.exitcode == 0
    assert_holds(Run(path)["gradients.norm"], 2000)

"""Truth: what was written must come back bit for bit, also from merged and from cut parts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_runs import HEADER, LABELS, assert_holds, rows, writer

from stabilitylab.disk import parts
from stabilitylab.errors import InputError
from stabilitylab.run import Run, RunWriter, find_runs


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
    for first in range(0, 1000, 5):
        made.write("gradients.norm", *rows(first, first + 5))
    folder = tmp_path / "r/series/gradients.norm"
    assert len(list(folder.iterdir())) <= parts.MOST
    assert_holds(Run(tmp_path / "r")["gradients.norm"], 1000)
    made.close("completed")
    assert len(list(folder.iterdir())) == 1
    assert_holds(Run(tmp_path / "r")["gradients.norm"], 1000)


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


def test_a_folder_of_runs_says_which_lie_in_it(tmp_path: Path) -> None:
    for name in "abcd":
        writer(tmp_path / name).close("completed")
    with pytest.raises(InputError, match=r"holds no run.json; runs in it: \S+a, \S+b, \S+c and 1 more"):
        Run(tmp_path)

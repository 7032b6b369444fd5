"""Truth: numpy: what was written under a label is read under it, and NaN where it was not recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_runs import HEADER, NORMS

from stabilitylab.errors import InputError
from stabilitylab.run import Run, RunWriter


def write(made: RunWriter, first: int, labels: list[str], dtype: str = "float32") -> pd.DataFrame:
    """Write three rows under some labels, and return what was written."""
    steps = np.arange(first, first + 3)
    values = (np.arange(3 * len(labels)).reshape(3, -1) + first).astype(dtype)
    made.declare(NORMS, labels, unit="1")
    made.write(NORMS, steps, values)
    return pd.DataFrame(values, index=pd.Index(steps, dtype="int64", name="step"), columns=labels)


def test_labels_that_appear_and_vanish(tmp_path: Path) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    before = Run(tmp_path / "r")
    written = [write(made, 0, ["a", "b"]), write(made, 3, ["c", "b", "a"]), write(made, 6, ["d", "c"])]
    expected = pd.concat(written)[["d", "c", "b", "a"]]
    for moment in ("while it runs", "when it is closed"):
        run = Run(tmp_path / "r")
        assert run.about(NORMS) == {"labels": ["d", "c", "b", "a"], "unit": "1"}, moment
        pd.testing.assert_frame_equal(run[NORMS], expected, check_exact=True)
        pd.testing.assert_frame_equal(run.read(NORMS, ["b", "d"]), expected[["b", "d"]], check_exact=True)
        if moment == "while it runs":
            made.close("completed")
    assert NORMS not in before


def test_a_reader_from_before_sees_the_labels_that_it_knows(tmp_path: Path) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    first = write(made, 0, ["a"])
    run = Run(tmp_path / "r")
    pd.testing.assert_frame_equal(run[NORMS], first)
    second = write(made, 3, ["a", "b"])
    pd.testing.assert_frame_equal(run[NORMS], pd.concat([first, second[["a"]]]))
    write(made, 6, ["c"])
    assert run[NORMS]["a"].isna().tolist() == [False] * 6 + [True] * 3


def test_labels_grow_over_attempts(tmp_path: Path) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    first = write(made, 0, ["a", "b"])
    made.close("interrupted")
    again = RunWriter(tmp_path / "r", HEADER, 2)
    second = write(again, 2, ["c", "a"])
    again.close("completed")
    expected = pd.concat([first.iloc[:2], second])[["c", "a", "b"]]
    pd.testing.assert_frame_equal(Run(tmp_path / "r")[NORMS], expected, check_exact=True)


@pytest.mark.parametrize(
    "dtype", ["int64", "int32", "int16", "uint8", "uint64", "float16", "float32", "float64", ">f4"]
)
@pytest.mark.parametrize("close", [True, False], ids=["merged", "in parts"])
def test_a_type_becomes_floating_only_where_a_label_was_not_recorded(tmp_path: Path, dtype: str, close: bool) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    written = [write(made, 0, ["a", "b"], dtype), write(made, 3, ["b", "c"], dtype)]
    if close:
        made.close("completed")
    frame = Run(tmp_path / "r")[NORMS]
    native = np.dtype(dtype).newbyteorder("=")
    with_gaps = native if native.kind == "f" else np.dtype("float64")
    assert frame.dtypes.to_dict() == {"b": native, "c": with_gaps, "a": with_gaps}
    expected = pd.concat([each.astype("float64") for each in written])[["b", "c", "a"]]
    pd.testing.assert_frame_equal(frame.astype("float64"), expected, check_exact=True)


@pytest.mark.parametrize("close", [True, False], ids=["merged", "in parts"])
def test_what_was_not_recorded_can_be_told_from_nan(tmp_path: Path, close: bool) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    made.declare(NORMS, ["a", "b"])
    made.write(NORMS, np.arange(2), np.array([[1.0, np.nan], [2.0, np.nan]]))
    made.declare(NORMS, ["b"])
    made.write(NORMS, np.arange(2, 4), np.array([[np.nan], [4.0]]))
    if close:
        made.close("completed")
    frame = Run(tmp_path / "r").read(NORMS, ["a", "b"], absent=0.0)
    np.testing.assert_array_equal(frame["a"], [1, 2, 0, 0])
    np.testing.assert_array_equal(frame["b"], [np.nan, np.nan, np.nan, 4])
    assert Run(tmp_path / "r").read(NORMS, ["a"])["a"].isna().tolist() == [False, False, True, True]
    whole = RunWriter(tmp_path / "whole", HEADER)  # numbers without NaN
    write(whole, 0, ["a", "b"], "int64")
    write(whole, 3, ["b"], "int64")
    if close:
        whole.close("completed")
    for absent in (0.0, -1.0, 0.5):
        column = Run(tmp_path / "whole").read(NORMS, ["a"], absent=absent)["a"]
        assert (column.dtype, column[3:].tolist()) == (np.float64, [absent] * 3)


def test_types_that_change_meet_in_one_that_holds_both(tmp_path: Path) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    written = [write(made, 0, ["a"], "int64"), write(made, 3, ["a"], "float32"), write(made, 6, ["a"], "uint8")]
    for moment in ("in parts", "merged"):
        frame = Run(tmp_path / "r")[NORMS]
        pd.testing.assert_frame_equal(frame, pd.concat(written).astype("float64"), obj=moment)
        if moment == "in parts":
            made.close("completed")


def test_rows_are_readable_without_a_call_of_update(tmp_path: Path) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    write(made, 0, ["a"])
    del made  # killed
    assert len(Run(tmp_path / "r")[NORMS]) == 3


def test_labels_may_be_any_text_but_step(tmp_path: Path) -> None:
    labels = ["", ".", "a", "a.b", "a.b.", "é∇", "blocks.0 (frozen)", "__index_level_0__", 'a"b', "a\nb", "Step"]
    made = RunWriter(tmp_path / "r", HEADER)
    written = write(made, 0, labels)
    for moment in ("in parts", "merged"):
        run = Run(tmp_path / "r")
        pd.testing.assert_frame_equal(run[NORMS], written, obj=moment)
        for label in labels:
            pd.testing.assert_frame_equal(run.read(NORMS, [label]), written[[label]])
        written = pd.concat([written, write(made, 3, labels)]) if moment == "in parts" else written
        made.close("completed")
    for wrong in (["a", "a"], ["step"], ["\ud800"], [1]):
        with pytest.raises(InputError):
            RunWriter(tmp_path / str(wrong == ["step"]) / repr(wrong)[:3], HEADER).declare(NORMS, wrong)


def test_a_series_may_have_no_labels(tmp_path: Path) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    for first in (0, 3):
        made.declare(NORMS, [])
        made.write(NORMS, np.arange(first, first + 3), np.empty((3, 0)))
    made.close("completed")
    assert Run(tmp_path / "r")[NORMS].shape == (6, 0)


@pytest.mark.parametrize(
    "values",
    [np.ones((3, 1), "bool"), np.ones((3, 1), "complex64"), np.ones((3, 1), "object"), np.ones((3, 1), "longdouble")],
    ids=lambda values: str(values.dtype),
)
def test_what_is_no_number_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    made.declare(NORMS, ["a"])
    with pytest.raises(ValueError, match="expected numbers"):
        made.write(NORMS, np.arange(3), values)


@pytest.mark.parametrize("steps", [[0, 0, 1], [2, 1, 0], [-1, 0, 1], [0.0, 0.5, 1.0], [0, 1, 10**18]])
def test_what_is_no_step_is_refused(tmp_path: Path, steps: list[float]) -> None:
    made = RunWriter(tmp_path / "r", HEADER)
    made.declare(NORMS, ["a"])
    with pytest.raises(ValueError, match="steps must increase"):
        made.write(NORMS, np.array(steps), np.ones((3, 1)))
    with pytest.raises(InputError, match="x was not declared; declared are gradients"):
        made.write("x", np.arange(3), np.ones((3, 1)))

"""Truth: TensorBoard's own reader of event files, and the Parquet files."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from stabilitylab import InputError, Recorder, Run, analyze, synthetic


def steps(recorder: Recorder, model: nn.Module, first: int, stop: int, odd: int = -1) -> None:
    for index in range(first, stop):
        for each in model.parameters():
            each.grad = torch.full_like(each, float("nan") if index == odd else index + 1.0)
        recorder.step(float(index))


def read(path: Path) -> EventAccumulator:
    return EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def test_tensorboard_shows_the_same_series_and_marks_what_happened(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "r", model, mirror="tensorboard", flush_steps=4) as recorder:
        steps(recorder, model, 0, 10, odd=7)
    run, board = Run(tmp_path / "r"), read(tmp_path / "r")
    for series in run.series:
        for label in run[series].columns:
            seen = board.Scalars(f"{series}/{label}")
            column = run[series][label]
            assert [each.step for each in seen] == list(column.index)
            np.testing.assert_allclose([each.value for each in seen], column, rtol=1e-6)
    assert [each.step for each in board.Scalars("markers/not_finite")] == [7]
    assert b"not finite at step 7" in board.Tensors("events/not_finite/text_summary")[0].tensor_proto.string_val[0]


def test_a_resumed_run_hides_what_it_repeats(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    with Recorder(tmp_path / "r", model, mirror="tensorboard") as recorder:
        steps(recorder, model, 0, 10)
    with Recorder(tmp_path / "r", model, mirror="tensorboard", first_step=6) as recorder:
        steps(recorder, model, 6, 12)
    assert [each.step for each in read(tmp_path / "r").Scalars("training.loss/loss")] == list(range(12))


class Told:
    """A tracker of one's own."""

    def __init__(self, fails: bool = False) -> None:
        self.seen: dict[str, list[Any]] = {}
        self.events: list[tuple[int, str]] = []
        self.closed = 0
        self.fails = fails

    def rows(self, series: str, labels: Any, steps: np.ndarray, values: np.ndarray) -> None:
        if self.fails:
            raise ConnectionError("nobody there")
        assert values.shape == (len(steps), len(labels))
        self.seen.setdefault(series, []).extend(steps.tolist())

    def event(self, step: int, kind: str, text: str) -> None:
        self.events.append((step, kind))

    def close(self) -> None:
        self.closed += 1


def test_any_tracker_hears_every_row_once(tmp_path: Path) -> None:
    model, told = nn.Linear(2, 1), Told()
    with Recorder(tmp_path / "r", model, mirror=[told, "tensorboard"], flush_steps=3) as recorder:
        steps(recorder, model, 0, 10, odd=2)
    run = Run(tmp_path / "r")
    assert told.seen == {series: list(run[series].index) for series in run.series}
    assert (2, "not finite") in told.events
    assert told.closed == 1


def test_a_tracker_that_fails_is_switched_off_and_nothing_else(tmp_path: Path) -> None:
    model, told = nn.Linear(2, 1), Told()
    with (
        warnings.catch_warnings(record=True) as caught,
        Recorder(tmp_path / "r", model, mirror=[Told(fails=True), told], flush_steps=3) as recorder,
    ):
        warnings.simplefilter("always")
        steps(recorder, model, 0, 10)
    assert [str(each.message) for each in caught] == [
        "the mirror test_mirrors.Told failed and is off now: ConnectionError: nobody there"
    ]
    assert len(told.seen["training.loss"]) == len(Run(tmp_path / "r")["training.loss"]) == 10


def test_an_unknown_mirror_is_refused_before_the_run_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no mirror is named 'tensorbord'; did you mean tensorboard\?"):
        Recorder(tmp_path / "r", nn.Linear(2, 1), mirror="tensorbord")
    with pytest.raises(
        InputError, match=r"mirror was 3: a name \(tensorboard\) or an object with rows, event and close"
    ):
        Recorder(tmp_path / "r", nn.Linear(2, 1), mirror=3)
    assert not (tmp_path / "r").exists()


def test_a_missing_tensorboard_is_said_with_its_remedy_before_anything_is_done(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "old", steps=300, seed=1)
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from torch import nn; from stabilitylab import Recorder, InputError; from stabilitylab.cli import main\n"
        f"try: Recorder({str(tmp_path / 'r')!r}, nn.Linear(2, 1), mirror='tensorboard')\n"
        "except InputError as error: print(error)\n"
        f"main(['analyze', {str(tmp_path / 'old')!r}, '--mirror', 'tensorboard'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = "the mirror 'tensorboard' needs tensorboard: pip install 'stabilitylab[tensorboard]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, said, f"Error: {said}")
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "old" / "analysis").exists()


def test_the_events_of_an_analysis_are_texts_and_markers(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "r", steps=900, spikes=(300, 600), seed=1)
    analysis = analyze(Run(tmp_path / "r"))
    for _ in range(2):  # a second time nothing is doubled
        analysis.show("tensorboard")
    board = read(tmp_path / "r" / "analysis")
    kinds = {each.kind for each in analysis.events}
    assert "spike" in kinds
    for kind in kinds:
        peaks = sorted(each.peak for each in analysis.events if each.kind == kind)
        assert sorted(each.step for each in board.Scalars(f"markers/{kind}")) == peaks
        assert len(board.Tensors(f"events/{kind}/text_summary")) == len(peaks)
    assert len(board.Tensors("events/finding/text_summary")) == len(analysis.findings)

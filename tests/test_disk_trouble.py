"""Truth: what was measured in the same loop on a disk that never fails."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from test_training import go
from torch import nn

from stabilitylab import InputError, Recorder, Run
from stabilitylab.disk import atomic
from stabilitylab.training import checkpoint as checkpoints


@contextmanager
def refusing(monkeypatch: pytest.MonkeyPatch, code: int) -> Iterator[None]:
    """Let every write end in an error of the disk."""

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", refuse)
        patch.setattr(atomic.os, "fsync", refuse)
        yield


def step(recorder: Recorder, model: nn.Module, index: int) -> None:
    for each in model.parameters():
        each.grad = torch.full_like(each, float(index + 1))
    recorder.step(float(index))


def told(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(each.message) for each in caught]


def start(path: Path, **options: object) -> tuple[Recorder, nn.Module]:
    model = nn.Linear(2, 1)
    return Recorder(path, model, probes={"updates": False}, flush_steps=5, flush_seconds=1e9, **options), model


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_disk_that_recovers_gets_everything_and_one_warning_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    recorder, model = start(tmp_path / "r")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in range(10):
            step(recorder, model, index)
        with refusing(monkeypatch, code):
            for index in range(10, 30):
                step(recorder, model, index)
            assert recorder.nbytes > 0
        for index in range(30, 40):
            step(recorder, model, index)
        recorder.close()
    assert len(told(caught)) == 1
    assert f"cannot be written ({os.strerror(code)}); training goes on" in told(caught)[0]
    run = Run(tmp_path / "r")
    assert run["training.loss"]["loss"].tolist() == [float(index) for index in range(40)]
    assert run["gradients.max"]["bias"].tolist() == [float(index + 1) for index in range(40)]
    assert run.header["outages"] == [{"step": 15, "reason": os.strerror(code), "until": 35}]
    assert run.header["lost"] == []
    assert run.status == "completed"
    assert not list((tmp_path / "r").rglob("*.tmp"))


def test_what_waits_is_bounded_and_what_is_lost_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, model = start(tmp_path / "r", backlog=2000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in range(5):
            step(recorder, model, index)
        with refusing(monkeypatch, errno.ENOSPC):
            for index in range(5, 200):
                step(recorder, model, index)
                assert recorder.nbytes < 2000 + 500  # and the rows of one flush
        for index in range(200, 205):
            step(recorder, model, index)
        recorder.close()
    run = Run(tmp_path / "r")
    losses = run["training.loss"]["loss"]
    assert losses.tolist() == [float(index) for index in losses.index]
    assert losses.index[0] == 0
    assert losses.index[-1] == 204
    lost = {each["series"]: each for each in run.header["lost"]}
    missing = sorted(set(range(205)) - set(losses.index))
    assert (lost["training.loss"]["first_step"], lost["training.loss"]["last_step"]) == (missing[0], missing[-1])
    assert lost["training.loss"]["rows"] == len(missing) > 50
    assert len(told(caught)) == 2
    assert "No space left on device) and" not in told(caught)[0]
    assert f"steps 5 to {missing[-1]} of" in told(caught)[1]
    assert "are lost (No space left on device)" in told(caught)[1]


def test_a_disk_that_never_recovers_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, model = start(tmp_path / "r")
    with warnings.catch_warnings(record=True) as caught, refusing(monkeypatch, errno.ENOSPC):
        warnings.simplefilter("always")
        for index in range(20):
            step(recorder, model, index)
        recorder.close()
    said = told(caught)
    assert len(said) == 3
    assert "the end of" in said[1]
    assert "steps 0 to 19 of" in said[2]
    assert Run(tmp_path / "r").status in ("running", "killed")


@pytest.mark.parametrize("becomes", ["nothing", "a file"])
def test_a_folder_that_is_removed(tmp_path: Path, becomes: str) -> None:
    recorder, model = start(tmp_path / "r")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in range(10):
            step(recorder, model, index)
        shutil.rmtree(tmp_path / "r")
        if becomes == "a file":
            (tmp_path / "r").write_text("in the way")
        for index in range(10, 20):
            step(recorder, model, index)
        if becomes == "a file":
            (tmp_path / "r").unlink()
        for index in range(20, 30):
            step(recorder, model, index)
        recorder.close()
    run = Run(tmp_path / "r")
    assert run["training.loss"]["loss"].tolist() == [float(index) for index in range(10, 30)]
    lost = {each["series"]: (each["first_step"], each["last_step"]) for each in run.header["lost"]}
    assert lost["training.loss"] == lost["gradients.norm"] == (0, 9)
    assert len(run.header["outages"]) == 1
    assert len(told(caught)) == 2
    assert "steps 0 to 9 of" in told(caught)[1]
    assert "are lost (the run folder was removed)" in told(caught)[1]


def test_a_block_that_can_never_be_written_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, model = start(tmp_path / "r")
    write = recorder._backlog._writer.write

    def fail(series: str, steps: np.ndarray, values: np.ndarray) -> None:
        if series == "gradients.max" and steps[0] == 5:
            raise ZeroDivisionError("odd")
        write(series, steps, values)

    monkeypatch.setattr(recorder._backlog._writer, "write", fail)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in range(20):
            step(recorder, model, index)
        recorder.close()
    run = Run(tmp_path / "r")
    assert list(run["gradients.norm"].index) == list(range(20))
    assert list(run["gradients.max"].index) == [*range(5), *range(10, 20)]
    assert "steps 5 to 9 of gradients.max are lost (ZeroDivisionError: odd)" in told(caught)[-1]
    assert run.header["lost"][0]["reason"] == "ZeroDivisionError: odd"


def test_a_folder_that_cannot_be_made_is_said_at_construction(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"file/r cannot be written"):
        Recorder(tmp_path / "file" / "r", nn.Linear(2, 1))


def test_a_disk_that_is_full_at_a_checkpoint_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written = checkpoints.save_file

    def full(content: Any, file: Path) -> None:
        if "00000020" in str(file):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        written(content, file)

    monkeypatch.setattr(checkpoints, "save_file", full)
    outcome, run = go(tmp_path / "r")
    assert (outcome.status, len(run["gradients.norm"])) == ("completed", 24)
    assert "checkpoint after 20 steps could not be written, and training goes on: I/O error: No space" in caplog.text
    assert sorted(os.listdir(tmp_path / "r/checkpoints")) == ["00000010", "00000024"]

"""Truth: one process on the whole batch, and what was done wrong on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from two_processes import STEPS, batch, build

from stabilitylab import Recorder, Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, folder]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def alone(path: Path, width: int = 7) -> Run:
    model = build(width)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    with Recorder(path, model, optimizer, teacher=build(width)) as recorder:
        for step in range(STEPS):
            images, goals = batch(step)
            ((model(images) - goals) ** 2).mean().backward()
            recorder.step(0.0)
            optimizer.step()
            optimizer.zero_grad()
    return Run(path)


@pytest.mark.parametrize(
    ("name", "width", "where"),
    [("ddp", 7, "the first rank"), ("fsdp", 7, "all ranks"), ("tensor_parallel", 8, "all ranks")],
)
def test_the_series_are_those_of_one_process(folder: Path, tmp_path: Path, name: str, width: int, where: str) -> None:
    two, one = Run(folder / name), alone(tmp_path / "one", width)
    assert two.status == "completed"
    assert two.header["self_check"]["mistake"] == "passed"
    assert two.header["disabled"] == {}
    assert two.layers == one.layers
    assert set(two.series) == set(one.series)
    for series in one.series:
        assert list(two[series].columns) == list(one[series].columns)
        np.testing.assert_allclose(two[series], one[series], rtol=2e-4, atol=1e-6, err_msg=series)
    about = two.about("gradients.norm")
    assert (about["ranks"], about["measured_on"]) == (2, where)


def test_gradients_that_were_not_reduced_are_named(folder: Path) -> None:
    check = Run(folder / "no_sync").header["self_check"]
    assert check["mistake"] == "per-rank"
    assert "not inside no_sync" in check["sentence"]


def test_pieces_that_torch_does_not_know_of_are_named(folder: Path) -> None:
    assert Run(folder / "own_weights").header["self_check"]["mistake"] == "sharded"


def test_a_recorder_on_the_first_rank_alone_waits_for_nobody(folder: Path) -> None:
    run = Run(folder / "first_rank_only")
    assert (run.status, len(run["gradients.norm"])) == ("completed", STEPS)
    assert run.header["self_check"]["sentence"].endswith("Other ranks left nothing to compare with.")


def test_ranks_that_would_wait_for_each_other_are_refused(folder: Path) -> None:
    for rank in (0, 1):
        said = json.loads((folder / f"disagree-{rank}.json").read_text())
        assert said.startswith("with sharded parameters every rank must measure alike: rank 0 has ")
    assert not (folder / "disagree").exists()

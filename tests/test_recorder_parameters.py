"""Truth: the gradients themselves, of parameters that thaw, freeze, appear and are replaced while a run goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_recorder_numbers import assert_recorded, loss_of, model, slow_norms
from torch import nn

from stabilitylab import Recorder, Run


@pytest.mark.parametrize("flush_steps", [1, 2, 50])
def test_parameters_that_appear_thaw_or_are_replaced_are_recorded_from_then_on(
    tmp_path: Path, flush_steps: int
) -> None:
    net = model()
    net[0].requires_grad_(False)
    optimizer = torch.optim.SGD([each for each in net.parameters() if each.requires_grad], 0.1)
    with Recorder(tmp_path / "r", net, optimizer, flush_steps=flush_steps) as recorder:
        for step in range(9):
            if step == 3:
                net[0].requires_grad_(True)
            if step == 5:
                net.append(nn.Linear(3, 3))
                optimizer.add_param_group({"params": list(net[3].parameters())})
            net.zero_grad()
            loss_of(net, step).backward()
            recorder.step()
            optimizer.step()
    run = Run(tmp_path / "r")
    frame = run["gradients.norm"]
    assert list(frame.columns) == ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
    assert list(frame.index) == list(range(9))
    assert frame["0.weight"].isna().tolist() == [True] * 3 + [False] * 6
    assert frame["3.weight"].isna().tolist() == [True] * 5 + [False] * 4
    assert (frame.iloc[5:] > 0).all(axis=None)
    assert list(run["updates.ratio"].index) == list(range(9))
    assert (run["updates.ratio"]["2.weight"] > 0).all()
    assert run.layers.names == ("0", "2", "3")


def test_replaced_parameters_are_recorded_from_the_next_flush_on(tmp_path: Path) -> None:
    net = model()
    with Recorder(tmp_path / "r", net, flush_steps=2) as recorder:
        for step in range(4):
            if step == 2:
                net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
            net.zero_grad()
            loss_of(net, step).backward()
            recorder.step()
            expected = slow_norms(net)
    frame = Run(tmp_path / "r")["gradients.norm"]
    np.testing.assert_allclose(frame.iloc[-1], expected, rtol=1e-5)
    assert (frame > 0).all(axis=None)


def test_layers_trained_by_turns_have_every_row_and_zeros_while_frozen(tmp_path: Path) -> None:
    net = model()
    net[0].requires_grad_(False)
    expected = []
    with Recorder(tmp_path / "r", net, flush_steps=5) as recorder:
        for step in range(12):
            net[0].requires_grad_(step % 2 == 1)
            net[2].requires_grad_(step % 2 == 0)
            loss_of(net, step).backward()
            recorder.step()
            taking = [each for each in net.parameters() if each.requires_grad]
            norms = {id(each): float(each.grad.norm()) for each in taking}
            expected.append([norms.get(id(each), 0.0) for each in net.parameters()])
            for each in taking[1:]:
                each.grad = None  # the first keeps an old gradient while it is frozen
            if step % 4 == 3:
                net.zero_grad()
    run = Run(tmp_path / "r")
    frame = run["gradients.norm"]
    assert list(frame.index) == list(range(12))
    assert "lost" not in run.header
    assert frame.iloc[0].isna().tolist() == [True, True, False, False]  # nothing was known of it yet
    np.testing.assert_allclose(frame.iloc[1:], expected[1:], rtol=1e-5)
    assert (frame.iloc[1:] == 0).any(axis=None)


def test_old_gradients_count_where_the_optimizer_uses_them_and_not_elsewhere(tmp_path: Path) -> None:
    for name, of_optimizer in (("held", (0, 2)), ("elsewhere", (2,))):
        net = model()
        optimizer = torch.optim.AdamW([each for at in of_optimizer for each in net[at].parameters()], 1e-3)
        expected, clipped = [], []
        with Recorder(tmp_path / name, net, optimizer, probes={"adam": {"every": 1}}) as recorder:
            for step in range(6):
                net[0].requires_grad_(step < 3)  # its gradients stay
                loss_of(net, step).backward()
                used = [each for group in optimizer.param_groups for each in group["params"]]
                used += [each for each in net[0].parameters() if step < 3 and name == "elsewhere"]
                norms = {id(each): float(each.grad.norm()) for each in used}
                expected.append([norms.get(id(each), 0.0) for each in net.parameters()])
                recorder.step(max_norm=0.1)
                clipped.append(min(1.0, 0.1 / float(nn.utils.clip_grad_norm_(used, 0.1))))
                optimizer.step()
                for each in net[2].parameters():
                    each.grad = None
        run = assert_recorded(tmp_path / name, expected)
        np.testing.assert_allclose(run["gradients.clip"]["coefficient"], clipped, rtol=1e-4)
        assert run.header["self_check"]["mistake"] == "passed"
        assert run.header["self_check"]["sentence"].count("5 steps") == 1


def test_a_run_whose_parameters_are_all_frozen_reads_zeros(tmp_path: Path) -> None:
    net = model()
    with Recorder(tmp_path / "r", net) as recorder:
        for step in range(6):
            net.zero_grad()
            net.requires_grad_(step % 2 == 0)
            if step % 2 == 0:
                loss_of(net, step).backward()
            recorder.step()
    frame = Run(tmp_path / "r")["gradients.norm"]
    assert list(frame.index) == list(range(6))
    assert (frame.iloc[1::2] == 0).all(axis=None)
    assert (frame.iloc[::2] > 0).all(axis=None)


def test_a_head_that_takes_the_place_of_another_is_recorded_at_once(tmp_path: Path) -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    expected = []
    with Recorder(tmp_path / "r", net, optimizer) as recorder:
        for step in range(9):
            if step == 4:
                net[2] = nn.Linear(8, 3)
                optimizer.param_groups[0]["params"] = list(net.parameters())
            net.zero_grad()
            loss_of(net, step).backward()
            expected.append(slow_norms(net))
            recorder.step()
            optimizer.step()
    assert_recorded(tmp_path / "r", expected)


def test_a_continued_run_knows_what_was_trained_before(tmp_path: Path) -> None:
    net = model()
    for first in (0, 3):
        net[0].requires_grad_(first == 0)
        with Recorder(tmp_path / "r", net, first_step=first) as recorder:
            for step in range(first, first + 3):
                net.zero_grad()
                loss_of(net, step).backward()
                recorder.step()
    frame = Run(tmp_path / "r")["gradients.norm"]
    assert list(frame.columns) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert (frame[["0.weight", "0.bias"]].iloc[3:] == 0).all(axis=None)
    assert (frame.iloc[:3] > 0).all(axis=None)


def test_lazy_modules_are_recorded_once_they_have_a_shape(tmp_path: Path) -> None:
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(3))
    with Recorder(tmp_path / "r", net) as recorder:
        for step in range(3):
            net.zero_grad()
            loss_of(net, step).backward()
            recorder.step()
            expected = slow_norms(net)
    frame = Run(tmp_path / "r")["gradients.norm"]
    assert list(frame.columns) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    np.testing.assert_allclose(frame.iloc[-1], expected, rtol=1e-5)

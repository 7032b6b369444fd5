"""Truth: norms and distances in float64, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import timm.optim
import timm.utils
import torch
from small_loop import build, only, training
from stabilitylab_probes import _pieces
from torch import Tensor, nn

from stabilitylab import InputError, Recorder, Run

# ---- weights


def test_the_norm_of_every_trainable_weight_before_the_update(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 3).bfloat16())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with Recorder(tmp_path / "r", model, optimizer, probes=only("weights", every=2)) as recorder:
        for _ in range(5):
            for each in model.parameters():
                each.grad = torch.randn_like(each)
            expected.append([each.detach().double().norm().item() for each in model.parameters() if each.requires_grad])
            recorder.step()
            optimizer.step()
    frame = Run(tmp_path / "r")["weights.norm"]
    assert list(frame.columns) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(frame.index) == [0, 2, 4]
    np.testing.assert_allclose(frame, expected[::2], rtol=1e-6)


# ---- teacher


def slow_distance(student: Tensor, teacher: Tensor) -> float:
    student, teacher = student.detach().double(), teacher.detach().double()
    return float((student - teacher).norm() / student.norm())


def test_the_distance_of_an_average_inside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pieces, "ENTRIES_ON_CPU", 50)
    net, optimizer = build()
    expected = []
    with Recorder(tmp_path / "r", net, optimizer, probes=only("teacher", every=1)) as recorder:
        for step in training(net, optimizer, 0, 20):
            expected.append([slow_distance(net.last.weight, net.momentum_last.weight)])
            expected[-1].append(slow_distance(net.last.bias, net.momentum_last.bias))
            recorder.step(**step)
    frame = Run(tmp_path / "r")["teacher.distance"]
    assert list(frame.columns) == ["last.weight", "last.bias"]
    assert (frame.loc[0] == 0).all()  # exactly
    assert (frame.loc[1:] > 0).all(axis=None)
    np.testing.assert_allclose(frame, expected, rtol=1e-5)


def average(net: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(net)


def exponential(net: nn.Module) -> nn.Module:
    return timm.utils.ModelEmaV3(net)  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [deepcopy, average, exponential])
def test_the_distance_of_a_teacher_beside_the_model(tmp_path: Path, make: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    teacher = make(net)
    with Recorder(tmp_path / "r", net, teacher=teacher, probes=only("teacher", every=1)) as recorder:
        recorder.step()
        with torch.no_grad():
            net[0].weight += 0.1
            net[2].bias.zero_()
        recorder.step()
    frame = Run(tmp_path / "r")["teacher.distance"]
    assert list(frame.columns) == [name for name, _ in net.named_parameters()]
    assert (frame.loc[0] == 0).all()  # also the bias of BatchNorm, which is zero in both
    old = dict(zip(frame.columns, teacher.parameters(), strict=True))
    assert frame.loc[1, "0.weight"] == pytest.approx(slow_distance(net[0].weight, old["0.weight"]), rel=1e-5)
    assert frame.loc[1, "2.bias"] == np.inf
    assert (frame.loc[1].drop(["0.weight", "2.bias"]) == 0).all()


def test_a_teacher_of_another_type_and_of_fewer_tensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)).bfloat16()
    teacher = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    with Recorder(tmp_path / "r", net, teacher=teacher, probes=only("teacher")) as recorder:
        recorder.step()
    frame = Run(tmp_path / "r")["teacher.distance"]
    assert list(frame.columns) == ["0.weight", "0.bias", "1.weight"]
    assert frame.loc[0, "1.weight"] == pytest.approx(slow_distance(net[1].weight, teacher[1].weight), rel=1e-5)


def test_two_teachers_of_one_model(tmp_path: Path) -> None:
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("backbone", "momentum_backbone", "ema_backbone")})
    with Recorder(tmp_path / "r", net, probes=only("teacher")) as recorder:
        recorder.step()
    frame = Run(tmp_path / "r")["teacher.distance"]
    assert set(frame.columns) == {
        f"{name}.{each}" for name in ("backbone", "ema_backbone") for each in ("weight", "bias")
    }
    expected = slow_distance(net["backbone"].weight, net["ema_backbone"].weight)
    assert frame.loc[0, "ema_backbone.weight"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("teacher", [None, nn.Linear(3, 3)], ids=["none", "of other names"])
def test_a_model_that_nothing_follows_is_refused(tmp_path: Path, teacher: nn.Module | None) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(InputError, match="'teacher' needs a module that follows the model"):
        Recorder(tmp_path / "r", net, teacher=teacher, probes=only("teacher"))

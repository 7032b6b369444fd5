"""Truth: the gradients themselves, in float64, at the moment of recording; torch's own clipping; the plain loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stabilitylab import InputError, Recorder, Run

FAST = {"knn": False, "spectrum": False}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def batch(step: int, samples: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(samples, 6, generator=generator), torch.randint(3, (samples,), generator=generator)


def loss_of(net: nn.Module, step: int) -> Tensor:
    images, labels = batch(step)
    return nn.functional.cross_entropy(net(images).float(), labels)


def slow_norms(net: nn.Module) -> list[float]:
    return [0.0 if p.grad is None else float(p.grad.double().norm()) for p in net.parameters() if p.requires_grad]


def assert_recorded(path: Path, expected: list[list[float]], rtol: float = 1e-5) -> Run:
    run = Run(path)
    np.testing.assert_allclose(run["gradients.norm"].to_numpy(), expected, rtol=rtol)
    np.testing.assert_allclose(run["gradients.total"]["total"], np.linalg.norm(expected, axis=1), rtol=rtol)
    return run


# ---- mixed precision


@pytest.mark.parametrize("unscale_before", [True, False], ids=["unscaled before", "unscaled after"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
def test_fp16_gradients_are_unscaled_and_the_step_that_overflows_is_recorded(
    tmp_path: Path, unscale_before: bool, fused: bool
) -> None:
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    expected, scales = [], []
    with Recorder(tmp_path / "r", net, optimizer, scaler=scaler) as recorder:
        for step in range(9):
            with torch.autocast("cpu", dtype=torch.float16):
                images, labels = batch(step)
                loss = nn.functional.cross_entropy(net(images * (1e30 if step == 4 else 1)).float(), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            factor = scaler.get_scale()
            if unscale_before:
                scaler.unscale_(optimizer)
                factor = 1.0
            expected.append([each / factor for each in slow_norms(net)])
            scales.append(scaler.get_scale())
            recorder.step(loss)
            scaler.step(optimizer)
            scaler.update()
    run = Run(tmp_path / "r")
    np.testing.assert_allclose(run["gradients.norm"].to_numpy(), expected, rtol=1e-3)
    assert not np.isfinite(run["gradients.total"]["total"].loc[4])
    assert run["training.scale"]["scale"].tolist() == scales
    assert {1.0, -1.0} <= set(np.sign(np.diff(scales)))  # it grew, and fell at the overflow
    assert run.header["self_check"]["mistake"] == "passed"


def test_a_disabled_scaler_is_no_scaler(tmp_path: Path) -> None:
    net = model()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with Recorder(tmp_path / "r", net, scaler=scaler) as recorder:
        loss_of(net, 0).backward()
        recorder.step(scale=4.0)
    run = assert_recorded(tmp_path / "r", [[each / 4 for each in slow_norms(net)]])
    assert run["training.scale"]["scale"].tolist() == [4.0]


def test_bfloat16_autocast_and_weights(tmp_path: Path) -> None:
    for net in (model(), model().bfloat16()):
        expected = []
        name = str(next(net.parameters()).dtype)
        with Recorder(tmp_path / name, net) as recorder:
            for step in range(3):
                net.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss_of(net, step).backward()
                expected.append(slow_norms(net))
                recorder.step()
        run = assert_recorded(tmp_path / name, expected, rtol=1e-5)
        assert run["gradients.norm"].dtypes.unique().tolist() == [np.dtype("float32")]


# ---- accumulation and clipping


def test_accumulated_gradients_are_one_row_a_step_and_equal_the_whole_batch(tmp_path: Path) -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    whole = []
    with Recorder(tmp_path / "r", net, optimizer) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            whole.append(slow_norms(net))
            optimizer.zero_grad()
            images, labels = batch(step)
            for part, goal in zip(images.chunk(4), labels.chunk(4), strict=True):
                (nn.functional.cross_entropy(net(part), goal) / 4).backward()
            recorder.step()
            optimizer.step()
    run = assert_recorded(tmp_path / "r", whole)
    assert list(run["gradients.norm"].index) == [0, 1, 2, 3]


@pytest.mark.parametrize("limit", [1e-3, 0.5, 1e6])
def test_norms_before_clipping_and_the_coefficient_of_torch(tmp_path: Path, limit: float) -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    expected, coefficients = [], []
    with Recorder(tmp_path / "r", net, optimizer) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            loss_of(net, step).backward()
            recorder.step(max_norm=limit)
            before = slow_norms(net)
            total = nn.utils.clip_grad_norm_(net.parameters(), limit)
            expected.append(before)
            coefficients.append(slow_norms(net)[0] / before[0])
            assert float(total) == pytest.approx(np.linalg.norm(before), rel=1e-5)
            optimizer.step()
    run = assert_recorded(tmp_path / "r", expected)
    np.testing.assert_allclose(run["gradients.clip"]["coefficient"], coefficients, rtol=1e-4)
    assert run.header["self_check"]["mistake"] == "passed"


# ---- parameters of every kind


def test_frozen_unused_and_tied_parameters(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 6, bias=False)
            self.frozen = nn.Linear(3, 3).requires_grad_(False)
            self.unused = nn.Linear(2, 2)
            self.decode = nn.Linear(3, 6, bias=False)
            self.decode.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.decode(self.frozen(x @ self.embed.weight))

    net = Tied()
    with Recorder(tmp_path / "r", net) as recorder:
        loss_of(net, 0).backward()
        recorder.step()
    frame = Run(tmp_path / "r")["gradients.norm"]
    assert list(frame.columns) == ["embed.weight", "unused.weight", "unused.bias"]
    assert frame["embed.weight"].iloc[0] == pytest.approx(float(net.decode.weight.grad.norm()), rel=1e-5)
    assert frame[["unused.weight", "unused.bias"]].to_numpy().tolist() == [[0.0, 0.0]]


def test_sparse_complex_and_double_gradients(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4, sparse=True)
            self.phase = nn.Parameter(torch.randn(4, dtype=torch.complex64))
            self.scale = nn.Parameter(torch.randn(4, dtype=torch.float64))

        def forward(self, index: Tensor) -> Tensor:
            return ((self.table(index) * self.phase).abs() * self.scale).sum()

    torch.manual_seed(0)
    net = Mixed()
    with Recorder(tmp_path / "r", net) as recorder:
        net(torch.tensor([1, 1, 3])).backward()
        recorder.step()
        dense = net.table.weight.grad.to_dense()
        whole = [net.phase.grad, net.scale.grad, dense]
        expected = [each.abs().norm() for each in whole]
        largest = [each.abs().max() for each in whole]
    run = Run(tmp_path / "r")
    np.testing.assert_allclose(run["gradients.norm"].iloc[0], [float(each) for each in expected], rtol=1e-5)
    np.testing.assert_allclose(run["gradients.max"].iloc[0], [float(each) for each in largest], rtol=1e-5)
    assert run.header["disabled"] == {}


def test_a_model_without_gradients_says_what_is_left_out(tmp_path: Path) -> None:
    net = model().requires_grad_(False)
    with Recorder(tmp_path / "r", net) as recorder:
        recorder.step(1.0)
    assert "needs a model with trainable parameters" in Run(tmp_path / "r").header["left_out"]["gradients"]
    with pytest.raises(InputError, match="the probe 'gradients' needs a model with trainable parameters"):
        Recorder(tmp_path / "s", net, probes={"gradients": {}})


def test_shards_that_hide_are_refused_by_name(tmp_path: Path) -> None:
    class FullyShardedDataParallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    with pytest.raises(InputError, match=r"the model is wrapped by FSDP1, which hides its shards; use .* \(FSDP2\)"):
        Recorder(tmp_path / "r", FullyShardedDataParallel(model()))
    net = model()
    net[0].weight.ds_id = 3
    with pytest.raises(InputError, match=r"0\.weight is partitioned by DeepSpeed"):
        Recorder(tmp_path / "r", net)
    assert not (tmp_path / "r").exists()


# ---- compiled and wrapped models


def in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def by_layer(net: nn.Sequential) -> nn.Module:
    net[0] = torch.compile(net[0], backend="eager")
    return net


@pytest.mark.parametrize("wrap", [lambda net: torch.compile(net, backend="eager"), in_place, by_layer])
def test_compiled_models_have_the_same_series_and_no_graph_break(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    runs = []
    for name, build in (("plain", lambda net: net), ("compiled", wrap)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()  # of other tests
        net = build(model())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with Recorder(tmp_path / name, net, optimizer, inputs=batch(0)[0]) as recorder:
            for step in range(4):
                optimizer.zero_grad()
                loss_of(net, step).backward()
                if step == 1:
                    compiled_once = dict(torch._dynamo.utils.counters["stats"])
                recorder.step()
                optimizer.step()
        assert not torch._dynamo.utils.counters["graph_break"]
        assert dict(torch._dynamo.utils.counters["stats"]) == compiled_once
        runs.append(Run(tmp_path / name))
    plain, compiled = runs
    assert plain.series == compiled.series
    assert plain.layers == compiled.layers
    for series in plain.series:
        np.testing.assert_allclose(plain[series], compiled[series], rtol=1e-4, atol=1e-7)
        assert list(plain[series].columns) == list(compiled[series].columns)


def test_a_parameter_may_have_any_name(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Parameter(torch.ones(2))
            self.step_size = nn.ParameterDict({"a/b c": nn.Parameter(torch.ones(2)), "é": nn.Parameter(torch.ones(1))})

    net = Odd()
    with Recorder(tmp_path / "r", net) as recorder:
        sum((each**2).sum() for each in net.parameters()).backward()
        recorder.step()
    frame = Run(tmp_path / "r")["gradients.norm"]
    assert list(frame.columns) == ["parameter step", "step_size.a/b c", "step_size.é"]
    np.testing.assert_allclose(frame.iloc[0], [8**0.5, 8**0.5, 2.0])

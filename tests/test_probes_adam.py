"""Truth: what real optimizers keep after their step, torch's own clipping, and the definitions in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from small_loop import only
from stabilitylab_probes import _pieces, adam
from torch import Tensor, nn

from stabilitylab import InputError, Recorder, Run


class Model(nn.Module):
    """Tensors of many kinds: channels last, of one entry, frozen, without a gradient, with a gradient of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
        self.weight = nn.Parameter(0.1 * torch.randn(30, 20))
        self.one = nn.Parameter(torch.randn(1))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3))
        self.still = nn.Parameter(torch.randn(5))
        self.last = nn.Parameter(torch.randn(7))


def model(dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(0)
    return Model().to(dtype)


def trainable(net: nn.Module) -> list[nn.Parameter]:
    return [each for each in net.parameters() if each.requires_grad]


def give_gradients(net: Model, step: int, scale: float = 1.0) -> None:
    """Gradients of very different sizes, some as small as eps; contiguous where the weight is not."""
    generator = torch.Generator().manual_seed(step)
    for name, each in net.named_parameters():
        if each.requires_grad and name != "unused":
            size = {"still": 0.0, "one": 3e-9, "last": 100.0 if step == 5 else 1e-3}.get(name, 0.02)
            gradient = size * torch.randn(each.shape, generator=generator, dtype=torch.float64)
            each.grad = (gradient * scale).to(each.dtype)


def kept(optimizer: Any, parameter: Tensor, name: str) -> np.ndarray:
    """A copy of what an optimizer keeps of a tensor, zeros before it has any."""
    state = optimizer.state.get(parameter, {})
    value = state[name] if name in state else torch.zeros_like(parameter)
    value = torch.view_as_real(value) if value.is_complex() else value
    return value.detach().double().flatten().numpy().copy()


def slow_rows(optimizer: Any, parameters: list[Tensor], update: Callable[[], Any], step: int) -> np.ndarray:
    """The five values of each tensor, from nothing but the moments before and after a real update, shape (5, tensors).

    v - beta2 v_before is (1 - beta2) g^2 with the very g that the optimizer averaged, and likewise for m.
    """
    before = [[kept(optimizer, each, name) for name in ("exp_avg", "exp_avg_sq")] for each in parameters]
    update()
    found = []
    for each, (m, v) in zip(parameters, before, strict=True):
        group = next(group for group in optimizer.param_groups if any(each is other for other in group["params"]))
        (beta1, beta2), eps = group["betas"], group["eps"]
        after = kept(optimizer, each, "exp_avg_sq")
        squares = (after - beta2 * v) / (1 - beta2)
        gradient = (kept(optimizer, each, "exp_avg") - beta1 * m) / (1 - beta1)
        rms = []
        for second, updates in ((after, step + 1), (v, step)):
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = squares / np.maximum(second / (1 - np.float64(beta2) ** updates), eps**2)
            rms.append(np.sqrt(ratio.mean()))
        with np.errstate(invalid="ignore"):
            cosine = gradient @ m / (np.linalg.norm(gradient) * np.linalg.norm(m))
        found.append([*rms, np.linalg.norm(m), np.linalg.norm(v), cosine])
    return np.array(found).T


SERIES = ["adam.rms", "adam.rms_before", "adam.first_moment", "adam.second_moment", "adam.cosine"]
STEPS = 8
UNUSED, USED = 3, [0, 1, 2, 4, 5]
"""Columns of the tensors without and with a gradient."""

MAKERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw": lambda each: torch.optim.AdamW(each, lr=1e-3, foreach=False),
    "adamw foreach": lambda each: torch.optim.AdamW(each, lr=1e-3, betas=(0.9, 0.95), foreach=True),
    "adamw fused": lambda each: torch.optim.AdamW(each, lr=1e-3, fused=True),
    "adamw amsgrad": lambda each: torch.optim.AdamW(each, lr=1e-3, amsgrad=True),
    "adamw maximize": lambda each: torch.optim.AdamW(each, lr=1e-3, maximize=True),
    "adam": lambda each: torch.optim.Adam(each, lr=1e-3, eps=1e-4),
    "adam that decays": lambda each: torch.optim.Adam(each, lr=1e-3, weight_decay=0.1),
    "nadam that decays": lambda each: torch.optim.NAdam(each, lr=1e-3, weight_decay=0.1),
    "radam": lambda each: torch.optim.RAdam(each, lr=1e-3, weight_decay=0.1, decoupled_weight_decay=True),
    "timm adamw": lambda each: timm.optim.AdamWLegacy(each, lr=1e-3, weight_decay=0.1),
    "timm nadamw": lambda each: timm.optim.NAdamW(each, lr=1e-3, weight_decay=0.1),
    "timm adamp": lambda each: timm.optim.AdamP(each, lr=1e-3, weight_decay=0.1),
    "timm lamb, which clips": lambda each: timm.optim.Lamb(each, lr=1e-3, max_grad_norm=0.5),
    "two groups": lambda each: torch.optim.AdamW(
        [{"params": each[::2], "betas": (0.9, 0.5), "eps": 1e-3}, {"params": each[1::2]}], lr=1e-3
    ),
}


def recorded(run: Run) -> np.ndarray:
    return np.stack([run[series].to_numpy() for series in SERIES], axis=1)


def loop(path: Path, net: Model, optimizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """What is recorded and what is true, shapes (steps, 5, tensors)."""
    expected = []
    with Recorder(path, net, optimizer, probes=only("adam", every=1)) as recorder:
        for step in range(STEPS):
            give_gradients(net, step)
            recorder.step()
            expected.append(slow_rows(optimizer, trainable(net), optimizer.step, step))
    return recorded(Run(path)), np.array(expected)


@pytest.mark.parametrize("name", MAKERS)
def test_the_moments_of_a_real_step(tmp_path: Path, name: str) -> None:
    net = model()
    if "fused" in name:  # torch's fused kernel takes weights and gradients to have the same strides
        net.images.data = net.images.data.contiguous()
    found, expected = loop(tmp_path / "r", net, MAKERS[name](trainable(net)))
    assert np.isnan(found[0]).all()  # no moments yet
    assert np.isnan(found[:, :, UNUSED]).all()
    # the twin's differences of moments keep ten digits; of the smallest gradients fewer
    np.testing.assert_allclose(found[1:, :, USED], expected[1:, :, USED], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [1, 7, 64, 250])
def test_pieces_of_tensors_give_what_whole_tensors_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(_pieces, "ENTRIES_ON_CPU", size)
    net = model()
    found, expected = loop(tmp_path / "r", net, torch.optim.AdamW(trainable(net), lr=1e-3))
    np.testing.assert_allclose(found[1:, :, USED], expected[1:, :, USED], rtol=1e-6, atol=1e-9)


def test_numbers_that_only_the_device_knows_and_sums_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam, "_on_host", torch.as_tensor)  # as a fused optimizer on a GPU keeps the number of updates
    monkeypatch.setattr(_pieces, "one_by_one", _pieces.fused)
    monkeypatch.setattr(_pieces, "ENTRIES_ON_CPU", 250)
    net = model()
    found, expected = loop(tmp_path / "r", net, torch.optim.AdamW(trainable(net), lr=1e-3))
    np.testing.assert_allclose(found[1:, :, USED], expected[1:, :, USED], rtol=1e-6, atol=1e-9)


def formula(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> list[float]:
    """The five values of a tensor by their definitions, in float64."""
    as_real = torch.view_as_real if parameter.is_complex() else torch.Tensor.detach
    assert parameter.grad is not None
    g, m, v = (as_real(each).double() for each in (parameter.grad, state["exp_avg"], state["exp_avg_sq"]))
    beta, updates = group["betas"][1], int(state["step"])
    values = []
    for second, count in ((beta * v + (1 - beta) * g**2, updates + 1), (v, updates)):
        corrected = (second / (1 - beta**count)).clamp(min=group["eps"] ** 2)
        values.append(float((g**2 / corrected).mean().sqrt()))
    return [*values, float(m.norm()), float(v.norm()), float((g * m).sum() / (g.norm() * m.norm()))]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-5), (torch.complex64, 2e-5)], ids=str
)
def test_other_kinds_of_numbers(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    net = nn.ParameterList([nn.Parameter(torch.randn(5, 6).to(dtype)), nn.Parameter(torch.randn(3).to(dtype))])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    expected = []
    with Recorder(tmp_path / "r", net, optimizer, probes=only("adam", every=1)) as recorder:
        for step in range(4):
            for each in net:
                each.grad = 0.01 * torch.randn_like(each)
            if step:
                expected.append([formula(each, optimizer.state[each], optimizer.param_groups[0]) for each in net])
            recorder.step()
            optimizer.step()
    found = recorded(Run(tmp_path / "r"))
    np.testing.assert_allclose(found[1:], np.array(expected).swapaxes(1, 2), rtol=tolerance, atol=1e-7)
    assert found.dtype == np.float32


@pytest.mark.parametrize("limit", [0.05, 1e6], ids=["clips", "does not clip"])
def test_scaled_gradients_are_unscaled_and_clipped_as_torch_clips_them(tmp_path: Path, limit: float) -> None:
    net = model()
    optimizer = torch.optim.AdamW(trainable(net), lr=1e-3)
    expected = []

    def update() -> None:
        for each in trainable(net):
            if each.grad is not None:
                each.grad /= 1024
        torch.nn.utils.clip_grad_norm_(net.parameters(), limit)
        optimizer.step()

    with Recorder(tmp_path / "r", net, optimizer, probes=only("adam", every=1), self_check=0) as recorder:
        for step in range(STEPS):
            give_gradients(net, step, scale=1024.0)
            recorder.step(scale=torch.tensor(1024.0) if step % 2 else 1024.0, max_norm=limit)
            expected.append(slow_rows(optimizer, trainable(net), update, step))
    found = recorded(Run(tmp_path / "r"))
    np.testing.assert_allclose(found[1:, :, USED], np.array(expected)[1:, :, USED], rtol=1e-6, atol=1e-9)


def test_a_spike_is_limited_after_the_update_and_not_before(tmp_path: Path) -> None:
    net = nn.Linear(20, 20)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.99))
    with Recorder(tmp_path / "r", net, optimizer, probes=only("adam", every=1)) as recorder:
        for step in range(100):
            for each in net.parameters():
                each.grad = torch.full_like(each, 1e4 if step == 80 else 1e-3)
            recorder.step()
            optimizer.step()
    run = Run(tmp_path / "r")
    after, before = run["adam.rms"], run["adam.rms_before"]
    np.testing.assert_allclose(after.loc[1:79], 1, rtol=1e-5)  # a constant gradient is what v has averaged
    np.testing.assert_allclose(before.loc[1:79], 1, rtol=1e-5)
    assert (after.loc[80] <= 1 / np.sqrt(1 - 0.99)).all()
    np.testing.assert_allclose(after.loc[80], np.sqrt((1 - 0.99**81) / (1 - 0.99)), rtol=1e-5)  # its limit
    np.testing.assert_allclose(before.loc[80], 1e7, rtol=1e-4)
    np.testing.assert_allclose(run["adam.cosine"].loc[1:], 1, rtol=1e-5)


def test_a_tensor_whose_gradient_is_zero_or_missing_or_not_finite(tmp_path: Path) -> None:
    net = nn.ParameterDict({name: torch.ones(3) for name in ("zero", "missing", "nan", "inf")})
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0, weight_decay=0.1)  # which adds nothing to a missing one
    with Recorder(tmp_path / "r", net, optimizer, probes=only("adam", every=1), self_check=0) as recorder:
        for step in range(2):
            for name, each in net.items():
                each.grad = torch.ones(3)
                if step:
                    each.grad[0] = {"zero": 1.0, "missing": 1.0, "nan": float("nan"), "inf": float("inf")}[name]
            if step:
                net["missing"].grad = None
                net["zero"].grad = -0.1 * net["zero"].detach()  # cancels the decay
            recorder.step()
            optimizer.step()
    run = Run(tmp_path / "r")
    last = {series: run[series].loc[1] for series in SERIES}
    for name in ("zero", "missing"):
        assert (last["adam.rms"][name], last["adam.rms_before"][name]) == (0, 0)
        assert np.isnan(last["adam.cosine"][name])
        assert last["adam.first_moment"][name] == pytest.approx(0.11 * np.sqrt(3), rel=1e-6)
    assert np.isnan([last[series]["nan"] for series in ("adam.rms", "adam.rms_before", "adam.cosine")]).all()
    assert np.isinf(last["adam.rms_before"]["inf"])
    assert np.isnan(last["adam.rms"]["inf"])


def test_a_recording_that_begins_later_has_moments_at_once(tmp_path: Path) -> None:
    net = model()
    optimizer = torch.optim.AdamW(trainable(net), lr=1e-3)
    give_gradients(net, 0)
    optimizer.step()
    with Recorder(tmp_path / "r", net, optimizer, probes=only("adam", every=1)) as recorder:
        recorder.step()
    assert Run(tmp_path / "r")["adam.rms"]["weight"].notna().all()


@pytest.mark.parametrize(
    "make",
    [
        *(getattr(torch.optim, name) for name in ("SGD", "Adagrad", "Adamax", "RMSprop", "SparseAdam")),
        *(getattr(timm.optim, name) for name in ("Lion", "AdaBelief", "Adopt", "Adan", "NvNovoGrad", "Mars")),
    ],
)
def test_another_optimizer_is_refused_by_its_name(tmp_path: Path, make: Any) -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(InputError, match=f"averages gradients and their squares .* {make.__name__} does not"):
        Recorder(tmp_path / "r", net, make(net.parameters(), lr=1e-3), probes=only("adam", every=1))
    with Recorder(tmp_path / "r", net, make(net.parameters(), lr=1e-3)) as recorder:
        recorder.step()
    assert make.__name__ in Run(tmp_path / "r").header["left_out"]["adam"]


def test_an_optimizer_that_is_missing_or_holds_other_parameters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs the optimizer"):
        Recorder(tmp_path / "r", nn.Linear(2, 2), probes=only("adam", every=1))
    with pytest.raises(InputError, match="parameters of the model itself"):
        Recorder(
            tmp_path / "r",
            nn.Linear(2, 2),
            torch.optim.AdamW(nn.Linear(2, 2).parameters()),
            probes=only("adam", every=1),
        )


def test_an_optimizer_that_only_looks_like_adam_is_found_out_when_it_has_a_state(tmp_path: Path) -> None:
    class Quantized(torch.optim.Optimizer):
        def step(self, closure: Any = None) -> None:
            for each in self.param_groups[0]["params"]:
                self.state[each]["state1"] = torch.zeros(1)

    net = nn.Linear(2, 2)
    optimizer = Quantized(net.parameters(), {"betas": (0.9, 0.999), "eps": 1e-8})
    with Recorder(tmp_path / "r", net, optimizer, probes=only("adam", every=1), self_check=0) as recorder:
        recorder.step()
        optimizer.step()
        with pytest.warns(UserWarning, match="'adam' failed at step 1 and is off now: .*Quantized does not"):
            recorder.step()

"""Truth: torch's and timm's own clipping, slow twins in float64 from the papers, and the gradients themselves."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_optimizers import OF_TIMM
from test_training import Quiet, go
from timm.utils.agc import adaptive_clip_grad
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from stabilitylab.layers import layers_of
from stabilitylab.training.optimizers import Optimizer
from stabilitylab.training.optimizers import build as build_optimizer
from stabilitylab.training.stabilizers import Stabilize, Stabilizers, zclip


def model(seed: int = 0, scale: float = 3.0) -> nn.Module:
    """A model with gradients."""
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    for each in made.parameters():
        each.grad = scale * torch.randn_like(each)
    return made


def stabilizers(made: nn.Module, optimizer: Any = None, **config: Any) -> Stabilizers:
    named = dict(made.named_parameters())
    optimizer = optimizer or torch.optim.SGD(made.parameters(), lr=0.1)
    return Stabilizers(Stabilize(**config), named, layers_of(named), optimizer)


def gradients(made: nn.Module) -> list[Tensor]:
    return [each.grad.clone() for each in made.parameters() if each.grad is not None]


def equal(left: nn.Module, right: nn.Module) -> None:
    for a, b in zip(gradients(left), gradients(right), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("limit", [0.5, 1e4])
def test_a_total_norm_is_clipped_as_torch_does(limit: float) -> None:
    ours, theirs = model(), model()
    found = stabilizers(ours, clip="norm", threshold=limit)
    found.apply(0)
    total = clip_grad_norm_(theirs.parameters(), limit)
    equal(ours, theirs)
    assert found.labels == {"coefficient": ["total"]}
    assert found.latest["coefficient"].tolist() == pytest.approx([min(1.0, limit / float(total))], rel=1e-5)


def test_layers_and_the_stem_are_clipped_apart() -> None:
    ours, theirs = model(), model()
    found = stabilizers(ours, clip="layer", threshold=2.0, stem_clip=0.25)
    found.apply(0)
    norms = [float(clip_grad_norm_(theirs[at].parameters(), 2.0)) for at in range(3)]
    clip_grad_norm_(theirs[0].parameters(), 0.25)
    equal(ours, theirs)
    assert found.labels == {"coefficient": ["0", "1", "2"], "first_layer": ["coefficient"]}
    assert found.latest["coefficient"].tolist() == pytest.approx([min(1, 2 / norm) for norm in norms], rel=1e-5)
    assert found.latest["first_layer"].tolist() == pytest.approx([0.25 / 2], rel=1e-5)


def test_adaptive_clipping_is_timms_and_tells_what_it_did() -> None:
    ours, theirs = model(), model()
    before = gradients(ours)
    found = stabilizers(ours, clip="agc", threshold=0.1)
    found.apply(0)
    adaptive_clip_grad(list(theirs.parameters()), 0.1)
    equal(ours, theirs)
    ratio = [float(a.norm() / b.norm()) for a, b in zip(gradients(ours), before, strict=True)]
    assert found.labels == {"coefficient": [name for name, _ in ours.named_parameters()]}
    assert found.latest["coefficient"].tolist() == pytest.approx(ratio, rel=1e-5)
    assert min(ratio) < 0.5


def zclip_twin(norms: list[float], threshold: float, memory: float, warmup: int) -> list[float]:
    """The norms after clipping, from the paper: mean and variance of the first ones, then moving averages."""
    out: list[float] = []
    for at, norm in enumerate(norms):
        if at < warmup:
            out.append(norm)
            mean, variance = float(np.mean(norms[: at + 1])), float(np.var(norms[: at + 1]))
            continue
        z = (norm - mean) / math.sqrt(variance)
        clipped = mean + threshold**2 / z * math.sqrt(variance) if z > threshold else norm
        mean = memory * mean + (1 - memory) * clipped
        variance = memory * variance + (1 - memory) * (clipped - mean) ** 2
        out.append(clipped)
    return out


def test_zclip_against_its_twin() -> None:
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(0, 0.2, 300)) * np.linspace(1, 0.3, 300)
    norms[[60, 61, 62, 150, 220]] *= [20, 8, 3, 100, 4]
    expected = zclip_twin([float(np.float32(each)) for each in norms], 2.5, 0.97, 25)
    moments, found = torch.zeros(3), []
    for norm in torch.tensor(norms, dtype=torch.float32):
        factor, moments = zclip(norm, moments, 2.5, 0.97, 25)
        found.append(float(factor * norm))
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert 5 <= np.sum(np.array(found) < norms * 0.999) < 30


@pytest.mark.parametrize("norm", [math.inf, math.nan, 0.0, 1e-20])
def test_zclip_leaves_alone_what_it_cannot_judge(norm: float) -> None:
    moments = torch.tensor([1.0, 0.04, 30.0])
    factor, after = zclip(torch.tensor(norm), moments, 2.5, 0.97, 25)
    assert float(factor) == 1
    assert bool(after.isfinite().all())
    if not math.isfinite(norm):
        assert torch.equal(after, moments)


@pytest.mark.parametrize("unit", [1e20, 1e30])  # whose squares leave single precision
@pytest.mark.parametrize("clip", ["norm", "layer", "zclip"])
def test_huge_gradients_are_clipped_as_others_are(clip: str, unit: float) -> None:
    coefficients = []
    for scale in (1.0, unit):
        ours = model()
        before = gradients(ours)
        found = stabilizers(ours, clip=clip, threshold=1.5 if clip == "zclip" else 0.5 * scale, zclip_warmup=4)
        for step, factor in enumerate([1.0, 1.1, 0.9, 1.0, 1.05, 40.0]):
            for each, gradient in zip(ours.parameters(), before, strict=True):
                each.grad = gradient * (factor * scale)
            found.apply(step)
        coefficients.append(found.latest["coefficient"])
    torch.testing.assert_close(coefficients[1], coefficients[0], rtol=1e-3, atol=0)
    assert float(coefficients[0].min()) < 0.1


@pytest.mark.parametrize("norm", [1e19, 1e25, 3e38])
def test_zclip_of_single_precision_stays_finite(norm: float) -> None:
    moments = torch.zeros(3)
    for step in range(40):
        factor, moments = zclip(torch.tensor(norm * (1 + 0.1 * (step % 3)) / 1.3), moments, 2.5, 0.97, 25)
        assert bool(moments.isfinite().all())
        assert 0 < float(factor) <= 1


@pytest.mark.parametrize("clip", ["norm", "layer", "agc", "zclip"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_stays_so(clip: str, value: float) -> None:
    ours = model()
    ours[2].weight.grad[1, 1] = value
    found = stabilizers(ours, clip=clip)
    found.apply(0)
    assert not math.isfinite(float(ours[2].weight.grad[1, 1]))
    if clip == "layer":  # the other layers are clipped as ever
        assert float(ours[0].weight.grad.norm()) < 1.01
    if clip != "agc":
        assert all(math.isfinite(each) for each in found.latest["coefficient"].tolist())


def test_layers_without_gradient_are_left_alone() -> None:
    ours = model()
    for each in ours[1].parameters():
        each.grad = None
    for clip in ("norm", "layer", "agc", "zclip"):
        found = stabilizers(ours, clip=clip)
        found.apply(0)
        assert len(found.latest["coefficient"]) == len(found.labels["coefficient"])
    elsewhere = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).to("meta")  # any device that is not the CPU
    for each in elsewhere[0].parameters():
        each.grad = torch.ones_like(each)
    found = stabilizers(elsewhere, clip="layer", stem_clip=1.0)
    found.apply(0)
    assert found.latest["coefficient"].device.type == "meta"


@pytest.mark.parametrize("name", ["stableadamw", *OF_TIMM])
def test_a_reset_optimizer_goes_on_as_a_new_one(name: str) -> None:
    torch.manual_seed(0)
    data = [torch.randn(5, 6) for _ in range(8)]
    ours = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    config = Optimizer(name=name, lr=1e-2, weight_decay=0.01)

    def step(made: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
        optimizer.zero_grad()
        made(x).square().mean().backward()
        optimizer.step()

    optimizer = build_optimizer(config, list(ours.parameters()), 256)
    found = stabilizers(ours, optimizer, reset_every=4, reset_warmup=0)
    for x in data[:4]:
        step(ours, optimizer, x)
    fresh = deepcopy(ours)
    found.apply(3)
    found.apply(4)
    new = build_optimizer(config, list(fresh.parameters()), 256)
    for x in data[4:]:
        step(ours, optimizer, x)
        step(fresh, new, x)
    for a, b in zip(ours.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_rate_rises_again_after_a_reset() -> None:
    found = stabilizers(model(), reset_every=100, reset_warmup=50)
    for step in (0, 30, 99):
        assert found.rate_factor(step) == 1
    for step in (100, 110, 149, 150, 199, 200, 225):
        since = step % 100
        expected = (1 - math.cos(math.pi * since / 50)) / 2 if since < 50 else 1
        assert found.rate_factor(step) == pytest.approx(expected), step
    # never so long that the whole rate is not reached
    assert stabilizers(model(), reset_every=100, reset_warmup=1000).rate_factor(199) > 0.99


def test_what_stableadamw_does_to_the_update_of_each_tensor_is_told() -> None:
    made = model()
    config = Optimizer(name="stableadamw", lr=1e-2, weight_decay=0.0, betas=(0.9, 0.999))
    optimizer = build_optimizer(config, list(made.parameters()), 256)
    found = stabilizers(made, optimizer)
    named = dict(made.named_parameters())
    assert found.labels == {"update": list(named)}
    clipped = 0
    for step in range(8):
        for name, each in named.items():
            each.grad = torch.randn_like(each) * (30 if step == 5 and name == "0.weight" else 1)
        named["2.bias"].grad = None
        before = {name: each.detach().double() for name, each in named.items()}
        found.apply(step)
        optimizer.step()
        told = dict(zip(found.labels["update"], found.latest["update"].tolist(), strict=True))
        for name, each in named.items():
            state = optimizer.state[each]
            if name == "2.bias":
                assert math.isnan(told[name])
                continue
            whole = 1e-2 * state["exp_avg"].double() / (state["exp_avg_sq"].double().sqrt() + 1e-8)
            change = before[name] - each.detach().double()
            assert told[name] == pytest.approx(float(change.norm() / whole.norm()), rel=1e-3), (step, name)
            clipped += told[name] < 1
        if step == 5:
            assert told["0.weight"] < 0.6
    assert 0 < clipped < 8 * 5


def test_resets_and_skipped_updates_are_told() -> None:
    made = model()
    optimizer = build_optimizer(Optimizer(name="stableadamw", lr=1e-2), list(made.parameters()), 256)
    found = stabilizers(made, optimizer, reset_every=3)
    told = []
    for step in range(8):
        found.apply(step)
        told.append(found.latest["reset"][0])
        assert found.latest["update"].isnan().all()  # no optimizer took a step
    assert told == [0, 0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("clip", ["norm", "agc"])
def test_gradients_are_recorded_before_they_are_clipped(tmp_path: Path, clip: str) -> None:
    settings = {"stabilize__clip": clip, "stabilize__threshold": 1e-3, "stabilize__stem_clip": 1e-4}
    settings |= {"train__steps": 6, "schedule__warmup_steps": 0}
    _, plain = go(tmp_path / "plain", train__steps=6, schedule__warmup_steps=0)
    outcome, run = go(tmp_path / "clipped", Quiet(), **settings)
    assert outcome.status == "completed"
    # the first step has the same weights, and its gradients do not know that they will be clipped
    np.testing.assert_array_equal(run["gradients.norm"].iloc[0], plain["gradients.norm"].iloc[0])
    told = run["stabilizers.coefficient"]
    assert list(told.index) == list(range(6))
    norms = np.square(run["gradients.norm"])
    total, stem = (np.sqrt(each.sum(axis=1)) for each in (norms, norms.filter(like="patch_embed")))
    if clip == "norm":
        np.testing.assert_allclose(told["total"], 1e-3 / total, rtol=1e-3)
        first = run["stabilizers.first_layer"]["coefficient"]
        np.testing.assert_allclose(first, np.minimum(1, 1e-4 / (stem * told["total"])), rtol=1e-2)
        assert (first < 1).any()
    assert run.header["self_check"]["mistake"] == "passed"

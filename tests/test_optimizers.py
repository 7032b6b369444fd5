"""Truth: the rules of the groups written out by name, timm's own layer-wise decay, and updates by their formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import list_optimizers, param_groups_layer_decay
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.layers import layers_of
from stabilitylab.models import vit
from stabilitylab.parameters import validated
from stabilitylab.training.checkpoint import State, load, save
from stabilitylab.training.optimizers import Optimizer, build, groups_of, rate_of
from stabilitylab.training.packing import pack, unpack

ORDER = ("patch_embed", "tokens", "blocks.0", "blocks.1", "blocks.2", "norm")


def backbone() -> nn.Module:
    torch.manual_seed(0)
    model = vit.Model(dim=16, depth=3, heads=4, patch_size=4, positions="learned", registers=1)
    return vit.build(model, 8, 1)


def layer(name: str) -> str:
    """The layer of a parameter, as a person would say."""
    if name in ("cls_token", "pos_embed", "reg_token"):
        return "tokens"
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "blocks" else parts[0]


def treatment(config: Optimizer, model: nn.Module) -> dict[str, tuple[float, float, bool]]:
    """Weight decay, factor and whether it is the stem, of each parameter by name."""
    named = dict(model.named_parameters())
    groups = groups_of(config, named, layers_of(named))
    of = {
        id(each): (group["weight_decay"], group["lr_scale"], group["stem"])
        for group in groups
        for each in group["params"]
    }
    assert sum(len(group["params"]) for group in groups) == len(of) == len(named)
    return {name: of[id(each)] for name, each in named.items()}


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"decay_all": False},
        {"layer_decay": 0.5},
        {"stem_factor": 0.1},
        {"stem_factor": 0.0, "layer_decay": 0.7, "decay_all": False},
        {"stem_frozen_after": 10, "layer_decay": 0.9},
    ],
    ids=str,
)
def test_groups_by_their_description(rules: dict[str, Any]) -> None:
    config, model = Optimizer(lr=1.0, weight_decay=0.05, **rules), backbone()
    found = treatment(config, model)
    for name, each in model.named_parameters():
        decays = rules.get("decay_all", True) or not (each.ndim == 1 or layer(name) == "tokens")
        factor = rules.get("layer_decay", 1.0) ** (len(ORDER) - 1 - ORDER.index(layer(name)))
        stem = layer(name) == "patch_embed" and len(rules.keys() & {"stem_factor", "stem_frozen_after"}) > 0
        factor *= rules.get("stem_factor", 1.0) if stem else 1.0
        assert found[name] == (0.05 if decays else 0.0, pytest.approx(factor), stem), name
    if not rules:
        named = dict(model.named_parameters())
        assert len(groups_of(config, named, layers_of(named))) == 1


def test_layer_wise_decay_is_timms_between_the_blocks() -> None:
    model: Any = backbone()
    theirs: dict[str, tuple[float, float]] = {}
    names = {id(each): name for name, each in model.named_parameters()}
    no_decay = [*model.no_weight_decay(), "reg_token"]
    for group in param_groups_layer_decay(model, 0.05, no_weight_decay_list=no_decay, layer_decay=0.6):
        theirs |= {names[id(each)]: (group["weight_decay"], group["lr_scale"]) for each in group["params"]}
    ours = treatment(Optimizer(lr=1.0, weight_decay=0.05, layer_decay=0.6, decay_all=False), model)
    assert {name: decay for name, (decay, _) in theirs.items()} == {name: each[0] for name, each in ours.items()}
    # timm has tokens and patches in one layer, and the norm in that of the last block: the blocks are what compares
    for name in theirs:
        if name.startswith("blocks"):
            ratio = theirs[name][1] / theirs["blocks.2.norm1.weight"][1]
            assert ours[name][1] / ours["blocks.2.norm1.weight"][1] == pytest.approx(ratio), name


def test_the_stem_stops_at_its_step() -> None:
    config = Optimizer(lr=1.0, stem_factor=0.5, stem_frozen_after=10)
    stem, rest = ({"stem": each, "lr_scale": 0.5 if each else 1.0} for each in (True, False))
    assert [rate_of(config, stem, 0.2, step) for step in (0, 9, 10, 11)] == [0.1, 0.1, 0.0, 0.0]
    assert [rate_of(config, rest, 0.2, step) for step in (0, 10)] == [0.2, 0.2]


# ---- one step of each, by its formula; g is the first gradient, so that moments are g and g^2 after the correction

LR, DECAY = 0.01, 0.1


def adam(w: Tensor, g: Tensor) -> Tensor:
    return w * (1 - LR * DECAY) - LR * g / (g.abs() + 1e-8)


def stable_adamw(w: Tensor, g: Tensor) -> Tensor:
    rms = (g.square() / g.square().clamp_min(1e-16)).mean().sqrt()
    rate = LR / max(1.0, float(rms))
    return w * (1 - rate * DECAY) - rate * g / (g.abs() + 1e-8)


def lion(w: Tensor, g: Tensor) -> Tensor:
    return w * (1 - LR * DECAY) - LR * g.sign()


def sgd(w: Tensor, g: Tensor) -> Tensor:
    return w - LR * (g + DECAY * w)


def lars(w: Tensor, g: Tensor) -> Tensor:
    trust = 0.001 * w.norm() / (g.norm() + DECAY * w.norm())
    return w - LR * trust * (g + DECAY * w)


def lamb(w: Tensor, g: Tensor) -> Tensor:
    total = g.norm().clamp_min(1.0)  # timm scales gradients to a total norm of one at most
    update = (g / total) / ((g / total).abs() + 1e-8) + DECAY * w
    return w - LR * w.norm() / update.norm() * update


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "adamw": adam, "stableadamw": stable_adamw, "lion": lion, "sgd": sgd, "lars": lars, "lamb": lamb,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_the_first_step_by_its_formula(name: str) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 5))
    gradient = 0.1 * torch.randn(6, 5)
    expected = FORMULAS[name](weight.detach().double(), gradient.double()).float()
    optimizer = build(Optimizer(name=name, lr=LR, weight_decay=DECAY), [weight], 256)
    weight.grad = gradient.clone()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)


def test_muon_turns_a_matrix_by_nearly_equal_amounts() -> None:
    """Its update has singular values near one (Jordan et al., 2024); a vector is left to AdamW."""
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.randn(16))
    before = weight.detach().clone()
    weight.grad, bias.grad = torch.randn(16, 4) @ torch.randn(4, 16), torch.randn(16)
    build(Optimizer(name="muon", lr=LR, weight_decay=0.0), [weight, bias], 256).step()
    singular = torch.linalg.svdvals(before - weight.detach())
    assert float(singular[0] / singular[3]) < 2.5
    assert torch.linalg.svdvals(weight.grad)[0] / torch.linalg.svdvals(weight.grad)[3] > 2.5


@pytest.mark.parametrize("name", ["adamw", "stableadamw", "lion", "muon", "lamb", "lars", "sgd", "nadamw", "adafactor"])
def test_a_group_goes_at_its_own_rate(name: str) -> None:
    torch.manual_seed(0)
    parts = [nn.Parameter(torch.randn(4, 3)) for _ in range(2)]
    groups = [{"params": [each], "weight_decay": 0.0, "lr_scale": 1.0, "stem": False} for each in parts]
    optimizer = build(Optimizer(name=name, lr=LR), groups, 256)
    optimizer.param_groups[0]["lr"] = 0.0
    before = [each.detach().clone() for each in parts]
    for each in parts:
        each.grad = torch.randn_like(each)
    optimizer.step()
    assert torch.equal(parts[0], before[0])
    assert not torch.equal(parts[1], before[1])


def test_what_is_wrong_is_said() -> None:
    for values, message in (
        ({"name": "adamx", "lr": 1}, "no optimizer is named 'adamx'; did you mean adam"),
        ({"lr": 1, "layer_decay": 0}, "optimizer.layer_decay was 0"),
        ({"lr": 1, "betas": [0.9, 1.0]}, "optimizer.betas"),
        ({}, "give either lr or base_lr"),
    ):
        with pytest.raises(InputError, match=message):
            validated(Optimizer, values, "optimizer")


OF_TIMM = [
    name
    for name in map(str, list_optimizers())
    if not name.startswith(("bnb", "fused", "kron")) and name != "adahessian"  # CUDA, a compiler, second derivatives
]


@pytest.mark.parametrize("name", OF_TIMM)
def test_every_optimizer_of_timm_steps(name: str) -> None:
    weights = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
    optimizer = build(validated(Optimizer, {"name": name, "lr": 0.01}, "optimizer"), weights, 32)
    for weight in weights:
        weight.grad = torch.linspace(0.1, 1, weight.numel()).view_as(weight)
    for _ in range(8):  # some begin with a step of zero
        optimizer.step()
    assert all(bool((weight != 1).any()) and bool(weight.isfinite().all()) for weight in weights)


@pytest.mark.parametrize("name", ["stableadamw", *OF_TIMM])
def test_every_optimizer_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(name: str, tmp_path: Path) -> None:
    def made() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        weights = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))]
        return weights, build(Optimizer(name=name, lr=0.01), weights, 32)

    def steps(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer.step()

    weights, optimizer = made()
    steps(weights, optimizer, range(5))
    state = State(5, {str(at): each for at, each in enumerate(weights)}, optimizer.state_dict(), {}, {})
    read = load(save(tmp_path, state, {}, {}, 1))
    others, other = made()
    with torch.no_grad():
        for at, each in enumerate(others):
            each.copy_(read.model[str(at)])
    other.load_state_dict(dict(read.optimizer))
    steps(weights, optimizer, range(5, 9))
    steps(others, other, range(5, 9))
    for a, b in zip(weights, others, strict=True):
        assert torch.equal(a, b)


def test_what_a_checkpoint_cannot_hold_is_said_before_anything_is_written(tmp_path: Path) -> None:
    held = {"state": {0: {"hook": print}}, "param_groups": [{"params": [0]}]}
    with pytest.raises(InputError, match=r"the optimizer keeps a builtin_function_or_method in 0.hook"):
        save(tmp_path, State(1, {}, held, {}, {}), {}, {}, 1)
    assert not any(tmp_path.rglob("*.tmp"))


def test_whatever_a_state_holds_comes_back() -> None:
    """Lists of tensors (Kron), dtypes (Adafactor), tuples, infinities, and keys that are no text."""
    numbers = {"n": np.int64(3), "inf": -float("inf"), "step": torch.tensor(3.0), "no": None}
    state = {
        "state": {0: {"Q": [torch.eye(2), torch.ones(3)], **numbers}},
        "param_groups": [{"params": [0], "betas": (0.9, 0.99), "dtype": torch.bfloat16, "by": {1: torch.zeros(1)}}],
        "rng_state": (3, (1, 2), None),
        "of": {"x": torch.ones(2)},
    }
    tensors, plain = pack(state)
    back = unpack(tensors, json.loads(json.dumps(plain, allow_nan=False)))
    assert back["rng_state"] == state["rng_state"]
    assert torch.equal(back["of"]["x"], torch.ones(2))
    state["state"][0]["n"] = 3
    assert repr(back["param_groups"]) == repr(state["param_groups"])
    assert repr(sorted(back["state"][0].items())) == repr(sorted(state["state"][0].items()))


def test_lamb_does_not_clip_by_itself() -> None:
    """Its update does not depend on the size of the gradient, but its moments do."""
    for name in ("lamb", "lambc", "lambw"):
        weight = nn.Parameter(torch.ones(4, 4))
        optimizer = build(Optimizer(name=name, lr=0.01), [weight], 32)
        weight.grad = torch.full((4, 4), 100.0)
        optimizer.step()
        torch.testing.assert_close(optimizer.state[weight]["exp_avg_sq"], torch.full((4, 4), 1e-3 * 100.0**2))


def test_moments_of_another_number_are_refused() -> None:
    config = validated(Optimizer, {"name": "adanw", "lr": 0.01, "betas": (0.8, 0.9)}, "optimizer")
    with pytest.raises(InputError, match=r"optimizer.betas is \(0.8, 0.9\); adanw has three of its own"):
        build(config, [nn.Parameter(torch.ones(2))], 32)

"""Truth: wrapping a model changes no plain name; a copy of a module follows the module that it was copied from."""

from __future__ import annotations

from copy import deepcopy

import pytest
import timm
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from stabilitylab.layers import counterparts, layers_of, plain_name, plain_names


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=0)


def head() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))


def module(**parts: nn.Module) -> nn.Module:
    made = nn.Module()
    for name, part in parts.items():
        setattr(made, name, part)
    return made


class Wrapped(nn.Module):
    """What DistributedDataParallel does to names, without a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


# ---- wrappers


def test_every_wrapper_of_a_model_or_of_a_block_leaves_the_plain_names() -> None:
    truth = names(vit())
    model = vit()
    model.blocks[0] = torch.compile(model.blocks[0])
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    for wrapped in (model, Wrapped(model), torch.compile(model), torch.compile(Wrapped(model))):
        assert "._orig_mod." in names(wrapped)[4]
        assert list(plain_names(names(wrapped)).values()) == truth
        assert layers_of(names(wrapped)).names == layers_of(truth).names


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped, torch.compile], ids=["plain", "ddp", "compile"])
def test_an_ordinary_submodule_called_module_stays_where_something_stands_beside_it(wrap) -> None:
    model = module(residual=module(module=nn.Linear(2, 2), norm=nn.LayerNorm(2)), fc=nn.Linear(2, 2))
    assert list(plain_names(names(wrap(model))).values()) == names(model)


def test_no_two_names_become_one() -> None:
    given = ["a.module.weight", "a.weight", "module.weight", "b.module.module.weight"]
    plain = plain_names(given)
    assert list(plain) == given
    assert len(set(plain.values())) == len(given)


def test_a_single_name_and_the_name_of_a_module() -> None:
    assert (
        plain_name("module._orig_mod.blocks.0._checkpoint_wrapped_module.attn.qkv.weight") == "blocks.0.attn.qkv.weight"
    )
    assert plain_names(["a.module.weight", "a.norm.weight", "a.module."])["a.module."] == "a.module."
    assert plain_names(["module.a.weight", "module.a."])["module.a."] == "a."


# ---- counterparts


@pytest.mark.parametrize(
    ("leader", "follower"),
    [
        ("backbone", "momentum_backbone"),
        ("student", "teacher"),
        ("online_encoder", "target_encoder"),
        ("encoder", "target_encoder"),
        ("encoder_q", "encoder_k"),
        ("query_encoder", "key_encoder"),
        ("base_encoder", "momentum_encoder"),
        ("backbone", "backbone_momentum"),
        ("student_backbone", "teacher_backbone"),
        ("model", "ema"),
        ("model", "ema_model"),
        ("net", "target_net"),
        ("critic", "critic_target"),
        ("vit", "teacher"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped], ids=["plain", "ddp"])
def test_a_copy_follows_and_is_no_layer(leader: str, follower: str, wrap) -> None:
    model = wrap(module(**{leader: vit(), "projector": head(), follower: vit()}))
    prefix = "module." if isinstance(model, Wrapped) else ""
    truth = {f"{prefix}{follower}.{name}": f"{prefix}{leader}.{name}" for name in names(vit())}
    assert counterparts(names(model)) == truth
    assert layers_of(names(model)).names == ("patch_embed", "tokens", "blocks.0", "blocks.1", "norm", "projector")
    assert set(names(model)) - set(layers_of(names(model)).of) == set(truth)


def test_only_one_of_the_two_is_wrapped() -> None:
    student = module(backbone=vit(), head=head())
    found = counterparts(names(module(student=Wrapped(torch.compile(student)), teacher=deepcopy(student))))
    assert set(found) == {f"teacher.{name}" for name in names(student)}
    assert found["teacher.head.0.weight"] == "student.module._orig_mod.head.0.weight"


def test_the_model_itself_or_a_part_of_it_is_followed() -> None:
    own = names(vit())
    assert counterparts([*own, *(f"ema.module.{name}" for name in own)]) == {f"ema.module.{name}": name for name in own}
    net = vit()  # shared, so that PyTorch names its parameters once
    model = module(net=net, online_encoder=module(net=net, projector=head()))
    model.target_encoder = deepcopy(model.online_encoder)
    found = counterparts(names(model))
    assert len(found) == len(names(model.target_encoder))
    assert found["target_encoder.net.norm.weight"] == "net.norm.weight"
    assert found["target_encoder.projector.0.weight"] == "online_encoder.projector.0.weight"


@pytest.mark.parametrize(
    "model",
    [
        module(body=head(), target=nn.Linear(4, 4), teacher_forcing=nn.Linear(4, 4), emails=nn.Linear(4, 4)),
        module(query=nn.Linear(4, 4), key=nn.Linear(4, 4), value=nn.Linear(4, 4)),
        module(q_proj=nn.Linear(4, 4), k_proj=nn.Linear(4, 4), q_norm=nn.LayerNorm(4), k_norm=nn.LayerNorm(4)),
        module(student=nn.Linear(4, 4), teacher=head()),
        module(source_head=head(), target_head=head()),
    ],
    ids=["target", "attention", "qk norm", "another architecture", "two domains"],
)
def test_what_only_sounds_like_a_copy_follows_nothing(model: nn.Module) -> None:
    assert counterparts(names(model)) == {}
    assert set(layers_of(names(model)).of) == set(names(model))

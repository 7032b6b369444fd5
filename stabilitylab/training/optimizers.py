"""Optimizers by name, from torch, timm and torch-optimi, their parameters, and the groups that they work on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, field_validator, model_validator
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from stabilitylab.errors import InputError
from stabilitylab.layers import Layers
from stabilitylab.parameters import Parameters

__all__ = ["Optimizer", "build", "groups_of", "rate_of"]


Rate = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Parameters):
    """The optimizer."""

    name: str = "adamw"
    """adamw, lamb (without timm's clipping), lars, sgd (without Nesterov), lion, muon, stableadamw, or one of timm."""
    lr: PositiveFloat | None = None
    """Learning rate at the batch size in use; give this or base_lr."""
    base_lr: PositiveFloat | None = None
    """Learning rate per 256 samples: the rate in use is base_lr x data.batch_size / 256."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay, on every trainable parameter."""
    decay_all: bool = True
    """Whether tensors of one axis (norms, biases), tokens and position embeddings decay too, as MoCo v3 has it."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """Decay rates of the two moments; for optimizers that have them. One of three moments, as Adan, keeps its own."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment; for optimizers that have it."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum; for optimizers that have one, as sgd, lars, muon and rmsprop."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor on the learning rate from each layer to the one before it; the last layer has the whole rate."""
    stem_factor: float = Field(1.0, ge=0)
    """Factor on the learning rate of the first layer; 0 freezes it, with its gradients still recorded."""
    stem_frozen_after: int | None = Field(None, ge=0)
    """Step from which on the first layer stays as it is, with its gradients still recorded."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = sorted([*(str(each) for each in list_optimizers()), "stableadamw"])
        if name not in known:
            near = get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"no optimizer is named {name!r}{hint} (available: {', '.join(known)})")
        if name != "stableadamw" and get_optimizer_info(name).second_order:
            raise ValueError("it needs second derivatives, which the training does not compute; adamw does not")
        return name

    @model_validator(mode="after")
    def _one_rate(self) -> Optimizer:
        if (self.lr is None) == (self.base_lr is None):
            raise ValueError("give either lr or base_lr")
        return self

    def rate(self, batch_size: int) -> float:
        """Return the learning rate in use, by the linear scaling rule (Goyal et al., 2017) if given per 256."""
        if self.lr is not None:
            return self.lr
        assert self.base_lr is not None
        return self.base_lr * batch_size / 256


def groups_of(config: Optimizer, named: Mapping[str, nn.Parameter], layers: Layers) -> list[dict[str, Any]]:
    """Return parameter groups with their ``weight_decay``, their ``lr_scale`` and whether they are the ``stem``.

    One group where all parameters are treated alike.

    Args:
        config: the rules.
        named: trainable parameters.
        layers: of the model, in depth order.
    """
    depth = {name: at for at, name in enumerate(layers.names)}
    last = len(layers.names) - 1
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    apart = config.stem_factor != 1 or config.stem_frozen_after is not None
    for name, parameter in named.items():
        layer = layers.of[name]
        decays = config.decay_all or (parameter.ndim > 1 and layer != "tokens")
        decay = config.weight_decay if decays else 0.0
        stem = apart and layer == layers.first
        scale = config.layer_decay ** (last - depth[layer]) * (config.stem_factor if stem else 1.0)
        groups.setdefault((decay, scale, stem), []).append(parameter)
    return [
        {"params": members, "weight_decay": decay, "lr_scale": scale, "stem": stem}
        for (decay, scale, stem), members in groups.items()
    ]


def rate_of(config: Optimizer, group: Mapping[str, Any], rate: float, step: int) -> float:
    """Return the learning rate of a group at a step, from that of the whole model."""
    frozen = group.get("stem", False) and config.stem_frozen_after is not None and step >= config.stem_frozen_after
    return 0.0 if frozen else rate * group.get("lr_scale", 1.0)


def build(
    config: Optimizer, parameters: Iterable[nn.Parameter] | list[dict[str, Any]], batch_size: int
) -> torch.optim.Optimizer:
    """Build the optimizer over parameters, or groups of them.

    Raises:
        InputError: if the optimizer does not take these parameters, or is not installed.
    """
    lr = config.rate(batch_size)
    given: list[Any] = list(parameters)
    if config.name == "adamw":  # torch's fused one is the fastest on every device
        first = given[0]["params"][0] if isinstance(given[0], dict) else given[0]
        fused = first.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(
            given, lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused
        )
    if config.name == "sgd":  # timm's is Nesterov's
        return torch.optim.SGD(given, lr, momentum=config.momentum, weight_decay=config.weight_decay)
    if config.name == "stableadamw":
        return _stable_adamw(config, given, lr)
    own: dict[str, Any] = {"betas": config.betas, "eps": config.eps}
    if config.name == "momentum":
        own = {}
    elif "lars" in config.name or "larc" in config.name:
        own = {"eps": config.eps}
    elif "lion" in config.name:
        own = {"betas": config.betas}
    elif "lamb" in config.name:  # it clips by itself, unseen; that is for `stabilize.clip`
        own["max_grad_norm"] = None
    elif "adan" in config.name:
        if config.betas != Optimizer.model_fields["betas"].default:
            raise InputError(f"optimizer.betas is {config.betas}; {config.name} has three of its own, leave it out")
        del own["betas"]
    try:
        return create_optimizer_v2(
            given, config.name, lr, weight_decay=config.weight_decay, momentum=config.momentum, **own
        )
    except Exception as error:  # what an optimizer of another library objects to, it says in its own way
        reason = str(error) or type(error).__name__
        raise InputError(f"optimizer.name is {config.name!r}, which cannot be built here: {reason}") from error


def _stable_adamw(config: Optimizer, given: list[Any], lr: float) -> torch.optim.Optimizer:
    """Return AdamW whose update of a tensor is divided by its RMS where that is above one (Wortsman et al., 2023)."""
    try:
        from optimi import StableAdamW
    except ImportError as error:
        raise InputError(
            "optimizer.name is 'stableadamw', which needs torch-optimi: pip install 'stabilitylab[optimizers]'"
        ) from error
    # its Triton kernels are for GPUs alone, and it does not look where the parameters are; it warns of its foreach
    return StableAdamW(
        given, lr, betas=config.betas, weight_decay=config.weight_decay, eps=config.eps, foreach=False, triton=False
    )

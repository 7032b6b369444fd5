"""Optimizers by name, from torch and timm, and their parameters."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, field_validator, model_validator
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from stabilitylab.errors import InputError
from stabilitylab.parameters import Parameters

__all__ = ["Optimizer", "build"]


Rate = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Parameters):
    """The optimizer."""

    name: str = "adamw"
    """adamw, lamb, lars, sgd (without Nesterov), or another optimizer of timm that these parameters suit."""
    lr: PositiveFloat | None = None
    """Learning rate at the batch size in use; give this or base_lr."""
    base_lr: PositiveFloat | None = None
    """Learning rate per 256 samples: the rate in use is base_lr x data.batch_size / 256."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay, on every trainable parameter."""
    betas: tuple[Rate, Rate] = (0.9, 0.999)
    """Decay rates of the two moments; for optimizers that have them."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment; for optimizers that have it."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum; for sgd and lars."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        known = [str(each) for each in list_optimizers()]
        if name not in known:
            near = get_close_matches(name, known, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"no optimizer is named {name!r}{hint} (available: {', '.join(known)})")
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


def build(config: Optimizer, parameters: Iterable[nn.Parameter], batch_size: int) -> torch.optim.Optimizer:
    """Build the optimizer over one group of parameters.

    Raises:
        InputError: if the optimizer does not take these parameters.
    """
    lr = config.rate(batch_size)
    trainable = list(parameters)
    if config.name == "adamw":  # torch's fused one is the fastest on every device
        fused = trainable[0].device.type in ("cpu", "cuda")
        return torch.optim.AdamW(
            trainable, lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=fused
        )
    if config.name == "sgd":  # timm's is Nesterov's
        return torch.optim.SGD(trainable, lr, momentum=config.momentum, weight_decay=config.weight_decay)
    own: dict[str, Any] = {"betas": config.betas, "eps": config.eps}
    if config.name in ("momentum", "lars", "nlars"):
        own = {}
    try:
        return create_optimizer_v2(
            trainable, config.name, lr, weight_decay=config.weight_decay, momentum=config.momentum, **own
        )
    except Exception as error:  # what an optimizer of another library objects to, it says in its own way
        reason = str(error) or type(error).__name__
        raise InputError(f"optimizer.name is {config.name!r}, which cannot be built here: {reason}") from error

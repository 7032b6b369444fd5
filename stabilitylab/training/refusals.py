"""Settings that are right by themselves and make no sense together; each is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.layers import Layers
from stabilitylab.parameters import Parameters
from stabilitylab.training.config import Config

__all__ = ["refuse_crops", "refuse_rules", "without_effect"]

NEEDED: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "stabilize.reset_warmup": ("stabilize.reset_every", lambda value: value > 0),
    "stabilize.zclip_memory": ("stabilize.clip", lambda value: value == "zclip"),
    "stabilize.zclip_warmup": ("stabilize.clip", lambda value: value == "zclip"),
    "augment.small_crop_size": ("augment.small_crops", lambda value: value > 0),
    "augment.small_crop_scale": ("augment.small_crops", lambda value: value > 0),
    "method.queue_from": ("method.queue", lambda value: value > 0),
    "method.last_batch_norm": ("method.batch_norm", bool),
    "method.dim": ("method.projector_layers", lambda value: value > 0),
    "method.center_momentum": ("method.centering", lambda value: value == "mean"),
}
"""Setting to another one, and whether the first has an effect with a value of the other."""


def refuse_crops(config: Config, method: Any) -> None:
    """Refuse small crops that no loss would see.

    Args:
        config: all settings.
        method: the class of the method.
    """
    if config.augment.small_crops and not getattr(method, "takes_small_crops", False):
        kinds = {name: plugins.load("methods", name) for name in plugins.names("methods")}
        able = [name for name, kind in kinds.items() if getattr(kind, "takes_small_crops", False)]
        raise InputError(
            f"augment.small_crops is {config.augment.small_crops}, but {config.method.name} "  # type: ignore[attr-defined]
            f"uses two views alone; small crops are for {' and '.join(able)}"
        )


def refuse_rules(config: Config, trainable: Mapping[str, nn.Parameter], layers: Layers) -> None:
    """Refuse a model of which nothing is trained, and rules for the first layer where it is frozen.

    Args:
        config: all settings.
        trainable: parameters that are trained, by name.
        layers: of the whole model.
    """
    if not trainable:
        raise InputError(
            f"model.frozen is {list(config.model.frozen)}, which leaves nothing to train: leave a part of it away"  # type: ignore[attr-defined]
        )
    if any(layers.of[name] == layers.first for name in trainable):
        return
    optimizer = config.optimizer
    rules = {
        "optimizer.stem_factor": optimizer.stem_factor if optimizer.stem_factor != 1 else None,
        "optimizer.stem_frozen_after": optimizer.stem_frozen_after,
        "stabilize.stem_clip": config.stabilize.stem_clip,
    }
    for name, value in rules.items():
        if value is not None:
            raise InputError(
                f"{name} is {value}, but the first layer, {layers.first}, is frozen from the start: leave it away, or "
                "let that layer learn (model.patch_projection, model.frozen)"
            )


def without_effect(config: Config, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return a sentence for each setting that was changed and does nothing beside the others.

    Args:
        config: all settings.
        optimizer: that was built of it.
    """
    said = []
    for name, (other, works) in NEEDED.items():
        section, field = name.split(".")
        own, value = getattr(config, section), getattr(getattr(config, section), other.split(".")[1], None)
        if field in type(own).model_fields and value is not None and _changed(own, field) and not works(value):
            said.append(f"{name} is {getattr(own, field)}, which has no effect while {other} is {value}")
    for field, names in (("betas", {"betas", "beta1"}), ("eps", {"eps", "eps1"}), ("momentum", {"momentum"})):
        if not names & set(optimizer.defaults) and _changed(config.optimizer, field):
            value = getattr(config.optimizer, field)
            said.append(f"optimizer.{field} is {value}, which {config.optimizer.name} does not have: it has no effect")
    return said


def _changed(section: Parameters, field: str) -> bool:
    return bool(getattr(section, field) != type(section).model_fields[field].default)

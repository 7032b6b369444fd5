"""Settings that are right by themselves and make no sense together; each is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.layers import Layers
from stabilitylab.training.config import Config

__all__ = ["refuse_crops", "refuse_rules"]


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

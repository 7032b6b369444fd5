"""Features of whole splits from a trained backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.models import kind_of
from stabilitylab.training.config import Config
from stabilitylab.training.data import Dataset
from stabilitylab.training.fixed_images import images_at
from stabilitylab.training.weights import Trained

__all__ = ["Features", "features_of", "method_of"]

CHUNK = 512
"""So many images are read and encoded at once."""


class Features(NamedTuple):
    """Representations of a split, float32, shape (N, D), and its labels, int64, shape (N,)."""

    values: Tensor
    labels: Tensor


def method_of(trained: Trained, config: Config, dataset: Dataset, device: torch.device) -> nn.Module:
    """Return a module with the trained backbone, in eval mode.

    Raises:
        InputError: if the weights do not fit.
    """
    backbone = kind_of(config.model.name)  # type: ignore[attr-defined]
    method: nn.Module
    if trained.published:
        make = partial(backbone.build, config.model, dataset.image_size, dataset.channels)
        method = plugins.load("methods", "moco_v3")(config.method, make)
    else:  # only the backbone matters: the method may hold a queue or a bank of its own training images
        method = nn.Module()
        method.backbone = backbone.build(config.model, dataset.image_size, dataset.channels)
    trained.load(method)
    return method.to(device).eval()


@torch.no_grad()
def features_of(
    method: Any, dataset: Dataset, which: str, device: torch.device, told: Callable[[str], None]
) -> Features:
    """Return the representations of all labeled images of a split: ``bank`` (training) or ``held_out``.

    Raises:
        InputError: if the images have no labels, or a representation is not finite.
    """
    split = dataset.train if which == "bank" else dataset.held_out
    if split.labels is None:
        raise InputError(f"{dataset.name} has no classes, so nothing can be judged on it")
    told(f"{len(split):,} {'training' if which == 'bank' else 'held-out'} images")
    values, labels = [], []
    for rows in np.array_split(np.arange(len(split)), -(-len(split) // CHUNK)):
        found = images_at(dataset, split, rows, device)
        assert found.labels is not None
        known = found.labels >= 0
        if known.any():
            values.append(method.backbone(found.images[known.to(device)]).float().cpu())
            labels.append(found.labels[known])
    if not values:
        raise InputError(f"{dataset.name}: none of the {which.replace('_', '-')} images can be read and has a class")
    features = Features(torch.cat(values), torch.cat(labels))
    broken = int((~features.values.isfinite()).any(dim=1).sum())
    if broken:
        raise InputError(
            f"the backbone gives values that are not finite for {broken} of {len(features.labels)} images of "
            f"{dataset.name}; weights of a training that diverged cannot be judged"
        )
    return features

"""Projectors and predictors: stacks of Linear, BatchNorm and ReLU."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from stabilitylab.models.sync_batch_norm import SyncBatchNorm

__all__ = ["mlp_head"]


def mlp_head(
    widths: list[int], batch_norm: bool = True, last_batch_norm: bool = True, last_bias: bool = False
) -> nn.Sequential:
    """Return an MLP over ``widths`` (input first, output last) as MoCo v3 builds its heads.

    Linear layers without bias; BatchNorm and ReLU between them; the last BatchNorm has no affine parameters. With
    ``batch_norm`` false there is none of them, and the Linear layers have a bias instead.

    Args:
        widths: at least two.
        batch_norm: whether there is any.
        last_batch_norm: whether one follows the last layer too.
        last_bias: whether a last layer that no BatchNorm follows has a bias.
    """
    layers: list[nn.Module] = []
    for depth, (inputs, outputs) in enumerate(pairwise(widths)):
        last = depth == len(widths) - 2
        layers.append(nn.Linear(inputs, outputs, bias=not batch_norm or (last and last_bias and not last_batch_norm)))
        if batch_norm and (not last or last_batch_norm):
            layers.append(SyncBatchNorm(outputs, affine=not last))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)

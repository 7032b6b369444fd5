"""Assignment of samples to prototypes, equally many to each, and its prediction from other views.

Shape suffixes: N samples of this rank, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from stabilitylab.models.collectives import sum_over_ranks, world_size

__all__ = ["Frozen", "sinkhorn", "swapped", "usage"]


@torch.no_grad()
def sinkhorn(scores_NK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return soft assignments that use every prototype equally, over the samples of all ranks; each row sums to one.

    The entropic optimal transport between samples and prototypes, of equal mass each, that maximizes the scores;
    it comes nearer the exact one as ``epsilon`` falls and ``iterations`` grow.

    Args:
        scores_NK: similarity of each sample with each prototype; a row of minus infinity takes no part.
        epsilon: weight of the entropy.
        iterations: so many times all columns and then all rows are rescaled.

    References:
        Cuturi, 2013, Sinkhorn distances. NeurIPS. Caron et al., 2020, arXiv 2006.09882.
    """
    # in logarithms: with a small epsilon, exp of the scores would vanish for whole rows; and in double precision
    log_NK = scores_NK.double() / epsilon
    lowest = torch.finfo(log_NK.dtype).min  # instead of minus infinity, from which nothing can be taken away
    for _ in range(iterations):
        log_NK = log_NK - _column_sums(log_NK).clamp_min(lowest)
        log_NK = log_NK - log_NK.logsumexp(dim=1, keepdim=True).clamp_min(lowest)
    return log_NK.exp().to(scores_NK.dtype)


def _column_sums(log_NK: Tensor) -> Tensor:
    """Return the logarithm of the sum of each column over the samples of all ranks."""
    largest_K = log_NK.max(dim=0).values
    if world_size() > 1:
        torch.distributed.all_reduce(largest_K, torch.distributed.ReduceOp.MAX)
    return largest_K + sum_over_ranks((log_NK - largest_K).exp().sum(dim=0)).log()


@torch.no_grad()
def usage(assignments_NK: Tensor) -> Tensor:
    """Return exp of the entropy of the mean assignment over the number of prototypes: 1 if all are used equally."""
    mean_K = sum_over_ranks(assignments_NK.double().mean(dim=0)) / world_size()
    return torch.special.entr(mean_K).sum().exp() / len(mean_K)


def swapped(targets: Sequence[Tensor], scores: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the mean cross entropy of each view's target with the scores of each other view.

    Args:
        targets: for the first views, (N, K) each; rows sum to one.
        scores: of all views, (N, K) each.
        temperature: of the scores.
    """
    logs = [log_softmax(each / temperature, dim=1) for each in scores]
    pairs = [(target, logs[at]) for view, target in enumerate(targets) for at in range(len(logs)) if at != view]
    return torch.stack([-(target * log).sum(dim=1).mean() for target, log in pairs]).mean()


class Frozen:
    """A part of a method with ``prototypes`` that stay as they are for its first ``frozen_prototypes`` steps."""

    prototypes: nn.Linear
    config: Any

    def after_backward(self, step: int) -> None:
        """Drop the gradient of the prototypes where they are frozen, so that no optimizer counts the step."""
        if step < self.config.frozen_prototypes:
            self.prototypes.weight.grad = None

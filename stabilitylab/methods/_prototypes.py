"""Assignment of samples to prototypes: equally many to each, by the algorithm of Sinkhorn and Knopp.

Shape suffixes: N samples of this rank, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stabilitylab.methods._precision import full
from stabilitylab.models.collectives import sum_over_ranks, world_size

__all__ = ["sinkhorn", "usage"]


@torch.no_grad()
def sinkhorn(scores_NK: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return soft assignments that use every prototype equally, over the samples of all ranks; each row sums to one.

    The entropic optimal transport between samples and prototypes, of equal mass each, that maximizes the scores;
    it comes nearer the exact one as ``epsilon`` falls and ``iterations`` grow.

    Args:
        scores_NK: similarity of each sample with each prototype.
        epsilon: weight of the entropy.
        iterations: so many times all columns and then all rows are rescaled.

    References:
        Cuturi, 2013, Sinkhorn distances. NeurIPS. Caron et al., 2020, arXiv 2006.09882.
    """
    # the largest score of a row does not change what its rescaling makes of it; and exp stays finite
    log_NK = full(scores_NK) / epsilon
    plan_NK = (log_NK - _largest(log_NK)).double().exp()
    prototypes = scores_NK.shape[1]
    for _ in range(iterations):
        plan_NK = plan_NK / (sum_over_ranks(plan_NK.sum(dim=0)) * prototypes).clamp_min(1e-300)
        plan_NK = plan_NK / plan_NK.sum(dim=1, keepdim=True).clamp_min(1e-300)
    return plan_NK.to(scores_NK.dtype)


def _largest(log_NK: Tensor) -> Tensor:
    largest = log_NK.max()
    if world_size() > 1:
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return largest


@torch.no_grad()
def usage(assignments_NK: Tensor) -> Tensor:
    """Return exp of the entropy of the mean assignment over the number of prototypes: 1 if all are used equally."""
    mean_K = sum_over_ranks(assignments_NK.double().mean(dim=0)) / world_size()
    return torch.special.entr(mean_K).sum().exp() / len(mean_K)

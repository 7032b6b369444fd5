"""Nearest neighbors in a bank of any size, chunk by chunk.

Shape suffixes: N queries, M bank entries, K neighbors, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabilitylab.errors import InputError

__all__ = ["neighbors", "vote"]

ROWS = 512
"""Queries that are compared at once."""

CELLS = 2**25
"""Similarities that are held at once: 128 MB."""

GROUP = 32
"""The k highest of a row lie in the k groups of so many columns that have the highest maxima."""


@torch.no_grad()
def neighbors(queries_ND: Tensor, bank_MD: Tensor, k: int, cells: int = CELLS) -> tuple[Tensor, Tensor]:
    """Return similarity and index of the k most similar bank entries of each query, most similar first, (N, K) each.

    The memory beside the features does not depend on the size of the bank.

    Args:
        queries_ND: l2-normalized.
        bank_MD: l2-normalized, at least k.
        k: number of neighbors.
        cells: similarities that may be held at once.

    Raises:
        InputError: if the bank is smaller than k.
    """
    if len(bank_MD) < k:
        raise InputError(f"k is {k}, but the bank holds {len(bank_MD)} images")
    rows = max(1, min(len(queries_ND), ROWS))
    columns = min(max(k, cells // rows), len(bank_MD))
    held = queries_ND.new_empty(rows * columns)  # one for all products: fresh memory costs as much as the search in it
    found = []
    for part_ND in queries_ND.split(rows):
        best, at = _highest(part_ND, bank_MD[:columns], k, held)
        for first in range(columns, len(bank_MD), columns):
            value, index = _highest(part_ND, bank_MD[first : first + columns], k, held)
            best, where = torch.cat([best, value], dim=1).topk(k, dim=1)
            at = torch.cat([at, index + first], dim=1).gather(1, where)
        found.append((best, at))
    similarity, index = (torch.cat(each) for each in zip(*found, strict=True))
    return similarity, index


def _highest(queries_ND: Tensor, bank_MD: Tensor, k: int, held: Tensor) -> tuple[Tensor, Tensor]:
    """Return the k highest products of each query and their columns, of fewer where the bank is smaller."""
    rows, columns = len(queries_ND), len(bank_MD)
    product_NM = torch.mm(queries_ND, bank_MD.T, out=held[: rows * columns].view(rows, columns))
    groups = columns // GROUP
    if groups < 4 * k:
        return product_NM.topk(min(k, columns), dim=1)
    whole = groups * GROUP
    grouped = product_NM[:, :whole].view(rows, groups, GROUP)
    highest = grouped.amax(dim=2).topk(k, dim=1, sorted=False).indices
    within = grouped.gather(1, highest[:, :, None].expand(-1, -1, GROUP)).view(rows, -1)
    value, at = torch.cat([within, product_NM[:, whole:]], dim=1).topk(k, dim=1)
    column = GROUP * highest.gather(1, (at // GROUP).clamp_max(k - 1)) + at % GROUP
    return value, torch.where(at < k * GROUP, column, at - k * GROUP + whole)


def vote(
    similarity_NK: Tensor, labels_NK: Tensor, classes: int, grid: Sequence[tuple[int, float]]
) -> dict[tuple[int, float], Tensor]:
    """Return the class with the largest vote for each k and temperature, int64, shape (N,) each.

    Each of the k nearest votes exp(cosine / temperature) for its class (Wu et al., 2018, arXiv 1805.01978).

    Args:
        similarity_NK: of the neighbors, most similar first.
        labels_NK: their classes; -1 has no vote.
        classes: number of classes.
        grid: pairs of k and temperature.
    """
    known_NK = similarity_NK.masked_fill(labels_NK < 0, -torch.inf)
    found = {}
    for k, temperature in grid:
        # all votes over their sum: the largest is the same, and none can overflow; where no class is known, none votes
        weight = (known_NK[:, :k] / temperature).softmax(dim=1).nan_to_num(0.0)
        votes = torch.zeros(len(weight), classes, device=weight.device, dtype=weight.dtype)
        found[k, temperature] = votes.scatter_add_(1, labels_NK[:, :k].clamp_min(0), weight).argmax(dim=1)
    return found

"""Nearest neighbors in a bank of any size, chunk by chunk.

Shape suffixes: N queries, M bank entries, K neighbors, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stabilitylab.errors import InputError

__all__ = ["neighbors", "vote"]

CELLS = 2**24
"""Similarities that are held at once: 64 MB."""


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
    rows = max(1, min(len(queries_ND), 1024))
    columns = max(k, cells // rows)
    found = []
    for start in range(0, len(queries_ND), rows):
        part_ND = queries_ND[start : start + rows]
        best: Tensor | None = None
        at = part_ND.new_zeros(0, dtype=torch.int64)
        for first in range(0, len(bank_MD), columns):
            chunk_MD = bank_MD[first : first + columns]
            value, index = (part_ND @ chunk_MD.T).topk(min(k, len(chunk_MD)), dim=1)
            index += first
            if best is None:
                best, at = value, index
                continue
            both, where = torch.cat([best, value], dim=1).topk(min(k, best.shape[1] + value.shape[1]), dim=1)
            best, at = both, torch.cat([at, index], dim=1).gather(1, where)
        assert best is not None
        found.append((best, at))
    similarity, index = (torch.cat(each) for each in zip(*found, strict=True))
    return similarity, index


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

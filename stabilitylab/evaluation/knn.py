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

WORTH = 1000
"""Products in bfloat16 are worth it for a bank that holds so many entries for each candidate."""

ROUNDING = 2**-8 + 2**-9 + 2**-12
"""Largest error of a product in bfloat16 over the product of the lengths: of its factors, of the result, of the sum."""


@torch.no_grad()
def neighbors(queries_ND: Tensor, bank_MD: Tensor, k: int, cells: int = CELLS) -> tuple[Tensor, Tensor]:
    """Return similarity and index of the k most similar bank entries of each query, most similar first, (N, K) each.

    The memory beside the features does not depend on the size of the bank. On a processor that multiplies bfloat16 the
    candidates come from such products, and the result from exact ones: a query for which rounding might have hidden a
    neighbor is compared with the whole bank.

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
    if not _multiplies_bfloat16(queries_ND) or len(bank_MD) < WORTH * _candidates(k):
        return _compared(queries_ND, bank_MD, k, cells, queries_ND.dtype)
    rough_NC, index_NC = _compared(queries_ND, bank_MD, _candidates(k), cells, torch.bfloat16)
    found = []
    rows = max(1, cells // (index_NC.shape[1] * bank_MD.shape[1]))
    for query_ND, index in zip(queries_ND.split(rows), index_NC.split(rows), strict=True):
        candidates_NCD = bank_MD.index_select(0, index.flatten()).view(*index.shape, -1)
        value, at = torch.einsum("nd,ncd->nc", query_ND, candidates_NCD).topk(k, dim=1)
        found.append((value, index.gather(1, at)))
    similarity, index = (torch.cat(each) for each in zip(*found, strict=True))
    longest = max(float(part_MD.norm(dim=1).max()) for part_MD in bank_MD.split(2**16))
    lowest_N = rough_NC[:, -1].float().clamp_min(0)  # what is not among the candidates is rounded to no more
    unsure_N = ~(lowest_N + ROUNDING * longest * queries_ND.norm(dim=1) < similarity[:, -1])
    if unsure_N.any():
        similarity[unsure_N], index[unsure_N] = _compared(queries_ND[unsure_N], bank_MD, k, cells, queries_ND.dtype)
    return similarity, index


def _candidates(k: int) -> int:
    return k + k // 2 + 24


def _multiplies_bfloat16(features: Tensor) -> bool:
    known = torch.cpu.get_capabilities() if features.is_cpu and features.dtype == torch.float32 else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def _compared(queries_ND: Tensor, bank_MD: Tensor, k: int, cells: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the k highest products of each query with the whole bank and their places, in a precision."""
    rows = max(1, min(len(queries_ND), ROWS))
    columns = min(max(k, cells // rows), len(bank_MD))
    held = queries_ND.new_empty(rows * columns, dtype=dtype)  # one for all: fresh memory costs as much as the search
    queries = queries_ND.to(dtype).split(rows)
    found: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(bank_MD), columns):
        part_MD = bank_MD[first : first + columns].to(dtype)
        for number, query_ND in enumerate(queries):
            value, index = _highest(query_ND, part_MD, k, held)
            if first == 0:
                found.append((value, index))
                continue
            best, where = torch.cat([found[number][0], value], dim=1).topk(k, dim=1)
            found[number] = best, torch.cat([found[number][1], index + first], dim=1).gather(1, where)
    similarity, index = (torch.cat(each) for each in zip(*found, strict=True))
    return similarity, index


def _highest(queries_ND: Tensor, bank_MD: Tensor, k: int, held: Tensor) -> tuple[Tensor, Tensor]:
    """Return the k highest products of each query and their columns, of fewer where the bank is smaller.

    Of products in bfloat16 those that are positive are right: their bits, as integers, have the same order.
    """
    rows, columns = len(queries_ND), len(bank_MD)
    product_NM = torch.mm(queries_ND, bank_MD.T, out=held[: rows * columns].view(rows, columns))
    groups = columns // GROUP
    if groups < 2 * k:
        return product_NM.topk(min(k, columns), dim=1)
    if product_NM.dtype == torch.bfloat16:
        product_NM = product_NM.view(torch.int16)
    whole = groups * GROUP
    grouped = product_NM[:, :whole].view(rows, GROUP, groups)
    highest = grouped.amax(dim=1).topk(k, dim=1, sorted=False).indices
    within = grouped.gather(2, highest[:, None].expand(-1, GROUP, -1)).view(rows, -1)
    value, at = torch.cat([within, product_NM[:, whole:]], dim=1).topk(k, dim=1)
    column = at // k * groups + highest.gather(1, at % k)
    return value.view(queries_ND.dtype), torch.where(at < k * GROUP, column, at - k * GROUP + whole)


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

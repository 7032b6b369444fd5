"""Nearest neighbors in a bank of any size, chunk by chunk.

Shape suffixes: N queries, M bank entries, K neighbors, G candidates, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from stabilitylab.errors import InputError

__all__ = ["neighbors", "vote"]

ROWS = 256
"""Queries that are compared at once."""

CELLS = 2**25
"""Similarities that are held at once: 128 MB."""

GROUP = 16
"""The k highest of a row lie in the k groups of so many columns that have the highest maxima."""

NEAR = 2**21
"""Numbers that still lie in a processor's cache together."""

WORTH = 60
"""Products of integers are worth it for a bank that holds so many entries for each candidate, and more where they are
narrow."""

NARROW, WIDE = 16, 2**17
"""Numbers of dimensions between which a product of integers is right: a sum of more could leave 32 bits."""

LEVELS = 127
"""Largest of the integers."""

SLACK = 1e-5
"""More than the error of a product in float32, over the product of the lengths."""

Search = Callable[[int], tuple[Tensor, Tensor]]
"""Returns the highest values, and their columns, of one of the parts of the queries."""


@torch.no_grad()
def neighbors(queries_ND: Tensor, bank_MD: Tensor, k: int, cells: int = CELLS) -> tuple[Tensor, Tensor]:
    """Return similarity and index of the k most similar bank entries of each query, most similar first, (N, K) each.

    The memory beside the features does not depend on the size of the bank. On a processor that multiplies integers of
    eight bits fast, the candidates come from such products, and the result from exact ones: a query for which rounding
    might have hidden a neighbor is compared with the whole bank.

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
    if not (_multiplies_integers(queries_ND) and _worth(queries_ND, bank_MD, k)):
        return _exact(queries_ND, bank_MD, k, cells)
    columns = _columns(len(queries_ND), len(bank_MD), _candidates(k), cells)
    rounded = lru_cache(maxsize=1)(lambda first: _rounded(bank_MD[first : first + columns]))
    *_, unsure_N = _checked(queries_ND[:ROWS], bank_MD[:columns], k, cells, rounded)
    if unsure_N.float().mean() > 0.5:  # most would be compared with the whole bank after all
        return _exact(queries_ND, bank_MD, k, cells)
    similarity, index, unsure_N = _checked(queries_ND, bank_MD, k, cells, rounded)
    if unsure_N.any():
        similarity[unsure_N], index[unsure_N] = _exact(queries_ND[unsure_N], bank_MD, k, cells)
    return similarity, index


def _candidates(k: int) -> int:
    return 4 * k + 80


def _worth(queries_ND: Tensor, bank_MD: Tensor, k: int) -> bool:
    width = queries_ND.shape[1]
    needed = WORTH * _candidates(k) * (1 + 256 / width)
    return NARROW <= width < WIDE and len(queries_ND) >= 2 * ROWS and len(bank_MD) >= needed


def _multiplies_integers(features: Tensor) -> bool:
    known = torch.cpu.get_capabilities() if features.is_cpu and features.dtype == torch.float32 else {}
    return bool(known.get("avx512_vnni")) and torch.backends.mkldnn.is_available()


def _columns(queries: int, bank: int, k: int, cells: int) -> int:
    return min(max(k, cells // max(1, min(queries, ROWS))), bank)


class _Rounded(NamedTuple):
    """Vectors in integers of eight bits: nearly `mean` + `step` * `integers`."""

    integers: Tensor
    step: Tensor
    mean: Tensor
    length: Tensor
    """Largest length of what is rounded."""
    error: Tensor
    """Largest length of what the rounding took."""


def _rounded(features_MD: Tensor) -> _Rounded:
    """Return the vectors around their mean in steps of one size, and the largest length and error."""
    mean_D = features_MD.mean(dim=0)
    parts = features_MD.split(max(1, NEAR // features_MD.shape[1]))
    step = torch.stack([(part_MD - mean_D).abs_().max() for part_MD in parts]).max().clamp_min(1e-30) / LEVELS
    integers = torch.empty(features_MD.shape, dtype=torch.int8)
    length, error = [], []
    for into_MD, part_MD in zip(integers.split(len(parts[0])), parts, strict=True):
        around_MD = part_MD - mean_D
        length.append(around_MD.norm(dim=1).max())
        whole_MD = (around_MD / step).round_()
        into_MD.copy_(whole_MD)
        error.append(around_MD.sub_(whole_MD.mul_(step)).norm(dim=1).max())
    return _Rounded(integers, step, mean_D, torch.stack(length).max(), torch.stack(error).max())


def _rounded_rows(queries_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return integers, the step of each row (N, 1), the length of what the rounding took (N,) and of what is left."""
    step_N1 = queries_ND.abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / LEVELS
    whole_ND = (queries_ND / step_N1).round_()
    integers_ND = whole_ND.to(torch.int8)
    nearly_ND = whole_ND.mul_(step_N1)
    return integers_ND, step_N1, (queries_ND - nearly_ND).norm(dim=1), nearly_ND.norm(dim=1)


def _checked(
    queries_ND: Tensor, bank_MD: Tensor, k: int, cells: int, rounded: Callable[[int], _Rounded]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k most similar among the candidates, their places, and where rounding may have hidden others.

    A product of two rounded vectors is wrong by at most what the rounding took of each, times the length of the other.
    """
    queries = queries_ND.split(ROWS)
    integers, scales, lost, lengths = zip(*map(_rounded_rows, queries), strict=True)
    lost_N, length_N = torch.cat(lost), torch.cat(lengths)
    wrong_N = torch.zeros_like(lost_N)

    def against(first: int, held: Tensor) -> Search:
        part = rounded(first)
        slack_N = SLACK * length_N * (part.length + part.mean.norm())
        torch.maximum(wrong_N, lost_N * part.length + length_N * part.error + slack_N, out=wrong_N)

        def search(number: int) -> tuple[Tensor, Tensor]:
            shape = len(integers[number]), len(part.integers)
            product_NM = held.view(torch.int32)[: shape[0] * shape[1]].view(shape)
            value, index = _highest(torch._int_mm(integers[number], part.integers.T, out=product_NM), most)
            return value * (part.step * scales[number]) + (queries[number] @ part.mean)[:, None], index

        return search

    most = _candidates(k)
    found = []
    for query_ND, (rough_NG, index_NG) in zip(
        queries, _compared(against, queries_ND, len(bank_MD), most, cells), strict=True
    ):
        found.append((*_ranked(query_ND, bank_MD, index_NG, k), rough_NG.amin(dim=1)))
    similarity, index, lowest_N = (torch.cat(each) for each in zip(*found, strict=True))
    return similarity, index, ~(lowest_N + wrong_N < similarity[:, -1])


def _ranked(queries_ND: Tensor, bank_MD: Tensor, index_NG: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest exact products of each query with its candidates and their places."""
    rows = max(1, NEAR // (index_NG.shape[1] * bank_MD.shape[1]))
    held = bank_MD.new_empty(rows * index_NG.shape[1], bank_MD.shape[1])
    found = []
    for query_ND, index_nG in zip(queries_ND.split(rows), index_NG.split(rows), strict=True):
        candidates_nD = torch.index_select(bank_MD, 0, index_nG.flatten(), out=held[: index_nG.numel()])
        found.append(torch.einsum("nd,ngd->ng", query_ND, candidates_nD.view(*index_nG.shape, -1)))
    value, at = torch.cat(found).topk(k, dim=1)
    return value, index_NG.gather(1, at)


def _exact(queries_ND: Tensor, bank_MD: Tensor, k: int, cells: int) -> tuple[Tensor, Tensor]:
    """Return the k highest products of each query with the whole bank and their places."""
    queries = queries_ND.split(ROWS)
    columns = _columns(len(queries_ND), len(bank_MD), k, cells)

    def against(first: int, held: Tensor) -> Search:
        part_MD = bank_MD[first : first + columns]

        def search(number: int) -> tuple[Tensor, Tensor]:
            shape = len(queries[number]), len(part_MD)
            return _highest(torch.mm(queries[number], part_MD.T, out=held[: shape[0] * shape[1]].view(shape)), k)

        return search

    similarity, index = (
        torch.cat(each) for each in zip(*_compared(against, queries_ND, len(bank_MD), k, cells), strict=True)
    )
    return similarity, index


def _compared(
    against: Callable[[int, Tensor], Search], queries_ND: Tensor, bank: int, k: int, cells: int
) -> list[tuple[Tensor, Tensor]]:
    """Return the k highest values of each query and their places, for each part of the queries.

    Args:
        against: takes the first entry of a part of the bank, and memory for products with it.
        queries_ND: what is compared.
        bank: number of entries of the bank.
        k: number of values.
        cells: products that may be held at once.
    """
    columns = _columns(len(queries_ND), bank, k, cells)
    rows = max(1, min(len(queries_ND), ROWS))
    held = queries_ND.new_empty(rows * columns)  # one for all: fresh memory costs as much as the search
    found: list[tuple[Tensor, Tensor]] = []
    for first in range(0, bank, columns):
        search = against(first, held)
        for number in range(len(queries_ND.split(ROWS))):
            value, index = search(number)
            if first == 0:
                found.append((value, index))
                continue
            best, where = torch.cat([found[number][0], value], dim=1).topk(k, dim=1)
            found[number] = best, torch.cat([found[number][1], index + first], dim=1).gather(1, where)
    return found


def _highest(product_NM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest of each row and their columns, of fewer where there are fewer columns."""
    rows, columns = product_NM.shape
    groups = columns // GROUP
    if groups < 2 * k:
        return product_NM.topk(min(k, columns), dim=1)
    whole = groups * GROUP
    grouped = product_NM[:, :whole].view(rows, GROUP, groups)
    highest = grouped.amax(dim=1).topk(k, dim=1, sorted=False).indices
    within = grouped.gather(2, highest[:, None].expand(-1, GROUP, -1)).view(rows, -1)
    value, at = torch.cat([within, product_NM[:, whole:]], dim=1).topk(k, dim=1)
    column = at // k * groups + highest.gather(1, at % k)
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

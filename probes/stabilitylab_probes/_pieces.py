"""Tensors piece by piece, so that what is computed of them takes little memory and few operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stabilitylab.norms import HALF, is_sharded, local, over_shards

__all__ = ["Pieces", "pieces", "whole"]

ENTRIES_ON_CPU, ENTRIES = 2**18, 2**22
"""So many entries are worked on at once; on a CPU as many as stay in its cache."""
ALONE = 8
"""A piece of this part of them stays alone, as it is; smaller ones are joined."""


@dataclass(frozen=True)
class Pieces:
    """Pieces of tensors, one behind the other."""

    owners: list[int]
    """Which tensor each piece is of."""
    sizes: list[int]
    """How many entries each piece has."""
    rows: list[Tensor]
    """The entries of one kind, of all pieces; one dimension, float32 at least."""

    def spread(self, values: float | Tensor) -> float | Tensor:
        """Return for every entry the value of the tensor that it is of, if each has its own."""
        if not isinstance(values, Tensor):
            return values
        if len(self.owners) == 1:
            return values[self.owners[0]]
        own, sizes = (torch.tensor(each, device=values.device) for each in (self.owners, self.sizes))
        return values[own].repeat_interleave(sizes, output_size=sum(self.sizes))

    def norms(self, row: Tensor) -> Tensor:
        """Return the L2 norm of each piece."""
        return torch.stack(torch._foreach_norm(_split(row, self.sizes)))

    def dots(self, row: Tensor, other: Tensor) -> Tensor:
        """Return the sum of the products of each piece."""
        return (one_by_one if row.is_cpu else fused)(row, other, self.sizes)


def one_by_one(row: Tensor, other: Tensor, sizes: list[int]) -> Tensor:
    """Return the dot product of each piece: the fastest way on a CPU, whose L1 norms are slow."""
    return torch.stack([torch.dot(*pair) for pair in zip(_split(row, sizes), _split(other, sizes), strict=True)])


def fused(row: Tensor, other: Tensor, sizes: list[int]) -> Tensor:
    """Return the dot product of each piece in a few operations, whatever their number: L1 norms of either sign."""
    products = row * other
    parts = (torch._foreach_norm(_split(each.clamp(min=0), sizes), 1) for each in (products, -products))
    positive, negative = map(torch.stack, parts)
    return positive - negative


def _split(row: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    return tuple(row.split(sizes)) if len(sizes) > 1 else (row,)


def pieces(*kinds: Sequence[Tensor]) -> Iterator[Pieces]:
    """Yield what this rank holds of tensors, so many entries at a time.

    Args:
        kinds: such as parameters and gradients; those at one place have one shape and are sharded alike. Complex
            entries count as two.
    """
    size = ENTRIES_ON_CPU if kinds[0][0].device.type == "cpu" else ENTRIES
    owners, taken, filled = list[int](), list[Sequence[Tensor]](), 0
    for owner, tensors in enumerate(zip(*kinds, strict=True)):
        for piece in _cut([_flat(each) for each in tensors], size):
            entries = piece[0].numel()
            if entries * ALONE > size:
                yield _joined([owner], [piece])
                continue
            if filled + entries > size:
                yield _joined(owners, taken)
                owners, taken, filled = [], [], 0
            owners.append(owner)
            taken.append(piece)
            filled += entries
    if owners:
        yield _joined(owners, taken)


def whole(values: Tensor, owners: Sequence[int], tensors: Sequence[Tensor], order: float) -> Tensor:
    """Return the norms of whole tensors from those of their pieces, here and in the shards of other ranks.

    Args:
        values: norms of pieces, shape (number of rows, number of pieces).
        owners: which tensor each piece is of.
        tensors: what they are pieces of.
        order: of the norm; with 1, numbers that are not negative are added up.

    Returns:
        Shape (number of rows, number of tensors).
    """
    rows = len(values)
    where = sorted(range(len(owners)), key=owners.__getitem__)
    flat = values[:, torch.tensor(where, device=values.device)].flatten()
    if len(owners) > len(tensors):
        counts = [0] * len(tensors)
        for owner in owners:
            counts[owner] += 1
        flat = torch.stack(torch._foreach_norm(flat.split(counts * rows), order))
    if any(map(is_sharded, tensors)):
        flat = over_shards(flat, [*tensors] * rows, order)
    return flat.view(rows, -1)


def _flat(tensor: Tensor) -> Tensor:
    tensor = local(tensor)
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).flatten()


def _cut(tensors: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    if tensors[0].numel() <= size:
        return iter([tensors])
    return zip(*(each.split(size) for each in tensors), strict=True)


def _joined(owners: list[int], taken: Sequence[Sequence[Tensor]]) -> Pieces:
    rows = [each[0] if len(each) == 1 else torch.cat(each) for each in zip(*taken, strict=True)]
    wide = [each.float() if each.dtype in HALF else each for each in rows]
    return Pieces(owners, [each[0].numel() for each in taken], wide)

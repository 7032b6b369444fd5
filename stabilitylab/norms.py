"""Norms of many tensors in a few operations, whatever their device, dtype, layout and sharding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["is_sharded", "local", "norms", "over_shards"]

HALF = (torch.float16, torch.bfloat16)


def norms(tensors: Sequence[Tensor], order: float = 2.0, *, double: bool = False) -> Tensor:
    """Return the norm of each tensor, shape (number of tensors,), on the device of the first one.

    Two operations where all tensors are alike, and no wait for the device. Half precision is summed in float32;
    complex entries count with their modulus; of a sparse tensor the stored entries count, after adding up duplicates
    (which waits for a GPU). NaN and inf stay. The norm of a sharded tensor (a DTensor, as of FSDP2 and tensor
    parallelism) is that of the whole: every rank of its mesh must call this, and gets it.

    Args:
        tensors: at least one; any shapes, also empty.
        order: 2, or inf for the largest absolute entry.
        double: sum in float64, where the squares of entries above 1e19 do not overflow, if the device has it.

    Raises:
        ValueError: if a tensor is a sum over ranks that was not reduced yet (a Partial placement).
    """
    pieces = [local(each) for each in tensors]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, piece in enumerate(pieces):
        empty = order != 2 and piece.numel() == 0
        groups.setdefault((piece.device, _kind(piece.dtype), empty), []).append(index)
    values = [_alike([pieces[index] for index in members], order, double, *key) for key, members in groups.items()]
    if len(values) == 1:
        found = values[0]
    else:
        found = torch.cat([each.to(pieces[0].device, non_blocking=True) for each in values])
        places = sorted(range(len(pieces)), key=[i for members in groups.values() for i in members].__getitem__)
        found = found[torch.tensor(places, device=found.device)]
    return over_shards(found, tensors, order) if any(map(is_sharded, tensors)) else found


def _alike(pieces: list[Tensor], order: float, double: bool, device: torch.device, kind: str, empty: bool) -> Tensor:
    """Return the norms of tensors of one device and kind of number; the largest entry of none is 0."""
    if empty:
        return torch.zeros(len(pieces), device=device)
    dtype = torch.float32 if kind == "real" and any(each.dtype in HALF for each in pieces) else None
    if double and kind == "real" and device.type != "mps":
        dtype = torch.float64
    return torch.stack(torch._foreach_norm(pieces, order, dtype=dtype))


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return str(dtype)
    return "double" if dtype == torch.float64 else "real"


def local(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor as a dense one."""
    if is_sharded(tensor):
        tensor = tensor.to_local()  # type: ignore[attr-defined]
    return tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is spread over a device mesh."""
    return hasattr(tensor, "device_mesh")


def over_shards(values: Tensor, tensors: Iterable[Tensor], order: float = 2.0) -> Tensor:
    """Return the norms of whole tensors from those of this rank's pieces: one collective for each mesh dimension.

    Args:
        values: norms of the local pieces, shape (number of tensors,).
        tensors: what they are the pieces of; plain tensors stay as they are.
        order: of the norms.
    """
    groups: dict[tuple[Any, int], list[int]] = {}
    for index, tensor in enumerate(tensors):
        for dimension, placement in enumerate(getattr(tensor, "placements", ())):
            if placement.is_partial():
                raise ValueError(f"tensor {index} is a sum that was not reduced over the ranks yet")
            if placement.is_shard():
                groups.setdefault((tensor.device_mesh, dimension), []).append(index)  # type: ignore[attr-defined]
    for (mesh, dimension), members in groups.items():
        where = torch.tensor(members, device=values.device)
        own = values if len(members) == len(values) else values[where]
        # gathered, not summed: a sum of squares overflows, and the largest of NaN and 1 is 1 to some backends
        pieces = [torch.empty_like(own) for _ in range(mesh.size(dimension))]
        torch.distributed.all_gather(pieces, own.contiguous(), group=mesh.get_group(dimension))
        whole = torch.linalg.vector_norm(torch.stack(pieces), order, dim=0)
        values = whole if len(members) == len(values) else values.index_copy(0, where, whole)
    return values

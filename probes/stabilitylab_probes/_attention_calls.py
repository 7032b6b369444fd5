"""The calls of attention in a forward pass, fused or not: their logits for some queries, as they go into the softmax.

Shape suffixes: N samples, H heads, L queries, Q chosen queries, S keys, E features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["AttentionCalls"]

SOFTMAX = {F.softmax, torch.softmax, torch.special.softmax, Tensor.softmax}
PRODUCTS = {torch.matmul, torch.bmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.bmm, Tensor.baddbmm}
MODULE_CALL = inspect.signature(F.multi_head_attention_forward)


class AttentionCalls(TorchFunctionMode):
    """Sees the attention of whatever runs inside it, and changes nothing of it.

    That is `torch.nn.functional.scaled_dot_product_attention`, `torch.nn.MultiheadAttention`, and a softmax over the
    last axis of what comes of a product of two activations: of anything with heads, (..., H, L, S), that follows a
    product, and of (N, L, S) if it has as many entries as a product.

    Args:
        queries: at most so many are chosen, evenly spaced.
        see: called with the logits of each call, masked where they are -inf, shape (N, H, Q, S), float32 at least.
    """

    def __init__(self, queries: int, see: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._queries, self._see = queries, see
        self._products: set[tuple[int, int]] = set()

    def forget(self) -> None:
        """Forget the products seen so far: another layer begins."""
        self._products.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at a function of torch, and call it; nothing that happens in here comes by again."""
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._take(_of_fused(self._queries, *args, **kwargs))
        elif func is F.multi_head_attention_forward:
            self._take(_of_module(self._queries, args, kwargs))
        elif func in SOFTMAX:
            logits = args[0] if args else kwargs["input"]
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            if axis in (-1, logits.ndim - 1) and logits.is_floating_point() and self._follows_product(logits):
                chosen = _chosen(logits.shape[-2], self._queries, logits.device)
                self._take(_without_masked(logits.index_select(-2, chosen)))
        result = func(*args, **kwargs)
        if func in PRODUCTS and all(each.ndim > 2 for each in _tensors(args)):  # weights are matrices
            self._products.add((result.numel(), result.shape[-1]))
        return result

    def _follows_product(self, logits: Tensor) -> bool:
        if logits.ndim > 3:
            return bool(self._products)
        return logits.ndim == 3 and (logits.numel(), logits.shape[-1]) in self._products

    def _take(self, logits: Tensor) -> None:
        while logits.ndim < 4:
            logits = logits.unsqueeze(-3)  # one head
        self._see(logits.movedim(1, -3).flatten(0, -4))  # (N, H, windows, Q, S) has its heads where (N, H, Q, S) has


def _tensors(args: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among positional arguments; einsum takes them in a list, too."""
    flat = [part for each in args for part in (each if isinstance(each, list | tuple) else [each])]
    return [each for each in flat if isinstance(each, Tensor)]


def _chosen(number: int, queries: int, device: torch.device) -> Tensor:
    """Return the indices of the chosen queries: evenly spaced, first and last among them."""
    return torch.linspace(0, number - 1, min(number, queries), device=device).round().long()


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _without_masked(logits: Tensor) -> Tensor:
    """Return logits, or what is added to them, with -inf where the lowest number of their type masks a key."""
    return _precise(logits.masked_fill(logits <= torch.finfo(logits.dtype).min / 2, -torch.inf))


def _of_fused(
    queries: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,  # noqa: ARG001
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the logits of fused attention, shape (..., H, Q, S), computed again for the chosen queries."""
    length, keys = query.shape[-2], key.shape[-2]
    chosen = _chosen(length, queries, query.device)
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    with torch.autocast(query.device.type, enabled=False):
        q, k = _precise(query.index_select(-2, chosen)), _precise(key)
        logits = q @ k.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    diagonal = 0 if is_causal else None
    if type(attn_mask).__name__ == "CausalBias":  # a mask in name only
        lower_right = attn_mask.variant.name == "LOWER_RIGHT"  # type: ignore[union-attr]
        diagonal, attn_mask = keys - length if lower_right else 0, None
    if diagonal is not None:
        later = torch.arange(keys, device=query.device) > chosen[:, None] + diagonal
        logits = logits.masked_fill(later, -torch.inf)
    if attn_mask is None:
        return logits
    if attn_mask.shape[-2] > 1:
        attn_mask = attn_mask.index_select(-2, chosen)
    if attn_mask.dtype == torch.bool:
        return logits.masked_fill(~attn_mask, -torch.inf)
    return logits + _without_masked(attn_mask)


def _of_module(queries: int, args: Any, kwargs: Any) -> Tensor:
    """Return the logits of `torch.nn.MultiheadAttention`, shape (N, H, Q, S), by asking it for the chosen queries."""
    call = MODULE_CALL.bind(*args, **kwargs)
    given = call.arguments
    chosen = _chosen(len(given["query"]), queries, given["query"].device)
    given["query"] = given["query"].index_select(0, chosen)
    if given.get("attn_mask") is not None:
        given["attn_mask"] = given["attn_mask"].index_select(-2, chosen)
    given.update(need_weights=True, is_causal=False, training=False)
    with _SoftmaxInput() as softmax:
        F.multi_head_attention_forward(*call.args, **call.kwargs)
    return _without_masked(softmax.taken[-1]).unflatten(0, (-1, given["num_heads"]))


class _SoftmaxInput(TorchDispatchMode):
    """Keeps what goes into the softmax: inside of a function that torch hides from its function modes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.taken: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._softmax.default:
            self.taken.append(args[0])
        return func(*args, **(kwargs or {}))

"""Contrastive losses, and how alike positives and negatives are.

Shape suffixes: N queries of this rank, M keys, K keys of a queue or bank, D features.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from stabilitylab.methods._precision import full, full_products
from stabilitylab.models.collectives import gather_with_gradient, rank

__all__ = ["CONTRASTS", "against_batch", "against_dictionary", "averaged", "nt_xent"]

CONTRASTS = ("positive", "negative")
"""Diagnostics of a contrast: mean cosine of queries with their positives, and with everything else."""


def averaged(contrasts: Iterable[tuple[Tensor, dict[str, Tensor]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean loss of several directions, and the mean of each diagnostic."""
    losses, told = zip(*contrasts, strict=True)
    return torch.stack(losses).mean(), {name: torch.stack([each[name] for each in told]).mean() for name in CONTRASTS}


def against_batch(q_ND: Tensor, k_MD: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the InfoNCE loss of queries against the keys of all ranks, and the diagnostics `CONTRASTS`.

    Args:
        q_ND: queries of this rank; row i belongs to key ``rank * N + i``.
        k_MD: keys of all ranks, in the order of ranks.
        temperature: T.

    References:
        van den Oord et al., 2018, arXiv 1807.03748.
    """
    with full_products(q_ND):
        cosine_NM = normalize(full(q_ND), dim=1) @ normalize(full(k_MD), dim=1).T
    own_N = torch.arange(len(q_ND), device=q_ND.device) + rank() * len(q_ND)
    positive_N = cosine_NM.gather(1, own_N[:, None])[:, 0].detach()
    others = max(cosine_NM.shape[1] - 1, 1)
    negative = (cosine_NM.detach().sum(dim=1) - positive_N).mean() / others
    return cross_entropy(cosine_NM / temperature, own_N), {"positive": positive_N.mean(), "negative": negative}


def against_dictionary(
    q_ND: Tensor, k_ND: Tensor, negatives_KD: Tensor, temperature: float, same_NK: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the InfoNCE loss of queries against their key and the keys of a queue or bank, and the diagnostics.

    Args:
        q_ND: queries.
        k_ND: row i is the positive of query i; l2-normalized here, as the queries are.
        negatives_KD: l2-normalized keys that serve all queries.
        temperature: T.
        same_NK: True where a negative is of the same image as the query, and does not count.

    References:
        He et al., 2020, Momentum contrast for unsupervised visual representation learning. CVPR. arXiv 1911.05722.
    """
    q_ND = normalize(full(q_ND), dim=1)
    positive_N = (q_ND * normalize(full(k_ND), dim=1)).sum(dim=1)
    with full_products(q_ND):
        cosine_NK = q_ND @ full(negatives_KD).T
    negative = cosine_NK.detach().mean()
    if same_NK is not None:
        cosine_NK = cosine_NK.masked_fill(same_NK, -torch.inf)
    logits = torch.cat([positive_N[:, None], cosine_NK], dim=1) / temperature
    loss = cross_entropy(logits, torch.zeros(len(q_ND), dtype=torch.int64, device=q_ND.device))
    return loss, {"positive": positive_N.detach().mean(), "negative": negative}


def nt_xent(z_ND: Tensor, y_ND: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of SimCLR, and the diagnostics: each view against both views of all other images of all ranks.

    The mean over the 2N anchors of this rank; gradients reach both sides.

    Args:
        z_ND: embeddings of the first views.
        y_ND: of the second ones, in the same order.
        temperature: T.

    References:
        Chen et al., 2020, A simple framework for contrastive learning of visual representations. ICML.
        arXiv 2002.05709.
    """
    number = len(z_ND)
    z_ND, y_ND = normalize(full(z_ND), dim=1), normalize(full(y_ND), dim=1)
    all_z_MD, all_y_MD = gather_with_gradient(z_ND), gather_with_gradient(y_ND)
    total = len(all_z_MD)
    anchors, everything = torch.cat([z_ND, y_ND]), torch.cat([all_z_MD, all_y_MD])
    with full_products(anchors):
        cosine = anchors @ everything.T
    own = torch.arange(number, device=z_ND.device) + rank() * number
    itself, partner = torch.cat([own, own + total]), torch.cat([own + total, own])
    at = torch.arange(2 * number, device=z_ND.device)
    positive = cosine[at, partner].detach()
    negative = (cosine.detach().sum(dim=1) - positive - cosine[at, itself].detach()).mean() / max(2 * total - 2, 1)
    logits = (cosine / temperature).index_put((at, itself), torch.full_like(positive, -torch.inf))
    return cross_entropy(logits, partner), {"positive": positive.mean(), "negative": negative}

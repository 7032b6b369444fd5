"""Attention written by hand in float64, loop by loop, and what the probe measures of the same model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stabilitylab import plugins
from stabilitylab.probe import Step
from stabilitylab.target import make_target

N, L, HEADS, WIDTH = 3, 11, 2, 8
SIZE = WIDTH // HEADS
QUERIES = 4
CHOSEN = [0, 3, 7, 10]  # four of eleven, evenly spaced
ROOT = SIZE**-0.5
CAUSAL = torch.ones(L, L, dtype=torch.bool).tril()
FLOAT = torch.randn(HEADS, L, L, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def measured(model: nn.Module, inputs: Any, queries: int = QUERIES) -> tuple[dict[str, float], dict[str, float]]:
    kind = plugins.load("probes", "attention")
    target = make_target(model, inputs=inputs)
    probe = kind(kind.Parameters(queries=queries), target)
    found = probe.measure(Step(0, target))
    columns = probe.labels["attention.entropy"]
    assert list(probe.about["attention.logit"]["columns"]) == columns == probe.labels["attention.logit"]
    entropy, logit = (found[f"attention.{name}"].tolist() for name in ("entropy", "logit"))
    return dict(zip(columns, entropy, strict=True)), dict(zip(columns, logit, strict=True))


def by_hand(q: np.ndarray, k: np.ndarray, added: np.ndarray, chosen: list[int]) -> tuple[list[float], list[float]]:
    """Mean entropy and largest logit of each head; q and k are (N, H, L, E), what is added is (N, H, L, S)."""
    entropies, largest = [], []
    for head in range(q.shape[1]):
        seen, top = [], -np.inf
        for sample in range(q.shape[0]):
            for query in chosen:
                logits = [float(q[sample, head, query] @ key) for key in k[sample, head]]
                logits = [a + b for a, b in zip(logits, added[sample, head, query], strict=True) if b > -1e30]
                if not logits:
                    continue
                weights = np.exp(np.array(logits) - max(logits))
                weights /= weights.sum()
                seen.append(-sum(w * np.log(w) for w in weights if w > 0))
                top = max(top, *logits)
        entropies.append(float(np.mean(seen)))
        largest.append(float(top))
    return entropies, largest


def added(mask: Tensor | None) -> np.ndarray:
    if mask is None:
        return np.zeros((N, HEADS, L, L))
    values = torch.where(mask, 0.0, -torch.inf) if mask.dtype == torch.bool else mask
    return values.expand(N, HEADS, L, L).double().numpy()


class Transformer(nn.Module):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([make(), make()])
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x).softmax(dim=-1)  # not attention


def tokens() -> Tensor:
    return 3 * torch.randn(N, L, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

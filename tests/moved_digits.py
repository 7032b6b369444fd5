"""Held-out digits that were moved, and scikit-learn's nearest neighbors of them: what a backbone learned."""

from __future__ import annotations

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

__all__ = ["accuracy", "moved"]


def moved(images: Tensor) -> Tensor:
    """Each image cut to six or seven of its eight rows and columns somewhere, and enlarged again; no bank image is."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for image in images:
        rows, columns = (6 + torch.randint(2, (2,), generator=generator)).tolist()
        y, x = (int(torch.randint(9 - each, (), generator=generator)) for each in (rows, columns))
        cut = image[None, :, y : y + rows, x : x + columns]
        found.append(nn.functional.interpolate(cut, image.shape[1:], mode="bilinear", align_corners=False)[0])
    return torch.stack(found)


def accuracy(bank: Tensor, labels: Tensor, queries: Tensor, right: Tensor) -> float:
    """The part of the queries whose class is that of most of their five nearest neighbors by cosine."""
    neighbors = KNeighborsClassifier(5, metric="cosine").fit(bank.flatten(1).numpy(), labels.numpy())
    return float(neighbors.score(queries.flatten(1).numpy(), right.numpy()))

"""Slow, obvious twins of the losses of the self-supervised methods: sums over samples in double precision."""

from __future__ import annotations

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    return sum((x * y for x, y in zip(a, b, strict=True)), torch.zeros((), dtype=a.dtype))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Mean of -log exp(s_ii) / sum_j exp(s_ij)."""
    terms = []
    for i, query in enumerate(queries):
        similar = [(cosine(query, key) / temperature).exp() for key in keys]
        terms.append(-(similar[i] / sum(similar)).log())
    return sum(terms) / len(terms)


def info_nce_with_queue(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Mean of -log exp(s_i) / (exp(s_i) + sum over the queue)."""
    terms = []
    for query, key in zip(queries, keys, strict=True):
        own = (cosine(query, key) / temperature).exp()
        terms.append(-(own / (own + sum((cosine(query, each) / temperature).exp() for each in queue))).log())
    return sum(terms) / len(terms)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Mean over 2N anchors; the sum below goes over everything but the anchor itself."""
    everything = torch.cat([first, second])
    number, terms = len(first), []
    for i in range(2 * number):
        partner = (i + number) % (2 * number)
        below = [(cosine(everything[i], everything[j]) / temperature).exp() for j in range(2 * number) if j != i]
        terms.append(-((cosine(everything[i], everything[partner]) / temperature).exp() / sum(below)).log())
    return sum(terms) / len(terms)


def distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of vectors of length one."""
    pairs = zip(prediction, target, strict=True)
    return sum(((p / dot(p, p).sqrt() - t / dot(t, t).sqrt()) ** 2).sum() for p, t in pairs) / len(prediction)


def barlow_twins(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """C_ij between standardized features; (1 - C_ii)^2 and weight C_ij^2."""
    number, dim = first.shape
    loss = torch.zeros((), dtype=first.dtype)
    for i in range(dim):
        for j in range(dim):
            a, b = first[:, i] - first[:, i].mean(), second[:, j] - second[:, j].mean()
            spread = (dot(a, a) / number + 1e-5).sqrt() * (dot(b, b) / number + 1e-5).sqrt()
            correlation = dot(a, b) / number / spread
            loss = loss + ((1 - correlation) ** 2 if i == j else weight * correlation**2)
    return loss


def vicreg(first: Tensor, second: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """Invariance, half of the hinge of each view's deviations, and the squared covariances over the width."""
    number, dim = first.shape
    invariance = sum(((a - b) ** 2).sum() for a, b in zip(first, second, strict=True)) / (number * dim)
    hinge = covariances = torch.zeros((), dtype=first.dtype)
    for view in (first, second):
        centered = [view[:, i] - view[:, i].mean() for i in range(dim)]
        for i in range(dim):
            deviation = (dot(centered[i], centered[i]) / (number - 1) + 1e-4).sqrt()
            hinge = hinge + torch.clamp(1 - deviation, min=0) / dim / 2
            for j in range(dim):
                if i != j:
                    covariances = covariances + (dot(centered[i], centered[j]) / (number - 1)) ** 2 / dim
    return weights[0] * invariance + weights[1] * hinge + weights[2] * covariances


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Scale columns to N / K and rows to 1 in turns."""
    plan = (scores / epsilon).exp()
    number, prototypes = plan.shape
    for _ in range(iterations):
        for k in range(prototypes):
            plan[:, k] = plan[:, k] / plan[:, k].sum() * (number / prototypes)
        for n in range(number):
            plan[n] = plan[n] / plan[n].sum()
    return plan


def cross_entropy(target: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Mean of -sum_k target_k log softmax(scores / temperature)_k."""
    terms = []
    for row, score in zip(target, scores, strict=True):
        below = sum((each / temperature).exp() for each in score)
        terms.append(-sum(p * ((each / temperature).exp() / below).log() for p, each in zip(row, score, strict=True)))
    return sum(terms) / len(terms)


def swapped(assignments: list[Tensor], scores: list[Tensor], temperature: float) -> Tensor:
    """Mean over all pairs of an assigned view and another one that predicts it: SwAV, and DINO with its targets."""
    pairs = [(view, other) for view in range(len(assignments)) for other in range(len(scores)) if other != view]
    return sum(cross_entropy(assignments[view], scores[other], temperature) for view, other in pairs) / len(pairs)


def dino_targets(outputs: list[Tensor], center: Tensor, temperature: float) -> list[Tensor]:
    return [
        torch.stack([((row - center) / temperature).exp() / ((row - center) / temperature).exp().sum() for row in view])
        for view in outputs
    ]

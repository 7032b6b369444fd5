"""A nearest-neighbor classifier on the representation: the curve on which hidden instability shows as dips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import normalize

from stabilitylab import probe
from stabilitylab.errors import InputError

__all__ = ["Probe", "classify"]


def classify(queries: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Return the class with the largest vote of the k most similar bank entries, each voting exp(cosine / temperature).

    Args:
        queries: l2-normalized features, shape (N, D).
        bank: l2-normalized features, shape (M, D), M at least k.
        labels: classes of the bank, int64, shape (M,); -1 where unknown, which has no vote.
        classes: number of classes.
        k: number of neighbors.
        temperature: the smaller, the more the nearest neighbors count.

    Returns:
        Predicted classes, int64, shape (N,); ``classes`` where a class that is not among them wins.

    References:
        Wu et al., 2018, Unsupervised feature learning via non-parametric instance discrimination. CVPR.
    """
    similarity, index = (queries @ bank.T).masked_fill_(labels < 0, -torch.inf).topk(k, dim=1)
    # the largest similarity is taken off first: the vote is the same and cannot overflow
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    # one class more for all that are not among them: a vote for it is never right
    votes = torch.zeros(len(queries), classes + 1, device=queries.device, dtype=weight.dtype)
    return votes.scatter_add_(1, labels[index].clamp(0, classes), weight).argmax(dim=1)


class Probe(probe.Probe):
    """Series ``knn.accuracy`` and ``knn.standard_error`` (columns ``bank``, ``queue``), ``knn.correct`` (per image).

    ``bank``: the fixed held-out images against fixed training images, all encoded with the weights of the step.
    ``queue``: the same held-out images against the features that training itself produced, first in, first out, as
    in the MoCo v3 paper (2021, appendix A); NaN until k features are there, and where the loop gives no
    ``representation`` and ``labels``. With many processes the queue holds what the first one saw. The standard
    error is binomial, sqrt(p (1 - p) / n).
    """

    needs_labels: ClassVar[bool] = True
    cost: ClassVar[str] = (
        "a forward pass of the held-out images and the bank, shared with the spectrum; a copy of the batch's features "
        "every step; no wait"
    )

    class Parameters(probe.Parameters):
        """When and how the neighbors vote."""

        every: PositiveInt = 10
        """Measure at every so many steps."""
        k: PositiveInt = 20
        """Number of neighbors that vote; at most the size of the bank."""
        temperature: PositiveFloat = 0.07
        """A neighbor votes with exp(cosine / temperature)."""
        queue: PositiveInt | None = None
        """Features in the queue; by default a tenth of the training images, and at least 512."""

    def __init__(self, parameters: Any, target: probe.Target) -> None:
        super().__init__(parameters, target)
        held_out = target.need_held_out("knn")
        if held_out.labels is None or held_out.bank_labels is None:
            raise InputError("the probe 'knn' needs the labels of the held-out images and of the bank")
        if len(held_out.bank) < parameters.k:
            raise InputError(f"probes.knn.k is {parameters.k}, but the bank holds {len(held_out.bank)} images")
        size = max(512, (held_out.train_images or len(held_out.bank)) // 10)
        self._held_out_labels, self._bank_labels = held_out.labels, held_out.bank_labels
        self._classes = int(torch.cat([held_out.labels, held_out.bank_labels]).max()) + 1
        self._size = max(parameters.queue or size, parameters.k)
        self._features: Tensor | None = None
        self._labels = torch.full((self._size,), -1, dtype=torch.int64, device=held_out.labels.device)
        self._filled = 0
        images = len(held_out.images)
        columns = ["bank", "queue"]
        self.labels = {
            "knn.accuracy": columns,
            "knn.standard_error": columns,
            "knn.correct": [str(index) for index in range(images)],
        }
        about = {"samples": images, "bank": len(held_out.bank), "queue": self._size, "k": parameters.k}
        self.about = dict.fromkeys(self.labels, about | {"temperature": parameters.temperature})

    def observe(self, step: probe.Step) -> None:
        """Put the features of the training samples into the queue."""
        if "representation" not in step.outputs or "labels" not in step.outputs:
            return
        features = normalize(step.outputs["representation"].float(), dim=1)[: self._size]
        if self._features is None:
            self._features = features.new_zeros(self._size, features.shape[1])
        slots = torch.arange(self._filled, self._filled + len(features), device=features.device) % self._size
        self._features[slots] = features
        self._labels[slots] = step.outputs["labels"][: len(features)]
        self._filled += len(features)

    def measure(self, step: probe.Step) -> probe.Measurement:
        """Return the accuracies, their errors, and which images were classified right."""
        if "representation" not in step.features.held_out:
            given = ", ".join(map(repr, step.features.held_out)) or "nothing"
            raise InputError(f"the probe 'knn' needs features named 'representation'; HeldOut.encode gives {given}")
        queries = normalize(step.features.held_out["representation"].float(), dim=1)
        bank = normalize(step.features.bank["representation"].float(), dim=1)
        vote = self._classes, self.parameters.k, self.parameters.temperature
        correct = classify(queries, bank, self._bank_labels, *vote) == self._held_out_labels
        in_queue = torch.full_like(queries[:, 0], float("nan"))
        if self._features is not None and self._filled >= self.parameters.k:
            size = min(self._filled, self._size)
            voted = classify(queries, self._features[:size], self._labels[:size], *vote)
            known = (self._labels >= 0).sum() >= self.parameters.k
            in_queue = torch.where(known, (voted == self._held_out_labels).float(), in_queue)
        accuracy = torch.stack([correct.float().mean(), in_queue.mean()])
        error = (accuracy * (1 - accuracy) / len(queries)).sqrt()
        return {"knn.accuracy": accuracy, "knn.standard_error": error, "knn.correct": correct.to(torch.uint8)}

    def state(self) -> dict[str, Tensor]:
        """Return the queue."""
        if self._features is None:
            return {}
        return {"features": self._features, "labels": self._labels, "filled": torch.tensor(self._filled)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back the queue."""
        if state:
            self._features = state["features"].to(self._labels.device)
            self._labels = state["labels"].to(self._labels.device)
            self._filled = int(state["filled"])

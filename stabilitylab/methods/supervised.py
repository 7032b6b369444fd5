"""Supervised classification, the setting in which convolutional stems were studied."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stabilitylab.errors import InputError
from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import Batch, Output
from stabilitylab.methods._precision import full
from stabilitylab.parameters import Parameters

__all__ = ["Method"]


class Method(Encoder):
    """A backbone with a linear classifier in the place of the projector.

    Raises:
        InputError: if the images have no labels.

    References:
        Xiao et al., 2021, Early convolutions help transformers see better. NeurIPS. arXiv 2106.14881.
    """

    class Config(Parameters):
        """Supervised training."""

        name: Literal["supervised"] = "supervised"
        """Name of the method."""
        label_smoothing: float = Field(0.1, ge=0, lt=1)
        """Part of the target that is spread over all classes."""

    needs_labels: ClassVar[bool] = True
    settings: ClassVar[dict[str, dict[str, object]]] = {"digits": {"optimizer.lr": 3e-3}}
    diagnostics: ClassVar[tuple[str, ...]] = ("accuracy",)
    num_views: ClassVar[int] = 1
    config: Config

    def make_projector(self) -> nn.Module:
        """Return the classifier."""
        classes = self.images.classes
        if classes < 2:
            raise InputError(f"the method supervised needs images of at least two classes; there are {classes}")
        return nn.Linear(self.width, classes)

    def compare(self, projections: list[Tensor], batch: Batch, /) -> Output:
        """Return the cross entropy of the first view; images without a label do not count.

        ``projection`` are the logits; the diagnostic ``accuracy`` is the part of the labeled images that is
        classified rightly.

        Raises:
            InputError: without labels.
        """
        if batch.labels is None:
            raise InputError("the method supervised must be told the labels of a batch")
        logits = full(projections[0])
        labels = batch.labels.to(logits.device)
        smoothing = self.config.label_smoothing
        count = (labels >= 0).sum().clamp_min(1)  # a batch without any label has a loss of zero
        loss = cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum") / count
        right = (logits.argmax(dim=1) == labels).sum() / count
        return Output(loss, {"projection": logits}, {}, {"accuracy": right})

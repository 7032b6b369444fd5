"""Supervised classification, the setting in which convolutional stems were studied."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stabilitylab.errors import InputError
from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import UNKNOWN, Images, MakeBackbone, Output
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

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:
        if images.classes < 2:
            raise InputError(f"the method supervised needs images of at least two classes; there are {images.classes}")
        super().__init__(config, make_backbone, lambda width: nn.Linear(width, images.classes))
        self.config: Method.Config = config

    def forward(
        self,
        views: tuple[Tensor, ...],
        progress: float,  # noqa: ARG002 - all methods are called alike
        indices: Tensor | None = None,  # noqa: ARG002
        labels: Tensor | None = None,
    ) -> Output:
        """Return the cross entropy of the first view, (N, C, H, W); images without a label (-1) do not count.

        ``projection`` are the logits; the diagnostic ``accuracy`` is the part of the labeled images that is
        classified rightly.

        Args:
            views: augmentations; only the first one is used.
            progress: not used.
            indices: not used.
            labels: classes, int64, shape (N,).

        Raises:
            InputError: without labels.
        """
        if labels is None:
            raise InputError("the method supervised must be told the labels of a batch")
        labels = labels.to(views[0].device)
        representation = self.represent(views[:1])[0]
        logits = full(self.projector(representation))
        smoothing = self.config.label_smoothing
        count = (labels >= 0).sum().clamp_min(1)  # a batch without any label has a loss of zero
        loss = cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum") / count
        right = (logits.detach().argmax(dim=1) == labels).sum() / count
        outputs = {"representation": representation.detach(), "projection": logits.detach()}
        return Output(loss, outputs, {}, {"accuracy": right})

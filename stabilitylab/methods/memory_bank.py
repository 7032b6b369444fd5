"""The memory bank that MoCo compares itself with: a stored key for each image, negatives sampled from all of them.

Shape suffixes: N samples of this rank, M of all ranks, K sampled keys, D features.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn.functional import normalize

from stabilitylab.errors import InputError
from stabilitylab.methods._contrast import CONTRASTS, against_dictionary
from stabilitylab.methods._encoder import Encoder
from stabilitylab.methods._exchange import UNKNOWN, Batch, Images, MakeBackbone, Output
from stabilitylab.methods._precision import full
from stabilitylab.models.collectives import gather
from stabilitylab.parameters import Parameters

__all__ = ["Method"]


class Method(Encoder):
    """Backbone and projector, and the bank of one key per training image.

    Raises:
        InputError: if the number of training images is not known.

    References:
        Wu et al., 2018, Unsupervised feature learning via non-parametric instance discrimination. CVPR.
        arXiv 1805.01978; with InfoNCE as in He et al., 2020, arXiv 1911.05722, Figure 2 (b).
    """

    class Config(Parameters):
        """The memory bank; the defaults are those of MoCo's comparison."""

        name: Literal["memory_bank"] = "memory_bank"
        """Name of the method."""
        temperature: PositiveFloat = 0.07
        """Temperature of the contrast."""
        negatives: PositiveInt = 65536
        """Keys sampled from the bank in each step."""
        bank_momentum: float = Field(0.5, ge=0, lt=1)
        """Part of a stored key that is kept when its image is seen again."""
        dim: PositiveInt = 128
        """Width of the embeddings that are contrasted."""
        hidden: PositiveInt | None = None
        """Hidden width of the projector where it has several layers; by default the width of the backbone."""
        projector_layers: PositiveInt = 1
        """Linear layers of the projector."""
        batch_norm: bool = False
        """BatchNorm in the projector."""

    settings: ClassVar[dict[str, dict[str, object]]] = {
        "digits": {"method.negatives": 1024, "method.projector_layers": 2, "method.batch_norm": True,
                   "method.temperature": 0.2, "optimizer.lr": 3e-3},
        "small": {"method.negatives": 4096},
    }  # fmt: skip
    diagnostics: ClassVar[tuple[str, ...]] = (*CONTRASTS, "bank_age")
    num_views: ClassVar[int] = 1
    config: Config
    bank: Tensor
    """l2-normalized keys, shape (number of training images, D)."""
    ages: Tensor
    """How many steps ago each was written; NaN for a random one."""

    def __init__(self, config: Config, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:
        if images.number < 1:
            raise InputError("the method memory_bank keeps a key for each training image, and must know their number")
        super().__init__(config, make_backbone, images)
        self.register_buffer("bank", normalize(torch.randn(images.number, config.dim), dim=1))
        self.register_buffer("ages", torch.full((images.number,), torch.nan))

    def compare(self, projections: list[Tensor], batch: Batch, /) -> Output:
        """Return the loss of the first view against the stored key of its image and those of others.

        ``key`` is the stored key of each image, before it is updated.

        Raises:
            InputError: without indices.
        """
        if batch.indices is None:
            raise InputError("the method memory_bank must be told which training images a batch holds")
        projection_ND = projections[0]
        indices = batch.indices.to(projection_ND.device)
        key_ND = self.bank[indices]
        sampled_K = torch.randint(len(self.bank), (self.config.negatives,), device=indices.device)
        same_NK = indices[:, None] == sampled_K
        loss, told = against_dictionary(projection_ND, key_ND, self.bank[sampled_K], self.config.temperature, same_NK)
        told["bank_age"] = self.ages.nanmean()
        if self.training:
            self._write(gather(projection_ND.detach()), gather(indices))
        return Output(loss, {"key": key_ND}, {}, told)

    @torch.no_grad()
    def _write(self, projection_MD: Tensor, indices_M: Tensor) -> None:
        kept = self.config.bank_momentum
        fresh = normalize(full(projection_MD), dim=1)
        self.bank[indices_M] = normalize(kept * self.bank[indices_M] + (1 - kept) * fresh, dim=1)
        self.ages += 1
        self.ages[indices_M] = 0

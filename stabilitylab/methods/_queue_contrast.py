"""MoCo with a queue of keys, as versions 1 and 2 have it.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stabilitylab.methods._contrast import CONTRASTS, against_dictionary
from stabilitylab.methods._encoder import MomentumEncoder
from stabilitylab.methods._exchange import UNKNOWN, Images, MakeBackbone, Output
from stabilitylab.methods._precision import full
from stabilitylab.methods._queue import Queue
from stabilitylab.models.collectives import gather, rank, world_size
from stabilitylab.models.heads import mlp_head

__all__ = ["QueueContrast"]


class QueueContrast(MomentumEncoder):
    """Queries of one view against the momentum encoder's key of the other and a queue of earlier keys.

    With ShuffleBN the images are shuffled over ranks before the momentum encoder sees them, so that BatchNorm cannot
    tell which query belongs to which key; in one process there is nobody to shuffle with, and it changes nothing.
    """

    settings: ClassVar[dict[str, dict[str, object]]] = {
        "digits": {"method.queue": 1024, "optimizer.lr": 3e-3},
        "small": {"method.queue": 4096},
    }
    diagnostics: ClassVar[tuple[str, ...]] = (*CONTRASTS, "queue_age")

    def __init__(self, config: Any, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:
        hidden = config.projector_layers - 1
        super().__init__(
            config,
            make_backbone,
            lambda width: mlp_head([width, *[config.hidden or width] * hidden, config.dim], config.batch_norm),
        )
        self.config: Any = config
        self.queue = Queue(config.queue, config.dim, images.batch * (2 if config.symmetric else 1))
        self.start_following()

    def forward(
        self,
        views: tuple[Tensor, ...],
        progress: float,
        indices: Tensor | None = None,  # noqa: ARG002 - all methods are called alike
        labels: Tensor | None = None,  # noqa: ARG002
    ) -> Output:
        """Return the loss of two views, after moving the momentum encoder; then the keys enter the queue.

        Outputs as of MoCo v3, without ``prediction``; ``key`` is the momentum encoder's projection of the second view,
        of all ranks.

        Args:
            views: two augmentations.
            progress: the part of the training that is done, 0 to 1.
            indices: not used.
            labels: not used.
        """
        momentum = self.move(progress)
        representations = self.represent(views[:2])
        projections = [self.projector(each) for each in representations]
        directions = ((0, 1), (1, 0)) if self.config.symmetric else ((0, 1),)
        keys = {k: self._keys_of(views[k]) for _, k in directions}
        losses, told = zip(
            *(
                against_dictionary(projections[q], keys[k], self.queue.keys, self.config.temperature)
                for q, k in directions
            ),
            strict=True,
        )
        age = self.queue.age()
        everyone = torch.cat([gather(keys[k]) for _, k in directions])
        if self.training:
            self.queue.push(everyone)
        outputs = {
            "representation": representations[0],
            "projection": projections[0],
            "positive": projections[1],
            "key": everyone,
        }
        return Output(
            torch.stack(losses).mean(),
            {name: value.detach() for name, value in outputs.items()},
            {"momentum": momentum},
            {name: torch.stack([each[name] for each in told]).mean() for name in CONTRASTS} | {"queue_age": age},
        )

    @torch.no_grad()
    def _keys_of(self, view_NCHW: Tensor) -> Tensor:
        """Return the l2-normalized keys of one view, shape (N, D), by way of other ranks where they are shuffled."""
        if not self.config.shuffle_bn or world_size() == 1:
            return normalize(full(self.keys([view_NCHW])[0]), dim=1)
        number = len(view_NCHW)
        order = torch.randperm(number * world_size(), device=view_NCHW.device)
        torch.distributed.broadcast(order, 0)
        mine = order[rank() * number : (rank() + 1) * number]
        key_MD = gather(self.keys([gather(view_NCHW)[mine]])[0])
        own = order.argsort()[rank() * number : (rank() + 1) * number]
        return normalize(full(key_MD[own]), dim=1)

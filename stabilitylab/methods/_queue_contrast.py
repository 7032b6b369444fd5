"""MoCo with a queue of keys, as versions 1 and 2 have it.

Shape suffixes: N samples of this rank, M of all ranks, D features.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from stabilitylab.errors import InputError
from stabilitylab.methods._contrast import CONTRASTS, against_dictionary, averaged
from stabilitylab.methods._encoder import MomentumEncoder
from stabilitylab.methods._exchange import UNKNOWN, Batch, Images, MakeBackbone, Output
from stabilitylab.methods._precision import full
from stabilitylab.methods._queue import Queue
from stabilitylab.models.collectives import gather, rank, world_size
from stabilitylab.models.sync_batch_norm import SyncBatchNorm

__all__ = ["QueueContrast"]


class QueueContrast(MomentumEncoder):
    """Queries of one view against the momentum encoder's key of the other and a queue of earlier keys.

    With ShuffleBN the images are shuffled over ranks before the momentum encoder sees them, so that BatchNorm cannot
    tell which query belongs to which key; in one process there is nobody to shuffle with, and it changes nothing.
    """

    settings: ClassVar[dict[str, dict[str, object]]] = {
        "digits": {"method.queue": 1024, "method.momentum": 0.99, "optimizer.lr": 3e-3},
        "small": {"method.queue": 4096},
    }
    diagnostics: ClassVar[tuple[str, ...]] = (*CONTRASTS, "queue_age")

    def __init__(self, config: Any, make_backbone: MakeBackbone, images: Images = UNKNOWN) -> None:
        super().__init__(config, make_backbone, images)
        self._shuffles = _shuffles(config.shuffle_bn, self.backbone)
        self.queue = Queue(config.queue, config.dim, images.batch * len(self.directions))

    def compare(self, projections: list[Tensor], batch: Batch, /) -> Output:
        """Return the mean loss of the directions; then the keys enter the queue.

        ``key`` is the momentum encoder's projection of the second view, of all ranks; of both ones, one after the
        other, where each view is query and key.
        """
        keys = {k: self._keys_of(batch.views[k]) for _, k in self.directions}
        held, temperature = self.queue.keys, self.config.temperature
        loss, told = averaged(
            against_dictionary(projections[q], keys[k], held, temperature) for q, k in self.directions
        )
        told["queue_age"] = self.queue.age()
        everyone = torch.cat([gather(keys[k]) for _, k in self.directions])
        if self.training:
            self.queue.push(everyone)
        return Output(loss, {"key": everyone}, {}, told)

    @torch.no_grad()
    def _keys_of(self, view_NCHW: Tensor) -> Tensor:
        """Return the l2-normalized keys of one view, shape (N, D), by way of other ranks where they are shuffled."""
        if not self._shuffles or world_size() == 1:
            return normalize(full(self.keys([view_NCHW])[0]), dim=1)
        number = len(view_NCHW)
        order = torch.randperm(number * world_size(), device=view_NCHW.device)
        torch.distributed.broadcast(order, 0)
        mine = order[rank() * number : (rank() + 1) * number]
        key_MD = gather(self.keys([gather(view_NCHW)[mine]])[0])
        own = order.argsort()[rank() * number : (rank() + 1) * number]
        return normalize(full(key_MD[own]), dim=1)


def _shuffles(asked: bool | None, backbone: nn.Module) -> bool:
    """Return whether images are shuffled: where a BatchNorm of the backbone sees those of one process, unless told not.

    Raises:
        InputError: if they shall be, and nothing would come of it.
    """
    norms = [each for each in backbone.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    alone = any(not isinstance(each, SyncBatchNorm) for each in norms)
    if asked and not alone:
        has = "BatchNorm over all processes alone" if norms else "no BatchNorm"
        raise InputError(
            f"method.shuffle_bn is true, but the backbone has {has}, which shuffling does not change: leave it away, "
            "or choose a backbone such as model.name=resnet18"
        )
    return alone and asked is not False

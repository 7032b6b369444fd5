"""Batch normalization over all ranks, on any device (torch's own synchronizes only on accelerators)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stabilitylab.models.collectives import sum_over_ranks, world_size

__all__ = ["SyncBatchNorm"]


class SyncBatchNorm(nn.BatchNorm1d):
    """BatchNorm of (N, D, ...) with the statistics of the global batch; plain BatchNorm in one process.

    Every rank must hold equally many samples. Ioffe and Szegedy, 2015; running variance unbiased, as torch's.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Take features (N, D) and maps (N, D, H, W) alike."""

    def forward(self, x_ND: Tensor) -> Tensor:
        """Normalize over all axes but the second, of every rank."""
        world = world_size()
        if world == 1 or not self.training:
            return super().forward(x_ND)
        full: Any = x_ND.float()
        # mean first and deviations after: the difference of squares would cancel
        axes = [axis for axis in range(full.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(full.ndim)]
        mean_D = sum_over_ranks(full.mean(dim=axes)) / world
        centered = full - mean_D.view(shape)
        variance_D = sum_over_ranks(centered.square().mean(dim=axes)) / world
        self._track(mean_D.detach(), variance_D.detach(), full.numel() // len(mean_D) * world)
        normal = centered * (variance_D + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x_ND.dtype)

    @torch.no_grad()
    def _track(self, mean_D: Tensor, variance_D: Tensor, samples: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_D, self.momentum)
        self.running_var.lerp_(variance_D * samples / (samples - 1), self.momentum)

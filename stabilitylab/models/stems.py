"""The convolutional stem that replaces the patch projection of a ViT (Xiao et al., 2021, ViT_C)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.models.sync_batch_norm import SyncBatchNorm

__all__ = ["ConvolutionalStem"]


class ConvolutionalStem(nn.Module):
    """Stride-two 3x3 convolutions with BatchNorm and ReLU, then a 1x1 convolution to the width of the ViT.

    As many halvings as the patch size has factors of two, with channels that double up to half of the width (the
    width itself divided by two, four, eight, ...): 24, 48, 96, 192 for a width of 192 and patches of 16 pixels is
    the published 1GF stem. Takes the arguments of timm's ``embed_layer``.

    Args:
        img_size: side of the images, pixels.
        patch_size: a power of two.
        in_chans: channels of the images.
        embed_dim: width of the ViT, divisible by half of the patch size.

    Raises:
        InputError: if the patch size is no power of two, or does not divide the image, or the width.
    """

    def __init__(self, img_size: int, patch_size: int, in_chans: int = 3, embed_dim: int = 192, **_: Any) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 2**halvings:
            raise InputError(f"a convolutional stem needs a patch size that is a power of two, {patch_size} was given")
        if embed_dim % 2 ** (halvings - 1):
            raise InputError(f"model.dim is {embed_dim}; this stem needs a multiple of {2 ** (halvings - 1)}")
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        layers: list[nn.Module] = []
        channels = in_chans
        for halving in range(halvings):
            width = embed_dim // 2 ** (halvings - 1 - halving)
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), SyncBatchNorm(width), nn.ReLU()]
            channels = width
        self.convolutions = nn.Sequential(*layers)
        self.proj = nn.Conv2d(channels, embed_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (N, C, H, W) into tokens (N, L, D)."""
        return self.proj(self.convolutions(images)).flatten(2).transpose(1, 2)

"""Convolutional stems that replace the patch projection of a ViT (Xiao et al., 2021)."""

from __future__ import annotations

from math import gcd
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.models.sync_batch_norm import SyncBatchNorm

__all__ = ["DESIGNS", "ConvolutionalStem", "Design", "layers_of"]

Design = Literal["convolutional", "c_18gf", "s1", "s2", "s3", "s4"]
DESIGNS: tuple[str, ...] = get_args(Design)


class Layer(NamedTuple):
    """A convolution with BatchNorm and ReLU; one whose kernel is as large as its stride sees patches."""

    channels: int
    kernel: int
    stride: int


def _layers(channels: str, kernels: str, strides: str) -> tuple[Layer, ...]:
    columns = (map(int, each.split()) for each in (channels, kernels, strides))
    return tuple(Layer(*each) for each in zip(*columns, strict=True))


PUBLISHED = {
    "c_18gf": _layers("64 128 128 256 256 512", "3 3 3 3 3 3", "2 2 1 2 1 2"),
    "s1": _layers("42 104 208 416", "3 3 3 2", "2 2 2 2"),
    "s2": _layers("32 64 128 256", "3 3 3 4", "2 2 1 4"),
    "s3": _layers("17 34 68 136", "3 3 3 8", "2 1 1 8"),
    "s4": _layers("8 16 32 64", "3 3 3 16", "1 1 1 16"),
}
"""Layers for patches of 16 pixels, without the last 1x1 convolution."""


def layers_of(design: str, patch_size: int, dim: int) -> list[Layer]:
    """Return the layers of a stem before its last 1x1 convolution, whose strides multiply to the patch size.

    ``convolutional``: as many halvings as the patch size has factors of two, with channels that double up to the width
    of the ViT; for patches of 16 pixels and widths of 192 and 384 the published stems of 1 and 4 GF. The others are the
    published ones, with their strides made smaller from the first layer on where a patch has fewer pixels than 16.

    Args:
        design: name of a stem.
        patch_size: side of a patch, pixels: a power of two, at most 16 for the published ones.
        dim: width of the ViT.

    Raises:
        InputError: if the stem cannot be built for these sizes.
    """
    halvings = patch_size.bit_length() - 1
    if patch_size < 2 or patch_size != 2**halvings:
        raise InputError(
            f"model.patch_size is {patch_size}; the stem {design!r} needs a power of two from 2 on: choose one, or "
            "model.stem=patchify"
        )
    if design == "convolutional":
        if dim % 2 ** (halvings - 1):
            raise InputError(f"model.dim is {dim}; the stem {design!r} needs a multiple of {2 ** (halvings - 1)}")
        return [Layer(dim // 2 ** (halvings - 1 - each), 3, 2) for each in range(halvings)]
    if patch_size > 16:
        raise InputError(f"model.patch_size is {patch_size}; the stem {design!r} is made for patches of at most 16")
    left, layers = 16 // patch_size, list[Layer]()
    for channels, kernel, stride in PUBLISHED[design]:
        less = gcd(stride, left)
        left //= less
        patches = kernel == stride
        layers.append(Layer(channels, max(kernel // less, 1) if patches else kernel, stride // less))
    return layers


class ConvolutionalStem(nn.Module):
    """Convolutions with BatchNorm and ReLU, then a 1x1 convolution to the width of the ViT.

    Takes the arguments of timm's ``embed_layer``.

    Args:
        img_size: side of the images, pixels.
        patch_size: side of a patch, pixels.
        in_chans: channels of the images.
        embed_dim: width of the ViT.
        design: which stem, see `layers_of`.
        output_fmt: ``NHWC`` keeps the grid of the tokens, for images of other sizes.

    Raises:
        InputError: if the stem cannot be built for these sizes.
    """

    def __init__(
        self,
        img_size: int,
        patch_size: int,
        in_chans: int = 3,
        embed_dim: int = 192,
        design: Design = "convolutional",
        output_fmt: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self._keep_grid = output_fmt == "NHWC"
        layers: list[nn.Module] = []
        channels = in_chans
        for width, kernel, stride in layers_of(design, patch_size, embed_dim):
            padding = 0 if kernel == stride else 1
            convolution = nn.Conv2d(channels, width, kernel, stride=stride, padding=padding, bias=False)
            layers += [convolution, SyncBatchNorm(width), nn.ReLU()]
            channels = width
        self.convolutions = nn.Sequential(*layers)
        self.proj = nn.Conv2d(channels, embed_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (N, C, H, W) into tokens (N, L, D), or (N, rows, columns, D)."""
        tokens = self.proj(self.convolutions(images))
        return tokens.permute(0, 2, 3, 1) if self._keep_grid else tokens.flatten(2).transpose(1, 2)

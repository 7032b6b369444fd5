"""The ViT of MoCo v3 on timm's VisionTransformer: its initialization and its fixed position embedding."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.models.stems import ConvolutionalStem
from stabilitylab.parameters import Parameters

__all__ = ["Model", "build", "sincos_positions", "timm_arguments"]


class Model(Parameters):
    """The backbone."""

    name: Literal["vit"] = "vit"
    """Kind of backbone."""
    dim: PositiveInt = 384
    """Width: 384 for a ViT-S, 768 for a ViT-B."""
    depth: PositiveInt = 12
    """Number of blocks."""
    heads: PositiveInt = 12
    """Attention heads per block."""
    mlp_ratio: float = Field(4.0, gt=0)
    """Width of the MLP over the width of the model."""
    patch_size: PositiveInt = 16
    """Side of a patch, pixels; must divide data.image_size."""
    stem: Literal["patchify", "convolutional"] = "patchify"
    """What turns images into tokens: the patch projection, or 3x3 convolutions of stride two."""
    patch_projection: Literal["learned", "frozen"] = "learned"
    """Whether the patch projection is trained, or keeps its random initialization."""
    positions: Literal["sincos", "learned", "none"] = "sincos"
    """Position embedding: fixed 2-D sine and cosine, learned, or none."""
    pooling: Literal["token", "avg"] = "token"
    """The representation: the [CLS] token, or the mean of the patch tokens."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; grows linearly over depth."""


def timm_arguments(model: Model, image_size: int, channels: int) -> dict[str, Any]:
    """Return the keyword arguments, all JSON, with which timm's VisionTransformer takes the trained weights."""
    return {
        "img_size": image_size,
        "patch_size": model.patch_size,
        "in_chans": channels,
        "num_classes": 0,
        "global_pool": model.pooling,
        "embed_dim": model.dim,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "pos_embed": "none" if model.positions == "none" else "learn",
        "fc_norm": False,
        "drop_path_rate": model.drop_path,
    }


def build(model: Model, image_size: int, channels: int) -> VisionTransformer:
    """Build the backbone: images (N, C, S, S) to representations (N, dim).

    Raises:
        InputError: if sizes do not fit each other, or the patch projection of a convolutional stem is to be frozen.
    """
    _check(model, image_size)
    arguments = timm_arguments(model, image_size, channels)
    if model.stem == "convolutional":
        arguments["embed_layer"] = ConvolutionalStem
    vit = VisionTransformer(**arguments, norm_layer=partial(nn.LayerNorm, eps=1e-6))
    _initialize(vit, model, channels)
    if model.patch_projection == "frozen":
        vit.patch_embed.requires_grad_(False)
    return vit


def _check(model: Model, image_size: int) -> None:
    if image_size % model.patch_size:
        raise InputError(f"model.patch_size is {model.patch_size}, which does not divide data.image_size, {image_size}")
    if model.dim % model.heads:
        raise InputError(f"model.heads is {model.heads}, which does not divide model.dim, {model.dim}")
    if model.positions == "sincos" and model.dim % 4:
        raise InputError(f"model.dim is {model.dim}; sincos positions need a multiple of 4")
    if model.stem == "convolutional" and model.patch_projection == "frozen":
        raise InputError(
            "model.patch_projection is 'frozen', but model.stem is 'convolutional': there is no patch projection; "
            "choose model.stem=patchify or model.patch_projection=learned"
        )


@torch.no_grad()
def _initialize(vit: VisionTransformer, model: Model, channels: int) -> None:
    """Initialize as MoCo v3 does (Chen, Xie and He, 2021)."""
    for name, module in vit.named_modules():
        if isinstance(module, nn.Linear):
            # q, k and v stand in one matrix, and each is a layer of its own for Xavier's bound
            outputs = module.out_features // (3 if name.endswith("qkv") else 1)
            bound = math.sqrt(6 / (module.in_features + outputs))
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)
    if model.stem == "patchify":
        bound = math.sqrt(6 / (channels * model.patch_size**2 + model.dim))
        nn.init.uniform_(vit.patch_embed.proj.weight, -bound, bound)
        nn.init.zeros_(vit.patch_embed.proj.bias)
    if model.positions == "sincos" and vit.pos_embed is not None:
        vit.pos_embed.copy_(sincos_positions(vit.patch_embed.grid_size, model.dim))
        vit.pos_embed.requires_grad_(False)


def sincos_positions(grid: tuple[int, int], dim: int, temperature: float = 10000.0) -> Tensor:
    """Return the fixed position embedding of MoCo v3, shape (1, 1 + rows * columns, dim); zeros for [CLS].

    A quarter of the width each: sine and cosine of the row index, sine and cosine of the column index, at the
    frequencies temperature ** -(i / (dim / 4)). Token number ``row * columns + column``, as in the released weights.
    """
    frequency = temperature ** -(torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(grid[0]).float(), torch.arange(grid[1]).float(), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency[None, :] for axis in (row, column)]
    positions = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(1, dim), positions])[None]

"""The ViT of MoCo v3 on timm's VisionTransformer: its initialization and its fixed position embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, cast

import timm
import torch
from pydantic import Field, PositiveInt, field_validator, model_validator
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.models.freezing import freeze
from stabilitylab.models.stems import DESIGNS, ConvolutionalStem
from stabilitylab.parameters import Parameters

__all__ = ["SIZES", "Model", "build", "check_patches", "sincos_positions", "timm_arguments"]

SIZES: dict[str, dict[str, Any]] = {
    "vit": {},
    "vit_s": {"dim": 384, "depth": 12, "heads": 12, "mlp_ratio": 4.0},
    "vit_b": {"dim": 768, "depth": 12, "heads": 12, "mlp_ratio": 4.0},
    "vit_1gf": {"dim": 192, "depth": 12, "heads": 3, "mlp_ratio": 3.0},
    "vit_4gf": {"dim": 384, "depth": 12, "heads": 6, "mlp_ratio": 3.0},
    "vit_18gf": {"dim": 768, "depth": 12, "heads": 12, "mlp_ratio": 4.0},
    "vit_36gf": {"dim": 1024, "depth": 14, "heads": 16, "mlp_ratio": 4.0},
}
"""Published sizes by name (MoCo v3, and the stem paper, which drops a block for its convolutional stem)."""


class Model(Parameters):
    """The backbone, a ViT."""

    name: Literal["vit", "vit_s", "vit_b", "vit_1gf", "vit_4gf", "vit_18gf", "vit_36gf"] = "vit"
    """vit, of the sizes given here; a published size (vit_s, vit_b, vit_1gf, ...); or the name of a timm model."""
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
    stem: Literal["patchify", "convolutional", "c_18gf", "s1", "s2", "s3", "s4"] = "patchify"
    """What turns images into tokens: patchify, convolutional (3x3, stride two), c_18gf, or s1 to s4."""
    patch_projection: Literal["learned", "frozen"] = "learned"
    """Whether the patch projection is trained, or keeps its random initialization."""
    frozen: tuple[str, ...] = ()
    """Parts whose parameters keep their start, such as patch_embed.convolutions; running statistics go on."""
    positions: Literal["sincos", "learned", "rope", "none"] = "sincos"
    """Position embedding: fixed 2-D sine and cosine, learned, rotary, or none."""
    pooling: Literal["token", "avg"] = "token"
    """The representation: the [CLS] token, or the mean of the patch tokens."""
    final_norm: bool = True
    """LayerNorm after the last block."""
    qk_norm: bool = False
    """LayerNorm of queries and keys in each head."""
    layer_scale: float | None = Field(None, gt=0)
    """Start value of a learned factor per channel on what each block adds; None for no such factor."""
    registers: int = Field(0, ge=0)
    """Tokens beside the [CLS] token that stand for no patch."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block; grows linearly over depth."""

    @field_validator("stem", mode="before")
    @classmethod
    def _of_a_vit(cls, stem: object) -> object:
        if stem in ("own", "small"):
            raise ValueError(f"this is a stem of timm's models; those of a ViT are patchify, {', '.join(DESIGNS)}")
        return stem

    @model_validator(mode="before")
    @classmethod
    def _sizes(cls, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name", "vit")
        sizes = dict(SIZES.get(name, {}))
        if "gf" in str(name) and given.get("stem", "patchify") != "patchify":
            sizes["depth"] -= 1  # the stem costs about as much as a block
        return {**sizes, **given}


def timm_arguments(model: Model, image_size: int, channels: int) -> dict[str, Any]:
    """Return the keyword arguments, all JSON, with which timm takes the trained weights.

    They are those of its ``VisionTransformer``; with rotary positions and a ``model_name``, of its ``create_model``.
    """
    rotary = model.positions == "rope"
    own: dict[str, Any] = {
        "img_size": image_size,
        "patch_size": model.patch_size,
        "in_chans": channels,
        "num_classes": 0,
        "global_pool": model.pooling,
        "embed_dim": model.dim,
        "depth": model.depth,
        "num_heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "drop_path_rate": model.drop_path,
        "qk_norm": model.qk_norm,
        "init_values": model.layer_scale,
    }
    if rotary:
        return {"model_name": "vit_small_patch16_rope_224", **own, "num_reg_tokens": model.registers,
                "use_fc_norm": False}  # fmt: skip
    positions = "none" if model.positions == "none" else "learn"
    return {**own, "pos_embed": positions, "fc_norm": False, "final_norm": model.final_norm,
            "reg_tokens": model.registers}  # fmt: skip


def build(model: Model, image_size: int, channels: int, other_sizes: Sequence[int] = ()) -> VisionTransformer | Eva:
    """Build the backbone: images (N, C, S, S) to representations (N, dim).

    Args:
        model: what it is.
        image_size: side of the images, pixels.
        channels: of the images.
        other_sizes: of small crops that it must take too, whose position embeddings are interpolated.

    Raises:
        InputError: if sizes do not fit each other, or what is to be frozen is not there.
    """
    _check(model, image_size, other_sizes)
    arguments = timm_arguments(model, image_size, channels)
    if other_sizes:
        arguments["dynamic_img_size"] = True
    norm = partial(nn.LayerNorm, eps=1e-6)
    vit: VisionTransformer | Eva
    if model.positions == "rope":
        vit = cast(Eva, timm.create_model(**arguments, norm_layer=norm))
    else:
        if model.stem != "patchify":
            arguments["embed_layer"] = partial(ConvolutionalStem, design=model.stem)
        vit = VisionTransformer(**arguments, norm_layer=norm)
    _initialize(vit, model, channels)
    freeze(vit, ("patch_embed", *model.frozen) if model.patch_projection == "frozen" else model.frozen)
    return vit


def check_patches(subject: str, patch_size: int, image_size: int, other_sizes: Sequence[int]) -> None:
    """Refuse images of which patches would leave a border.

    Args:
        subject: a sentence that says how large the patches are.
        patch_size: side of a patch, pixels.
        image_size: side of the images, pixels.
        other_sizes: of small crops.
    """
    for name, size in (("data.image_size", image_size), *(("augment.small_crop_size", each) for each in other_sizes)):
        if size % patch_size:
            raise InputError(f"{subject}, which does not divide {name}, {size}")


def _check(model: Model, image_size: int, other_sizes: Sequence[int]) -> None:
    check_patches(f"model.patch_size is {model.patch_size}", model.patch_size, image_size, other_sizes)
    if model.dim % model.heads:
        raise InputError(f"model.heads is {model.heads}, which does not divide model.dim, {model.dim}")
    if int(model.dim * model.mlp_ratio) < 1:
        raise InputError(f"model.mlp_ratio is {model.mlp_ratio}, which leaves no unit of model.dim, {model.dim}")
    if model.positions == "sincos" and model.dim % 4:
        raise InputError(f"model.dim is {model.dim}; sincos positions need a multiple of 4")
    if model.stem != "patchify" and model.patch_projection == "frozen":
        raise InputError(
            f"model.patch_projection is 'frozen', but model.stem is {model.stem!r}: there is no patch projection; "
            'choose model.stem=patchify, or freeze a part of the stem: model.frozen=["patch_embed.convolutions"], '
            '["patch_embed.proj"] or ["patch_embed"]'
        )
    if model.positions != "rope":
        return
    if model.dim // model.heads % 4:
        raise InputError(
            f"model.dim / model.heads is {model.dim // model.heads}; rotary positions need a multiple of 4"
        )
    for name, usual in (("stem", "patchify"), ("final_norm", True)):
        if getattr(model, name) != usual:
            raise InputError(f"with model.positions=rope model.{name} must be {usual}; timm has no other such model")


@torch.no_grad()
def _initialize(vit: VisionTransformer | Eva, model: Model, channels: int) -> None:
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
        nn.init.zeros_(cast(Tensor, vit.patch_embed.proj.bias))
    if model.positions == "sincos" and vit.pos_embed is not None:
        vit.pos_embed.copy_(sincos_positions(vit.patch_embed.grid_size, model.dim, prefix=1 + model.registers))
        vit.pos_embed.requires_grad_(False)


def sincos_positions(grid: tuple[int, int], dim: int, temperature: float = 10000.0, prefix: int = 1) -> Tensor:
    """Return the fixed position embedding of MoCo v3, shape (1, prefix + rows * columns, dim); zeros for [CLS].

    A quarter of the width each: sine and cosine of the row index, sine and cosine of the column index, at the
    frequencies temperature ** -(i / (dim / 4)). Token number ``row * columns + column``, as in the released weights.

    Args:
        grid: rows and columns of patches.
        dim: width, a multiple of four.
        temperature: largest wavelength, over 2 pi.
        prefix: tokens that stand for no patch: [CLS] and registers.
    """
    frequency = temperature ** -(torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    row, column = torch.meshgrid(torch.arange(grid[0]).float(), torch.arange(grid[1]).float(), indexing="ij")
    angles = [axis.flatten()[:, None] * frequency[None, :] for axis in (row, column)]
    positions = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(prefix, dim), positions])[None]

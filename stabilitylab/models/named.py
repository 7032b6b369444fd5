"""Backbones of timm by their names: ResNets, RegNets, other ViTs, whatever gives one vector per image."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal

import timm
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.models.freezing import freeze
from stabilitylab.models.stems import DESIGNS
from stabilitylab.models.vit import SIZES, check_patches
from stabilitylab.parameters import Parameters

__all__ = ["Model", "build", "timm_arguments"]


class Model(Parameters):
    """The backbone, a model of timm with random weights."""

    name: str
    """Name of a model of timm, such as resnet18, resnet50, regnety_004 or vit_tiny_patch16_224."""
    stem: Literal["own", "small"] = "own"
    """The model's own stem; or, for a ResNet, the one for small images: 3x3, stride one, no pooling."""
    patch_size: int | None = Field(None, ge=1)
    """Side of a patch, pixels, of a model that takes it; by default its own."""
    frozen: tuple[str, ...] = ()
    """Parts of the backbone whose parameters keep their start, such as conv1; running statistics go on."""
    drop_path: float = Field(0.0, ge=0, lt=1)
    """Stochastic depth of the last block."""

    @field_validator("stem", mode="before")
    @classmethod
    def _of_timm(cls, stem: object) -> object:
        if stem in ("patchify", *DESIGNS):
            raise ValueError(
                f"this is a stem of {', '.join(SIZES)}; other models have their own, or small where it is a ResNet"
            )
        return stem

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if not timm.is_model(name):
            near = get_close_matches(name, [*SIZES, *timm.list_models()], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"no model is named so{hint} (available: {', '.join(SIZES)}, and timm's: python -c "
                '"import timm; print(timm.list_models())")'
            )
        try:
            timm.models.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError as error:
            model, _, tag = name.partition(".")
            tags = [str(each).partition(".")[2] for each in timm.list_pretrained(f"{model}.*")]
            raise ValueError(
                f"timm has no {model} with the tag {tag!r} (with weights: {', '.join(tags) or 'none'})"
            ) from error
        return name


def timm_arguments(model: Model, image_size: int, channels: int) -> dict[str, Any]:
    """Return the keyword arguments, all JSON, with which timm's ``create_model`` takes the trained weights."""
    arguments: dict[str, Any] = {"model_name": model.name, "in_chans": channels, "num_classes": 0}
    if model.drop_path:
        arguments["drop_path_rate"] = model.drop_path
    if _takes_size(model.name):
        arguments["img_size"] = image_size
        if model.patch_size is not None:
            arguments["patch_size"] = model.patch_size
    elif model.patch_size is not None:
        raise InputError(f"model.patch_size is {model.patch_size}, but {model.name} has no patches")
    return arguments


def build(model: Model, image_size: int, channels: int, other_sizes: Sequence[int] = ()) -> nn.Module:
    """Build the backbone: images (N, C, S, S) to representations (N, num_features).

    Args:
        model: what it is.
        image_size: side of the images, pixels.
        channels: of the images.
        other_sizes: of small crops that it must take too, pixels.

    Raises:
        InputError: if timm cannot build it so, it does not give one vector per image, or a part is not there.
    """
    arguments = timm_arguments(model, image_size, channels)
    if other_sizes and "img_size" in arguments:
        arguments["dynamic_img_size"] = True
    try:
        backbone = timm.create_model(**arguments)
    except Exception as error:  # what a model of another library objects to, it says in its own way
        asked = {"model.patch_size": model.patch_size, "model.drop_path": model.drop_path,
                 "augment.small_crops": other_sizes}  # fmt: skip
        hint = " or ".join(name for name, value in asked.items() if value)
        raise InputError(
            f"model.name is {model.name!r}, which timm cannot build here: {_said(error)}"
            f"{f'; it may not take {hint}' if hint else ''}"
        ) from error
    if model.stem == "small":
        _make_small(backbone, model.name, channels)
    embed = getattr(backbone, "patch_embed", None)
    patch: Any = getattr(embed, "patch_size", None)
    if patch is not None and not getattr(embed, "dynamic_img_pad", False):
        side = patch[0] if isinstance(patch, tuple) else patch
        check_patches(f"model.patch_size of {model.name} is {side}", side, image_size, other_sizes)
    sizes = (image_size, *other_sizes)
    width: Any
    width, *_ = (_width(backbone, model.name, torch.zeros(1, channels, each, each)) for each in sizes)
    backbone.num_features = width
    freeze(backbone, model.frozen)
    return backbone


def _takes_size(name: str) -> bool:
    """Return whether a model is made for images of one size: a ViT and its like."""
    return bool(getattr(timm.models.get_pretrained_cfg(name), "fixed_input_size", False))


def _said(error: Exception) -> str:
    """Return what another library objects to, in one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


@torch.no_grad()
def _width(backbone: nn.Module, name: str, image: Tensor) -> int:
    """Return the width of what the model makes of an image, which is not always that of its last map."""
    try:
        features = backbone.eval()(image)
    except Exception as error:  # what a model of another library objects to, it says in its own way
        raise InputError(
            f"model.name is {name!r}, which cannot take images of {image.shape[-1]} pixels: "
            f"{_said(error)}; larger ones, data.image_size, may do"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"model.name is {name!r}, which gives {shape} for an image; one vector is needed")
    backbone.train()
    return features.shape[1]


def _make_small(backbone: nn.Module, name: str, channels: int) -> None:
    """Replace the stem of a ResNet as for CIFAR (Chen et al., 2020, SimCLR, appendix B.9)."""
    first = getattr(backbone, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not hasattr(backbone, "maxpool"):
        raise InputError(
            f"model.stem is 'small', which is for a ResNet; {name} has no such stem: choose model.stem=own"
        )
    backbone.conv1 = nn.Conv2d(channels, first.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
    backbone.maxpool = nn.Identity()

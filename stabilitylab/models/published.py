"""The published checkpoints of MoCo v3, from a local file, with every key accounted for."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stabilitylab.errors import InputError

__all__ = ["is_published", "load_moco_v3", "renamed"]

PARTS = {
    "base_encoder.head.": "projector.",
    "base_encoder.": "backbone.",
    "momentum_encoder.head.": "momentum_projector.",
    "momentum_encoder.": "momentum_backbone.",
    "predictor.": "predictor.",
}
"""Beginning of a published name to ours; the first that fits counts."""


def is_published(path: Path) -> bool:
    """Return whether a file looks like a checkpoint that torch saved."""
    return path.is_file() and path.suffix in (".tar", ".pth", ".pt")


def load_moco_v3(method: nn.Module, path: Path) -> None:
    """Load a published checkpoint into the method ``moco_v3``, or the backbone of another one, with a ViT of its size.

    Args:
        method: takes the weights; one that is not ``moco_v3`` those of the base encoder, without its head.
        path: what torch saved, with ``state_dict`` in it, or that alone; nothing but tensors and numbers is unpickled.

    Raises:
        InputError: if the file cannot be read so, a key has no place, a weight would stay random, or a shape differs.
    """
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint of tensors and numbers alone: {_first(error)}"
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        raise InputError(f"{path} cannot be read as a checkpoint: {_first(error)}") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(each, Tensor) for each in state.values()):
        raise InputError(f"{path} holds no state_dict of tensors")
    given, own = renamed(state, path), method.state_dict()
    whole = getattr(method.config, "name", None) == "moco_v3"
    if not whole:
        given, own = (
            {name: each for name, each in every.items() if name.startswith("backbone.")} for every in (given, own)
        )
    for what, names in (("has no place for", set(given) - set(own)), ("is missing", set(own) - set(given))):
        if names:
            subject = "the method" if what.startswith("has") else str(path)
            raise InputError(f"{path} does not fit: {subject} {what} {', '.join(sorted(names)[:5])}")
    for name, value in given.items():
        if value.shape != own[name].shape:
            raise InputError(
                f"{path} does not fit: {name} is {tuple(value.shape)} there and {tuple(own[name].shape)} here"
            )
    method.load_state_dict(given, strict=whole)
    if not whole and hasattr(method, "momentum_backbone"):
        method.get_submodule("momentum_backbone").load_state_dict(method.get_submodule("backbone").state_dict())


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def renamed(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights under our names.

    Raises:
        InputError: if a name is none of a published checkpoint's.
    """
    found = {}
    for name, value in state.items():
        plain = name.removeprefix("module.")
        old = next((each for each in PARTS if plain.startswith(each)), None)
        if old is None:
            raise InputError(f"{path} holds {name!r}, which is no name of a MoCo v3 checkpoint")
        found[PARTS[old] + plain.removeprefix(old)] = value
    return found

"""An optimizer's state as tensors and JSON, whatever it holds: nothing pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabilitylab.errors import InputError

__all__ = ["pack", "unpack"]

TAG = "="
"""The key of what JSON cannot hold: ``{"=": "tensor", "of": name}``; no optimizer has a setting of this name."""

FURTHER = "further."
"""Before the names of tensors in what an optimizer keeps besides its states and groups, such as random numbers."""


def pack(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Part a state into named tensors, as ``3.exp_avg`` or ``group.0.lr``, and JSON that names those within lists.

    Args:
        state: as ``optimizer.state_dict()`` returns it.

    Raises:
        InputError: if it holds what neither can.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, values in state["state"].items():
        plain[str(parameter)] = _part(values, f"{parameter}", tensors)
    groups = [_part(group, f"group.{number}", tensors) for number, group in enumerate(state["param_groups"])]
    rest = {name: value for name, value in state.items() if name not in ("state", "param_groups")}
    further = {name: _encode(value, f"{FURTHER}{name}", tensors) for name, value in rest.items()}
    return tensors, {"state": plain, "param_groups": groups, "further": further}


def _part(values: Mapping[str, Any], owner: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return what is not a tensor as JSON, and put the tensors away under the owner's name."""
    tensors |= {f"{owner}.{key}": value for key, value in values.items() if isinstance(value, Tensor)}
    return {
        key: _encode(value, f"{owner}.{key}", tensors) for key, value in values.items() if not isinstance(value, Tensor)
    }


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):  # JSON has no infinity
        return value if abs(value) < float("inf") else {TAG: "float", "of": str(value)}
    if isinstance(value, Tensor):
        tensors[name] = value
        return {TAG: "tensor", "of": name}
    if isinstance(value, torch.dtype):
        return {TAG: "dtype", "of": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        parts = [_encode(each, f"{name}.{at}", tensors) for at, each in enumerate(value)]
        return parts if isinstance(value, list) else {TAG: "tuple", "of": parts}
    if isinstance(value, Mapping):
        pairs = [[_encode(key, name, tensors), _encode(each, f"{name}.{key}", tensors)] for key, each in value.items()]
        return {TAG: "dict", "of": pairs}
    raise InputError(f"the optimizer keeps a {type(value).__name__} in {name}, which a checkpoint cannot hold")


def unpack(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that `pack` parted.

    Raises:
        KeyError: if a tensor is missing.
    """
    inside: set[str] = set()
    state = {int(owner): _whole(values, tensors, inside) for owner, values in plain["state"].items()}
    groups = [_whole(group, tensors, inside) for group in plain["param_groups"]]
    further = {name: _decode(value, tensors, inside) for name, value in plain.get("further", {}).items()}
    for name in tensors.keys() - inside:
        owner, _, key = name.partition(".")
        if owner == "group":
            number, _, key = key.partition(".")
            groups[int(number)][key] = tensors[name]
        else:
            state.setdefault(int(owner), {})[key] = tensors[name]
    return {"state": state, "param_groups": groups, **further}


def _whole(values: Mapping[str, Any], tensors: Mapping[str, Tensor], inside: set[str]) -> dict[str, Any]:
    return {key: _decode(value, tensors, inside) for key, value in values.items()}


def _decode(value: Any, tensors: Mapping[str, Tensor], inside: set[str]) -> Any:
    if isinstance(value, list):
        return [_decode(each, tensors, inside) for each in value]
    if not isinstance(value, dict):
        return value
    kind, of = value[TAG], value["of"]
    if kind == "tensor":
        inside.add(of)
        return tensors[of]
    if kind == "float":
        return float(of)
    if kind == "dtype":
        return getattr(torch, of)
    if kind == "tuple":
        return tuple(_decode(each, tensors, inside) for each in of)
    return {_decode(key, tensors, inside): _decode(each, tensors, inside) for key, each in of}

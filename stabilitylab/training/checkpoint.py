"""Checkpoints: safetensors and JSON, there whole or not at all, nothing pickled."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stabilitylab.disk.atomic import sync_folder, write_json
from stabilitylab.errors import InputError
from stabilitylab.parameters import Parameters

__all__ = ["Checkpoint", "Checkpoints", "State", "latest", "load", "save"]

NAME = re.compile(r"\d{8,}")


class Checkpoints(Parameters):
    """Checkpoints."""

    every: int = Field(500, ge=0)
    """Save at every so many steps, besides at the end; 0 only at the end."""
    keep: int = Field(3, ge=0)
    """So many of the newest are kept; 0 keeps all."""


@dataclass(frozen=True)
class State:
    """Everything that training needs to go on after ``step`` steps."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    """As ``optimizer.state_dict()`` returns it."""
    probes: Mapping[str, Tensor]
    scaler: Mapping[str, float | int]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    step: int
    path: Path


def save(
    run: Path, state: State, backbone: Mapping[str, Tensor], timm_arguments: Mapping[str, Any], keep: int
) -> Checkpoint:
    """Write a checkpoint under a temporary name, sync and rename it, and remove the oldest ones.

    ``backbone.safetensors`` and ``backbone.json`` are for others: a plain timm model takes them.
    """
    folder = run / "checkpoints"
    final = folder / f"{state.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors, plain = _flatten(state.optimizer)
    for name, content in (
        ("model", state.model),
        ("optimizer", tensors),
        ("probes", state.probes),
        ("backbone", backbone),
    ):
        file = temporary / f"{name}.safetensors"
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in content.items()}, file)
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
    write_json(temporary / "backbone.json", timm_arguments)
    write_json(temporary / "state.json", {"step": state.step, "optimizer": plain, "scaler": state.scaler})
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync_folder(folder)
    if keep:
        for old in _all(run)[:-keep]:
            shutil.rmtree(old.path)
    return Checkpoint(state.step, final)


def _all(run: Path) -> list[Checkpoint]:
    folder = run / "checkpoints"
    paths = [path for path in folder.iterdir() if NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted((Checkpoint(int(path.name), path) for path in paths), key=lambda each: each.step)


def latest(run: Path) -> Checkpoint:
    """Return the newest checkpoint of a run.

    Raises:
        InputError: if there is none.
    """
    found = _all(run)
    if not found:
        raise InputError(f"{run} holds no checkpoint")
    return found[-1]


def load(checkpoint: Checkpoint) -> State:
    """Read a checkpoint.

    Raises:
        InputError: if a file is missing or damaged.
    """
    try:
        plain = json.loads((checkpoint.path / "state.json").read_text(encoding="utf-8"))
        tensors = {
            name: load_file(checkpoint.path / f"{name}.safetensors") for name in ("model", "optimizer", "probes")
        }
        optimizer = _unflatten(tensors["optimizer"], plain["optimizer"])
        return State(int(plain["step"]), tensors["model"], optimizer, tensors["probes"], plain["scaler"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{checkpoint.path} is damaged: {error}") from error


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Part an optimizer's state into tensors, named ``<parameter>.<key>`` or ``group.<number>.<key>``, and JSON."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{key}"] = value
            else:
                plain.setdefault(str(parameter), {})[key] = value
    groups = []
    for number, group in enumerate(state["param_groups"]):
        groups.append({key: value for key, value in group.items() if not isinstance(value, Tensor)})
        tensors |= {f"group.{number}.{key}": value for key, value in group.items() if isinstance(value, Tensor)}
    return tensors, {"state": plain, "param_groups": groups}


def _unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(key): dict(values) for key, values in plain["state"].items()}
    groups = [dict(group) for group in plain["param_groups"]]
    for name, value in tensors.items():
        owner, _, key = name.partition(".")
        if owner == "group":
            number, _, key = key.partition(".")
            groups[int(number)][key] = value
        else:
            state.setdefault(int(owner), {})[key] = value
    for group in groups:  # JSON has no tuples
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    return {"state": state, "param_groups": groups}

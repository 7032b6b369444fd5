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
from stabilitylab.training.packing import pack, unpack

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

    Raises:
        OSError: if it cannot be written; nothing of it is left, and older ones stay.
    """
    folder = run / "checkpoints"
    final = folder / f"{state.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        _write(temporary, state, backbone, timm_arguments)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from error
    sync_folder(folder)
    if keep:
        for old in _all(run)[:-keep]:
            shutil.rmtree(old.path)
    return Checkpoint(state.step, final)


def _write(temporary: Path, state: State, backbone: Mapping[str, Tensor], timm_arguments: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint, each synced."""
    tensors, plain = pack(state.optimizer)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
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
        optimizer = unpack(tensors["optimizer"], plain["optimizer"])
        return State(int(plain["step"]), tensors["model"], optimizer, tensors["probes"], plain["scaler"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        older = [each.path.name for each in _all(checkpoint.path.parents[1]) if each.step < checkpoint.step]
        said = f"; remove it to go on from {older[-1]}" if older else "; there is no older one"
        raise InputError(f"{checkpoint.path} is damaged: {error}{said}") from error

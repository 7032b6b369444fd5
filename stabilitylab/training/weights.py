"""Trained weights: of a run, of one of its checkpoints, or of a published file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.models.published import is_published, load_moco_v3
from stabilitylab.training import checkpoint as checkpoints

__all__ = ["Trained", "find"]


class Trained(NamedTuple):
    """Where weights come from."""

    run: Path | None
    """The run that they belong to."""
    path: Path
    """The checkpoint folder, or a published file."""
    step: int | None
    """Training steps done."""

    @property
    def published(self) -> bool:
        """Whether it is a published checkpoint of MoCo v3."""
        return is_published(self.path)

    def load(self, method: nn.Module) -> None:
        """Give a method these weights: its backbone, and all of ``moco_v3`` where they are those of a published file.

        Raises:
            InputError: if they do not fit.
        """
        if self.published:
            load_moco_v3(method, self.path)
            return
        backbone = method.get_submodule("backbone")
        try:
            state, own = load_file(self.path / "backbone.safetensors"), backbone.state_dict()
        except (OSError, SafetensorError) as error:
            raise InputError(f"{self.path} is damaged: backbone.safetensors cannot be read: {error}") from error
        wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
        if wrong or set(state) - set(own):
            names = sorted({*wrong, *(set(state) - set(own))})
            about = ", ".join(
                f"{name} is {_shape(state, name)} there and {_shape(own, name)} here" for name in names[:3]
            )
            raise InputError(f"{self.path} does not fit the backbone of the configuration: {about}")
        backbone.load_state_dict(state)
        if hasattr(method, "momentum_backbone"):
            method.get_submodule("momentum_backbone").load_state_dict(state)


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "not"


def find(path: Path) -> Trained:
    """Return the newest weights of a run, those of a checkpoint folder, or of a published file.

    Raises:
        InputError: if there are none.
    """
    if is_published(path):
        return Trained(None, path, None)
    if (path / "backbone.safetensors").is_file():
        run = path.parent.parent if path.parent.name == "checkpoints" else None
        return Trained(run, path, int(path.name) if path.name.isdigit() else None)
    if (path / "run.json").is_file():
        newest = checkpoints.latest(path)
        return Trained(path, newest.path, newest.step)
    raise InputError(
        f"{path} holds no weights; expected a run with checkpoints, one of its checkpoint folders, or a published "
        "checkpoint (.pth.tar)"
    )

"""Fixed images, what is known of them, and how the model turns them into features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stabilitylab.errors import InputError

__all__ = ["Features", "HeldOut", "named"]


@dataclass(frozen=True)
class HeldOut:
    """Fixed images, with their labels if they have any, and how the model turns images into features.

    ``encode`` maps a batch of images to named features, each of shape (N, D); ``representation`` must be among
    them. It is called without gradient and with the model in eval mode.

    Raises:
        InputError: if images and labels are not tensors of as many rows, or labels no whole numbers of shape (N,).
    """

    images: Tensor
    """Held-out images, shape (N, ...)."""
    labels: Tensor | None
    """Their classes, whole numbers, shape (N,); None if they are not known: then there is no kNN accuracy."""
    bank: Tensor
    """Fixed images of the training set, shape (M, ...)."""
    bank_labels: Tensor | None
    """Their classes, shape (M,)."""
    encode: Callable[[Tensor], Mapping[str, Tensor]]
    train_images: int | None = None
    """Size of the training set, from which the size of the feature queue follows."""
    chunk: int = 512
    """So many images are encoded at once."""
    encode_momentum: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    """The same for the momentum encoder, with names that begin with ``momentum_``; only the spectrum asks for it."""

    def __post_init__(self) -> None:
        for name in ("images", "bank"):
            object.__setattr__(self, name, _tensor(name, getattr(self, name)))
        for name in ("labels", "bank_labels"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _classes(name, getattr(self, name)))
        for what, images, labels in (("", self.images, self.labels), ("bank ", self.bank, self.bank_labels)):
            if len(images) == 0 or (labels is not None and len(images) != len(labels)):
                number = "no" if labels is None else len(labels)
                raise InputError(f"held-out {what}images: {len(images)} images with {number} labels were given")
        if not callable(self.encode):
            raise InputError(f"HeldOut.encode was {self.encode!r}; expected a function of a batch of images")
        if not isinstance(self.chunk, int) or self.chunk < 1:
            raise InputError(f"HeldOut.chunk was {self.chunk!r}; expected a whole number of at least 1")


@dataclass(frozen=True)
class Features:
    """Features of the held-out images and of the bank: name to tensor, shapes (N, D) and (M, D)."""

    held_out: Mapping[str, Tensor]
    bank: Mapping[str, Tensor]


def named(features: Any, function: str) -> Mapping[str, Tensor]:
    """Return what a function of the user made of images, if it is named features of two dimensions.

    Args:
        features: what it returned.
        function: its name, for the error.

    Raises:
        InputError: if it is something else.
    """
    expected = "expected a mapping of names, such as 'representation', to tensors of shape (N, D)"
    if not isinstance(features, Mapping):
        raise InputError(f"HeldOut.{function} returned {_kind(features)}; {expected}")
    wrong = next((name for name, each in features.items() if not isinstance(each, Tensor) or each.ndim != 2), None)
    if wrong is not None:
        raise InputError(f"HeldOut.{function} returned {_kind(features[wrong])} as {wrong!r}; {expected}")
    return features


def _tensor(name: str, given: Any) -> Tensor:
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given)
    if not isinstance(given, Tensor) or given.ndim == 0:
        raise InputError(f"HeldOut.{name} was {_kind(given)}; expected a tensor of shape (N, ...)")
    return given


def _classes(name: str, given: Any) -> Tensor:
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        labels = None
    if labels is None or labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise InputError(f"HeldOut.{name} was {_kind(given)}; expected whole numbers of shape (N,), one class an image")
    return labels.long()


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"

"""What a probe is: it looks at one training step, and changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from stabilitylab.errors import InputError
from stabilitylab.layers import Layers
from stabilitylab.parameters import Parameters as BaseParameters

__all__ = ["HeldOut", "Measurement", "Parameters", "Probe", "Step", "Target", "untouched"]

Measurement = Mapping[str, Tensor | Sequence[float]]
"""Series name to one value per label: a tensor on the device, or numbers that the host already knows."""


class Parameters(BaseParameters):
    """What every probe can be told."""

    every: PositiveInt = 1
    """Measure at every so many steps."""


@dataclass(frozen=True)
class HeldOut:
    """Fixed images, with their labels if they have any, and how the model turns images into features.

    ``encode`` maps a batch of images to named features, each of shape (N, D); ``representation`` must be among
    them. It is called without gradient and with the model in eval mode.
    """

    images: Tensor
    """Held-out images, shape (N, ...)."""
    labels: Tensor | None
    """Their classes, int64, shape (N,); None if they are not known: then there is no kNN accuracy."""
    bank: Tensor
    """Fixed images of the training set, shape (M, ...)."""
    bank_labels: Tensor | None
    """Their classes, int64, shape (M,)."""
    encode: Callable[[Tensor], Mapping[str, Tensor]]
    train_images: int | None = None
    """Size of the training set, from which the size of the feature queue follows."""
    chunk: int = 512
    """So many images are encoded at once."""

    def __post_init__(self) -> None:
        for name, images, labels in (("", self.images, self.labels), ("bank ", self.bank, self.bank_labels)):
            if len(images) == 0 or (labels is not None and len(images) != len(labels)):
                number = "no" if labels is None else len(labels)
                raise InputError(f"held-out {name}images: {len(images)} images with {number} labels were given")


@dataclass(frozen=True)
class Features:
    """Features of the held-out images and of the bank: name to tensor, shapes (N, D) and (M, D)."""

    held_out: Mapping[str, Tensor]
    bank: Mapping[str, Tensor]


@dataclass(frozen=True)
class Target:
    """What a probe is built for: the model, its optimizer, its layers, and the held-out images if there are any."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    layers: Layers
    held_out: HeldOut | None = None

    @cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that take a gradient, by name."""
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    def refuse_shards(self, probe: str) -> None:
        """Fail if a parameter is sharded: the norm of a shard is not the norm of the tensor."""
        shards = [name for name, each in self.trainable.items() if type(each.data).__name__ == "DTensor"]
        if shards:
            raise InputError(f"the probe {probe!r} cannot measure sharded parameters, such as {shards[0]}")

    def need_held_out(self, probe: str) -> HeldOut:
        """Return the held-out images, or fail with what to do about it."""
        if self.held_out is None:
            raise InputError(f"the probe {probe!r} needs held-out images: pass held_out=HeldOut(...)")
        return self.held_out

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images in chunks, in eval mode, and leave modes and random states as they were."""
        held_out = self.need_held_out("features")
        parts: dict[str, list[Tensor]] = {}
        with untouched(self.model), torch.no_grad():
            self.model.eval()
            for chunk in images.split(held_out.chunk):
                for name, value in held_out.encode(chunk).items():
                    parts.setdefault(name, []).append(value.detach())
        return {name: torch.cat(values) for name, values in parts.items()}


@dataclass
class Step:
    """What a probe may look at: one training step after its backward pass, before clipping and the update."""

    index: int
    target: Target
    loss: Tensor | float | None = None
    """The loss of the step; detached."""
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    """The method's named outputs, detached: ``representation``, ``projection``, ``labels``, ..."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """Numbers that the host knows: ``momentum``, ..."""
    images: int | None = None
    """How many images the step used, over all ranks."""
    scale: Tensor | float = 1.0
    """The factor by which the gradients are still scaled; 1 after ``scaler.unscale_``."""

    @cached_property
    def features(self) -> Features:
        """Features of the fixed images under the weights of this step; computed at most once."""
        held_out = self.target.need_held_out("features")
        return Features(self.target.features(held_out.images), self.target.features(held_out.bank))


class Probe:
    """An instrument: one subclass named ``Probe`` in a file named after it.

    A subclass sets `labels` in its constructor, where it fails with an `InputError` if it cannot measure, and
    defines `measure`. It must leave weights, gradients, buffers, modes and random states untouched.
    """

    Parameters: ClassVar[type[Parameters]] = Parameters
    delay: ClassVar[int] = 0
    """1 if what `measure` returns belongs to the step before (an update is known only after it was made)."""

    needs_labels: ClassVar[bool] = False
    """Whether it can do nothing without the labels of the held-out images."""

    labels: Mapping[str, Sequence[str]]
    """Series name to its columns."""
    about: Mapping[str, Mapping[str, Any]] = {}
    """Series name to what ``run.json`` should say of it: unit, number of samples, ..."""

    def __init__(self, parameters: Any, target: Target) -> None:
        self.parameters = parameters
        self.target = target

    def observe(self, step: Step) -> None:
        """See a step at which nothing need be measured; called at every step, before `measure`."""

    def measure(self, step: Step) -> Measurement | None:
        """Return one value per label for each series, without waiting for the device; None if there is nothing."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Return what an interrupted run needs to go on as if it had not been interrupted."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back the mode of every module and the random states of Python, numpy and torch afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is what is kept
    # only the devices in use: to ask another one for its state would claim memory on it
    devices = {each.device for each in model.parameters() if each.device.type not in ("cpu", "mps", "meta")}
    kind = next((each.type for each in devices), "cuda")
    metal = torch.mps.get_rng_state() if any(each.is_mps for each in model.parameters()) else None
    with torch.random.fork_rng(devices=sorted(devices, key=str), device_type=kind):
        try:
            yield
        finally:
            if metal is not None:
                torch.mps.set_rng_state(metal)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            for module, training in modes:
                module.training = training

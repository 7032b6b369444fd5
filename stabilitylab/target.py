"""What is measured: the model, its optimizer, its layers, and the fixed inputs that it is shown."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stabilitylab.errors import InputError
from stabilitylab.held_out import Features, HeldOut, named
from stabilitylab.layers import Layers, layers_of, plain_names
from stabilitylab.norms import is_sharded

__all__ = ["Features", "HeldOut", "Target", "first_tensor", "make_target", "untouched", "unwrapped", "updated_by"]

KEPT = 2**28
"""A larger buffer, such as a memory bank of millions of images, is not copied for a look."""

SHOWN = 32
"""So many of the held-out images are the fixed inputs where none are given."""


@dataclass(frozen=True)
class Target:
    """What a probe is built for."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None
    layers: Layers
    held_out: HeldOut | None = None
    inputs: Any = None
    """What the model is shown by the probes of activations and attention: a tensor, or a tuple or dict of arguments."""
    teacher: nn.Module | None = None
    """A module that follows the model and is no part of it: an exponential moving average, a momentum encoder."""
    taps: set[str] = field(default_factory=set)
    """Layers whose outputs, averaged over positions, are to be among the features: a probe adds what it reads."""
    trained: Collection[int] = ()
    """Identities of the parameters that took a gradient before, also if they are frozen now."""

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by name, without the parts of a name that only wrap (DDP, ``torch.compile``)."""
        named = dict(self.model.named_parameters())
        return dict(zip(_labels(named), named.values(), strict=True))

    @cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that take a gradient or did, by name; without those of lazy modules without a shape yet."""
        return {
            name: each
            for name, each in self.parameters.items()
            if (each.requires_grad or id(each) in self.trained) and not is_lazy(each)
        }

    @cached_property
    def frozen(self) -> tuple[nn.Parameter, ...]:
        """The parameters that never took a gradient."""
        known = {id(each) for each in self.trainable.values()}
        return tuple(each for each in self.parameters.values() if id(each) not in known and not is_lazy(each))

    def gradients(self) -> list[Tensor | None]:
        """Return the gradient of each of the `trainable`.

        None, too, of one that is frozen and not the optimizer's, where an earlier step may have left something.
        """
        members = self.trainable.values()
        if all(each.requires_grad for each in members):
            return [each.grad for each in members]
        held = set(map(id, updated_by(self.optimizer)))
        return [each.grad if each.requires_grad or id(each) in held else None for each in members]

    @cached_property
    def sharded(self) -> bool:
        """Whether a parameter is spread over ranks: then every rank must take part in each measurement."""
        return any(is_sharded(each) for each in self.parameters.values())

    @cached_property
    def paths(self) -> dict[str, nn.Module]:
        """The modules that hold parameters, without those that only wrap, by their paths; the model's own is empty."""
        named = {f"{name}.": module for name, module in self.model.named_modules() if list(module.parameters())}
        names = plain_names([*named, *(name for name, _ in self.model.named_parameters())])
        return {names[name].rstrip("."): unwrapped(module) for name, module in named.items()}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The module of each layer: the outermost one with a forward pass that holds the layer and nothing else."""
        held = Counter(path for name in self.parameters for path in _paths(name))
        found = {}
        for layer in self.layers.names:
            names = self.layers.parameters(layer)
            for path in _paths(names[0]):
                module = self.paths.get(path)
                # of lists and dicts of modules, which nobody calls, the forward pass is that of Module
                if held[path] == len(names) and module is not None and type(module).forward is not nn.Module.forward:
                    found[layer] = module
                    break
        return found

    def need_trainable(self, probe: str) -> None:
        """Fail if there is nothing whose gradient could be measured."""
        if not self.trainable:
            raise InputError(f"the probe {probe!r} needs a model with trainable parameters")

    def need_held_out(self, probe: str) -> HeldOut:
        """Return the held-out images, or fail with what to do about it."""
        if self.held_out is None:
            raise InputError(f"the probe {probe!r} needs held-out images: pass held_out=HeldOut(...)")
        return self.held_out

    def need_inputs(self, probe: str) -> None:
        """Fail if there is nothing to show to the model."""
        if self.inputs is None and self.held_out is None:
            raise InputError(f"the probe {probe!r} needs something to show to the model: pass inputs=(a batch)")

    def show_inputs(self) -> None:
        """Run the model on the fixed inputs (or on some held-out images), for the hooks that a probe has set.

        Raises:
            InputError: if it does not run on them.
        """
        try:
            with self.looking():
                if self.inputs is None:
                    held_out = self.need_held_out("activations")
                    held_out.encode(held_out.images[:SHOWN])
                elif isinstance(self.inputs, Mapping):
                    unwrapped(self.model)(**self.inputs)
                else:
                    unwrapped(self.model)(*(self.inputs if isinstance(self.inputs, tuple | list) else (self.inputs,)))
        except InputError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise InputError(f"the model does not run on the inputs that it is to be shown: {what}") from error

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images in chunks, in eval mode, and leave modes and random states as they were."""
        held_out = self.need_held_out("features")
        with self.looking():
            return _in_chunks(self._encode_with_taps, images, held_out.chunk)

    def momentum_features(self, images: Tensor) -> dict[str, Tensor]:
        """Encode images by the momentum encoder; empty if there is none."""
        held_out = self.need_held_out("features")
        if held_out.encode_momentum is None:
            return {}
        encode = held_out.encode_momentum
        with self.looking():
            return _in_chunks(lambda chunk: named(encode(chunk), "encode_momentum"), images, held_out.chunk)

    def _encode_with_taps(self, images: Tensor) -> Mapping[str, Tensor]:
        held_out, tapped = self.need_held_out("features"), dict[str, Tensor]()
        with ExitStack() as hooks:
            for layer in sorted(self.taps):

                def keep(module: nn.Module, _: Any, output: Any, layer: str = layer) -> None:
                    pooled = _over_positions(output, len(images), module)
                    if pooled is not None:
                        tapped[layer] = pooled

                handle = self.modules[layer].register_forward_hook(keep)
                hooks.callback(handle.remove)
            return tapped | dict(named(held_out.encode(images), "encode"))

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Run the model in eval mode, without gradient and not compiled, and leave everything as it was."""
        watched = [self.model] if self.teacher is None else [self.model, self.teacher]
        if any(map(is_lazy, self.parameters.values())):
            raise InputError("the model has lazy modules, which take their shapes from the first batch of the training")
        with untouched(*watched), torch.no_grad(), torch.compiler.set_stance("force_eager"), _plain_passes():
            for each in watched:
                each.eval()
            yield


def make_target(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    first_layer: str | None = None,
    held_out: HeldOut | None = None,
    inputs: Any = None,
    teacher: nn.Module | None = None,
    trained: Collection[int] = (),
) -> Target:
    """Return the target of a model whose parameters are grouped into layers by their names.

    ``trained`` are the identities of parameters that took a gradient before; the model may have lost some of them.

    Raises:
        InputError: if the parameters are pieces that nobody can put together again, or no layer is ``first_layer``.
    """
    for name, module in model.named_modules():
        if type(module).__name__ == "FullyShardedDataParallel":
            where = f"{name!r}" if name else "the model"
            raise InputError(f"{where} is wrapped by FSDP1, which hides its shards; use torch's fully_shard (FSDP2)")
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise InputError(f"the parameter {name} is partitioned by DeepSpeed ZeRO-3, which cannot be measured")
    labels = _labels(name for name, _ in model.named_parameters())
    trained = {id(each) for each in model.parameters()} & set(trained)
    return Target(model, optimizer, layers_of(labels, first_layer), held_out, inputs, teacher, trained=trained)


def _labels(names: Iterable[str]) -> list[str]:
    """Return the names of parameters as columns: ``step`` is the name of the index."""
    return ["parameter step" if name == "step" else name for name in plain_names(list(names)).values()]


def updated_by(optimizer: Any) -> list[Tensor]:
    """Return the parameters that an optimizer holds; none of what is no optimizer of torch."""
    return [each for group in getattr(optimizer, "param_groups", ()) for each in group["params"]]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel and `torch.compile`, whose forward pass is the model's own."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def _paths(parameter: str) -> list[str]:
    """Return the paths of the modules that hold a parameter, from the model itself, which has none, inwards."""
    parts = parameter.split(".")[:-1]
    if "parametrizations" in parts:  # they return the weight, wherever it is read
        parts = parts[: parts.index("parametrizations")]
    return [".".join(parts[:depth]) for depth in range(len(parts) + 1)]


def first_tensor(output: Any) -> Tensor | None:
    """Return the first floating-point tensor in what a module returned: a tensor, a tuple, a dict, a dataclass."""
    if isinstance(output, Tensor):
        return output.detach() if output.is_floating_point() or output.is_complex() else None
    if isinstance(output, Mapping):
        parts: Iterable[Any] = output.values()
    elif isinstance(output, tuple | list):
        parts = output
    elif is_dataclass(output):
        parts = (getattr(output, each.name) for each in fields(output))
    else:
        return None
    return next((each for each in map(first_tensor, parts) if each is not None), None)


def _over_positions(output: Any, samples: int, module: nn.Module) -> Tensor | None:
    """Return the output of a layer averaged over its positions, shape (N, D), float32 at least.

    Channels come last in (N, L, D) and second in (N, C, H, W), unless the sizes of biases and scales of the module
    say otherwise, as in a Swin Transformer, (N, H, W, C), or after a convolution over time, (N, C, L).
    """
    values = first_tensor(output)
    if values is None or values.is_complex() or values.ndim < 2 or len(values) != samples:
        return None
    if values.dtype != torch.float64:
        values = values.float()
    sizes = {len(each) for each in module.parameters() if each.ndim == 1}
    ends = {1: values.shape[1] in sizes, -1: values.shape[-1] in sizes}
    channels = (-1 if values.ndim == 3 else 1) if ends[1] == ends[-1] else (1 if ends[1] else -1)
    return values.movedim(channels, 1).flatten(2).mean(dim=2) if values.ndim > 2 else values


def _in_chunks(encode: Callable[[Tensor], Mapping[str, Tensor]], images: Tensor, size: int) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for chunk in images.split(size):
        for name, value in encode(chunk).items():
            parts.setdefault(name, []).append(value.detach())
    return {name: torch.cat(values) for name, values in parts.items()}


@contextmanager
def untouched(*models: nn.Module) -> Iterator[None]:
    """Put back modes, buffers of up to `KEPT` bytes, and the random states of Python, numpy and torch afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    buffers = [
        (module, name, each, each.clone())
        for module, _ in modes for name, each in module._buffers.items()
        if each is not None and not is_lazy(each) and each.nbytes <= KEPT
    ]  # fmt: skip
    versions = [each._version for _, _, each, _ in buffers]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is what is kept
    # only the devices in use: to ask another one for its state would claim memory on it
    used = {each.device for model in models for each in model.parameters()}
    devices = {each for each in used if each.type not in ("cpu", "mps", "meta")}
    kind = next((each.type for each in devices), "cuda")
    metal = torch.mps.get_rng_state() if any(each.type == "mps" for each in used) else None
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
            for (module, name, each, before), version in zip(buffers, versions, strict=True):
                module._buffers[name] = each
                if each._version != version:  # of one that was written
                    with torch.no_grad():
                        each.copy_(before)


@contextmanager
def _plain_passes() -> Iterator[None]:
    """Turn off two shortcuts of torch for the time of a look.

    The fused encoder layers call no hooks of what they fuse, and hand on nested tensors. The weights that autocast
    keeps in half precision have no gradient where a look made them: with some versions of torch, the next forward pass
    in the same region would train nothing.
    """
    fused, kept = torch.backends.mha.get_fastpath_enabled(), torch.is_autocast_cache_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        torch.set_autocast_cache_enabled(kept)

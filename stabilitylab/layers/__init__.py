"""Which parameter belongs to which layer, in depth order, from the parameters' names alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stabilitylab.errors import InputError
from stabilitylab.layers.cut import HEADS, cut, is_head, without_prefix
from stabilitylab.layers.names import counterparts, plain_name, plain_names
from stabilitylab.layers.order import in_order

__all__ = ["HEADS", "Layers", "counterparts", "is_head", "layers_of", "plain_name", "plain_names"]


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of a model: their names in depth order, and the layer of each parameter."""

    names: tuple[str, ...]
    of: Mapping[str, str]
    """Parameter name to layer name."""
    first: str
    """The layer that sees the input: the patch projection of a ViT, the stem of a ResNet."""

    def parameters(self, layer: str) -> list[str]:
        """Return the parameters of one layer, in the order in which the model registers them."""
        return [name for name, each in self.of.items() if each == layer]


def layers_of(parameters: Iterable[str], first: str | None = None) -> Layers:
    """Group parameter names into layers in depth order.

    A layer is a block of a list (``blocks.3``, ``layer1.0``, ``layers.1.blocks.0``), or else a module that holds
    no such list (``patch_embed``, ``norm``, ``projector``). Its name is its path, without wrappers and without a
    module that holds all but the heads (``backbone``). Depth order is the order of registration, except that the
    layer that sees the input comes first, tokens and position embeddings follow it, and heads come last. Modules
    that only follow the model (`counterparts`) are left out.

    Args:
        parameters: names as `torch.nn.Module.named_parameters` gives them.
        first: the layer that sees the input, where it is not the one that is found; changes no order.

    Raises:
        InputError: if there are no parameters, or no layer is named ``first``.
    """
    names = list(parameters)
    if not names:
        raise InputError("the model has no parameters to group into layers")
    followers = counterparts(names)
    plain = {each: name for name, each in plain_names(names).items() if name not in followers}
    layers = in_order(cut(without_prefix(plain)))
    ordered = tuple(dict.fromkeys(layer.name for layer in layers))
    if first is not None and first not in ordered:
        raise InputError(f"no layer is named {first!r}; the layers are {', '.join(ordered)}")
    of = {name: layer.name for layer in layers for name in layer.parameters}
    return Layers(ordered, {name: of[name] for name in names if name in of}, first or ordered[0])

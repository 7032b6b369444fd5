"""Which parameter belongs to which layer, in depth order, from the parameters' names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stabilitylab.errors import InputError

__all__ = ["Layers", "layers_of"]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Modules that only wrap another one: their names say nothing about depth."""

CONTAINERS = frozenset({"backbone", "model", "encoder", "trunk", "body", "vit", "transformer"})
"""Leading modules whose name is left out where the rest stays unambiguous."""

TOKENS = ("cls_token", "reg_token", "dist_token", "mask_token", "pos_embed", "position_embedding", "class_token")
"""Parameters that join the sequence after the first layer: they form the layer ``tokens``."""

AVERAGES = ("momentum", "teacher", "target", "ema")
"""Beginnings of the names of modules that follow the model, and are no layers of it."""

BLOCKS = frozenset({"blocks", "block", "layers", "layer"})
"""Lists of blocks inside a stage."""

HEADS = ("projector", "predictor", "head", "heads", "fc", "classifier", "prototypes")
"""Layers that come after the backbone whatever the order of registration."""


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

    A layer is the path up to the last index in it (``blocks.3``, ``layer1.0``, ``0``), or else the module that
    owns the parameter, up to the depth at which names branch (``patch_embed``, ``norm``, ``projector``).
    Depth order is the order of registration, with two exceptions: tokens and position embeddings come after the
    first layer, and heads come last. Modules that only follow the model (`AVERAGES`) are left out.

    Args:
        parameters: names as `torch.nn.Module.named_parameters` gives them.
        first: the layer that sees the input, where it is not the first one.

    Raises:
        InputError: if there are no parameters, or no layer is named ``first``.
    """
    of: dict[str, str] = {}
    named = [(name, [part for part in name.split(".") if part not in WRAPPERS]) for name in parameters]
    plain = _strip([(name, parts) for name, parts in named if not parts[0].startswith(AVERAGES)] or named)
    for name, parts in plain:
        of[name] = _layer(parts)
    if not of:
        raise InputError("the model has no parameters to group into layers")
    names = list(dict.fromkeys(of.values()))
    body = [name for name in names if name != "tokens" and not _is_head(name)]
    heads = sorted((name for name in names if _is_head(name)), key=_head_rank)
    if first is None:
        first = (body or heads or names)[0]
    elif first not in names:
        raise InputError(f"no layer is named {first!r}; the layers are {', '.join(names)}")
    ordered = body[:1] + (["tokens"] if "tokens" in names else []) + body[1:] + heads
    return Layers(tuple(ordered), of, first)


def _strip(named: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Leave out leading containers where the shorter names stay distinct and no sibling shares them."""
    while True:
        shorter = [(name, parts[1:] if len(parts) > 2 and parts[0] in CONTAINERS else parts) for name, parts in named]
        if shorter == named:
            return named
        heads = {parts[0] for (_, parts), (_, old) in zip(shorter, named, strict=True) if parts == old}
        moved = {parts[0] for (_, parts), (_, old) in zip(shorter, named, strict=True) if parts != old}
        if heads & moved:
            return named
        named = shorter


def _layer(parts: list[str]) -> str:
    if parts[-1].startswith(TOKENS):
        return "tokens"
    module = parts[:-1] or parts
    if _is_head(module[0]):
        return module[0]
    for depth, part in enumerate(module):
        if _is_index(part, module[depth - 1] if depth else ""):
            inner = module[depth + 1 : depth + 3]
            if len(inner) == 2 and inner[0] in BLOCKS and inner[1].isdigit():  # stages.0.blocks.1
                depth += 2
            return ".".join(module[: depth + 1])
    return _without_leaf(module)


def _is_index(part: str, parent: str) -> bool:
    """Tell whether a part numbers a block: ``3``, torchvision's ``encoder_layer_3``, RegNet's ``s1.b1``."""
    numbered = re.compile(r"[a-z]\d+")
    return (
        part.isdigit()
        or (bool(parent) and part.rpartition("_")[2].isdigit())
        or bool(numbered.fullmatch(part) and numbered.fullmatch(parent))
    )


def _without_leaf(module: list[str]) -> str:
    """Name the module that owns a leaf such as ``proj`` or ``conv``, so that weight, bias and norm stay together."""
    leaves = ("proj", "projection", "conv", "bn", "norm", "linear")
    return ".".join(module[:-1] if len(module) > 1 and module[-1] in leaves else module)


def _is_head(layer: str) -> bool:
    return layer.split(".")[0] in HEADS


def _head_rank(layer: str) -> int:
    return HEADS.index(layer.split(".")[0])

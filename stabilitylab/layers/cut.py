"""Where a model is cut into layers: at the blocks of its lists, and at the modules that hold no list."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["HEADS", "INDEX", "Layer", "cut", "is_head", "without_prefix"]

HEADS = ("projector", "predictor", "head", "heads", "fc", "classifier", "prototypes", "predictions", "score", "cls")
"""Names, or last words of names (``lm_head``), of what comes after the backbone whatever the order of registration."""

INDEX = re.compile(r"(?:.*(?:block|layer|stage|level|tree)\d*[-_]?|[a-z]_?|)\d+", re.IGNORECASE)
"""Names that number a block: ``3``, ``layer1``, ``encoder_layer_3``, ``denselayer6``, RegNet's ``s1`` and ``b1``."""

LIST = re.compile(r"(?:.*_)?(?:res)?(?:blocks|layers|stages|levels)|block|layer|h", re.IGNORECASE)
"""Names of lists of blocks."""

STEM = re.compile(r"stem|embed|patch|downsampl|transition|pos_enc")
"""Modules that stay one layer, however many convolutions they consist of."""

TOKENS = re.compile(r"token|(?:^|_)pos(?:_|$)|pos(?:ition(?:al)?)?_?emb|class_emb")
"""Bare parameters that join the sequence after the first layer: they form the layer ``tokens``."""

LATE = re.compile(r"logit|temperature|proj")
"""Bare parameters that act on the output of their module."""


@dataclass(slots=True)
class Layer:
    """A layer in the making."""

    name: str
    parameters: list[str]
    kind: str = ""
    """``tokens`` or ``late`` for bare parameters, whose place the order of registration does not tell."""
    container: str = ""
    """The module that owns them."""


@dataclass(slots=True)
class Module:
    """A module, as far as the names of its parameters show it."""

    name: str = ""
    own: dict[str, str] = field(default_factory=dict)
    """Its own parameters: name in the module to full name."""
    children: dict[str, Module] = field(default_factory=dict)

    def walk(self) -> Iterator[Module]:
        """Yield the module and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    def parameters(self) -> list[str]:
        """Return the full names of all its parameters."""
        return [name for module in self.walk() for name in module.own.values()]

    def shape(self, path: str = "") -> set[str]:
        """Return the names of all its parameters as seen from the module."""
        inner = (child.shape(f"{path}{name}.") for name, child in self.children.items())
        return {path + name for name in self.own}.union(*inner)

    def items(self) -> list[Module]:
        """Return what it is a list of."""
        return [child for name, child in self.children.items() if INDEX.fullmatch(name)]


def is_head(layer: str) -> bool:
    """Tell whether a layer is a head: ``projector``, ``lm_head``, ``head.fc``."""
    words = layer.split(".")[0].split("_")
    return (words[-1] in HEADS or words[0] == "head") and words[0] not in ("conv", "norm", "bn")


def without_prefix(plain: Mapping[str, str]) -> Module:
    """Build the module tree from plain name to full name, without modules that hold all but the heads."""
    root = _tree(plain)
    while True:
        body = [name for name in root.children if not is_head(name)] or list(root.children)
        if len(body) != 1 or INDEX.fullmatch(body[0]):
            return root
        only = root.children[body[0]]
        beside = {name: child for name, child in root.children.items() if name != body[0]}
        inside = {*only.children, *only.own}
        if not only.children or any(name.isdigit() for name in inside) or inside & {*beside, *root.own}:
            return root  # the shorter names would say nothing, or not stay distinct
        root = Module("", {**root.own, **only.own}, {**only.children, **beside})


def _tree(plain: Mapping[str, str]) -> Module:
    root = Module()
    for path, name in plain.items():
        path = re.sub(r"parametrizations\.(\w+)\.", r"\1:", path)  # weight norm: its tensors belong to the module
        path = re.sub(r"(\w+_[ih][hr])_(l\d+)(\w*)$", r"\2.\1\3", path)  # LSTM: weight_ih_l0_reverse is one of l0
        *parts, last = path.split(".")
        module = root
        for part in parts:
            module = module.children.setdefault(part, Module(part))
        module.own[last] = name
    return root


def cut(root: Module) -> list[Layer]:
    """Cut a model into layers, in the order of registration."""
    body = sum(len(child.parameters()) for name, child in root.children.items() if not is_head(name))
    return _layers(root, root, "", body)


def _layers(module: Module, parent: Module, path: str, body: int) -> list[Layer]:
    head = is_head(path) and "." not in path
    if path and (head or not _has_layers(module, parent, body)):
        tokens = [name for leaf, name in module.own.items() if TOKENS.search(leaf) and STEM.search(path)]
        rest = [name for name in module.parameters() if name not in tokens]
        layers = [Layer(path, rest), Layer(f"{path}.tokens", tokens, "tokens", path)]
        return [layer for layer in layers if layer.parameters]
    below = [_layers(child, module, f"{path}.{name}".lstrip("."), body) for name, child in module.children.items()]
    inner = [layer for layers in below for layer in layers]
    bare = _bare(module, path)
    weights, late = ([layer for layer in bare if layer.kind == kind] for kind in ("weight", "late"))
    others = [layer for layer in bare if layer not in weights + late]
    # bare parameters are registered before all modules; those that are no weights act behind the stem
    stem = next((len(layers) for layers in below), 0)
    if any(child.items() for child in list(module.children.values())[:1]):  # it has blocks only
        stem = 0 if path else 1
    return [*weights, *inner[:stem], *others, *inner[stem:], *late]


def _bare(module: Module, path: str) -> list[Layer]:
    """Return the layers that a module's own parameters form: a weight and its bias are one."""
    layers: dict[str, Layer] = {}
    weights = {leaf: _stem(leaf) for leaf in module.own if re.search(r"(?:weight|kernel)(?:$|:)", leaf)}
    for leaf, name in module.own.items():
        part, kind = leaf, "late" if LATE.search(leaf) else ""
        if TOKENS.search(leaf):
            part = kind = "tokens"
        elif _stem(leaf) in weights.values():
            part, kind = _stem(leaf), "weight"
        full = ".".join(filter(None, (path, part))) or "model"
        layers.setdefault(full, Layer(full, [], kind, path)).parameters.append(name)
    return list(layers.values())


def _stem(leaf: str) -> str:
    return re.sub(r"(?:^|_)(?:weight|bias|kernel)(?:$|:.*)", "", leaf)


def _has_layers(module: Module, parent: Module, body: int) -> bool:
    """Tell whether a module is more than one layer: a stage, a list of blocks, or what contains one.

    Args:
        module: any module of the tree.
        parent: the one that it belongs to.
        body: number of parameters of the model without its heads.
    """
    size = len(module.parameters())
    inside = [each for each in module.walk() if len(each.items()) > 1 and _are_blocks(each.items())]
    if INDEX.fullmatch(module.name) or (re.search(r"block$|layer$", module.name) and not module.items()):
        return _is_stage(module, parent) or (10 * size > 6 * body and bool(inside))
    if any("embed" in name for name in module.children):
        return True
    if STEM.search(module.name):
        return "backbone" in module.children and bool(inside)  # a hybrid ViT
    if inside or any(LIST.fullmatch(each.name) and each.items() for each in module.walk()):
        return True
    deep = len(module.children) > 1 or any(child.children for child in module.children.values())
    return deep and 2 * size >= body


def _is_stage(module: Module, parent: Module) -> bool:
    """Tell whether an item of a list is a list of blocks itself, such as a stage of a Swin Transformer.

    The layer of a T5 or of lucidrains' ViT is a list too, of an attention and an MLP, but one block: its items
    differ from each other and not from layer to layer.
    """
    named = re.search(r"(?:stage|level)s$", parent.name) or re.match(r".*(?:stage|level)", module.name)
    lists = [module, *(child for name, child in module.children.items() if named or LIST.fullmatch(name))]
    for items in (each.items() for each in lists):
        most = 2 * sum(len(item.parameters()) for item in items) >= len(module.parameters())
        if most and _are_blocks(items) and (named or _alike(items) or not _alike(parent.items())):
            return True
    return False


def _are_blocks(items: list[Module]) -> bool:
    """Tell whether at least half of the items are large: three or more modules with parameters."""
    large = [sum(bool(module.own) for module in item.walk()) > 2 for item in items]
    return any(large) and 2 * sum(large) >= len(large)


def _alike(items: list[Module]) -> bool:
    """Tell whether all items have at least half of the parameters of the smallest in common."""
    shapes = [item.shape() for item in items]
    return 2 * len(set.intersection(*shapes)) >= min(map(len, shapes))

"""In which order the layers act, where the order of registration is not it."""

from __future__ import annotations

import re

from stabilitylab.layers.cut import INDEX, Layer, is_head

__all__ = ["in_order"]

INPUT = re.compile(r"stem|emb|patch|conv|proj|input|shared|wte")
"""What may see the input, if it is registered first."""

PATCHES = re.compile(r"(?:^|\.)(?:patch_?emb|patchify|to_patch)")
"""What sees the input of the first of two towers: an image."""

SURELY_INPUT = re.compile(
    rf"{PATCHES.pattern}|^backbone|(?:^|\.)(?:stem|conv_stem|wte|(?:src_|word_?|tok_?|token_?)+emb|embed_tok|emb(?:ed(?:ding)?s?)?$)"
)
"""What sees the input, wherever it is registered."""


def in_order(layers: list[Layer]) -> list[Layer]:
    """Return layers in depth order, given the order of registration, and name the layer ``tokens``."""
    heads = [layer for layer in layers if is_head(layer.name) or (layer.kind == "late" and not layer.container)]
    body = [layer for layer in layers if layer not in heads]
    early = [(layer, _blocks_before(layer, body[:place], body[place + 1 :])) for place, layer in enumerate(body)]
    body = _input_first(body)
    _name_tokens(body)
    for layer, blocks in early:
        if blocks and layer is not body[0]:
            body.remove(layer)
            body.insert(max(place for place, each in enumerate(body) if _list_of(each.name) == blocks) + 1, layer)
    for layer in body[1:]:
        if re.search(r"embeddings?$", layer.name):
            _move_before_blocks(body, layer)
    projects = any("proj" in head.name for head in heads)
    heads.sort(key=lambda head: (head.kind == "late", _head_rank(head.name.split(".")[0], projects)))
    return body + heads


def _head_rank(head: str, projects: bool) -> int:
    """Rank a projector before a predictor before what reads the representation; without a projector, others project."""
    if "proj" in head or not (projects or "predictor" in head):
        return 0
    return 1 if "predictor" in head else 2


def _input_first(body: list[Layer]) -> list[Layer]:
    """Move what sees the input to the front, with its tower, if another layer is registered first."""
    if not body or PATCHES.search(body[0].name):
        return body
    towers: dict[str, list[Layer]] = {}
    for layer in body:
        towers.setdefault(layer.name.split(".")[0], []).append(layer)
    own = towers[body[0].name.split(".")[0]]
    pattern = SURELY_INPUT
    if INPUT.search(body[0].name):  # then only another tower can come first: the images of a CLIP
        pattern = PATCHES
        towers = {name: tower for name, tower in towers.items() if _has_blocks(tower) and _has_blocks(own)}
    candidates = [layer for name, tower in towers.items() if name != "decoder" for layer in tower]
    first = next((layer for layer in candidates if pattern.search(layer.name)), None)
    if first is None:
        return body
    tower = towers[first.name.split(".")[0]]
    front = [first] if tower is own else tower
    front = front + [layer for layer in body if layer.kind == "tokens" and not layer.container]
    return front + [layer for layer in body if layer not in front]


def _blocks_before(layer: Layer, before: list[Layer], after: list[Layer]) -> str:
    """Return the list whose blocks come before a final norm that is registered first (OPT, lucidrains' ViT)."""
    container, _, last = layer.name.rpartition(".")
    blocks = _list_of(after[0].name) if after else ""
    alone = not any(_is_in(each.name, container) for each in before if each.kind != "tokens")
    final = "final" in last or (last == "norm" and alone)
    return blocks if final and blocks.rpartition(".")[0] == container else ""


def _name_tokens(body: list[Layer]) -> None:
    """Call ``tokens`` what joins the sequence before the first block, by whatever module; others keep their module."""
    for place, layer in enumerate(body):
        outside = [each.name for each in body[:place] if not _is_in(each.name, layer.container)]
        if layer.kind == "tokens" and not any(_list_of(name) for name in outside):
            layer.name = "tokens"


def _move_before_blocks(body: list[Layer], layer: Layer) -> None:
    """Move an embedding that is registered last of its module (BART, CLIP's text tower) before the blocks there."""
    place = body.index(layer)
    container = layer.name.rpartition(".")[0]
    blocks = _list_of(body[place - 1].name)
    later = [each.name for each in body[place + 1 :] if _is_in(each.name, container)]
    if blocks and _is_in(blocks, container) and not any(_list_of(name) for name in later):
        body.remove(layer)
        body.insert(next(i for i, each in enumerate(body) if _list_of(each.name) == blocks), layer)


def _has_blocks(layers: list[Layer]) -> bool:
    return any(_list_of(layer.name) for layer in layers)


def _is_in(name: str, container: str) -> bool:
    return not container or name.startswith(f"{container}.")


def _list_of(name: str) -> str:
    """Return the path of the outermost list that a layer is a block of, or nothing."""
    parts = name.split(".")
    depths = [depth for depth, part in enumerate(parts) if INDEX.fullmatch(part)]
    return ".".join(parts[: depths[0]]) or "." if depths else ""

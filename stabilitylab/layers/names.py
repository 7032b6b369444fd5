"""What a parameter is called without wrappers, and which parameter it follows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

__all__ = ["counterparts", "plain_name", "plain_names"]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"})
"""Modules that only wrap another one, where nothing stands beside it."""

FOLLOWERS = frozenset({"momentum", "teacher", "target", "ema", "averaged", "slow"})
"""Words in the name of a module that follows another one: ``momentum_backbone``, ``teacher``, ``critic_target``."""

LEADERS = ("", "student", "online", "base", "context", "main", "model", "net", "network", "encoder", "backbone")
"""What stands for that word in the name of the module that is followed."""

KEYS = {"k": ("q", ""), "key": ("query", "")}
"""The same for MoCo's ``encoder_k``; in `NETWORKS` only, because attention has keys and queries too."""

NETWORKS = frozenset({"encoder", "backbone", "model", "net", "network", "projector"})


def plain_name(name: str) -> str:
    """Return a parameter's name without `WRAPPERS`, as `plain_names` does where no other name is known."""
    return plain_names([name])[name]


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Map names to those of the same model without DDP, ``torch.compile`` or checkpoint wrappers.

    A part such as ``module`` is left out where nothing stands beside it. An ordinary submodule of that name stays
    if its parent has others; if not, leaving it out makes no two names the same.

    Args:
        names: of parameters; those of modules too, with a dot behind them, beside the parameters'.
    """
    split = {name: name.split(".") for name in names}
    beside = _children(split.values())
    return {
        name: ".".join(
            part
            for depth, part in enumerate(parts)
            if part not in WRAPPERS or depth == len(parts) - 1 or len(beside[tuple(parts[:depth])]) > 1
        )
        for name, parts in split.items()
    }


def counterparts(names: Iterable[str]) -> dict[str, str]:
    """Map each parameter of a momentum encoder, teacher or target network to the parameter that it follows.

    A module follows another one if its name says so (`FOLLOWERS`, `KEYS`) and each of its parameters has a
    counterpart: ``momentum_backbone.x`` and ``backbone.x``, ``teacher.x`` and ``student.x``, ``encoder_k.x`` and
    ``encoder_q.x``, wrapped or not. A ``target`` head of its own follows nothing, nor does a teacher of another
    architecture.
    """
    known = {tuple(plain.split(".")): name for name, plain in plain_names(names).items()}
    beside = _children(known)
    modules: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for parts in known:
        above = next((depth for depth, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        depths = (depth for depth in range(above) if _leaders(parts[depth]))
        modules[parts[: next(depths, -1) + 1]].append(parts)
    modules.pop((), None)  # what follows nothing
    found: dict[str, str] = {}
    for path, members in modules.items():
        leaders = [[leader] if leader else [] for leader in _leaders(path[-1])]
        if "target" not in path[-1] and any(len(parts) > len(path) + 1 for parts in members):
            leaders += [[part] for part in beside[path[:-1]] if not _leaders(part)]  # a model by any other name
        pairs = {}
        for parts in members:
            options = ((*path[:-1], *leader, *parts[len(path) :]) for leader in leaders)
            pairs[known[parts]] = next((known[option] for option in options if option in known), "")
        if all(pairs.values()):
            found |= pairs
    return found


def _children(split: Iterable[Sequence[str]]) -> dict[tuple[str, ...], dict[str, None]]:
    """Map each module's path to the names of what stands in it, in order."""
    children: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for parts in split:
        for depth, part in enumerate(parts):
            if part:
                children[tuple(parts[:depth])][part] = None
    return children


def _leaders(part: str) -> list[str]:
    """Return what the followed module may be called; nothing if the name does not say that it follows one."""
    words = part.lower().split("_")
    for place, word in enumerate(words):
        others = [*words[:place], *words[place + 1 :]]
        instead = LEADERS if word in FOLLOWERS else KEYS.get(word, ()) if NETWORKS & set(others) else ()
        if instead:
            leaders = ["_".join(filter(None, [*words[:place], each, *words[place + 1 :]])) for each in instead]
            return leaders + [""] * NETWORKS.issuperset(others)  # the model itself, without a name of its own
    return []

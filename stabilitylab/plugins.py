"""Names to plugins through entry points: a file in a plugin package is found with no other edit."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import Any

from stabilitylab.errors import InputError

__all__ = ["GROUPS", "load", "names"]

GROUPS = MappingProxyType(
    {"probes": "Probe", "detectors": "Detector", "methods": "Method", "plots": "draw", "mirrors": "Mirror"}
)
"""The kinds of plugin, and what a plugin module of each kind must define."""


@cache
def names(kind: str) -> MappingProxyType[str, str]:
    """Return the plugins of a kind, name to module path, sorted by name; none of them is imported.

    An entry point of the group ``stabilitylab.<kind>`` names a package, and every public module in it is a plugin.

    Raises:
        InputError: if the kind is none of `GROUPS`, two packages hold a plugin of one name,
            or an entry point names no package.
    """
    if kind not in GROUPS:
        raise InputError(f"no plugins of kind {kind!r}; there are {', '.join(GROUPS)}")
    packages = {point.value for point in entry_points(group=f"stabilitylab.{kind}")}
    return MappingProxyType(dict(sorted(_modules(kind, sorted(packages)).items())))


def _modules(kind: str, packages: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for package in packages:
        spec = find_spec(package)
        if spec is None or spec.submodule_search_locations is None:
            raise InputError(f"the entry point of stabilitylab.{kind} names {package!r}, which is no package")
        for module in pkgutil.iter_modules(spec.submodule_search_locations):
            if module.name.startswith("_"):
                continue
            path = f"{package}.{module.name}"
            if module.name in found:
                raise InputError(f"two plugins of kind {kind} are named {module.name!r}: {found[module.name]}, {path}")
            found[module.name] = path
    return found


def load(kind: str, name: str) -> Any:
    """Import one plugin and return its class or function (see `GROUPS`).

    Raises:
        InputError: if there is no plugin of that name (the message lists the near ones and all), or the module cannot
            be imported or does not define what a plugin of its kind must define.
    """
    available = names(kind)
    if name not in available:
        near = get_close_matches(name, available, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"no {kind.removesuffix('s')} is named {name!r}{hint} (available: {', '.join(available)})")
    try:
        module: ModuleType = importlib.import_module(available[name])
    except InputError:
        raise
    except Exception as error:  # whatever somebody's module does
        where, why = f"the {kind.removesuffix('s')} {name!r} ({available[name]})", f"{type(error).__name__}: {error}"
        raise InputError(f"{where} cannot be imported: {why}") from error
    if not hasattr(module, GROUPS[kind]):
        raise InputError(f"{available[name]} is in a package of {kind} but defines no {GROUPS[kind]}")
    return getattr(module, GROUPS[kind])

"""Backbones and heads: what timm does not have, on parts of timm."""

from __future__ import annotations

from types import ModuleType

from stabilitylab.models import named, vit

__all__ = ["kind_of"]


def kind_of(name: str) -> ModuleType:
    """Return the module with the ``Model``, ``build`` and ``timm_arguments`` of a backbone, by its name."""
    return vit if name in vit.SIZES else named

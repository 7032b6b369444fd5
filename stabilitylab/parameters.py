"""The base of every set of parameters: frozen, validated, a sentence under each field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Parameters"]


class Parameters(BaseModel):
    """Frozen parameters: unknown names and values out of range are refused at construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

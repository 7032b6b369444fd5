"""The base of every set of parameters: frozen, validated, a sentence under each field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from stabilitylab.errors import InputError

__all__ = ["Parameters", "validated"]

Kind = TypeVar("Kind", bound="Parameters")


class Parameters(BaseModel):
    """Frozen parameters: unknown names and values out of range or not finite are refused at construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def validated(kind: type[Kind], values: Mapping[str, Any], section: str) -> Kind:
    """Return the parameters, or say which value of the section was given and what was expected.

    Raises:
        InputError: if a name is unknown, or a value is not valid.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        said = []
        for each in error.errors():
            name = ".".join([section, *(str(part) for part in each["loc"][:1])])
            if each["type"] == "extra_forbidden":
                said.append(f"{name} is not known; {section} has {', '.join(kind.model_fields)}")
                continue
            given = f" was {each['input']!r}:" if each["loc"] else ""
            expected = each["msg"].removeprefix("Value error, ")
            if each["type"] in ("tuple_type", "list_type"):
                expected = 'Input should be a list of numbers or quoted names, such as [0, 3] or ["a"]'
            said.append(f"{name}{given} {expected}")
        raise InputError("; ".join(said)) from error

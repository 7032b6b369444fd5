"""The base of every set of parameters: frozen, validated, a sentence under each field."""

from __future__ import annotations

from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from stabilitylab.errors import InputError

__all__ = ["Parameters", "validated"]

Kind = TypeVar("Kind", bound="Parameters")


class Parameters(BaseModel):
    """Frozen parameters: unknown names and values out of range or not finite are refused at construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where a number is expected: they would be 1 and 0."""
        kinds = _choices(cls.model_fields[str(info.field_name)].annotation)
        number, truth = int in kinds or float in kinds, bool in kinds or any(isinstance(each, bool) for each in kinds)
        if isinstance(value, bool) and number and not truth:
            raise ValueError("Input should be a number")
        return value


def _choices(annotation: Any) -> list[Any]:
    """Return the types and values that a value may be."""
    if get_origin(annotation) in (Union, UnionType, Annotated, Literal):
        return [choice for each in get_args(annotation) for choice in _choices(each)]
    return [annotation]


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

"""The schema of ``findings.json``, built from the table of kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stabilitylab.schema.kinds import FOREIGN, KINDS, Kind

__all__ = ["FILE", "SCHEMA", "findings_schema"]

SCHEMA = 2
"""Raised whenever a reader of the file would have to change; a new kind, verdict or number is no such change."""

FILE = Path(__file__).with_name("findings.schema.json")
"""The schema as a file of the package."""

STEP = {"type": "integer", "description": "training step"}
NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["inf", "-inf", "nan"]}]}


def findings_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``findings.json``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "findings.json of stabilitylab",
        "description": "What the analysis of one run claims. Numbers that are not finite are the strings inf, -inf, "
        "nan. Times are training steps.",
        **_record(
            {
                "schema": {"const": SCHEMA},
                "run": {"type": "string", "description": "name of the run's folder"},
                "parameters": {"type": "object", "description": "all parameters, those of detectors under their name"},
                "findings": {"type": "array", "items": {"$ref": "#/$defs/finding"}},
                "episodes": {"type": "array", "items": {"$ref": "#/$defs/episode"}},
            }
        ),
        "$defs": {"number": NUMBER, "event": _event(), "episode": _episode(), "finding": _finding()},
    }


def _record(properties: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has these properties, all of them and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _event() -> dict[str, Any]:
    text = {"type": "string"}
    times = dict.fromkeys(("start", "onset", "peak", "stop"), STEP)
    sizes = {"height": {"$ref": "#/$defs/number"}, "score": {"$ref": "#/$defs/number"}}
    return _record(times | {"kind": text, "series": text, "label": text} | sizes)


def _episode() -> dict[str, Any]:
    events = {"type": "array", "items": {"$ref": "#/$defs/event"}}
    names = {"type": "array", "items": {"type": "string"}}
    return _record({"start": STEP, "stop": STEP, "events": events, "first_layers": names, "followed_by": events})


def _finding() -> dict[str, Any]:
    text = {"type": "string"}
    events = {"type": "array", "items": {"$ref": "#/$defs/event"}}
    tree = {"type": "object"}
    shape = {"kind": text, "sentence": text, "verdict": text, "numbers": tree, "method": text, "parameters": tree}
    foreign = {
        "if": {"properties": {"kind": {"not": {"enum": list(KINDS)}}}},
        "then": {"properties": {"verdict": {"const": FOREIGN}}},
    }
    return _record(shape | {"events": events}) | {"allOf": [*(_rule(*each) for each in KINDS.items()), foreign]}


def _rule(name: str, kind: Kind) -> dict[str, Any]:
    """Return what follows for a finding from its kind."""
    verdicts = {"oneOf": [{"const": each, "description": meaning} for each, meaning in kind.verdicts.items()]}
    numbers = {each: {"description": meaning} for each, meaning in kind.numbers.items()}
    return {
        "if": {"properties": {"kind": {"const": name}}},
        "then": {
            "description": kind.says,
            "properties": {"verdict": verdicts, "numbers": {"properties": numbers, "additionalProperties": False}},
        },
    }

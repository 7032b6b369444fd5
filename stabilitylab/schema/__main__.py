"""``python -m stabilitylab.schema docs/findings.md``: write the schema file, and the tables of the page, anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from stabilitylab.schema import FILE, KINDS, findings_schema

MARK = "<!-- the tables below are written by python -m stabilitylab.schema docs/findings.md -->"


def schema_text() -> str:
    """Return the content of the schema file."""
    return json.dumps(findings_schema(), indent=1) + "\n"


def tables() -> str:
    """Return a section for each kind, as Markdown."""
    parts = []
    for name, kind in KINDS.items():
        parts += [f"### {name}", kind.says]
        parts.append(_table("verdict", kind.verdicts))
        if kind.numbers:
            parts.append(_table("number", kind.numbers))
    return "\n\n".join(parts) + "\n"


def _table(what: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {what} | meaning |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in rows.items())]
    return "\n".join(lines)


def page(text: str) -> str:
    """Return a page with its tables written anew, from the mark on."""
    before, found, _ = text.partition(MARK)
    if not found:
        raise ValueError(f"the page lacks the line {MARK}")
    return f"{before}{MARK}\n\n{tables()}"


if __name__ == "__main__":
    FILE.write_text(schema_text(), encoding="utf-8")
    for each in map(Path, sys.argv[1:]):
        each.write_text(page(each.read_text(encoding="utf-8")), encoding="utf-8")

"""What ``findings.json`` holds: a JSON Schema (2020-12) built from the one table of kinds, and shipped as a file."""

from stabilitylab.schema.findings import FILE, SCHEMA, findings_schema
from stabilitylab.schema.kinds import FOREIGN, KINDS, Kind

__all__ = ["FILE", "FOREIGN", "KINDS", "SCHEMA", "Kind", "findings_schema"]

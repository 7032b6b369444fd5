"""stabilitylab: a flight recorder for training runs and an investigator of their instabilities."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis as Analysis
    from stabilitylab.analysis import analyze as analyze
    from stabilitylab.errors import InputError as InputError
    from stabilitylab.findings import Episode as Episode
    from stabilitylab.findings import Event as Event
    from stabilitylab.findings import Finding as Finding
    from stabilitylab.pooling import Pooled as Pooled
    from stabilitylab.pooling import pool as pool
    from stabilitylab.probe import HeldOut as HeldOut
    from stabilitylab.probe import Step as Step
    from stabilitylab.recorder import Recorder as Recorder
    from stabilitylab.run import Run as Run
    from stabilitylab.run import RunWriter as RunWriter

__version__ = "0.1.0"

_HOMES = {
    "Analysis": "analysis",
    "analyze": "analysis",
    "InputError": "errors",
    "Episode": "findings",
    "Event": "findings",
    "Finding": "findings",
    "Pooled": "pooling",
    "pool": "pooling",
    "HeldOut": "probe",
    "Step": "probe",
    "Recorder": "recorder",
    "Run": "run",
    "RunWriter": "run",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that reading a run loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stabilitylab' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(import_module(f"stabilitylab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

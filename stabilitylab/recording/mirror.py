"""Mirrors: who else hears what is recorded. The Parquet files stay the truth."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stabilitylab import plugins
from stabilitylab.errors import InputError
from stabilitylab.recording.buffer import Block

__all__ = ["Mirror", "Mirrors"]


METHODS = ("rows", "event", "close")


class Mirror(Protocol):
    """A tracker that is told what is recorded, a flush at a time.

    A class named ``Mirror`` in a file of a package under the entry points ``stabilitylab.mirrors`` is found by the
    file's name, and built with the run folder and the first step.
    """

    def rows(self, series: str, labels: Sequence[str], steps: np.ndarray, values: np.ndarray) -> None:
        """Take rows of a series: steps (T,), values (T, number of labels), NaN and inf included."""

    def event(self, step: int, kind: str, text: str) -> None:
        """Take something that happened at a step: a text, and a marker where the tracker has them."""

    def close(self) -> None:
        """Finish; called once."""


class Mirrors:
    """Some mirrors; one that fails is off from then on, and never ends a training.

    Args:
        chosen: a name, an object with the methods of `Mirror`, several of either, or None.
        path: the run folder.
        first_step: of this attempt.

    Raises:
        InputError: if no mirror has that name, or what it needs is not installed.
    """

    def __init__(self, chosen: Any, path: Path, first_step: int) -> None:
        each = [] if chosen is None else list(chosen) if isinstance(chosen, list | tuple) else [chosen]
        for one in each:
            if not isinstance(one, str) and not all(callable(getattr(one, name, None)) for name in METHODS):
                names = ", ".join(plugins.names("mirrors"))
                raise InputError(f"mirror was {one!r}: a name ({names}) or an object with rows, event and close")
        self._mirrors: list[Any] = [
            plugins.load("mirrors", one)(path, first_step) if isinstance(one, str) else one for one in each
        ]

    def rows(self, blocks: Sequence[Block]) -> None:
        """Show what was flushed, and mark the steps whose gradients were not finite."""
        for block in blocks:
            self._all("rows", block.series, block.labels, block.steps, block.values)
            if block.series == "gradients.total":
                for step in block.steps[~np.isfinite(block.values[:, 0])]:
                    self.event(int(step), "not finite", f"gradients are not finite at step {step}")

    def event(self, step: int, kind: str, text: str) -> None:
        """Show something that happened."""
        self._all("event", step, kind, text)

    def close(self) -> None:
        """Finish all mirrors."""
        self._all("close")
        self._mirrors = []

    def _all(self, method: str, *arguments: Any) -> None:
        for mirror in list(self._mirrors):
            try:
                getattr(mirror, method)(*arguments)
            except Exception as error:  # whatever a tracker does, it never ends a training
                self._mirrors.remove(mirror)
                name = f"{type(mirror).__module__}.{type(mirror).__qualname__}"
                warnings.warn(f"the mirror {name} failed and is off now: {type(error).__name__}: {error}", stacklevel=2)

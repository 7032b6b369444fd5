"""Runs whose every value follows from its step, so that a reader can be checked whatever happened to the writer."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stabilitylab.run import RunWriter

HEADER = {"layers": {"names": ["a", "b"], "of": {"a.w": "a", "b.w": "b"}, "first": "a"}, "config": {"x": 1}}
LABELS = ["a.w", "b.w"]
NORMS = "gradients.norm"


def writer(path: Path, first_step: int = 0) -> RunWriter:
    made = RunWriter(path, HEADER, first_step)
    made.declare(NORMS, LABELS, unit="gradient")
    made.update()
    return made


def rows(first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values that follow from their step alone, with evidence that must not be lost."""
    steps = np.arange(first, stop)
    values = np.stack([np.sin(steps), np.cos(steps)], axis=1).astype("float32")
    values[steps % 7 == 3, 0] = np.nan
    values[steps % 11 == 5, 1] = np.inf
    return steps, values


def assert_holds(frame: pd.DataFrame, stop: int) -> None:
    steps, values = rows(0, stop)
    expected = pd.DataFrame(values, index=pd.Index(steps, name="step"), columns=LABELS)
    pd.testing.assert_frame_equal(frame, expected, check_exact=True)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FRESH = multiprocessing.get_context("forkserver")
"""Starts processes that have neither threads nor torch, from one that has imported what a writer needs."""
FRESH.set_forkserver_preload(["stabilitylab.run", "pytest"])


def in_fresh_process(function: Callable[..., None], *given: Any) -> None:
    """Run a function that forks, or that limits what its process may do; it fails by raising."""
    process = FRESH.Process(target=function, args=given)
    process.start()
    process.join()
    assert process.exitcode == 0

"""The pictures that have no interactive twin, as data in the page, each of a bounded size."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab import plots, plugins
from stabilitylab.errors import InputError

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["INTERACTIVE", "Still", "stills"]

INTERACTIVE = ("gradients", "knn", "training")
"""Pictures that the linked charts show better."""

WIDEST = 1400
"""Pixels of a picture at most."""

LARGEST = 200_000
"""Bytes of a picture at most."""

LARGEST_TOGETHER = 1_000_000
"""Bytes of all pictures at most: with them, the charts and their JavaScript the page stays well under 5 MB."""


@dataclass(frozen=True)
class Still:
    """A picture in the page."""

    name: str
    caption: str
    address: str
    """A ``data:`` address."""
    width: int
    height: int


def stills(analysis: Analysis, drawn: Mapping[str, Path] | None) -> tuple[list[Still], list[str]]:
    """Return the pictures of a run, and of those that are too large the names.

    Args:
        analysis: what to show.
        drawn: pictures that were drawn already, name to PNG; drawn here if not given.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = _drawn(analysis, Path(folder)) if drawn is None else drawn
        found, left_out, size = [], [], 0
        for name, path in files.items():
            if name in INTERACTIVE or path.suffix != ".png":
                continue
            content, width, height = _bounded(path)
            if len(content) > LARGEST or size + len(content) > LARGEST_TOGETHER:
                left_out.append(name)
                continue
            size += len(content)
            address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            found.append(Still(name, plots.caption(name), address, width, height))
    return found, left_out


def _drawn(analysis: Analysis, folder: Path) -> dict[str, Path]:
    files = {}
    for name in plugins.names("plots"):
        if name in INTERACTIVE:
            continue
        try:
            files[name] = plots.picture(name, [analysis], folder / f"{name}.png")
        except InputError:  # the run lacks a series that this picture shows
            continue
    return files


def _bounded(path: Path) -> tuple[bytes, int, int]:
    """Return a PNG of few colors and of the size in which it is looked at, with that size."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.thumbnail((WIDEST, 4 * WIDEST))
        few = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        file = BytesIO()
        few.save(file, "PNG", optimize=True)
        return file.getvalue(), few.width, few.height

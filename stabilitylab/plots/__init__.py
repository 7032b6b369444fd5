"""Plots: from runs to pictures, one file each.

Every public module is a picture. It has one function, ``draw(figure, analyses)``, which raises `InputError` where a
run lacks a series it needs, and may have the constants ``OVERLAYS`` (it shows several runs in one axes; the others
show the first), ``SIZE`` (inches) and ``CAPTION`` (what to look at, for the reader of the picture).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from stabilitylab import plugins
from stabilitylab.disk.atomic import replace
from stabilitylab.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stabilitylab.analysis import Analysis

__all__ = ["FORMATS", "caption", "draw_all", "overlays", "picture", "save"]

FORMATS = ("png", "svg", "pdf")
DPI = 150


def picture(name: str, analyses: Sequence[Analysis], path: str | Path, size: tuple[float, float] | None = None) -> Path:
    """Draw one picture into a PNG, SVG or PDF file, whole or not at all, and return its path.

    Args:
        name: the picture, as in ``stabilitylab.plots``.
        analyses: what to show; a picture without ``OVERLAYS`` shows the first.
        path: the file; its suffix is the format.
        size: width and height in inches; the picture's own if not given.

    Raises:
        InputError: if there is no such picture or format, no analysis, or a run lacks a series that it needs.
    """
    from matplotlib.figure import Figure

    draw = plugins.load("plots", name)
    _format(Path(path))
    if not analyses:
        raise InputError(f"the picture {name!r} needs at least one analyzed run")
    figure = Figure(figsize=size or getattr(_module(name), "SIZE", (9.0, 5.5)))
    draw(figure, analyses)
    return save(figure, path)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a PNG, SVG or PDF file, whole or not at all; equal figures give equal files.

    Raises:
        InputError: if the suffix is none of `FORMATS`, or the folder does not exist.
    """
    import matplotlib

    path = Path(path)
    kind = _format(path)
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no folder to write {path.name} to")
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with matplotlib.rc_context({"svg.hashsalt": "stabilitylab"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # of a name, drawn as a box
        replace(path, lambda file: figure.savefig(file, format=kind, dpi=DPI, metadata=undated))
    return path


def draw_all(
    analyses: Sequence[Analysis], folder: Path | None = None, suffix: str = "png", names: Sequence[str] | None = None
) -> Iterator[tuple[Path, str | None]]:
    """Draw pictures of runs, each as it is asked for: of each run, or of all together where a picture overlays them.

    Args:
        analyses: the analyzed runs.
        folder: where the pictures go, made if missing; ``analysis`` in the folder of the run (of the first one, for
            a picture of several) if not given.
        suffix: ``png``, ``svg`` or ``pdf``.
        names: which pictures; all if not given.

    Yields:
        The path of each picture, and None; or the reason why a run has no such picture.

    Raises:
        InputError: if there is no picture of such a name.
    """
    chosen = list(names) if names else list(plugins.names("plots"))
    together = {name: overlays(name) for name in chosen}
    for name in chosen:
        groups = [list(analyses)] if together[name] else [[each] for each in analyses]
        for group in groups:
            path = (folder or group[0].run.path / "analysis") / f"{_stem(name, group, analyses, folder)}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield picture(name, group, path), None
            except InputError as error:
                yield path, str(error)


def _stem(name: str, group: Sequence[Analysis], analyses: Sequence[Analysis], folder: Path | None) -> str:
    """Return a file name of its own: where several runs share a folder, each puts its name first."""
    if len(group) > 1:
        return f"{name}-of-{len(group)}-runs"
    if folder is None or len(analyses) == 1:
        return name
    run = group[0].run
    alike = [each.run for each in analyses if each.run.name == run.name]
    place = [each.path for each in alike].index(run.path)
    return f"{run.name}{f'-{place + 1}' if len(alike) > 1 else ''}-{name}"


def overlays(name: str) -> bool:
    """Tell whether a picture shows several runs in one axes."""
    return bool(getattr(_module(name), "OVERLAYS", False))


def caption(name: str) -> str:
    """Return what the reader of a picture is to look at; empty where its author wrote nothing."""
    return str(getattr(_module(name), "CAPTION", ""))


def _module(name: str) -> ModuleType:
    return sys.modules[plugins.load("plots", name).__module__]


def _format(path: Path) -> str:
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS:
        raise InputError(
            f"{path.name} is no picture that can be written: its suffix must be one of {', '.join(FORMATS)}"
        )
    return kind

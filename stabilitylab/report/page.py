"""The page itself: one file with its style, its script and its numbers, which asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from stabilitylab import __version__
from stabilitylab.disk.atomic import replace
from stabilitylab.phrasing import count
from stabilitylab.report import charts, tables
from stabilitylab.report.advice import advise
from stabilitylab.report.curves import Panel, panels
from stabilitylab.report.limits import limit
from stabilitylab.report.numbers import numbers
from stabilitylab.report.pictures import stills
from stabilitylab.report.verdict import tone, verdict

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = ["page", "write"]


def write(analysis: Analysis, path: str | Path | None = None, pictures: Mapping[str, Path] | None = None) -> Path:
    """Write the page, whole or not at all.

    Args:
        analysis: what to tell.
        path: the file; ``analysis/report.html`` in the run if not given.
        pictures: PNG files that were drawn of this analysis, name to path; drawn again if not given.

    Returns:
        The path.
    """
    path = Path(path) if path is not None else analysis.run.path / "analysis" / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, partial(_put, page(analysis, pictures)))
    return path


def _put(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def page(analysis: Analysis, pictures: Mapping[str, Path] | None = None) -> str:
    """Return the page as HTML.

    Every name in it is escaped: runs and labels are written by others. Scripts run only if their hash is in the
    page's own policy, which forbids every request.

    Args:
        analysis: what to tell.
        pictures: as in `write`.
    """
    from jinja2 import Environment, StrictUndefined

    windows = tables.windows(analysis)
    drawn = panels(analysis, windows)
    looked = {each.kind for each in analysis.findings if tone(each.verdict) != "undecided"}
    found, left_out = stills(analysis, pictures)
    scripts = [charts.javascript(), _resource("page.js")] if drawn else []
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(count=count, limit=limit, tone=tone)
    return environment.from_string(_resource("page.html")).render(
        run=analysis.run,
        version=__version__,
        policy=_policy(scripts),
        style=_resource("page.css"),
        scripts=scripts,
        facts=_facts(analysis, drawn),
        verdict=verdict(analysis),
        findings=[(each, list(numbers(each.numbers)), list(numbers(each.parameters)))
                  for each in analysis.findings],
        looked=looked,
        something=any(tone(each.verdict) == "found" for each in analysis.findings),
        panels=drawn,
        charts=_charts(analysis, drawn),
        episodes=tables.episode_rows(analysis),
        events=tables.event_rows(analysis),
        num_episodes=len(analysis.episodes),
        lags=tables.lag_rows(analysis),
        couplings=tables.coupling_rows(analysis),
        judged={"lags": tables.judged(analysis.lags), "couplings": tables.judged(analysis.couplings)},
        first=analysis.run.layers.first,
        stills=found,
        left_out=left_out,
        advice=advise(analysis),
        parameters=list(numbers(analysis.parameters)),
    )  # fmt: skip


def _resource(name: str) -> str:
    return files("stabilitylab.report").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """Return a policy that lets these scripts run and nothing be fetched."""
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _facts(analysis: Analysis, drawn: list[Panel]) -> list[str]:
    run = analysis.run
    steps = [each.steps for panel in drawn for each in panel.curves if len(each.steps)]
    facts = [run.status]
    if steps:
        first, last = min(int(each[0]) for each in steps), max(int(each[-1]) for each in steps)
        facts += [count(last - first + 1, "step") + (f" from {first:,} on" if first else "")]
    facts += [count(len(run.layers.names), "layer"), f"{len(run.series)} series"]
    return facts


def _charts(analysis: Analysis, drawn: list[Panel]) -> str:
    """Return what the script needs, as JSON that can stand inside a page."""
    if not drawn:
        return ""
    steps = [each.steps for panel in drawn for each in panel.curves if len(each.steps)]
    span = min(int(each[0]) for each in steps), max(int(each[-1]) for each in steps)
    episodes = [(each.start, each.stop) for each in analysis.episodes]
    made = charts.draw(drawn, span, episodes, tables.planted_spans(analysis.run))
    about = {"document": json.loads(made.document), "roots": made.roots, "axis": made.axis, "span": span}
    return json.dumps(about, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")

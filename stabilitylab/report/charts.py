"""The linked charts: Bokeh's figures on one range of steps, as JSON for its own JavaScript in the page."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from stabilitylab.plots._style import GREY, ORANGE
from stabilitylab.report.curves import Curve, Panel

__all__ = ["Charts", "draw", "javascript"]

HEIGHT = 150
"""Pixels of a panel."""

NARROW, WIDE = 62, 84
"""Pixels beside a panel: as many in all, so that a step is at one place; more where a number is long."""

NOT_FINITE = "#d0402f"
"""Color of values that are NaN or infinite."""

PLANTED = "#8f5bd6"
"""Color of what was planted on purpose."""


@dataclass(frozen=True)
class Charts:
    """Figures that the page puts into its elements."""

    document: str
    """Bokeh's document as JSON."""
    roots: dict[str, str]
    """Identifier of a figure to that of the element that it goes into."""
    axis: str
    """Identifier of the range of steps that all share."""


def javascript() -> str:
    """Return Bokeh's own JavaScript, which the page carries."""
    return files("bokeh").joinpath("server", "static", "js", "bokeh.min.js").read_text(encoding="utf-8")


def draw(
    panels: Sequence[Panel],
    span: tuple[int, int],
    episodes: Sequence[tuple[int, int]],
    planted: Sequence[tuple[int, int]],
) -> Charts:
    """Draw the panels one above the other, on one range of steps, with one line that follows the pointer.

    Args:
        panels: at least one.
        span: first and last step.
        episodes: first and last step of each, shaded in every panel.
        planted: first and last step of what was planted on purpose, marked in every panel.
    """
    from bokeh.document import Document
    from bokeh.models import Range1d
    from bokeh.models.annotations.geometry import Span

    margin = max(0.01 * (span[1] - span[0]), 0.5)
    low, high = span[0] - margin, span[1] + margin
    steps = Range1d(start=low, end=high, bounds=(low, high), min_interval=min(8.0, high - low))
    pointer = Span(dimension="height", line_dash="dotted", line_width=1, line_color=GREY)
    left = WIDE if any(map(_long_labels, panels)) else NARROW
    document = Document()
    roots = {}
    with warnings.catch_warnings():  # bokeh warns of empty figures
        for place, panel in enumerate(panels):
            figure = _figure(panel, steps, pointer, last=place == len(panels) - 1, left=left)
            _bands(figure, episodes, GREY, 0.22)
            _bands(figure, panel.bands, ORANGE, 0.35)
            _bands(figure, [each for each in planted if each[1] > each[0]], PLANTED, 0.15)
            _lines(figure, [first for first, _ in planted], PLANTED, "dashed", "planted")
            _bands(figure, [each for each in panel.not_finite if each[1] > each[0]], NOT_FINITE, 0.15)
            _lines(figure, [first for first, _ in panel.not_finite], NOT_FINITE, "dotted", "not finite")
            for curve in panel.curves:
                _curve(figure, curve, panel)
            if panel.peaks:
                at, heights = zip(*panel.peaks, strict=True)
                figure.scatter(
                    list(at), list(heights), marker="inverted_triangle", size=7, line_width=0.5, line_color="white",
                    color=panel.curves[0].color, name="peak",
                )  # fmt: skip
            document.add_root(figure)
            roots[figure.id] = f"chart-{place}"
    content = document.to_json(deferred=False)
    return Charts(json.dumps(content, allow_nan=False), roots, steps.id)


def _long_labels(panel: Panel) -> bool:
    """Tell whether the numbers of a linear axis need many characters."""
    values = np.concatenate([each.values for each in panel.curves])
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    return not panel.logarithmic and largest > 0 and not 1e-2 <= largest < 1e5


def _figure(panel: Panel, steps: Any, pointer: Any, last: bool, left: int) -> Any:
    from bokeh.models import (
        BasicTicker,
        BoxZoomTool,
        CrosshairTool,
        DataRange1d,
        FixedTicker,
        LogTickFormatter,
        NumeralTickFormatter,
        PanTool,
        Range1d,
        WheelZoomTool,
    )  # fmt: skip
    from bokeh.plotting import figure

    some = any(np.isfinite(each.values).any() for each in panel.curves)
    drag = BoxZoomTool(dimensions="width")
    wheel = WheelZoomTool(dimensions="width", modifiers="ctrl")
    made = figure(
        height=HEIGHT + 22 * last,
        sizing_mode="stretch_width",
        x_range=steps,
        y_range=DataRange1d(range_padding=0.08, default_span=2 if panel.logarithmic else 1)
        if some
        else Range1d(start=0, end=1),
        y_axis_type="log" if panel.logarithmic else "linear",
        window_axis="x",
        toolbar_location=None,
        tools=[drag, PanTool(dimensions="width"), wheel, CrosshairTool(overlay=pointer)],
        active_drag=drag,
        active_scroll=wheel,
        min_border_left=left,
        min_border_right=8,
        min_border_top=4,
        min_border_bottom=4,
        outline_line_color=None,
        background_fill_color=None,
        border_fill_color=None,
    )
    made.xaxis.formatter = NumeralTickFormatter(format="0,0")
    made.xaxis.ticker = BasicTicker(min_interval=1)
    if panel.logarithmic:
        made.yaxis.ticker = FixedTicker(ticks=_ticks(panel))
        made.yaxis.formatter = LogTickFormatter(min_exponent=5)  # 100 rather than 10 to the power of 2
    else:
        made.yaxis.ticker = BasicTicker(desired_num_ticks=4)
    made.grid.minor_grid_line_color = None
    for axis in made.axis:
        axis.axis_label_text_font_style = "normal"
        axis.minor_tick_line_color = None
    if last:
        made.xaxis.axis_label = "training step"
    else:
        made.xaxis.major_label_text_font_size = "0px"
    made.axis.axis_label_text_font_size = made.yaxis.major_label_text_font_size = "12px"
    return made


def _ticks(panel: Panel) -> list[float]:
    """Return the ticks of a logarithmic axis: one and three of each decade, more where the curves span little."""
    values = np.concatenate([curve.values for curve in panel.curves])
    drawn = values[(values > 0) & np.isfinite(values)]
    decades = float(np.log10(drawn.max() / drawn.min())) if len(drawn) else 0.0
    if decades == 0:  # one value: an axis of two decades
        return [10.0**power for power in range(-9, 13)]
    digits = (1, 3) if decades > 1 else (1, 2, 5) if decades > 0.5 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    return [digit * 10.0**power for power in range(-9, 13) for digit in digits]


def _curve(figure: Any, curve: Curve, panel: Panel) -> None:
    from bokeh.models import ColumnDataSource, HoverTool

    large = len(curve.steps) and int(curve.steps[-1]) >= 2**31
    steps = curve.steps.astype(np.float64 if large else np.int32)
    tooltips = [("", "$name"), ("step", "@step{0,0}"), (panel.unit, "@value{%.4g}")]
    with np.errstate(over="ignore"):
        columns: dict[str, Any] = {"step": steps, "value": curve.values.astype(np.float32)}
        if curve.raw is not None:
            columns["raw"] = curve.raw.astype(np.float32)
    if curve.raw is not None:
        tooltips.append(("as recorded", "@raw{%.4g}"))
    source = ColumnDataSource(columns)
    line = figure.line(
        "step", "value", source=source, color=curve.color, line_width=1.3, name=curve.name,
        line_dash="dashed" if curve.dashed else "solid",
    )  # fmt: skip
    known = np.isfinite(curve.values)
    alone = known & ~np.append(False, known[:-1]) & ~np.append(known[1:], False)
    if alone.any():  # a number between two gaps would be a line of no length
        figure.scatter(steps[alone], columns["value"][alone], size=4, color=curve.color, name=curve.name)
    printed: dict[str, Any] = {"@value": "printf", "@raw": "printf"}
    figure.add_tools(
        HoverTool(renderers=[line], mode="vline", tooltips=tooltips, formatters=printed, point_policy="follow_mouse")
    )


def _bands(figure: Any, spans: Sequence[tuple[int, int]], color: str, alpha: float) -> None:
    """Shade intervals of steps; their edges keep them visible where they are narrower than a pixel."""
    if spans:
        first, last = zip(*spans, strict=True)
        figure.vstrip(
            x0=[each - 0.5 for each in first], x1=[each + 0.5 for each in last], fill_color=color, fill_alpha=alpha,
            line_color=color, line_alpha=min(alpha, 15 / len(spans)), line_width=1, level="underlay",
        )  # fmt: skip


def _lines(figure: Any, steps: Sequence[int], color: str, dash: str, name: str) -> None:
    if steps:
        figure.vspan(x=list(steps), line_color=color, line_dash=dash, line_width=1.5, name=name)

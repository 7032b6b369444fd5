"""Runs of every kind that the pictures are drawn of, and what the tests look at them with."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import combinations, product

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from plot_runs import Planted, make

from stabilitylab import plugins

NAMES = ("gradients", "knn", "lags", "layers", "spectrum", "training", "updates")
NAN, INF = float("nan"), float("inf")


def lags(names, verdict, lag, low, high, matched):
    row = {"first": names[0], "matched": matched, "lag": lag, "low": low, "high": high, "verdict": verdict}
    return pd.DataFrame([row | {"layer": name, "depth": depth} for depth, name in enumerate(names) if depth])


CASES = {
    "plain": Planted(10, 1000, ((0, 400, 6.0), (5, 408, 4.0)), ((450, 550, 0.08),), seed=1),
    "three": Planted(3, 100, ((0, 60, 6.0),), ((70, 90, 0.1),)),
    "deep": Planted(150, 400, ((0, 300, 6.0), (149, 310, 5.0))),
    "broken": Planted(
        10, 400, ((0, 100, 9.0),), not_finite=((0, 200, NAN), (0, 201, INF), (2, 300, NAN)), collapsed=20, first=5000
    ),
    "constant": Planted(10, 200, constant=True, knn=("queue",), final=1.0),
    "bare": Planted(10, 200, frozen=True, knn=(), spectrum=False),
}


SITUATIONS = [
    *product(NAMES, ("plain", "broken", "bare")),
    *product(("gradients", "lags", "layers", "knn"), ("three",)),
    *product(("gradients", "knn", "spectrum", "training", "updates"), ("constant",)),
    *product(("gradients", "lags", "layers"), ("deep",)),
]
"""Which pictures are drawn of which case: those that it could harm."""

REFUSED = {("knn", "bare"), ("spectrum", "bare"), ("lags", "broken"), ("lags", "bare")}
"""Pictures that a case has no series for, or no second layer to compare."""


@pytest.fixture(scope="session")
def analyses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made = {name: make(folder / name, planted) for name, planted in CASES.items()}
    for name, matched in (("plain", 12), ("three", 2), ("deep", 30)):
        verdict = "leads" if matched >= 5 else "too few events"
        table = lags(list(made[name].run.layers.names), verdict, 4.0, 1.0, 9.0, matched)
        made[name] = replace(made[name], lags=table)
    return made


@pytest.fixture(scope="session")
def million(tmp_path_factory):
    planted = Planted(3, 1_000_000, ((0, 333_333, 6.0), (1, 777_777, 40.0)), not_finite=((0, 500_001, INF),))
    return make(tmp_path_factory.mktemp("runs") / "million", planted)


def drawn(name, *shown):
    """Draw a picture once; the tests only look at it."""
    key = (name, *map(id, shown))
    if key not in DRAWN:
        module = sys.modules[plugins.load("plots", name).__module__]
        figure = Figure(figsize=module.SIZE)
        FigureCanvasAgg(figure)
        module.draw(figure, list(shown))
        DRAWN[key] = (figure, shown)  # what is shown is kept, so that no other gets its id
    return DRAWN[key][0]


DRAWN = {}


def by_gid(where, gid):
    return where.findobj(lambda artist: artist.get_gid() == gid)


def xs(where, gid):
    return sorted(float(x) for artist in by_gid(where, gid) for x in artist.get_xdata())


def texts(figure):
    return [each.get_text() for each in figure.findobj(Text) if each.get_text().strip()]


def assert_readable(figure):
    """No text covers another, none leaves the figure."""
    boxes = [(each.get_text(), Text.get_window_extent(each)) for each in shown_texts(figure)]
    title = figure._suptitle  # its second line is blank: the name of the run stands there
    extent = title.get_window_extent()
    boxes.append((title.get_text(), extent.from_extents(extent.x0, (extent.y0 + extent.y1) / 2, extent.x1, extent.y1)))
    width, height = figure.canvas.get_width_height()
    for what, box in boxes:
        assert box.x0 > -1, what
        assert box.y0 > -1, what
        assert box.x1 < width + 1, what
        assert box.y1 < height + 1, what
    for (one, first), (two, second) in combinations(boxes, 2):
        beside = first.x1 <= second.x0 + 1 or second.x1 <= first.x0 + 1
        above = first.y1 <= second.y0 + 2 or second.y1 <= first.y0 + 2
        assert beside or above, f"{one!r} covers {two!r}"


def shown_texts(figure):
    """Return every text that is on the page, but the title of the figure."""
    found = [each for each in figure.texts if each is not figure._suptitle]
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        found += legend.get_texts() if legend else []
    for axes in figure.axes:
        found += [*axes.texts, axes.title, axes._left_title, axes._right_title]
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            found += [axis.label, axis.get_offset_text()]
            for tick in axis.get_major_ticks():
                inside = min(limits) <= tick.get_loc() <= max(limits)
                found += [each for each in (tick.label1, tick.label2) if inside]
    return [each for each in found if each.get_visible() and each.get_text().strip()]

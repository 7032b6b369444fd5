"""The look of every picture: colors that all eyes tell apart, light ground, readable letters; nothing set at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import matplotlib.style
from matplotlib.colors import Colormap, ListedColormap, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.transforms import ScaledTranslation

if TYPE_CHECKING:
    from stabilitylab.analysis import Analysis

__all__ = [
    "BLUE",
    "DEPTH",
    "GREEN",
    "GREY",
    "INK",
    "LIGHT",
    "ORANGE",
    "PALE",
    "RED",
    "RUNS",
    "Sheet",
    "color_of",
    "diverging",
    "headline",
    "house_style",
    "lighter",
    "sequential",
]

INK, GREY, LIGHT, PALE = "#222222", "#767676", "#d9d9d9", "#f1f1f1"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e08a00", "#00876c", "#c8400a"
"""After Okabe and Ito, 2008, a little darker where thin lines need it; position or marker tells them apart in gray."""

DEPTH = (RED, GREEN, BLUE)
"""First, middle and last layer."""

RUNS = ("#332288", "#c8400a", "#117733", "#44a5d0", "#aa4499", "#999933", "#882255", "#2f9e8f", "#222222", "#b58900")
"""Ten runs; after Tol's muted scheme."""

STYLE = MappingProxyType(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": GREY,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "figure.constrained_layout.h_pad": 0.06,
        "figure.constrained_layout.w_pad": 0.08,
        "font.family": ["DejaVu Sans"],
        "font.size": 9,
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.6,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "lines.linewidth": 1.2,
        "text.color": INK,
        "text.parse_math": False,  # names are not formulas, whatever stands in them
        "xtick.color": GREY,
        "xtick.labelcolor": INK,
        "xtick.labelsize": 8.5,
        "ytick.color": GREY,
        "ytick.labelcolor": INK,
        "ytick.labelsize": 8.5,
    }
)

Sheet: TypeAlias = Figure | SubFigure
"""What a picture is drawn on."""

Draw: TypeAlias = "Callable[[Sheet, Sequence[Analysis]], None]"


def house_style(draw: Draw) -> Draw:
    """Let a drawing function work in the house style, whatever style its user has chosen for other pictures."""

    @wraps(draw)
    def drawn(figure: Sheet, analyses: Sequence[Analysis]) -> None:
        with matplotlib.style.context(dict(STYLE), after_reset=True):
            figure.set_facecolor("white")
            if isinstance(figure, Figure):
                figure.set_layout_engine("constrained")
            draw(figure, analyses)

    return drawn


def headline(figure: Sheet, sentence: str, run: str) -> None:
    """Write the title: what is seen, and below it in which run."""
    start = 0.012
    figure.suptitle(f"{sentence}\n", x=start, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    below = ScaledTranslation(0, -0.32, figure.dpi_scale_trans)  # inches: the height of the line above
    figure.text(start, 1, run, ha="left", va="top", fontsize=8.5, color=GREY, transform=figure.transSubfigure + below)


def color_of(position: int, colors: Sequence[str] = RUNS) -> str:
    """Return the color of a run; they begin again after the last."""
    return colors[position % len(colors)]


def lighter(color: str, part: float = 0.4) -> tuple[float, float, float]:
    """Return a color mixed with white, for the lesser of two lines."""
    red, green, blue = (1 - (1 - each) * (1 - part) for each in to_rgb(color))
    return red, green, blue


def sequential() -> Colormap:
    """Return the map for what grows: viridis without its yellow end, which white paper swallows."""
    return ListedColormap(matplotlib.colormaps["viridis"](list(range(225))), "sequential")


def diverging() -> Colormap:
    """Return the map for what lies below (blue) or above (red) its usual level (white)."""
    return matplotlib.colormaps["RdBu_r"].with_extremes(bad=LIGHT)

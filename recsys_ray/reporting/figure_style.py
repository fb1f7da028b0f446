"""The look that the figures of the report share: colours, axes, names, and the format in which a page embeds them.

Figures are made with `Figure` and never pyplot, whose global state does not belong in a training process.
"""

from __future__ import annotations

import base64
import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, BLUE, PALE_BLUE, ORANGE, GREY, GRID = "#333333", "#2f6690", "#b9cfe0", "#c8622d", "#c9c9c9", "#ececec"
TABLE_COLORS = (
    "#2f6690", "#e0a458", "#6a994e", "#b5544b", "#7b6d8d", "#81c3d7",
    "#a37b5c", "#e8a0a8", "#3d7f74", "#c9b458", "#54588c", "#a7c08f",
)  # fmt: skip
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK}
WIDE, HALF = 9.0, 4.5
"""Widths in inches of a figure as wide as the page, and of one of a pair."""


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Returns a figure of this size in inches with one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def style_axes(axes: Axes, x: str, y: str, grid: Any = "y") -> None:
    """Labels both axes, hides the frame's top and right, and draws grid lines across the axis `grid`."""
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis=grid, color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)


def shortened(name: str, length: int = 28) -> str:
    """Cuts a long name in the middle, since long column names differ at their ends."""
    half = length // 2
    return name if len(name) <= length else name[: half - 1] + "…" + name[-half:]


def as_data_url(figure: Figure) -> str:
    """Returns the figure as an SVG for <img src>. Inline SVGs in one page would share their ids."""
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()

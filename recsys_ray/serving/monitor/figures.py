"""The figures of the monitoring report: each function draws one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from recsys_ray.reporting.figure_style import (
    BLUE,
    GREY,
    HALF,
    INK,
    LEGEND,
    ORANGE,
    WIDE,
    new_figure,
    shortened,
    style_axes,
)
from recsys_ray.serving.monitor.answers.recommended import RecommendedItems
from recsys_ray.serving.monitor.drift.drift import Drift

MOST_BARS = 40
"""Features that one figure shows at most, those with the largest PSI."""


def psi_figure(drifts: Sequence[Drift]) -> Figure | None:
    """Draws the PSI of each feature and score beside its limit, the largest first; None where nothing was compared."""
    shown = sorted((drift for drift in drifts if drift.stability), key=lambda drift: -drift.psi)[:MOST_BARS]
    if not shown:
        return None
    figure, axes = new_figure(WIDE, 1.0 + 0.26 * len(shown))
    rows = np.arange(len(shown))
    colors = [ORANGE if drift.psi > drift.limit else BLUE for drift in shown]
    axes.barh(rows, [drift.psi for drift in shown], color=colors, height=0.7)
    limits = [drift.limit for drift in shown]
    axes.vlines(limits, rows - 0.45, rows + 0.45, color=INK, linewidth=1.5)
    for row, drift in zip(rows, shown, strict=True):
        place = (max(drift.psi, drift.limit), row)
        axes.annotate(f"{drift.psi:.3f}", place, (4, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    axes.set_yticks(rows, [shortened(drift.name) for drift in shown], parse_math=False)
    axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, 1.15 * max(*limits, *(drift.psi for drift in shown))))
    handles = [Patch(color=BLUE), Patch(color=ORANGE), Line2D([], [], color=INK)]
    axes.legend(handles, ["within its limit", "alarm", "limit"], loc="lower right", bbox_to_anchor=(1, 1), ncols=3, **LEGEND)
    style_axes(axes, "PSI", "", grid="x")
    return figure


def shift_figure(drift: Drift) -> Figure:
    """Draws the share of rows in each bin, in the reference and now."""
    now, before = (sample.counts / max(sample.rows, 1e-9) for sample in (drift.current, drift.reference))
    return _paired_bars(drift.labels, {"reference": before, "now": now}, "share of rows")


def popularity_figure(found: RecommendedItems) -> Figure:
    """Draws the share of items by popularity among training choices and among recommendations."""
    shares = {"training choices": found.chosen_share, "recommended": found.recommended_share}
    return _paired_bars(tuple(found.chosen_share), {name: np.array([*one.values()]) for name, one in shares.items()}, "share")


def _paired_bars(labels: Sequence[str], shares: dict[str, np.ndarray], axis: str) -> Figure:
    figure, axes = new_figure(HALF, max(2.2, 1.0 + 0.25 * len(labels)))
    rows = np.arange(len(labels))
    for offset, color, (name, values) in zip((-0.2, 0.2), (GREY, BLUE), shares.items(), strict=True):
        axes.barh(rows + offset, values, color=color, height=0.38, label=name)
    axes.set_yticks(rows, [shortened(label, 20) for label in labels], parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, **LEGEND)
    style_axes(axes, axis, "", grid="x")
    return figure

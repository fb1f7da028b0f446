"""The figures of report.html: each function draws one, and returns None where there is nothing to draw."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from recsys_ray.reporting.figure_style import (
    BLUE,
    GREY,
    HALF,
    INK,
    LEGEND,
    ORANGE,
    PALE_BLUE,
    TABLE_COLORS,
    WIDE,
    new_figure,
    shortened,
    style_axes,
)
from recsys_ray.reporting.points import Points, any_finite, highest, mib_by_table, moving_average, values_of
from recsys_ray.reporting.summary import metric_label

TALLEST = 7.0
"""Inches that the bars of all ranks may take; of all rivals and groups, twice as many."""


def loss_figure(training: Points, validation: Points, loss_name: str) -> Figure | None:
    """Draws training loss by step, as logged and smoothed, and validation log loss where there is one."""
    validated = any_finite(validation, "logloss")
    if not any_finite(training, "loss") and not validated:
        return None
    figure, axes = new_figure(WIDE, 3.2)
    steps, loss = values_of(training, "step"), values_of(training, "loss")
    if len(loss) < 10:
        axes.plot(steps, loss, color=BLUE, marker="o", markersize=3, label="training")
    else:
        axes.plot(steps, loss, color=PALE_BLUE, linewidth=0.8, label="training, as logged")
        axes.plot(steps, moving_average(loss, len(loss) // 20), color=BLUE, label="training, smoothed")
    if validated:
        axes.plot(values_of(validation, "step"), values_of(validation, "logloss"), "o-", color=ORANGE, label="validation")
    style_axes(axes, "step", loss_name)
    axes.legend(**LEGEND)
    return figure


def metric_figure(validation: Points, metric: str, best: int | None) -> Figure | None:
    """Draws a validation metric by epoch, and marks the point at index `best`."""
    if not any_finite(validation, metric):
        return None
    figure, axes = new_figure(HALF, 3.3)
    epochs, values = values_of(validation, "epoch"), values_of(validation, metric)
    axes.plot(epochs, values, "o-", color=ORANGE, markersize=5)
    if best is not None and math.isfinite(values[best]):
        x, y = epochs[best], values[best]
        axes.plot([x], [y], "o", color=ORANGE, markersize=9, markeredgecolor=INK, markeredgewidth=1.2)
        # The line may run through the number, since the marked epoch need not have the highest value.
        halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.annotate(f"{y:.4f}", (x, y), (0, 10), textcoords="offset points", ha="center", color=INK, bbox=halo)
    axes.margins(x=0.12, y=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style_axes(axes, "epoch", f"validation {metric_label(metric)}")
    return figure


def comparison_figure(comparison: Points, metric: str) -> Figure:
    """Draws a bar of a test metric for the model, each rival and each group of users."""
    figure, axes = new_figure(HALF, min(max(3.3, 0.7 + 0.26 * len(comparison)), 2 * TALLEST))
    values = values_of([entry["metrics"] for entry in comparison], metric)
    bars = axes.barh(np.arange(len(values)), values, color=[ORANGE, *[BLUE] * (len(values) - 1)], height=0.7)
    axes.bar_label(bars, [f"{value:.4f}" for value in values], padding=3, fontsize=9, color=INK)
    axes.set_yticks(np.arange(len(values)), [shortened(entry["name"]) for entry in comparison], parse_math=False)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.margins(x=0.15)
    style_axes(axes, metric_label(metric), "", grid="x")
    return figure


def calibration_figure(bins: Points) -> Figure | None:
    """Draws observed rate against predicted rate by bin; the bars are two standard errors of the observed rate."""
    predicted, observed, rows = (values_of(bins, key) for key in ("predicted", "observed", "rows"))
    if not np.isfinite(predicted + observed).any():
        return None
    figure, axes = new_figure(HALF, 3.3)
    rate = np.clip(observed, 0, 1)
    error = 2 * np.sqrt(rate * (1 - rate) / np.maximum(np.nan_to_num(rows, nan=1), 1))
    top = min(1.02, 1.08 * float(np.nanmax([predicted, observed + error])) or 1.02)
    axes.plot([0, top], [0, top], color=GREY, linewidth=1, zorder=1)
    axes.errorbar(predicted, observed, error, fmt="o", color=BLUE, ecolor=PALE_BLUE, markersize=4, elinewidth=1.5)
    axes.set(xlim=(0, top), ylim=(0, top))
    style_axes(axes, "predicted rate", "observed rate")
    return figure


def placement_figure(plan: Points, world_size: int) -> Figure | None:
    """Draws MiB on each rank, stacked by table; the largest tables are named, the others are added up."""
    if not plan:
        return None
    ranks = max(world_size, 1 + max(int(row["rank"]) for row in plan))
    tables = mib_by_table(plan, ranks, named=len(TABLE_COLORS))
    figure, axes = new_figure(WIDE, max(0.9 + min(0.26 * ranks, TALLEST), 0.7 + 0.2 * len(tables)))
    colors = [*TABLE_COLORS, GREY]
    left = np.zeros(ranks)
    for color, mib in zip(colors, tables.values(), strict=False):
        axes.barh(np.arange(ranks), mib, left=left, color=color, height=0.7, edgecolor="white", linewidth=0.4)
        left += mib
    handles = [Patch(color=color) for color, _ in zip(colors, tables, strict=False)]
    legend = axes.legend(handles, map(str, range(len(handles))), loc="upper left", bbox_to_anchor=(1, 1), **LEGEND)
    for text, name in zip(legend.get_texts(), tables, strict=True):
        # Set afterwards and unparsed: a legend leaves out labels such as `_x`, and would set `$x$` as mathematics.
        text.set(text=shortened(name), parse_math=False)
    axes.set(ylim=(ranks - 0.4, -0.6), xlim=(0, 1.03 * left.max() or 1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=30, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    style_axes(axes, "MiB of embeddings", "rank", grid="x")
    return figure


def time_figure(seconds: dict[str, float]) -> Figure | None:
    """Draws seconds by part of the run, in the order given, with their share of the sum."""
    parts = {name: value for name, value in seconds.items() if value is not None and math.isfinite(value) and value >= 0}
    total = sum(parts.values())
    if not total:
        return None
    figure, axes = new_figure(WIDE, 0.5 + 0.32 * len(parts))
    bars = axes.barh(np.arange(len(parts)), list(parts.values()), color=BLUE, height=0.65)
    axes.bar_label(bars, [f"{value:,.1f} s · {value / total:.1%}" for value in parts.values()], padding=5, color=INK)
    axes.set_yticks(np.arange(len(parts)), [shortened(name) for name in parts], parse_math=False)
    axes.set(ylim=(len(parts) - 0.5, -0.5), xlim=(0, 1.2 * max(parts.values())))
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False, left=False, labelcolor=INK)
    return figure


def speed_figure(training: Points) -> Figure | None:
    """Draws rows per second by step, and below it the share of the time spent waiting for data."""
    if not any_finite(training, "rows_per_second") and not any_finite(training, "data_wait_share"):
        return None
    figure = Figure(figsize=(WIDE, 3.8), layout="constrained")
    speed, wait = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps, marker = values_of(training, "step"), "o" if len(training) < 10 else ""
    speed.plot(steps, values_of(training, "rows_per_second"), color=BLUE, marker=marker, markersize=3)
    speed.set_ylim(0, highest(training, "rows_per_second", 1) * 1.1)
    speed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    wait.plot(steps, values_of(training, "data_wait_share"), color=ORANGE, marker=marker, markersize=3)
    wait.set_ylim(0, min(1.02, highest(training, "data_wait_share", 0.1) * 1.1))
    wait.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    style_axes(speed, "", "rows/s")
    style_axes(wait, "step", "data wait")
    figure.align_ylabels()
    return figure

"""The pictures of report.html: one function a picture, each returning a matplotlib Figure, or None with nothing to draw.

Made with `Figure` and never pyplot, which keeps global state that a training process has no business with.
"""

from __future__ import annotations

import base64
import io
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from recsys_ray.reporting.summary import spoken

Rows = Sequence[dict[str, Any]]

INK, BLUE, PALE_BLUE, ORANGE, GREY = "#333333", "#2f6690", "#b9cfe0", "#c8622d", "#c9c9c9"
TABLE_COLORS = (
    "#2f6690", "#e0a458", "#6a994e", "#b5544b", "#7b6d8d", "#81c3d7",
    "#a37b5c", "#e8a0a8", "#3d7f74", "#c9b458", "#54588c", "#a7c08f",
)  # fmt: skip
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK}
NAMED_TABLES = len(TABLE_COLORS)
TALLEST = 7.0


def column(rows: Rows, key: str) -> np.ndarray:
    """Values of `key`, NaN where one is missing."""
    return np.array([math.nan if row.get(key) is None else float(row[key]) for row in rows], dtype=np.float64)


def loss_figure(training: Rows, validation: Rows) -> Figure | None:
    """Train loss by step, as it was and smoothed, with the validation log loss on it."""
    if not _any_finite(training, "loss") and not _any_finite(validation, "logloss"):
        return None
    figure, axes = _panel(9, 3.2)
    steps, loss = column(training, "step"), column(training, "loss")
    if len(loss) < 10:
        axes.plot(steps, loss, color=BLUE, marker="o", markersize=3, label="training")
    else:
        axes.plot(steps, loss, color=PALE_BLUE, linewidth=0.8, label="training, as logged")
        axes.plot(steps, moving_average(loss, len(loss) // 20), color=BLUE, label="training, smoothed")
    if _any_finite(validation, "logloss"):
        axes.plot(column(validation, "step"), column(validation, "logloss"), "o-", color=ORANGE, label="validation")
    _label(axes, "step", "log loss")
    axes.legend(**LEGEND)
    return figure


def metric_figure(validation: Rows, metric: str) -> Figure | None:
    if not _any_finite(validation, metric):
        return None
    figure, axes = _panel(4.5, 3.3)
    epochs, values = column(validation, "epoch"), column(validation, metric)
    axes.plot(epochs, values, "o-", color=ORANGE)
    best = int(np.nanargmax(values))
    axes.annotate(f"{values[best]:.4f}", (epochs[best], values[best]), (0, 8), textcoords="offset points", ha="center", color=INK)
    axes.margins(x=0.12, y=0.2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _label(axes, "epoch", f"validation {spoken(metric)}")
    return figure


def comparison_figure(comparison: Rows, metric: str) -> Figure | None:
    """A bar for the model, each rival and each group of users."""
    figure, axes = _panel(4.5, 3.3)
    values = column([entry["metrics"] for entry in comparison], metric)
    bars = axes.barh(np.arange(len(values)), values, color=[ORANGE, *[BLUE] * (len(values) - 1)], height=0.7)
    axes.bar_label(bars, [f"{value:.4f}" for value in values], padding=3, fontsize=9, color=INK)
    axes.set_yticks(np.arange(len(values)), [shortened(entry["name"]) for entry in comparison], parse_math=False)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.margins(x=0.15)
    _label(axes, spoken(metric), "", grid="x")
    return figure


def calibration_figure(bins: Rows) -> Figure | None:
    """Observed rate against predicted rate by bin; the bars are two standard errors of the observed rate."""
    predicted, observed, rows = (column(bins, key) for key in ("predicted", "observed", "rows"))
    if not np.isfinite(predicted + observed).any():
        return None
    figure, axes = _panel(4.5, 3.3)
    rate = np.clip(observed, 0, 1)
    error = 2 * np.sqrt(rate * (1 - rate) / np.maximum(np.nan_to_num(rows, nan=1), 1))
    top = min(1.02, 1.08 * float(np.nanmax([predicted, observed + error])) or 1.02)
    axes.plot([0, top], [0, top], color=GREY, linewidth=1, zorder=1)
    axes.errorbar(predicted, observed, error, fmt="o", color=BLUE, ecolor=PALE_BLUE, markersize=4, elinewidth=1.5)
    axes.set(xlim=(0, top), ylim=(0, top))
    _label(axes, "predicted rate", "observed rate")
    return figure


def placement_figure(plan: Rows, world_size: int) -> Figure | None:
    """MiB on each rank, stacked by table; the largest tables are named, the rest are one part."""
    if not plan:
        return None
    ranks = max(world_size, 1 + max(int(row["rank"]) for row in plan))
    tables = mib_by_table(plan, ranks)
    figure, axes = _panel(9, max(0.9 + min(0.26 * ranks, TALLEST), 0.7 + 0.2 * len(tables)))
    colors = [*TABLE_COLORS, GREY]
    left = np.zeros(ranks)
    for color, mib in zip(colors, tables.values(), strict=False):
        axes.barh(np.arange(ranks), mib, left=left, color=color, height=0.7, edgecolor="white", linewidth=0.4)
        left += mib
    handles = [Patch(color=color) for color, _ in zip(colors, tables, strict=False)]
    legend = axes.legend(handles, map(str, range(len(handles))), loc="upper left", bbox_to_anchor=(1, 1), **LEGEND)
    for text, name in zip(legend.get_texts(), tables, strict=True):
        # Only now, and unparsed: a legend hides `_x`, and `$x$` would be set as mathematics.
        text.set(text=shortened(name), parse_math=False)
    axes.set(ylim=(ranks - 0.4, -0.6), xlim=(0, 1.03 * left.max() or 1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=30, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    _label(axes, "MiB of embeddings", "rank", grid="x")
    return figure


def mib_by_table(plan: Rows, ranks: int) -> dict[str, np.ndarray]:
    """Table -> MiB on every rank, largest table first; beyond NAMED_TABLES, the rest together."""
    tables: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(ranks))
    for row in plan:
        tables[str(row["table"])][int(row["rank"])] += np.nan_to_num(float(row["mib"]))
    by_size = sorted(tables.items(), key=lambda item: -item[1].sum())
    named, rest = by_size[:NAMED_TABLES], by_size[NAMED_TABLES:]
    others = {f"other ({len(rest)} tables)": sum((mib for _, mib in rest), np.zeros(ranks))} if rest else {}
    return dict(named) | others


def time_figure(seconds: dict[str, float]) -> Figure | None:
    """Seconds by part of the run, in the order given, with their share of the sum."""
    parts = {name: value for name, value in seconds.items() if value is not None and math.isfinite(value) and value >= 0}
    total = sum(parts.values())
    if not total:
        return None
    figure, axes = _panel(9, 0.5 + 0.32 * len(parts))
    bars = axes.barh(np.arange(len(parts)), list(parts.values()), color=BLUE, height=0.65)
    axes.bar_label(bars, [f"{value:,.1f} s · {value / total:.1%}" for value in parts.values()], padding=5, color=INK)
    axes.set_yticks(np.arange(len(parts)), [shortened(name) for name in parts], parse_math=False)
    axes.set(ylim=(len(parts) - 0.5, -0.5), xlim=(0, 1.2 * max(parts.values())))
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False, left=False, labelcolor=INK)
    return figure


def speed_figure(training: Rows) -> Figure | None:
    """Rows per second, and below it the share of the time spent waiting for data, by step."""
    if not _any_finite(training, "rows_per_second") and not _any_finite(training, "data_wait_share"):
        return None
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    speed, wait = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps, marker = column(training, "step"), "o" if len(training) < 10 else ""
    speed.plot(steps, column(training, "rows_per_second"), color=BLUE, marker=marker, markersize=3)
    speed.set_ylim(0, _highest(training, "rows_per_second", 1) * 1.1)
    speed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    wait.plot(steps, column(training, "data_wait_share"), color=ORANGE, marker=marker, markersize=3)
    wait.set_ylim(0, min(1.02, _highest(training, "data_wait_share", 0.1) * 1.1))
    wait.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    _label(speed, "", "rows/s")
    _label(wait, "step", "data wait")
    figure.align_ylabels()
    return figure


def moving_average(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of the finite values in a centred window; NaN where there is none."""
    window = np.ones(2 * (width // 2) + 1)
    finite = np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0.0), window, mode="same")
    counts = np.convolve(finite.astype(np.float64), window, mode="same")
    return np.where(counts > 0.5, sums / np.maximum(counts, 1), np.nan)


def as_data_url(figure: Figure) -> str:
    """An SVG for <img src>. As an image and not inline, since ids of several inline SVGs would meet in one page."""
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()


def _panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _label(axes: Axes, x: str, y: str, grid: Any = "y") -> None:
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.tick_params(colors=INK, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis=grid, color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)


def shortened(name: str, length: int = 28) -> str:
    """Cut in the middle: long names of columns differ at their ends."""
    half = length // 2
    return name if len(name) <= length else name[: half - 1] + "…" + name[-half:]


def _any_finite(rows: Rows, key: str) -> bool:
    return bool(np.isfinite(column(rows, key)).any())


def _highest(rows: Rows, key: str, least: float) -> float:
    """The largest finite value, or `least` where that is more."""
    values = column(rows, key)
    return float(np.max(values, initial=least, where=np.isfinite(values)))

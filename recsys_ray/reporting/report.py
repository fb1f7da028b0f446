"""report.html: what a training run came to, on one page that needs nothing beside it. Rank 0 writes it last."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from recsys_ray.reporting import figures as figures
from recsys_ray.reporting.summary import spoken

REPORT = "report.html"
SHARDS_UNFOLDED = 30
SHOWN = ("headline", "comparison")
"""Of the outcome, shown elsewhere on the page."""
HEADLINES = {
    "test_auc": ("Test AUC", "{:.4f}", "chance that a positive row is ranked above a negative one; 0.5 is a coin toss"),
    "test_ne": (
        "Test NE",
        "{:.4f}",
        "log loss over the entropy of the base rate; below 1 beats always predicting the base rate (He et al. 2014)",
    ),
    "test_logloss": ("Test log loss", "{:.4f}", "mean cross-entropy of a row, in nats; lower is better"),
    "test_recall_at_10": ("Test recall@10", "{:.4f}", "share of what users went on to choose that is among their first ten"),
    "test_ndcg_at_10": ("Test NDCG@10", "{:.4f}", "the same, counting the higher the nearer the top; 1 is perfect"),
    "test_mrr": ("Test MRR", "{:.4f}", "mean of 1 / rank of the first item that a user went on to choose"),
    "test_calibration": ("Test calibration", "{:.3f}", "positives predicted over positives observed; 1 is right"),
    "rows_per_second": ("Rows per second", "{:,.0f}", "trained by all workers together"),
    "data_wait_share": ("Waiting for data", "{:.1%}", "share of training time in which the model had no batch"),
}
STYLE = """
body { margin: 2.5rem auto; max-width: 60rem; padding: 0 1.5rem; background: #fff; color: #333;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .4rem; padding-top: .8rem; border-top: 1px solid #e3e3e3; }
p { margin: .2rem 0 .6rem; max-width: 46rem; overflow-wrap: anywhere; } .quiet { color: #6b6b6b; }
img { width: 100%; height: auto; display: block; }
.numbers { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1.2rem 2rem; margin: 1.6rem 0; }
.numbers b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers small { display: block; color: #6b6b6b; line-height: 1.35; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 2rem; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .2rem 1.2rem .2rem 0; text-align: left; border-bottom: 1px solid #ececec; overflow-wrap: anywhere; }
th { font-weight: 600; } .right { text-align: right; }
summary { cursor: pointer; } pre { font-size: .82rem; background: #f7f7f7; padding: 1rem; overflow-x: auto; }
@media (max-width: 44rem) { .numbers, .pair { grid-template-columns: 1fr; } }
"""


@dataclass(frozen=True)
class RunRecord:
    """All that the report tells, as plain data: rank 0 collects it, no model or process group is needed to show it."""

    outcome: dict[str, Any]
    """outcome.json: HEADLINES are shown large, every other key in a table."""
    training: list[dict[str, float]]
    """step, loss, rows_per_second, data_wait_share, learning_rate."""
    validation: list[dict[str, float]]
    """step, epoch, and the metrics of the model."""
    calibration_curve: list[dict[str, float]]
    """predicted, observed, rows: a bin of test rows."""
    comparison: list[dict[str, Any]]
    """name and metrics: the model, its rivals, and groups of users."""
    plan: list[dict[str, Any]]
    """table, rows, dim, mib, sharding, kernel, rank: a shard, with its own rows, dim and MiB."""
    seconds: dict[str, float]
    """Part of the run -> seconds in it."""
    config: dict[str, Any]
    dataset: dict[str, Any]
    """summary.json of the dataset directory: rows_in, rows by split, rejected, rejected_reasons, fingerprint."""


def write_report(run_dir: Path, record: RunRecord) -> Path:
    """Writes `run_dir/report.html`, whole or not at all."""
    title = escape(run_dir.resolve().name)
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}: training report</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n" + "\n".join(_sections(record)) + "\n</body></html>\n"
    )
    partial = run_dir / f".{REPORT}"
    partial.write_text(page, encoding="utf-8")
    return partial.replace(run_dir / REPORT)


def _sections(record: RunRecord) -> Iterable[str]:
    bins, plan = record.calibration_curve, record.plan
    world_size = int(record.outcome.get("world_size") or 1)
    yield _headlines(record.outcome)
    yield "<h2>Loss</h2>" + _picture(
        figures.loss_figure(record.training, record.validation),
        "Mean log loss of the batches trained on, and of the whole validation split, by step.",
        "No loss was logged.",
    )
    metric = next(iter(record.outcome.get("headline", ())), "auc")
    yield f'<div class="pair"><div><h2>Validation {escape(spoken(metric))}</h2>'
    yield _picture(figures.metric_figure(record.validation, metric), "By epoch, the best one marked.", "No validation was run.")
    if record.comparison:
        yield f"</div><div><h2>{escape(spoken(metric))} on test, compared</h2>"
        yield _picture(figures.comparison_figure(record.comparison, metric), "Over all users of the split.", "")
    else:
        yield "</div><div><h2>Calibration on test</h2>"
        yield _picture(figures.calibration_figure(bins), _bins(bins), "No test rows were scored.")
    yield "</div></div>" + _comparison(record.comparison) + "<h2>Where the tables went</h2>"
    yield _picture(figures.placement_figure(plan, world_size), _sizes(plan), "No table was sharded.") + _shards(plan)
    yield "<h2>Where the time went</h2>"
    yield _picture(figures.time_figure(record.seconds), "Seconds on rank 0, and their share of the sum.", "No time was measured.")
    yield "<h2>Speed</h2>" + _picture(
        figures.speed_figure(record.training),
        "Rows per second over all workers, and the share of time spent waiting for data, by step.",
        "No speed was logged.",
    )
    yield f"<h2>Data</h2>{_dataset(record.dataset)}<h2>Run</h2>{_run(record.outcome)}"
    config = json.dumps(record.config, indent=2, default=str, ensure_ascii=False)
    yield f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details>"


def _headlines(outcome: dict[str, Any]) -> str:
    numbers = [
        f"<div>{name}<b>{_number(outcome[key], form)}</b><small>{meaning}</small></div>"
        for key, (name, form, meaning) in HEADLINES.items()
        if key in outcome
    ]
    return f'<div class="numbers">{"".join(numbers)}</div>'


def _comparison(comparison: list[dict[str, Any]]) -> str:
    if not comparison:
        return ""
    names = list(comparison[0]["metrics"])
    rows = [(entry["name"], *(_plain(entry["metrics"].get(name, "")) for name in names)) for entry in comparison]
    return _table(("", *map(spoken, names)), rows, right=tuple(range(1, len(names) + 1)))


def _bins(bins: list[dict[str, float]]) -> str:
    rows = [int(row["rows"]) for row in bins] or [0]
    size = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,} to {max(rows):,}"
    return f"{len(bins)} bins of {size} rows, ± two standard errors."


def _sizes(plan: list[dict[str, Any]]) -> str:
    mib = _number(sum(row["mib"] for row in plan), "{:,.1f}")
    return f"{len({row['table'] for row in plan}):,} tables in {len(plan):,} shards, {mib} MiB."


def _shards(plan: list[dict[str, Any]]) -> str:
    rows = [
        (
            row["table"],
            f"{row['rows']:,}",
            row["dim"],
            _number(row["mib"], "{:,.2f}"),
            row["sharding"],
            row["kernel"],
            row["rank"],
        )
        for row in plan
    ]
    table = _table(("table", "rows", "dim", "MiB", "sharding", "kernel", "rank"), rows, right=(1, 2, 3, 6))
    if len(plan) <= SHARDS_UNFOLDED:
        return table if plan else ""
    return f"<details><summary>All {len(plan):,} shards</summary>{table}</details>"


def _dataset(dataset: dict[str, Any]) -> str:
    counts = {"read": dataset.get("rows_in"), "rejected": dataset.get("rejected")}
    counts |= {f"rejected: {reason}": count for reason, count in dataset.get("rejected_reasons", {}).items()}
    counts |= dataset.get("rows", {})
    rows = [(name, _plain(count)) for name, count in counts.items() if count is not None]
    if not rows:
        return '<p class="quiet">Nothing is known of the dataset.</p>'
    fingerprint = escape(str(dataset.get("fingerprint", "unknown")))
    return _table(("", "rows"), rows, right=(1,)) + f'<p class="quiet">Fingerprint of the inputs: {fingerprint}</p>'


def _run(outcome: dict[str, Any]) -> str:
    rows = [(key.replace("_", " "), _plain(value)) for key, value in outcome.items() if key not in {*HEADLINES, *SHOWN}]
    return _table(("", ""), rows) if rows else ""


def _picture(figure: Figure | None, caption: str, instead: str) -> str:
    if figure is None:
        return f'<p class="quiet">{instead}</p>'
    return f'<p>{caption}</p><img alt="{caption}" src="{figures.as_data_url(figure)}">'


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]], right: tuple[int, ...] = ()) -> str:
    def line(cells: tuple[Any, ...], tag: str) -> str:
        marks = (' class="right"' if index in right else "" for index in range(len(cells)))
        return (
            "<tr>"
            + "".join(f"<{tag}{mark}>{escape(str(cell))}</{tag}>" for mark, cell in zip(marks, cells, strict=True))
            + "</tr>"
        )

    header = line(head, "th") if any(head) else ""
    return f"<table>{header}{''.join(line(row, 'td') for row in rows)}</table>"


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) and math.isfinite(value) else "n/a"


def _plain(value: Any) -> str:
    match value:
        case bool() | None:
            return str(value)
        case int():
            return f"{value:,}"
        case float():
            return _number(value, "{:,.4g}" if abs(value) < 1000 else "{:,.0f}")
        case str():
            return value
    return json.dumps(value, default=str)

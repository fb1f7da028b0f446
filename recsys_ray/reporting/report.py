"""report.html: the results of a training run on one page that needs no other file. Rank 0 writes it at the end of the run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from recsys_ray.reporting import figures
from recsys_ray.reporting.html import (
    LargeNumber,
    formatted,
    html_folded,
    html_numbers,
    html_page,
    html_pair,
    html_picture,
    html_quiet,
    html_section,
    html_table,
    html_tables,
    readable,
)
from recsys_ray.reporting.points import any_finite, best_point
from recsys_ray.reporting.run_record import RunRecord
from recsys_ray.reporting.summary import metric_label

REPORT = "report.html"
SHARDS_UNFOLDED = 30
LOG_LOSS = "log loss"
SHOWN_ELSEWHERE = ("headline", "comparison")
"""Keys of the outcome that the table of the run leaves out."""


class Headline(NamedTuple):
    """A number of the outcome that is shown large."""

    name: str
    form: str
    meaning: str


HEADLINES = {
    "test_auc": Headline("Test AUC", "{:.4f}", "chance that a positive row is ranked above a negative one; 0.5 is a coin toss"),
    "test_ne": Headline(
        "Test NE",
        "{:.4f}",
        "log loss over the entropy of the base rate; below 1 beats always predicting the base rate (He et al. 2014)",
    ),
    "test_logloss": Headline("Test log loss", "{:.4f}", "mean cross-entropy of a row, in nats; lower is better"),
    "test_recall_at_10": Headline(
        "Test recall@10", "{:.4f}", "share of the items that users went on to choose that is among their first ten"
    ),
    "test_ndcg_at_10": Headline("Test NDCG@10", "{:.4f}", "recall@10 that counts an item more the nearer it is to the top"),
    "test_mrr": Headline("Test MRR", "{:.4f}", "mean of 1 / rank of the first item that a user went on to choose"),
    "test_calibration": Headline("Test calibration", "{:.3f}", "positives predicted over positives observed; 1 is right"),
    "rows_per_second": Headline("Rows per second", "{:,.0f}", "trained by all workers together"),
    "data_wait_share": Headline("Waiting for data", "{:.1%}", "share of training time in which the model had no batch"),
}


def write_report(run_dir: Path, record: RunRecord) -> Path:
    """Writes `run_dir/report.html`, whole or not at all, and returns its path."""
    partial = run_dir / f".{REPORT}"
    partial.write_text(html_page(run_dir.resolve().name, _sections(record)), encoding="utf-8")
    return partial.replace(run_dir / REPORT)


def _sections(record: RunRecord) -> Iterable[str]:
    yield _headlines(record.outcome)
    yield html_section("Loss", _loss(record))
    metric = next(iter(record.outcome.get("headline", ())), "auc")
    yield html_pair(_validation(record, metric), _test(record, metric)) + _comparison(record.comparison)
    yield html_section("Where the tables went", _placement(record), _shards(record.plan))
    yield html_section("Where the time went", _time(record.seconds))
    yield html_section("Speed", _speed(record.training))
    yield html_section("Data", _dataset(record.dataset))
    yield html_section("Run", _run(record.outcome))
    config = json.dumps(record.config, indent=2, default=str, ensure_ascii=False)
    yield html_folded("Configuration", f"<pre>{escape(config)}</pre>")


def _headlines(outcome: dict[str, Any]) -> str:
    return html_numbers(
        LargeNumber(headline.name, formatted(outcome[key], headline.form), headline.meaning)
        for key, headline in HEADLINES.items()
        if key in outcome
    )


def _loss(record: RunRecord) -> str:
    # Only a log loss can share an axis with the validation log loss.
    validation = record.validation if record.loss_name == LOG_LOSS else []
    measured = "trained on, and of the whole validation split" if any_finite(validation, "logloss") else "trained on"
    figure = figures.loss_figure(record.training, validation, record.loss_name)
    return html_picture(figure, f"Mean {record.loss_name} of the batches {measured}, by step.", "No loss was logged.")


def _validation(record: RunRecord, metric: str) -> str:
    best = best_point(record.validation, record.objective, record.lower_is_better)
    marked = f" Marked is the epoch with the best {metric_label(record.objective)}, whose weights are kept."
    caption = "By epoch." + ("" if best is None else marked)
    picture = html_picture(figures.metric_figure(record.validation, metric, best), caption, "No validation was run.")
    return html_section(f"Validation {metric_label(metric)}", picture)


def _test(record: RunRecord, metric: str) -> str:
    if record.comparison:
        picture = html_picture(figures.comparison_figure(record.comparison, metric), "Over all users of the split.", "")
        return html_section(f"{metric_label(metric)} on test, compared", picture)
    bins = record.calibration_curve
    rows = [int(row["rows"]) for row in bins] or [0]
    size = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,} to {max(rows):,}"
    caption = f"{len(bins)} bins of {size} rows, ± two standard errors."
    return html_section(
        "Calibration on test", html_picture(figures.calibration_figure(bins), caption, "No test rows were scored.")
    )


def _comparison(comparison: list[dict[str, Any]]) -> str:
    """Returns a table for each number of items k that metrics are measured at, and one for the other metrics."""
    if not comparison:
        return ""
    columns: dict[str, dict[str, str]] = defaultdict(dict)
    for metric in comparison[0]["metrics"]:
        name, _, k = metric.rpartition("_at_")
        title, label = (f"Top {k}", name) if name and k.isdigit() else ("Over all ranks", metric)
        columns[title][metric] = metric_label(label)
    columns["Over all ranks"] = columns.pop("Over all ranks", {})
    return html_tables(_comparison_table(comparison, title, labels) for title, labels in columns.items() if labels)


def _comparison_table(comparison: list[dict[str, Any]], title: str, labels: dict[str, str]) -> str:
    def cell(metrics: dict[str, float], metric: str) -> str:
        form = "{:,.0f}" if metric == "users" else "{:.4f}"
        return formatted(metrics[metric], form) if metric in metrics else ""

    rows = [(entry["name"], *(cell(entry["metrics"], metric) for metric in labels)) for entry in comparison]
    return html_table(("", *labels.values()), rows, numbers=range(1, len(labels) + 1), caption=title)


def _placement(record: RunRecord) -> str:
    plan, world_size = record.plan, int(record.outcome.get("world_size") or 1)
    mib = formatted(sum(row["mib"] for row in plan), "{:,.1f}")
    caption = f"{len({row['table'] for row in plan}):,} tables in {len(plan):,} shards, {mib} MiB."
    return html_picture(figures.placement_figure(plan, world_size), caption, "No table was sharded.")


def _shards(plan: list[dict[str, Any]]) -> str:
    names = ("table", "rows", "dim", "mib", "sharding", "kernel", "rank")
    forms = {"rows": "{:,}", "mib": "{:,.2f}"}
    rows = [[formatted(row[name], forms[name]) if name in forms else row[name] for name in names] for row in plan]
    table = html_table([name.replace("mib", "MiB") for name in names], rows, numbers=(1, 2, 3, 6))
    if len(plan) <= SHARDS_UNFOLDED:
        return table if plan else ""
    return html_folded(f"All {len(plan):,} shards", table)


def _time(seconds: dict[str, float]) -> str:
    caption = "Seconds on rank 0, and their share of the sum."
    return html_picture(figures.time_figure(seconds), caption, "No time was measured.")


def _speed(training: list[dict[str, float]]) -> str:
    caption = "Rows per second over all workers, and the share of time spent waiting for data, by step."
    return html_picture(figures.speed_figure(training), caption, "No speed was logged.")


def _dataset(dataset: dict[str, Any]) -> str:
    counts = {"read": dataset.get("rows_in"), "rejected": dataset.get("rejected")}
    counts |= {f"rejected: {reason}": count for reason, count in dataset.get("rejected_reasons", {}).items()}
    counts |= dataset.get("rows", {})
    rows = [(name, readable(count)) for name, count in counts.items() if count is not None]
    if not rows:
        return html_quiet("Nothing is known of the dataset.")
    fingerprint = html_quiet(f"Fingerprint of the inputs: {dataset.get('fingerprint', 'unknown')}")
    return html_table(("", "rows"), rows, numbers=(1,)) + fingerprint


def _run(outcome: dict[str, Any]) -> str:
    left_out = {*HEADLINES, *SHOWN_ELSEWHERE}
    rows = [(metric_label(key), readable(value)) for key, value in outcome.items() if key not in left_out]
    return html_table(("", ""), rows) if rows else ""

"""The text that a job prints at the end of a run, made from outcome.json."""

from __future__ import annotations

from typing import Any


def outcome_text(outcome: dict[str, Any]) -> str:
    """Returns the headline test metrics and the speed in one line, under a table with a line for each rival if there are any."""
    names = outcome["headline"]
    metrics = "   ".join(f"test {metric_label(name)} {_number(outcome.get(f'test_{name}'))}" for name in names)
    line = f"{metrics}   {outcome['rows_per_second']:,.0f} rows/s on {outcome['world_size']} workers"
    notes = [f"test {metric_label(name.removeprefix('test_'))}: {why}" for name, why in outcome.get("undefined", {}).items()]
    return "\n".join([*comparison_table(outcome["comparison"]), line, *notes])


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def comparison_table(comparison: list[dict[str, Any]]) -> list[str]:
    """Returns a header and a line for each entry, or nothing where there are no entries."""
    if not comparison:
        return []
    columns = [name for name in comparison[0]["metrics"] if name != "users"]
    widths = [max(len(metric_label(name)), 6) for name in columns]
    first = max(len(entry["name"]) for entry in comparison)
    head = "  ".join(metric_label(name).rjust(width) for name, width in zip(columns, widths, strict=True))
    lines = [f"{'test':<{first}}  {head}  {'users':>9}"]
    for entry in comparison:
        values = (entry["metrics"].get(name) for name in columns)
        cells = [("" if value is None else f"{value:.4f}").rjust(width) for value, width in zip(values, widths, strict=True)]
        lines.append(f"{entry['name']:<{first}}  {'  '.join(cells)}  {entry['metrics']['users']:>9,.0f}")
    return lines


def metric_label(name: str) -> str:
    """Returns a metric's name as people write it: recall_at_10 -> recall@10, auc -> AUC. MLflow allows no @ in names."""
    label = name.replace("_at_", "@").replace("_", " ")
    return label.upper() if label in ("auc", "ne", "mrr") else label.replace("ndcg", "NDCG")

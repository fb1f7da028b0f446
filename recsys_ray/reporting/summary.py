"""outcome.json -> what a job prints at its end."""

from __future__ import annotations

from typing import Any


def summary(outcome: dict[str, Any]) -> str:
    """The test metrics that the model is judged by, and where it was compared a table with a line for each rival."""
    names = outcome["headline"]
    metrics = "   ".join(f"test {spoken(name)} {outcome.get(f'test_{name}', float('nan')):.4f}" for name in names)
    line = f"{metrics}   {outcome['rows_per_second']:,.0f} rows/s on {outcome['world_size']} workers"
    return "\n".join([*comparison_table(outcome["comparison"]), line])


def comparison_table(comparison: list[dict[str, Any]]) -> list[str]:
    """A line for each entry, under a header; none of no entries."""
    if not comparison:
        return []
    columns = [name for name in comparison[0]["metrics"] if name != "users"]
    widths = [max(len(spoken(name)), 6) for name in columns]
    first = max(len(entry["name"]) for entry in comparison)
    head = "  ".join(spoken(name).rjust(width) for name, width in zip(columns, widths, strict=True))
    lines = [f"{'test':<{first}}  {head}  {'users':>9}"]
    for entry in comparison:
        values = (entry["metrics"].get(name) for name in columns)
        cells = [("" if value is None else f"{value:.4f}").rjust(width) for value, width in zip(values, widths, strict=True)]
        lines.append(f"{entry['name']:<{first}}  {'  '.join(cells)}  {entry['metrics']['users']:>9,.0f}")
    return lines


def spoken(name: str) -> str:
    """recall_at_10 -> recall@10, auc -> AUC: MLflow takes no @."""
    name = name.replace("_at_", "@").replace("_", " ")
    return name.upper() if name in ("auc", "ne", "mrr") else name.replace("ndcg", "NDCG")

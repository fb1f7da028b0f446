"""The placement of the embedding tables' shards, as data for the report and as a table for people."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any


@dataclass(frozen=True)
class TableShard:
    """A part of an embedding table on one worker; `rows`, `dim` and `mib` are the part's own."""

    table: str
    rows: int
    dim: int
    mib: float
    sharding: str
    kernel: str
    rank: int


def table_shards(model: Any) -> list[TableShard]:
    """Returns all shards of a DistributedModelParallel, those of other workers included."""
    return [
        TableShard(
            table=table,
            rows=part.shard_sizes[0],
            dim=part.shard_sizes[1],
            mib=part.shard_sizes[0] * part.shard_sizes[1] * 4 / (1 << 20),
            sharding=parameter.sharding_type,
            kernel=parameter.compute_kernel,
            rank=part.placement.rank(),
        )
        for module_plan in model.plan.plan.values()
        for table, parameter in module_plan.items()
        for part in parameter.sharding_spec.shards
    ]


def placement_text(shards: list[TableShard]) -> str:
    """Returns a text with a line for each table."""
    lines = [f"{'table':<24}{'sharding':<16}{'kernel':<8}{'rows':>14}{'dim':>6}{'MiB':>10}  shards (rank: rows x dim)"]
    for table, group in groupby(sorted(shards, key=lambda shard: (shard.table, shard.rank)), key=lambda shard: shard.table):
        parts = list(group)
        rows = sum(part.rows for part in parts) if parts[0].dim == parts[-1].dim else parts[0].rows
        where = ", ".join(f"{part.rank}: {part.rows:,} x {part.dim}" for part in parts[:4]) + (", ..." if len(parts) > 4 else "")
        mib = sum(part.mib for part in parts)
        lines.append(f"{table:<24}{parts[0].sharding:<16}{parts[0].kernel:<8}{rows:>14,}{parts[0].dim:>6}{mib:>10.2f}  {where}")
    return "\n".join([*lines, f"{'all tables':<68}{sum(shard.mib for shard in shards):>10.2f}"])

"""The placement of the embedding tables' shards, as data for the report and as a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from recsys_ray.sharding.local_tables import table_in_name
from recsys_ray.sharding.search import CACHED


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
    cache: float = 0.0
    """The share of rows that a cache on the GPU holds, if the table is in host memory behind it; 0 for any other table."""


def table_shards(model: Any) -> list[TableShard]:
    """Returns all shards of a DistributedModelParallel, those of other workers included."""
    weights = {table_in_name(name): tensor for name, tensor in model.state_dict().items()}
    return [
        TableShard(
            table=table,
            rows=rows,
            dim=dim,
            mib=rows * dim * weights[table].dtype.itemsize / (1 << 20),
            sharding=parameter.sharding_type,
            kernel=parameter.compute_kernel,
            rank=rank,
            cache=cache_share(parameter),
        )
        for module_plan in model.plan.plan.values()
        for table, parameter in module_plan.items()
        for rank, (rows, dim) in _parts(parameter, weights[table].size())
    ]


def _parts(parameter: Any, size: torch.Size) -> list[tuple[int, Sequence[int]]]:
    """Returns the rank and the size of each part of a table: of a data-parallel one, each worker has the whole."""
    if parameter.sharding_spec is None:
        return [(rank, size) for rank in parameter.ranks]
    return [(part.placement.rank(), part.shard_sizes) for part in parameter.sharding_spec.shards]


def cache_share(choice: Any) -> float:
    """Returns the `cache` of a table's shards, from its ParameterSharding or ShardingOption."""
    return choice.cache_params.load_factor if choice.compute_kernel == CACHED else 0.0


def placement_text(shards: list[TableShard]) -> str:
    """Returns a text with a line for each table, and one more for each that is in host memory behind a GPU."""
    wide = max([8, *(len(shard.kernel) + 2 for shard in shards)])
    lines = [f"{'table':<24}{'sharding':<16}{'kernel':<{wide}}{'rows':>14}{'dim':>6}{'MiB':>10}  shards (rank: rows x dim)"]
    for table, group in groupby(sorted(shards, key=lambda shard: (shard.table, shard.rank)), key=lambda shard: shard.table):
        parts = list(group)
        replicated = parts[0].sharding == "data_parallel"
        rows = parts[0].rows if replicated or parts[0].dim != parts[-1].dim else sum(part.rows for part in parts)
        where = ", ".join(f"{part.rank}: {part.rows:,} x {part.dim}" for part in parts[:4]) + (", ..." if len(parts) > 4 else "")
        where = f"each: {parts[0].rows:,} x {parts[0].dim}" if replicated else where
        mib = sum(part.mib for part in parts)
        lines.append(
            f"{table:<24}{parts[0].sharding:<16}{parts[0].kernel:<{wide}}{rows:>14,}{parts[0].dim:>6}{mib:>10.2f}  {where}"
        )
    lines.append(f"{'all tables':<{wide + 60}}{sum(shard.mib for shard in shards):>10.2f}")
    cached = sorted({(shard.table, shard.cache) for shard in shards if shard.cache})
    lines += [f"table {table}: host memory behind a cache of {share:.0%} of its rows" for table, share in cached]
    return "\n".join(lines)

"""The parts of a sharded model's embedding tables that this worker holds: its shards, and data-parallel tables whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from recsys_ray.compat.torch_compat import ShardedTensor


class TablePart(NamedTuple):
    """A rectangle of an embedding table on this worker."""

    tensor: torch.Tensor
    offsets: tuple[int, int]
    """The first row and the first column in the whole table."""
    table_rows: int
    """Rows of the whole table."""


def local_tables(model: Any) -> dict[str, list[TablePart]]:
    """Returns the parts of every embedding table of a DistributedModelParallel on this worker, by name in its state dict."""
    replicated = data_parallel_tables(model)
    return {
        name: _parts(tensor)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, ShardedTensor) or table_in_name(name) in replicated
    }


def data_parallel_tables(model: Any) -> set[str]:
    """Returns the names of the tables that every worker holds whole."""
    planned = [item for tables in model.plan.plan.values() for item in tables.items()]
    return {table for table, parameter in planned if parameter.sharding_type == "data_parallel"}


def table_in_name(name: str) -> str:
    """Returns the table of a tensor `...embedding_bags.items_table.weight`; "" for a name that no table's weights can have."""
    module, _, leaf = name.rpartition(".")
    return module.rpartition(".")[2] if leaf == "weight" else ""


def _parts(tensor: torch.Tensor | ShardedTensor) -> list[TablePart]:
    rows = tensor.size()[0]
    if not isinstance(tensor, ShardedTensor):
        return [TablePart(tensor, (0, 0), rows)]
    shards = [(shard.tensor, shard.metadata.shard_offsets) for shard in tensor.local_shards()]
    return [TablePart(part, (first, left), rows) for part, (first, left) in shards]

"""Optimizer state from a checkpoint into a run that shards otherwise.

Row-wise Adagrad has one number a row, the sum of the row's mean squared gradients. A table that is split by columns has one for
each part of the row, and TorchRec keeps the parts' numbers end to end: [parts * rows]. All else is sharded as its table, and
torch.distributed.checkpoint moves it from one plan to another by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.optim.keyed import CombinedOptimizer

from recsys_ray.checkpoint.restore import restore, saved_sizes
from recsys_ray.checkpoint.store import CheckpointStore

PREFIX = "optimizer.state."
SPARSE = "sparse."


def restore_optimizer(store: CheckpointStore, step: int, model: Any, optimizer: CombinedOptimizer) -> None:
    """Every worker calls it. A state in another number of parts is read whole, one table after the other."""
    sizes, tables = saved_sizes(store, step), model.state_dict()
    state = optimizer.state_dict()
    otherwise: list[tuple[str, str, torch.Size, ShardedTensor]] = []
    for parameter, values in state["state"].items():
        for name, value in list(values.items()):
            saved = sizes.get(f"{PREFIX}{parameter}.{name}")
            if isinstance(value, ShardedTensor) and saved is not None and saved != value.size():
                otherwise.append((parameter, name, saved, values.pop(name)))
    restore(store, step, {"optimizer": state})
    for parameter, name, saved, value in otherwise:
        whole = torch.empty(saved)
        # Alone: not every worker has a part of every table.
        restore(store, step, {"optimizer": {"state": {parameter: {name: whole}}}}, alone=True)
        _spread(whole, value, rows=tables[parameter.removeprefix(SPARSE)].size()[0])
        state["state"][parameter][name] = value
    optimizer.load_state_dict(state)


def _spread(saved: torch.Tensor, wanted: ShardedTensor, rows: int) -> None:
    """The mean over a row's parts is what the whole row would have had; each new part starts from that."""
    of_row = saved.reshape(-1, rows).mean(dim=0)
    for shard in wanted.local_shards():
        (first,), (count,) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        shard.tensor.copy_(of_row[torch.arange(first, first + count) % rows])

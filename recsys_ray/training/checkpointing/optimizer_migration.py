"""Restores optimizer state from a checkpoint into a run with another sharding plan.

Row-wise Adagrad has one number for each row, the sum of the row's mean squared gradients. A table that is split by columns has
one for each part of the row, and TorchRec concatenates the numbers of the parts: [parts * rows]. All other state is sharded like
its table, or like it whole on every worker, and torch.distributed.checkpoint reshards it by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torchrec.optim.keyed import CombinedOptimizer

from recsys_ray.checkpoint.restore import restore, saved_tensor_sizes
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.compat.torch_compat import ShardedTensor

PREFIX = "optimizer.state."
SPARSE = "sparse."


class _Resized(NamedTuple):
    """A state whose number of parts differs between the checkpoint and this run."""

    parameter: str
    name: str
    saved: torch.Size
    value: ShardedTensor | torch.Tensor


def restore_optimizer(store: CheckpointStore, step: int, model: Any, optimizer: CombinedOptimizer) -> None:
    """Restores the optimizer on every worker. A state in another number of parts is read whole, one table after the other."""
    sizes, tables = saved_tensor_sizes(store, step), model.state_dict()
    state = optimizer.state_dict()
    resized: list[_Resized] = []
    for parameter, values in state["state"].items():
        for name, value in list(values.items()):
            saved = sizes.get(f"{PREFIX}{parameter}.{name}")
            if parameter.startswith(SPARSE) and saved is not None and saved != value.size():
                resized.append(_Resized(parameter, name, saved, values.pop(name)))
    restore(store, step, {"optimizer": state})
    for parameter, name, saved, value in resized:
        whole = torch.empty(saved)
        # Without collectives: not every worker has a part of every table.
        restore(store, step, {"optimizer": {"state": {parameter: {name: whole}}}}, alone=True)
        _spread(whole, value, rows=tables[parameter.removeprefix(SPARSE)].size()[0])
        state["state"][parameter][name] = value
    optimizer.load_state_dict(state)


def _spread(saved: torch.Tensor, wanted: ShardedTensor | torch.Tensor, rows: int) -> None:
    """Fills the parts of each row with the mean over its saved parts, which is what the whole row would have had."""
    of_row = saved.reshape(-1, rows).mean(dim=0)
    if not isinstance(wanted, ShardedTensor):
        wanted.copy_(of_row)
        return
    for shard in wanted.local_shards():
        (first,), (count,) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        shard.tensor.copy_(of_row[torch.arange(first, first + count) % rows])

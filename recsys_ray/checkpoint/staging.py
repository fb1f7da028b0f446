"""A copy of a model's state in host memory, which a background thread can write while training changes the state itself."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed.remote_device import _remote_device


class Staging:
    """Its buffers (pinned, where there is a GPU) are as large as the worker's part of the state, and kept from copy to copy."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._buffers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """The one before it becomes invalid."""
        copied = {name: self._copy(name, value) for name, value in state.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _copy(self, name: str, value: Any) -> Any:
        match value:
            case dict():
                return {key: self._copy(f"{name}/{key}", inner) for key, inner in value.items()}
            case ShardedTensor():
                return self._copy_shards(name, value)
            case torch.Tensor():
                return self._buffer(name, value)
            case _:
                return copy.deepcopy(value)

    def _copy_shards(self, name: str, tensor: ShardedTensor) -> ShardedTensor:
        whole = copy.copy(tensor.metadata())
        whole.shards_metadata = [_on_host(shard) for shard in whole.shards_metadata]
        own = [shard for shard in whole.shards_metadata if _rank(shard) == dist.get_rank()]
        copies = [
            Shard(tensor=self._buffer(f"{name}/{number}", shard.tensor), metadata=metadata)
            for number, (shard, metadata) in enumerate(zip(tensor.local_shards(), own, strict=True))
        ]
        return ShardedTensor._init_from_local_shards_and_global_metadata(copies, whole, process_group=self._group)

    def _buffer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in self._buffers:
            pinned = tensor.is_cuda
            self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return self._buffers[name].copy_(tensor, non_blocking=True)


def _rank(shard: ShardMetadata) -> int | None:
    assert isinstance(shard.placement, _remote_device)
    return shard.placement.rank()


def _on_host(shard: ShardMetadata) -> ShardMetadata:
    return dataclasses.replace(shard, placement=_remote_device(f"rank:{_rank(shard)}/cpu"))

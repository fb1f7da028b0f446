"""A copy of a model's state in host memory, which a background thread can write while training changes the state itself."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
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

    def reserve(self, state: dict[str, Any]) -> None:
        """Allocates the buffers and touches them: only then does the system give them memory, which takes longer than a copy."""
        for name, tensor in _own_tensors("", state):
            self._buffer(name, tensor).zero_()

    @torch.no_grad()
    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """The one before it becomes invalid."""
        for name, tensor in _own_tensors("", state):
            self._buffer(name, tensor).copy_(tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._in_buffers("", state)

    def _buffer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self._buffers[name]

    def _in_buffers(self, name: str, value: Any) -> Any:
        match value:
            case dict():
                return {key: self._in_buffers(f"{name}/{key}", inner) for key, inner in value.items()}
            case ShardedTensor():
                return self._sharded_in_buffers(name, value)
            case torch.Tensor():
                return self._buffers[name]
            case _:
                return copy.deepcopy(value)

    def _sharded_in_buffers(self, name: str, tensor: ShardedTensor) -> ShardedTensor:
        whole = copy.copy(tensor.metadata())
        whole.shards_metadata = [_on_host(shard) for shard in whole.shards_metadata]
        own = [shard for shard in whole.shards_metadata if _rank(shard) == dist.get_rank()]
        shards = [Shard(self._buffers[f"{name}/{number}"], metadata) for number, metadata in enumerate(own)]
        return ShardedTensor._init_from_local_shards_and_global_metadata(shards, whole, process_group=self._group)


def _own_tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that this worker holds, a sharded one's shards each."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from _own_tensors(f"{name}/{key}", inner)
        case ShardedTensor():
            yield from ((f"{name}/{number}", shard.tensor) for number, shard in enumerate(value.local_shards()))
        case torch.Tensor():
            yield name, value


def _rank(shard: ShardMetadata) -> int | None:
    assert isinstance(shard.placement, _remote_device)
    return shard.placement.rank()


def _on_host(shard: ShardMetadata) -> ShardMetadata:
    return dataclasses.replace(shard, placement=_remote_device(f"rank:{_rank(shard)}/cpu"))

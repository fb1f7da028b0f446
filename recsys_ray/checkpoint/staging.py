"""Copies a model's state to host memory, where a background thread can write it while training changes the state itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from recsys_ray.compat.torch_compat import LocalShard, ShardedTensor, on_host, shard_rank, sharded_tensor


class Staging:
    """Buffers for a copy of this worker's part of the state, kept from copy to copy; pinned if there is a GPU."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._buffers: dict[str, torch.Tensor] = {}

    def reserve(self, state: dict[str, Any]) -> None:
        """Allocates the buffers and touches them: only then does the system provide memory, which takes longer than a copy."""
        for name, tensor in _own_tensors("", state):
            self._buffer(name, tensor).zero_()

    def release(self) -> None:
        """Frees the buffers, and so invalidates the last copy."""
        self._buffers.clear()

    @torch.no_grad()
    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """Returns a copy of `state` in host memory, and invalidates the one before it."""
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
        whole.shards_metadata = [on_host(shard) for shard in whole.shards_metadata]
        own = [shard for shard in whole.shards_metadata if shard_rank(shard) == dist.get_rank()]
        shards = [LocalShard(self._buffers[f"{name}/{number}"], metadata) for number, metadata in enumerate(own)]
        return sharded_tensor(shards, whole, self._group)


def _own_tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields every tensor that this worker holds, and each of its shards of a sharded one, with a name."""
    match value:
        case dict():
            for key, inner in value.items():
                yield from _own_tensors(f"{name}/{key}", inner)
        case ShardedTensor():
            yield from ((f"{name}/{number}", shard.tensor) for number, shard in enumerate(value.local_shards()))
        case torch.Tensor():
            yield name, value

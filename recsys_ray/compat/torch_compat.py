"""Gives access to what torch does not make public: sharded tensors, their placement, and checkpoints through fsspec.

Why each private name is needed:

* `ShardedTensor`, its shards and metadata: TorchRec keeps embedding tables in them.
* `FsspecReader`, `FsspecWriter`, `FsspecFileSystem`: torch.distributed.checkpoint has nothing else for object stores.
* `METADATA_AS_WRITTEN`: the name under which FsspecWriter writes the metadata, before it renames it to ".metadata".
* `apply_optimizer_in_backward`: the way to fuse the optimizer of TorchRec's embedding tables into the backward pass.
* `_remote_device`: the type of every shard's placement.
* `pin_memory` and `unpin_memory` of torch.cuda._pin_memory_utils: page-lock memory that exists already, such as shared memory.
"""

from __future__ import annotations

import weakref

from recsys_ray.compat.versions import require_version

require_version("torch", ["2.11", "2.13"])

import torch
import torch.distributed as dist
from torch.cuda._pin_memory_utils import pin_memory, unpin_memory
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import ShardedTensor, ShardedTensorMetadata
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem as FsspecFileSystem
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torch.distributed.remote_device import _remote_device

__all__ = [
    "METADATA_AS_WRITTEN",
    "FsspecFileSystem",
    "FsspecReader",
    "FsspecWriter",
    "LocalShard",
    "ShardMetadata",
    "ShardedTensor",
    "ShardedTensorMetadata",
    "apply_optimizer_in_backward",
    "on_host",
    "page_lock",
    "set_placement_device",
    "shard_rank",
    "sharded_tensor",
]

METADATA_AS_WRITTEN = ".metadata.tmp"


def shard_rank(shard: ShardMetadata) -> int | None:
    """Returns the rank that holds a shard."""
    assert isinstance(shard.placement, _remote_device)
    return shard.placement.rank()


def on_host(shard: ShardMetadata) -> ShardMetadata:
    """Returns the metadata of a copy of a shard in the host memory of the rank that holds it."""
    return ShardMetadata(shard.shard_offsets, shard.shard_sizes, _remote_device(f"rank:{shard_rank(shard)}/cpu"))


def sharded_tensor(shards: list[LocalShard], metadata: ShardedTensorMetadata, group: dist.ProcessGroup) -> ShardedTensor:
    """Returns the sharded tensor of which this rank holds `shards`, without communication.

    The public `init_from_local_shards` gathers the metadata of all ranks first, which is known here.
    """
    return ShardedTensor._init_from_local_shards_and_global_metadata(shards, metadata, process_group=group)


def set_placement_device(placement: _remote_device, device: torch.device) -> None:
    """Moves a shard's placement to another device of the same rank, in place: a placement has no public setter."""
    placement._device = device


def page_lock(memory: torch.Tensor, owner: object) -> None:
    """Page-locks the memory of a CPU tensor while `owner` lives, so that copies to a GPU need no copy in between."""
    pin_memory(memory.data_ptr(), memory.nbytes)
    # Else the next memory that the system places there could not be page-locked. A process that ends needs no such care.
    weakref.finalize(owner, unpin_memory, memory.data_ptr()).atexit = False

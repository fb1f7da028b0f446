"""The process group, in and out: NCCL where there is a GPU, gloo elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def node(self) -> int:
        return self.rank // self.local_size


@contextmanager
def join_world() -> Iterator[World]:
    """Joins the process group that the launcher's environment describes, or one that it has made already.

    On the way out all workers meet before any leaves: under gloo a worker that goes while others still send aborts them.
    """
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    ours = not dist.is_initialized()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_rank, int(os.environ["LOCAL_WORLD_SIZE"]), device)
        dist.barrier()
    finally:
        if ours:
            dist.destroy_process_group()


def mean_over_workers(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the CPU; every worker must call it."""
    values = values.to(device)
    dist.all_reduce(values)
    return values.cpu() / dist.get_world_size()

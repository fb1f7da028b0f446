"""The process group (NCCL on GPUs, gloo elsewhere), which worker this is, and collectives over rows of tensors."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_gather

from recsys_ray.host_memory import keep_freed_memory

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""The time that workers wait for each other, such as for what rank 0 alone computes: gloo's default, and three times NCCL's."""


@dataclass(frozen=True)
class World:
    """This worker's place among all workers, and its device."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    same_host_offset: int = 0
    """How many workers of lower rank share this host but count as other nodes."""
    on_host: int = 1
    """How many workers share this host, whether they count as one node or not."""
    device_indices: tuple[int, ...] = ()
    """For each rank, the index of its GPU among those that it sees; empty on CPU."""

    @property
    def node(self) -> int:
        """The number of this worker's node."""
        return self.rank // self.local_size


@contextmanager
def join_world(cpus: float) -> Iterator[World]:
    """Joins the process group that the launcher's environment describes, or uses the one that exists already.

    A worker computes with as many threads as it has CPUs, under every launcher, so that rounding is the same everywhere. At the
    end all workers pass a barrier before any leaves: under gloo a worker that exits while others still send aborts them.
    """
    ours, device = not dist.is_initialized(), torch.device("cpu")
    # Whoever has made the group has chosen its backend.
    if torch.cuda.is_available() and (ours or "nccl" in dist.get_backend()):
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, int(cpus)))
    keep_freed_memory()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        yield _exchange_hosts(device)
        dist.barrier()
    finally:
        if ours:
            dist.destroy_process_group()


def _exchange_hosts(device: torch.device) -> World:
    """Learns which workers really share a host, and passes it to TorchRec and Mosaic Streaming by the environment."""
    found: list[tuple[str, int | None]] = [("", None)] * dist.get_world_size()
    dist.all_gather_object(found, (socket.gethostname(), device.index))
    own, hosts = dist.get_rank(), [host for host, _ in found]
    place = node_layout(hosts, own)
    os.environ |= {"LOCAL_RANK": str(place.local_rank), "LOCAL_WORLD_SIZE": str(place.local_size)}
    indices = tuple(index for _, index in found if index is not None)
    return World(own, len(hosts), *place[:2], device, place.same_host_offset, hosts.count(hosts[own]), indices)


class NodePlace(NamedTuple):
    """A worker's place on its node; `same_host_offset` as in World."""

    local_rank: int
    local_size: int
    same_host_offset: int


def node_layout(hosts: list[str], rank: int) -> NodePlace:
    """Returns the place of a worker, from the host of every rank.

    Spark gives each of its tasks a "node" of its own, also those on one host, and in any order. Where the hosts have equally
    many workers, in order, a host is a node. Otherwise every worker is one, as Mosaic Streaming requires nodes of equal size.
    """
    here = hosts.count(hosts[rank])
    if hosts == [host for host in dict.fromkeys(hosts) for _ in range(here)]:
        return NodePlace(rank % here, here, 0)
    return NodePlace(0, 1, hosts[:rank].count(hosts[rank]))


def get_world_size() -> int:
    """Returns the number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def get_rank() -> int:
    """Returns this worker's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def mean_over_workers(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Returns the mean of every worker's `values`, on the CPU. Every worker must call it."""
    values = values.to(device)
    dist.all_reduce(values)
    return values.cpu() / dist.get_world_size()


def all_gather_with_gradient(rows: torch.Tensor) -> torch.Tensor:
    """Gathers the rows [n, ...] of every worker, by rank, into [workers * n, ...]; all workers must have equal n.

    In the backward pass each worker receives the sum of all gradients of its rows.
    """
    return torch.cat(all_gather(rows)) if get_world_size() > 1 else rows


def all_gather_equal(rows: torch.Tensor) -> torch.Tensor:
    """Gathers like `all_gather_with_gradient`, without gradients and for any type."""
    if get_world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def all_gather_rows(rows: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Gathers the rows [n, ...] of every worker, by rank, on the CPU; n may differ between workers.

    The rows travel through `device`, which the backend (NCCL or gloo) needs them on.
    """
    if get_world_size() == 1:
        return rows.cpu()
    count = torch.tensor([len(rows)], device=device)
    counts = all_gather_equal(count).tolist()
    padded = torch.zeros(max(counts), *rows.shape[1:], dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows.to(device)
    parts = all_gather_equal(padded).cpu().split(max(counts)) if max(counts) else [rows.cpu()]
    return torch.cat([part[:size] for part, size in zip(parts, counts, strict=False)])


def broadcast_value(value: Any) -> Any:
    """Returns rank 0's `value`, a small Python object, on every worker."""
    received = [value]
    if get_world_size() > 1:
        dist.broadcast_object_list(received)
    return received[0]


def broadcast_from_rank_0(make: Callable[[], torch.Tensor], device: torch.device) -> torch.Tensor:
    """Returns on every worker's CPU what `make` returns on rank 0; it travels through `device`."""
    if get_world_size() == 1:
        return make()
    made = make().to(device) if get_rank() == 0 else None
    described = [(made.shape, made.dtype)] if made is not None else [None]
    dist.broadcast_object_list(described, device=device)
    assert described[0] is not None
    shape, dtype = described[0]
    found = torch.empty(shape, dtype=dtype, device=device) if made is None else made
    dist.broadcast(found, 0)
    return found.cpu()

"""The process group, in and out: NCCL where there is a GPU, gloo elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from recsys_ray.host_memory import keep_freed_memory


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device
    neighbour: int = 0
    """How many workers of lower rank share this host without being of the same node."""
    on_host: int = 1
    """How many workers share this host, of the same node or not."""
    device_indices: tuple[int, ...] = ()
    """Of every rank's GPU among those that it sees; on CPU empty."""

    @property
    def node(self) -> int:
        return self.rank // self.local_size


@contextmanager
def join_world(cpus: float) -> Iterator[World]:
    """Joins the process group that the launcher's environment describes, or one that it has made already.

    A worker computes with as many threads as it has CPUs, under every launcher, so that all round in the same order. On the way
    out all workers meet before any leaves: under gloo a worker that goes while others still send aborts them.
    """
    ours, device = not dist.is_initialized(), torch.device("cpu")
    # Where the launcher made the group, it has decided: Ray does so by whether a worker has a GPU of its own.
    if torch.cuda.is_available() and (ours or "nccl" in dist.get_backend()):
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, int(cpus)))
    keep_freed_memory()
    if ours:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield _meet(device)
        dist.barrier()
    finally:
        if ours:
            dist.destroy_process_group()


def _meet(device: torch.device) -> World:
    """Tells TorchRec and Mosaic Streaming, by the environment, which workers really share a host."""
    found: list[tuple[str, int | None]] = [("", None)] * dist.get_world_size()
    dist.all_gather_object(found, (socket.gethostname(), device.index))
    rank, hosts = dist.get_rank(), [host for host, _ in found]
    local_rank, local_size, neighbour = node_layout(hosts, rank)
    os.environ |= {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(local_size)}
    indices = tuple(index for _, index in found if index is not None)
    return World(rank, len(hosts), local_rank, local_size, device, neighbour, hosts.count(hosts[rank]), indices)


def node_layout(hosts: list[str], rank: int) -> tuple[int, int, int]:
    """Local rank, local world size, and `World.neighbour`, from the host of every rank.

    Spark gives each of its tasks a "node" of its own, also those on one host, and in any order. Where the hosts have equally
    many workers, in order, a host is a node. Otherwise every worker is one, as Mosaic Streaming wants equal nodes.
    """
    here = hosts.count(hosts[rank])
    if hosts == [host for host in dict.fromkeys(hosts) for _ in range(here)]:
        return rank % here, here, 0
    return 0, 1, hosts[:rank].count(hosts[rank])


def mean_over_workers(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the CPU; every worker must call it."""
    values = values.to(device)
    dist.all_reduce(values)
    return values.cpu() / dist.get_world_size()

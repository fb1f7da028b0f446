"""A cluster that is only described: nodes, GPUs, their memory and speeds, and its price."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from recsys_ray.sharding.devices import DEVICES, Device


@dataclass(frozen=True)
class Cluster:
    """The cluster to plan for. A worker trains on each GPU, or with `gpu cpu` on a core. Numbers left out are the GPU's own."""

    nodes: int = 1
    gpus_per_node: int = 8
    gpu: Literal["h100", "a100", "a10g", "cpu"] = "h100"
    memory_gib: float | None = None
    """Memory of each GPU."""
    memory_gb_s: float | None = None
    """Bandwidth of a GPU's memory, GB/s."""
    link_gb_s: float | None = None
    """Between the GPUs of a node, for each GPU in one direction, GB/s: half of what NVLink's data sheet says."""
    network_gb_s: float | None = None
    """Between nodes, for each GPU in one direction, GB/s: a node's Gbit/s / 8 / its GPUs."""
    tflops: float | None = None
    """Peak TFLOP/s of the dense part: bf16 on a GPU, float32 on a CPU core."""
    host_memory_gib: float | None = None
    """Memory of a node for each GPU. Tables that GPUs cannot hold are placed there."""
    host_link_gb_s: float | None = None
    """Between a GPU and its host's memory in one direction, GB/s: half of what PCIe's data sheet says."""
    utilisation: float = 0.6
    """The share of that peak that the matrix products of the dense part reach."""
    price: float = 0.0
    """Price of an hour of one GPU, in any currency; 0: print no cost."""
    most_nodes: int = 32
    """The largest number of nodes that is tried for the smallest cluster that fits."""

    @property
    def device(self) -> Device:
        """The GPU with the numbers given here in place of its own."""
        given = {field.name: getattr(self, field.name, None) for field in dataclasses.fields(Device)}
        return dataclasses.replace(DEVICES[self.gpu], **{name: value for name, value in given.items() if value is not None})

    @property
    def workers(self) -> int:
        """The number of workers, one on each GPU."""
        return self.nodes * self.gpus_per_node

    @property
    def slowest_link_gb_s(self) -> float:
        """GB/s of an exchange between all workers, for each worker in one direction."""
        return self.device.network_gb_s if self.nodes > 1 else self.device.link_gb_s

    def resized(self, workers: int) -> Cluster:
        """Returns a cluster of the same kind with this many workers: part of a node, or whole nodes."""
        per_node = min(workers, self.gpus_per_node)
        return dataclasses.replace(self, nodes=workers // per_node, gpus_per_node=per_node)

    def sizes(self) -> list[int]:
        """Returns the numbers of workers to choose from: 1, 2, 4, ... up to a whole node, then whole nodes."""
        within = [1 << power for power in range(self.gpus_per_node.bit_length()) if 1 << power < self.gpus_per_node]
        return within + [self.gpus_per_node * nodes for nodes in range(1, self.most_nodes + 1)]

    def __str__(self) -> str:
        device = self.device
        nodes = f"{self.nodes} node{'s' * (self.nodes > 1)} of {self.gpus_per_node}"
        links = f"links {device.link_gb_s:g} GB/s, {device.network_gb_s:g} GB/s between nodes"
        return f"{nodes} x {self.gpu} ({device.memory_gib:g} GiB at {device.memory_gb_s:,.0f} GB/s; {links})"


def check_cluster(cluster: Cluster) -> None:
    """Raises ValueError naming the flag whose number is not positive."""
    for field in dataclasses.fields(Cluster):
        value = getattr(cluster, field.name)
        if isinstance(value, int | float) and (value < 0 or (value == 0 and field.name != "price")):
            raise ValueError(f"--cluster.{field.name.replace('_', '-')} is {value}: it must be greater than 0")

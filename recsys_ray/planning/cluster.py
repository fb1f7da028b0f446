"""A cluster in words: how many GPUs of which kind, what they hold, and how fast they, and the links between them, are.

Of each GPU: what PyTorch finds of its memory, and the peaks of NVIDIA's data sheets ("A100 80GB SXM", "H100 SXM", "A10G"): memory
bandwidth, BF16 without sparsity, NVLink or PCIe in one direction. Its share of the node's network is that of a DGX A100 and DGX
H100 (200 and 400 Gbit/s a GPU), of the A10G that of AWS's g5.12xlarge (40 Gbit/s for four).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """What one worker trains on; bandwidths in GB/s and one direction."""

    memory_gib: float
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float
    tflops: float


DEVICES = {
    "h100": Device(79, 3350, 450, 50, 989),
    "a100": Device(79, 2039, 300, 25, 312),
    "a10g": Device(22, 600, 32, 1.25, 70),
    # One core of a server, in float32; between the workers of a host gloo copies through its loopback.
    "cpu": Device(4, 10, 2, 1.25, 0.1),
}


def bandwidths(device: Device) -> dict[str, float]:
    """Of a Topology: of memory, within a node and between nodes; the planner reckons in bytes a millisecond."""
    return {
        "hbm_mem_bw": bytes_a_ms(device.memory_gb_s),
        "ddr_mem_bw": bytes_a_ms(device.memory_gb_s),
        "intra_host_bw": bytes_a_ms(device.link_gb_s),
        "inter_host_bw": bytes_a_ms(device.network_gb_s),
    }


def bytes_a_ms(gb_s: float) -> float:
    return gb_s * 1e6


@dataclass(frozen=True)
class Cluster:
    """What to plan for. A worker trains on each GPU, or with `gpu cpu` on a core. The numbers left out are those of the GPU."""

    nodes: int = 1
    gpus_per_node: int = 8
    gpu: Literal["h100", "a100", "a10g", "cpu"] = "h100"
    memory_gib: float | None = None
    """Of each GPU."""
    memory_gb_s: float | None = None
    """Bandwidth of a GPU's memory, GB/s."""
    link_gb_s: float | None = None
    """Between the GPUs of a node, for each GPU in one direction, GB/s: half of what NVLink's data sheet says."""
    network_gb_s: float | None = None
    """Between nodes, for each GPU in one direction, GB/s: a node's Gbit/s / 8 / its GPUs."""
    tflops: float | None = None
    """Peak TFLOP/s of the dense part: bf16 on a GPU, float32 on a CPU core."""
    utilisation: float = 0.3
    """How much of that peak the dense part gets."""
    price: float = 0.0
    """Of an hour of one GPU, in any currency; 0: tell no cost."""
    most_nodes: int = 32
    """How far to look for the smallest cluster that fits."""

    @property
    def device(self) -> Device:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(Device)}
        return dataclasses.replace(DEVICES[self.gpu], **{name: value for name, value in given.items() if value is not None})

    @property
    def workers(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def link_of_all(self) -> float:
        """GB/s of an exchange between all workers."""
        return self.device.network_gb_s if self.nodes > 1 else self.device.link_gb_s

    def of_size(self, workers: int) -> Cluster:
        """The same with as many workers: part of a node, or whole nodes."""
        per_node = min(workers, self.gpus_per_node)
        return dataclasses.replace(self, nodes=workers // per_node, gpus_per_node=per_node)

    def sizes(self) -> list[int]:
        """Workers of the clusters to choose from: 1, 2, 4, ... up to a whole node, then whole nodes."""
        within = [1 << power for power in range(self.gpus_per_node.bit_length()) if 1 << power < self.gpus_per_node]
        return within + [self.gpus_per_node * nodes for nodes in range(1, self.most_nodes + 1)]

    def __str__(self) -> str:
        device = self.device
        nodes = f"{self.nodes} node{'s' * (self.nodes > 1)} of {self.gpus_per_node}"
        links = f"links {device.link_gb_s:g} GB/s, {device.network_gb_s:g} GB/s between nodes"
        return f"{nodes} x {self.gpu} ({device.memory_gib:g} GiB at {device.memory_gb_s:,.0f} GB/s; {links})"


def check(cluster: Cluster) -> None:
    """Raises ValueError that names the flag."""
    for field in dataclasses.fields(Cluster):
        value = getattr(cluster, field.name)
        if isinstance(value, int | float) and (value < 0 or (value == 0 and field.name != "price")):
            raise ValueError(f"--cluster.{field.name.replace('_', '-')} is {value}: it must be greater than 0")

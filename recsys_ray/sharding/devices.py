"""The kinds of device that a worker trains on: how much memory they have, and how fast they and the links between them are.

Of each GPU: the memory that PyTorch finds, and the peaks of NVIDIA's data sheets ("A100 80GB SXM", "H100 SXM", "A10G"): memory
bandwidth, BF16 without sparsity, NVLink or PCIe in one direction. Its share of the node's network is that of a DGX A100 and a DGX
H100 (200 and 400 Gbit/s for each GPU), and for the A10G that of AWS's g5.12xlarge (40 Gbit/s for four); and so is its share of
the node's memory (2 TiB for eight, 192 GiB for four). GPUs reach host memory through PCIe 5.0 (H100) or 4.0, 16 lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torchrec.distributed.planner.types import BasicCommsBandwidths, CollectiveType

GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """A device with its memory, its share of the host's, and its peak speeds; all links are in one direction."""

    memory_gib: float
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float
    tflops: float
    host_memory_gib: float
    host_link_gb_s: float
    exchange_share: float = 1.0
    """The share of a link's speed that is left for embeddings, which must be split and joined before and after an exchange."""


DEVICES = {
    "h100": Device(79, 3350, 450, 50, 989, 256, 64),
    "a100": Device(79, 2039, 300, 25, 312, 256, 32),
    "a10g": Device(22, 600, 32, 1.25, 70, 48, 32),
    # One core of a server, in float32. Measured on a host of two cores: gloo all-reduces 16.6 MB through its loopback in 17 ms,
    # and two workers take 24 to 68 ms longer for a step in which each sends and receives 27 MB of embeddings and gradients.
    "cpu": Device(4, 10, 1, 1.25, 0.1, 4, 10, exchange_share=0.5),
}


class Links(BasicCommsBandwidths):
    """The speed of collectives between workers without GPUs, in bytes per millisecond.

    TorchRec's own has all-reduce at the speed of the network within a host too, and exchanges cost it nothing but the bytes.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(bytes_per_ms(device.network_gb_s), bytes_per_ms(device.link_gb_s))
        self._exchange_share = device.exchange_share

    def get_bw(self, local_world_size: int, world_size: int, collective_type: CollectiveType) -> float:
        """Returns the speed of a collective of `world_size` workers, of which `local_world_size` are on each host."""
        link = self.intra_host_bw if world_size <= local_world_size else self.inter_host_bw
        return link if collective_type == CollectiveType.ALL_REDUCE else link * self._exchange_share


def bandwidths(device: Device) -> dict[str, Any]:
    """Returns the bandwidths of a TorchRec Topology, in bytes per millisecond: of memory, and of links to GPUs and host."""
    links = {"generalized_comms_bandwidths": Links(device)} if device.exchange_share < 1 else {}
    return links | {
        "hbm_mem_bw": bytes_per_ms(device.memory_gb_s),
        "ddr_mem_bw": bytes_per_ms(device.memory_gb_s),
        "intra_host_bw": bytes_per_ms(device.link_gb_s),
        "inter_host_bw": bytes_per_ms(device.network_gb_s),
        "hbm_to_ddr_mem_bw": bytes_per_ms(device.host_link_gb_s),
    }


def bytes_per_ms(gb_s: float) -> float:
    """Converts GB/s to bytes per millisecond, TorchRec's unit of bandwidth."""
    return gb_s * 1e6

"""The search for a sharding plan: in the workers' own memory, or where that is too little, also in host memory behind GPUs."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.proposers import DynamicProgrammingProposer, GreedyProposer, UniformProposer
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import Enumerator, ParameterConstraints, Perf, PlannerError, Proposer, ShardingOption
from torchrec.distributed.types import CacheParams, ModuleSharder, QuantizedCommCodecs, ShardingPlan
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

RESERVED_SHARE = 0.15
"""The share of each worker's memory that the planner leaves free."""
CACHED = "fused_uvm_caching"
"""The compute kernel of a table in host memory behind a cache on the GPU."""
REPLICATED = "dense"
"""The compute kernel of a data-parallel table, whose gradient is as large as the table."""
FUSED, WITH_HOST = ("fused",), ("fused", CACHED)
"""The compute kernels on offer: tables in the worker's own memory, updated in the backward pass; or also tables in host memory.
With so many more choices the planner plans worse where all tables would fit."""
UNLIMITED = 1 << 50
Codecs = dict[str, QuantizedCommCodecs]
"""TorchRec's name of a collective -> what converts its numbers."""
PROPOSED_SPLITS = 400
"""Splits of the memory that the planner tries for tables in GPU and host memory; at least one for every worker."""


class TableMemory(NamedTuple):
    """The bytes that each worker has for tables: its own, on GPU or host, and what it may use of the host behind its GPU."""

    own: int
    host: int = 0


class FoundPlan(NamedTuple):
    """A sharding plan, and the planner's choice for every table, with its estimates, from which the plan follows."""

    plan: ShardingPlan
    options: list[ShardingOption]

    @property
    def uses_host(self) -> bool:
        """Says whether a table is in host memory behind a GPU."""
        return any(option.compute_kernel == CACHED for option in self.options)

    @property
    def milliseconds(self) -> float:
        """The planner's estimate of the tables' part of a step, on the slowest worker."""
        times: Counter[int | None] = Counter()
        for option in self.options:
            for shard in option.shards:
                times[shard.rank] += cast(Perf, shard.perf).total
        return max(times.values())


@dataclass(frozen=True, kw_only=True)
class Search:
    """The tables that the planner has to place, and the workers on which it may place them."""

    module: nn.Module
    types: tuple[str, ...]
    """The sharding types on offer."""
    workers: int
    workers_per_node: int
    kind: str
    """The kind of the workers' devices, cuda or cpu."""
    speeds: dict[str, Any]
    """Bandwidths of a TorchRec Topology; those left out are TorchRec's own."""
    local_batch: int
    cache_share: float
    """The share of rows that the cache of a table in host memory holds."""
    constraints: dict[str, ParameterConstraints] = field(default_factory=dict)
    codecs: Codecs | None = None
    """The codecs that convert embeddings before and after an exchange; None: they are sent as they are."""

    def __post_init__(self) -> None:
        """Raises ValueError for a cache that is no share of a table."""
        if not 0 <= self.cache_share < 1:
            raise ValueError(f"--sharding.cache-share is {self.cache_share:g}: it must be at least 0 and less than 1")

    def find(self, memory: TableMemory) -> FoundPlan:
        """Places the tables in the workers' own memory, or only if they do not fit there, some of them in host memory.

        Raises PlannerError where they do not fit in either.
        """
        try:
            return self._run(TableMemory(memory.own), FUSED)
        except PlannerError:
            if self.kind != "cuda" or not memory.host or self.types == ("data_parallel",):
                raise
        return self._run(memory, WITH_HOST)

    def in_unlimited_memory(self) -> FoundPlan:
        """Places the tables as on workers whose own memory holds them all, for a comparison."""
        return self._run(TableMemory(UNLIMITED), FUSED)

    def _run(self, memory: TableMemory, kernels: tuple[str, ...]) -> FoundPlan:
        chosen: list[ShardingOption] = []

        def keep(options: list[ShardingOption]) -> list[ShardingOption]:
            chosen.extend(options)
            return options

        planner = EmbeddingShardingPlanner(
            topology=topology(self.workers, self.workers_per_node, kind=self.kind, memory=memory, speeds=self.speeds),
            batch_size=self.local_batch,
            storage_reservation=FixedPercentageStorageReservation(RESERVED_SHARE),
            constraints=self.constraints if kernels == FUSED else self._with_caches(),
            proposer=None if kernels == FUSED else self._proposers(),
            stats=[],
            debug=False,
            callbacks=[keep],
        )
        offered = sharders(self.types, self.workers, kernels, codecs=self.codecs)
        return FoundPlan(planner.plan(self.module, offered), chosen)

    def _with_caches(self) -> dict[str, ParameterConstraints]:
        cache = CacheParams(load_factor=self.cache_share)
        return {
            table.name: replace(self.constraints.get(table.name, ParameterConstraints()), cache_params=cache)
            for table in table_configs(self.module)
        }

    def _proposers(self) -> list[Any]:
        """Returns the planner's usual proposers but the exhaustive one, and one each for scarce GPU and scarce host memory."""
        scarce = [DynamicProgrammingProposer(max(1, PROPOSED_SPLITS // self.workers)), LargestOnGpu()]
        return [GreedyProposer(), GreedyProposer(use_depth=False), UniformProposer(), *scarce]


class LargestOnGpu(Proposer):
    """A proposer that leaves the largest tables on GPUs, for hosts with little memory: others move the largest to the host first.

    Each proposal has one more of the smallest tables in host memory. Every table is split as evenly as the types on offer allow.
    """

    def __init__(self) -> None:
        self._proposals: deque[list[ShardingOption]] = deque()

    def load(self, search_space: list[ShardingOption], enumerator: Enumerator | None = None) -> None:
        """Makes all proposals from the options of every table."""
        tables: dict[str, dict[str, list[ShardingOption]]] = {}
        for option in sorted(search_space, key=lambda option: option.tensor.numel()):
            tables.setdefault(option.fqn, {}).setdefault(option.compute_kernel, []).append(option)
        even = [{kernel: min(found, key=_largest_shard) for kernel, found in kernels.items()} for kernels in tables.values()]
        for on_host in range(1, len(even) + 1):
            kernels = [CACHED] * on_host + list(FUSED) * (len(even) - on_host)
            self._proposals.append([options[kernel] for options, kernel in zip(even, kernels, strict=True)])

    def propose(self) -> list[ShardingOption] | None:
        """Returns the next proposal; None where there are no more."""
        return self._proposals[0] if self._proposals else None

    def feedback(self, *args: Any, **kwargs: Any) -> None:
        """Goes on to the next proposal, whether this one was possible or not."""
        self._proposals.popleft()


def _largest_shard(option: ShardingOption) -> int:
    return max(storage.hbm + storage.ddr for shard in option.shards if (storage := shard.storage))


class _Choices:
    """A mixin of TorchRec's sharders that offers the given types and kernels; on CPU TorchRec would hide row_wise."""

    def __init__(
        self, types: tuple[str, ...], kernels: tuple[str, ...], lookup_type: torch.dtype | None, codecs: Codecs | None
    ) -> None:
        # Of tables in host memory: memory that the GPU addresses directly, instead of pages that move to it and back.
        settings: dict[str, Any] = {"uvm_host_mapped": True}
        if lookup_type is not None:
            settings["output_dtype"] = SparseType.from_dtype(lookup_type)
        super().__init__(fused_params=settings, qcomm_codecs_registry=codecs)  # type: ignore[call-arg]
        self._types = types
        self._kernels = kernels

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return list(self._types)

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [REPLICATED] if sharding_type == "data_parallel" else list(self._kernels)


class BagSharder(_Choices, EmbeddingBagCollectionSharder):
    """A sharder of embeddings that TorchRec pools."""


class SequenceSharder(_Choices, EmbeddingCollectionSharder):
    """A sharder of embeddings that the model pools itself."""


def sharders(
    types: tuple[str, ...],
    workers: int,
    kernels: tuple[str, ...] = FUSED,
    *,
    lookup_type: torch.dtype | None = None,
    codecs: Codecs | None = None,
) -> list[ModuleSharder]:
    """Returns the sharders that offer these types and kernels.

    The tables of a single worker stay whole: split tables would be cut up and reassembled in every step for nothing.

    Args:
        lookup_type: the type in which lookups return embeddings; None: float32.
        codecs: convert what workers exchange; None: it is sent as it is.
    """
    offered = ("table_wise",) if workers == 1 and {"table_wise", "data_parallel"} & set(types) else types
    return [sharder(offered, kernels, lookup_type, codecs) for sharder in (BagSharder, SequenceSharder)]


def table_configs(module: nn.Module) -> list[BaseEmbeddingConfig]:
    """Returns TorchRec's configurations of the module's embedding tables."""
    configs: list[BaseEmbeddingConfig] = []
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection):
            configs += part.embedding_bag_configs()
        elif isinstance(part, EmbeddingCollection):
            configs += part.embedding_configs()
    return configs


def topology(workers: int, workers_per_node: int, *, kind: str, memory: TableMemory, speeds: dict[str, Any]) -> Topology:
    """Describes the workers to the planner: `kind` of device is cuda or cpu."""
    hbm, ddr = memory if kind == "cuda" else (0, memory.own)
    return Topology(
        world_size=workers, local_world_size=workers_per_node, compute_device=kind, hbm_cap=hbm, ddr_cap=ddr, **speeds
    )

"""Compares the memory that jobs/plan.py predicts with what a run on this machine takes: two workers of one core, 1 GiB of tables.

    python benchmarks/plan_memory.py            # a minute
    python benchmarks/plan_memory.py --gib 4 --dim 256 --sharding column_wise

The workers train a real DLRM, sharded over gloo. Tables, optimizer state and dense part are the bytes of each worker's tensors;
"rest" is the peak resident size of the process, minus these and minus its size before the model was built. A second run is
measured with a malloc that returns every large buffer to the system when it is freed ("rest in use"): the difference is what
malloc keeps.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import nn
from torchrec.optim.optimizers import in_backward_optimizer_filter

from recsys_ray.columns import ROW_WEIGHT
from recsys_ray.config import LaunchConfig, LoopConfig, OptimizerConfig, ShardingConfig, TrainConfig
from recsys_ray.distributed import World, join_world
from recsys_ray.host_memory import M_MMAP_THRESHOLD
from recsys_ray.launch.launcher import launcher
from recsys_ray.logs import configure_logging
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task
from recsys_ray.models.task import Batch, BuildContext, Task
from recsys_ray.planning.cluster import Cluster
from recsys_ray.planning.plan import ClusterPlan, plan_cluster
from recsys_ray.planning.workload import make_workload
from recsys_ray.schema import Categorical, Dense, Label, Schema
from recsys_ray.sharding.local_tables import data_parallel_tables, local_tables, table_in_name
from recsys_ray.sharding.placement import table_shards
from recsys_ray.sharding.sharded_model import initialise_tables, shard_model
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.steps import make_step

TABLES, WORKERS, MIB = 8, 2, 1 << 20
GIVEN_BACK_ABOVE = 1 << 16
"""Bytes of the smallest buffer that the second run returns to the system."""


@dataclass(frozen=True)
class PlanMemory:
    gib: float = 1.0
    """GiB of embedding tables, over both workers."""
    dim: int = 64
    batch: int = 8192
    """Rows of a step, over both workers."""
    steps: int = 3
    sharding: Literal["any", "table_wise", "row_wise", "column_wise"] = "any"
    sparse: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad"


def main(job: PlanMemory) -> None:
    configure_logging()
    with tempfile.TemporaryDirectory() as folder:
        types = ShardingConfig.types if job.sharding == "any" else (job.sharding,)
        config = TrainConfig(
            run_dir=folder,
            model=DLRMConfig(interaction="dcn", embedding_dim=job.dim, dense_layers=(256,), over_layers=(512, 256)),
            optimizer=OptimizerConfig(sparse=job.sparse),
            train=LoopConfig(global_batch=job.batch, max_steps=job.steps),
            sharding=ShardingConfig(types, memory_gib=max(2.0, 2 * job.gib)),
            launch=LaunchConfig("local", WORKERS, gpus_per_worker=0),
        )
        schema = tables(job.gib, job.dim)
        Path(folder, "schema.json").write_text(schema.to_json())
        predicted = plan_cluster(make_workload(config, schema, 1.0), Cluster(gpus_per_node=WORKERS, gpu="cpu"))
        assert predicted is not None
        show(predicted, measured_run(measure, config), measured_run(measure_in_use, config))


def measured_run(measuring: Callable[[TrainConfig], None], config: TrainConfig) -> list[dict[str, Any]]:
    """Runs `measuring` on all workers and returns the figures of each."""
    with launcher(config.launch) as engine:
        engine.run(measuring, config)
    return [json.loads(Path(config.run_dir, f"measured-{rank}.json").read_text()) for rank in range(WORKERS)]


def tables(gib: float, dim: int) -> Schema:
    """Returns a schema whose tables have unequal sizes, so that the workers' shares may differ."""
    share = int(gib * (1 << 30) / 4 / dim / sum(range(1, TABLES + 1)))
    columns = [Categorical(f"c{number}", "item", num_embeddings=share * number) for number in range(1, TABLES + 1)]
    return Schema((Label("label"), Dense("d"), *columns))


def measure(config: TrainConfig) -> None:
    """Measures this worker."""
    with join_world(1) as world:
        measure_worker(config, world)


def measure_in_use(config: TrainConfig) -> None:
    """Measures this worker with a malloc that keeps no large freed buffers."""
    with join_world(1) as world:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, GIVEN_BACK_ABOVE)
        measure_worker(config, world)


def measure_worker(config: TrainConfig, world: World) -> None:
    """Trains a small model first, so that what libraries allocate once is not counted, then measures the real one."""
    configure_logging()
    small = replace(config, train=LoopConfig(global_batch=64, max_steps=2))
    run(small, tables(0.001, config.model.embedding_dim), world)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    found = run(config, Schema.load(Path(config.run_dir, "schema.json")), world)
    found["rest"] = resident("VmHWM") - before - found["tables"] - found["optimizer"] - found["dense"]
    Path(config.run_dir, f"measured-{world.rank}.json").write_text(json.dumps(found))


def run(config: TrainConfig, schema: Schema, world: World) -> dict[str, Any]:
    """Trains, and returns the bytes of this worker's tensors."""
    rows = config.train.global_batch // world.size
    task = build_task(config.model, BuildContext(schema, world.device))
    model = shard_model(task.module, world, sharding=config.sharding, optimizer=config.optimizer, local_batch=rows)
    initialise_tables(model, 0.0, 0)
    optimizer = build_optimizer(model, config.optimizer)
    local = [part.tensor for parts in local_tables(model).values() for part in parts]
    sparse = [values for name, values in optimizer.state_dict()["state"].items() if name.startswith("sparse.")]
    state = [tensor for values in sparse for value in values.values() for tensor in local_tensors(value)]
    for tensor in state:
        tensor.add_(0)  # zeros are not resident until they are written
    step, stream, seconds = make_step(model, optimizer, world), batches(task, schema, rows, world.rank), []
    for _ in range(config.train.max_steps):
        began = time.perf_counter()
        step(stream)
        seconds.append(time.perf_counter() - began)
    trained = in_backward_optimizer_filter(model.named_parameters())
    dense = [parameter for name, parameter in trained if table_in_name(name) not in data_parallel_tables(model)]
    return {
        "tables": bytes_of(local),
        "optimizer": bytes_of(state),
        "dense": 4 * bytes_of(dense),  # each has a gradient and Adam's two averages
        "step_ms": 1000 * sorted(seconds)[len(seconds) // 2],
        "shards": sorted([part.table, part.rows, part.dim, part.rank] for part in table_shards(model)),
    }


def local_tensors(value: Any) -> list[torch.Tensor]:
    return [part.tensor for part in value.local_shards()] if hasattr(value, "local_shards") else [value]


def bytes_of(tensors: list[torch.Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def batches(task: Task, schema: Schema, rows: int, seed: int) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        ids = {c.name: torch.randint(0, c.num_embeddings, (rows,), generator=generator) for c in schema.categorical}
        numbers = {name: torch.rand(rows, generator=generator) for name in ("label", *(c.name for c in schema.dense))}
        yield task.to_batch({**ids, **numbers, ROW_WEIGHT: torch.ones(rows)})


def resident(name: str) -> int:
    """Returns the resident bytes of this process: VmRSS now, VmHWM the peak since it was last reset."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


def show(predicted: ClusterPlan, usual: list[dict[str, Any]], returning: list[dict[str, Any]]) -> None:
    same = sorted([part.table, part.rows, part.dim, part.rank] for part in predicted.shards) == usual[0]["shards"]
    found: dict[str, Any] = {"same_plan": same, "step_ms": [predicted.step.total, max(own["step_ms"] for own in usual)]}
    print(f"the run's sharding plan is {'the one predicted' if same else 'NOT the one predicted'}")
    print(f"{'':<34}{'predicted MiB':>15}{'measured MiB':>15}{'ratio':>8}")
    for rank, memory in enumerate(predicted.memory):
        rest = memory.exchange + memory.activations + memory.batches
        parts = {"tables": memory.tables, "optimizer": memory.optimizer, "dense": memory.dense, "rest": rest}
        own = usual[rank] | {"all": sum(usual[rank][name] for name in parts), "rest in use": returning[rank]["rest"]}
        for name, expected in (parts | {"all": memory.total, "rest in use": rest}).items():
            ratio = own[name] / expected if expected else 1.0
            print(f"worker {rank}: {name:<24}{expected / MIB:>15,.2f}{own[name] / MIB:>15,.2f}{ratio:>8.2f}")
            found[f"worker_{rank}_{name.replace(' ', '_')}_mib"] = [expected / MIB, own[name] / MIB]
    print("step: {:.0f} ms predicted, {:.0f} ms measured".format(*found["step_ms"]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(tyro.cli(PlanMemory, description=__doc__))

"""A cluster plan as text: sharding, memory, time of a step, speed and cost."""

from __future__ import annotations

from recsys_ray.planning.cluster import Cluster
from recsys_ray.planning.cost_model import StepTime
from recsys_ray.planning.plan import ClusterPlan, usable_memory
from recsys_ray.planning.workload import Workload
from recsys_ray.sharding.devices import GIB
from recsys_ray.sharding.placement import placement_text
from recsys_ray.sharding.search import RESERVED_SHARE

MIB = 1 << 20
MEMORY = {
    "tables": "embedding tables",
    "optimizer": "their optimizer state",
    "exchange": "ids and embeddings in exchange",
    "dense": "dense: weights, gradients, Adam",
    "activations": "activations of the dense part",
    "batches": "batches",
    "cache": "cache of tables in host memory",
}
TIME = {
    "lookup": "embedding lookup",
    "forward_exchange": "forward exchange of embeddings",
    "dense": "dense compute",
    "backward_exchange": "backward exchange of gradients",
    "update": "embedding update",
    "dense_exchange": "all-reduce of dense gradients",
    "launch": "launching kernels",
    "input_exchange": "exchange of ids",
}
ESTIMATE = """\
An estimate, from bytes and operations over peak speeds, that was compared with one H100 (docs/planning.md). The network's latency
comes on top, and on several GPUs what is not compiled there: measure a short run before a long one."""


def cluster_plan_text(plan: ClusterPlan, smallest: ClusterPlan | None) -> str:
    """Returns the whole text; `smallest` is the smallest cluster that fits, if any."""
    parts = [
        f"{plan.cluster}; {plan.workload.rows(plan.cluster.workers):,} rows of a step on each",
        placement_text(plan.shards),
        memory_table(plan),
        time_table(plan),
        speed(plan),
    ]
    if plan.all_on_gpu:
        parts.append(price_of_host_memory(plan, plan.all_on_gpu))
    if smallest and smallest.cluster == plan.cluster:
        parts.append("smallest that fits: this one")
    elif smallest:
        where = " in GPU memory" if plan.all_on_gpu else ""
        parts.append(f"smallest that fits{where}: {smallest.cluster}\n" + speed(smallest))
    return "\n\n".join([*parts, ESTIMATE])


def memory_table(plan: ClusterPlan) -> str:
    """Returns the memory of the fullest worker, and the mean over all workers."""
    fullest = max(plan.memory, key=lambda memory: memory.total)
    lines = [f"{'memory, MiB a worker':<34}{'fullest':>12}{'mean':>12}"]
    for name, label in MEMORY.items():
        mean = sum(getattr(memory, name) for memory in plan.memory) / len(plan.memory)
        if mean or name != "cache":
            lines.append(f"{label:<34}{getattr(fullest, name) / MIB:>12,.1f}{mean / MIB:>12,.1f}")
    mean = sum(memory.total for memory in plan.memory) / len(plan.memory)
    memory = usable_memory(plan.workload, plan.cluster)
    lines.append(
        f"{'all':<34}{fullest.total / MIB:>12,.1f}{mean / MIB:>12,.1f}   {fullest.total / memory.own:.0%} of what there is"
    )
    host = [worker.host for worker in plan.memory]
    if any(host):
        sizes = f"{max(host) / MIB:>12,.1f}{sum(host) / len(host) / MIB:>12,.1f}"
        lines.append(f"{'tables in host memory':<34}{sizes}   {max(host) / memory.host:.0%} of what there is")
    return "\n".join(lines)


def time_table(plan: ClusterPlan) -> str:
    """Returns the time of each part of a step."""
    step = plan.step
    lines = [f"{'time of a step, ms':<46}{'slowest':>12}"]
    for name, value in step.parts.items():
        lines.append(f"{part_name(name, plan.cluster):<46}{value:>12.3f}{value / step.total:>8.0%}")
    lines.append(f"{'step':<46}{step.total:>12.3f}   bottleneck: {part_name(step.bottleneck, plan.cluster)}")
    if step.hides_input:
        lines.append(f"{part_name('input_exchange', plan.cluster):<46}{step.input_exchange:>12.3f}   behind the step before")
    return "\n".join(lines)


def price_of_host_memory(plan: ClusterPlan, all_on_gpu: StepTime) -> str:
    """Returns which share of the tables is in host memory, and what that costs."""
    host, all_tables = (sum(shard.mib for shard in plan.shards if shard.cache or every) / 1024 for every in (False, True))
    return (
        f"not all tables fit in GPU memory: {host:,.2f} GiB of {all_tables:,.2f} are in host memory. A step takes "
        f"{plan.step.total / all_on_gpu.total:.1f} times as long as with all tables in GPU memory ({all_on_gpu.total:.3f} ms)"
    )


def part_name(name: str, cluster: Cluster) -> str:
    """Returns the label of a part; an exchange is bound by the slowest links that it crosses."""
    where = " between nodes" if cluster.nodes > 1 else " within the node"
    return TIME[name] + (where if name.endswith("exchange") else "")


def speed(plan: ClusterPlan) -> str:
    """Returns rows per second, and the time and cost of a billion rows."""
    rows = plan.rows_per_second
    cost = f", {plan.cost_of_a_billion_rows:,.2f} at {plan.cluster.price:g} an hour of a GPU" if plan.cluster.price else ""
    return f"{rows:,.0f} rows/s; a billion rows: {1e9 / rows / 60:,.1f} minutes{cost}"


def too_small(workload: Workload, cluster: Cluster, smallest: ClusterPlan | None) -> str:
    """Returns an error text: what does not fit, and the remedy."""
    own, behind = usable_memory(workload, cluster)
    host = f", nor with {behind / GIB:g} GiB of host memory behind each" if behind else ""
    way_out = (
        f"{smallest.cluster} would do" if smallest else f"nor in up to {cluster.most_nodes} nodes of {cluster.gpus_per_node}"
    )
    return (
        f"the embedding tables ({workload.table_bytes / GIB:.2f} GiB with their optimizer state), activations and dense part do "
        f"not fit in {cluster.workers} x {cluster.gpu} of {own / GIB:g} GiB ({RESERVED_SHARE:.0%} of it reserved on a GPU){host}"
        f": {way_out}; or lower num_embeddings in the schema, --model.embedding-dim or --train.global-batch, or allow more "
        "--sharding.types"
    )

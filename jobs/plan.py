"""Before anyone rents GPUs: how a model would be sharded over a cluster, whether it fits, how fast it would train, at what cost.

    python jobs/plan.py dlrm --schema clicks.json --cluster.nodes 2 --cluster.gpu h100 --cluster.price 3.0
    python jobs/plan.py dlrm --data.path datasets/clicks --model.embedding-dim 128 --train.global-batch 65536
    python jobs/plan.py two-tower --data.path datasets/views --cluster.gpu a100 --cluster.gpus-per-node 4
    python jobs/plan.py dlrm --schema clicks.json --cluster.gpu cpu --cluster.gpus-per-node 2       # two workers on this machine

The other flags are those of the training run (jobs/train_dlrm.py, jobs/train_two_tower.py). Nothing is started, and no GPU is
needed. An estimate, explained in docs/planning.md, with what was measured beside it.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from recsys_ray.config import DLRMConfig, LoopConfig, OptimizerConfig, TrainConfig, TwoTowerConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.planning.cluster import Cluster, check
from recsys_ray.planning.plan import plan, smallest
from recsys_ray.planning.plan_text import plan_text, too_small
from recsys_ray.planning.workload import workload
from recsys_ray.schema import Schema


@dataclass(frozen=True)
class PlanJob(TrainConfig):
    schema: str = ""
    """A schema file, where there is no dataset directory yet; empty: that of `--data.path`."""
    list_values: float = 10.0
    """How many values a row of a multi-valued column has on average."""
    cluster: Cluster = field(default_factory=Cluster)


JOBS = {
    "dlrm": ("Ranking.", PlanJob(model=DLRMConfig(interaction="dcn"), train=LoopConfig(global_batch=65536))),
    "two-tower": (
        "Retrieval.",
        PlanJob(model=TwoTowerConfig(), optimizer=OptimizerConfig(sparse="adagrad"), train=LoopConfig(global_batch=8192)),
    ),
}


def main(job: PlanJob) -> None:
    if not job.schema and not job.data.path:
        raise ValueError("there is nothing to plan for: give --schema FILE, or --data.path with a dataset directory")
    check(job.cluster)
    schema = Schema.load(job.schema) if job.schema else DatasetDirectory.open(job.data.path).schema
    work = workload(job, schema, job.list_values)
    found, least = plan(work, job.cluster), smallest(work, job.cluster)
    if found is None:
        raise ValueError(too_small(work, job.cluster, least))
    print(plan_text(found, least))


if __name__ == "__main__":
    # TorchRec warns of every Topology that is made.
    logging.getLogger("torchrec").setLevel(logging.ERROR)
    try:
        main(tyro.extras.overridable_config_cli(JOBS, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).stem}: {error}")

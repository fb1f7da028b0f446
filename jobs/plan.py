"""Plans a training run before GPUs are rented: how it would be sharded, whether it fits, how fast it would train, at what cost.

    python jobs/plan.py dlrm --schema clicks.json --cluster.nodes 2 --cluster.gpu h100 --cluster.price 3.0
    python jobs/plan.py dlrm --data.path datasets/clicks --model.embedding-dim 128 --train.global-batch 65536
    python jobs/plan.py two-tower --data.path datasets/views --cluster.gpu a100 --cluster.gpus-per-node 4
    python jobs/plan.py dlrm --schema clicks.json --cluster.gpu cpu --cluster.gpus-per-node 2       # two workers on this machine

The other flags and their defaults are those of the training job (jobs/train_dlrm.py, jobs/train_two_tower.py). Nothing is
started, and no GPU is needed. The result is an estimate; docs/planning.md explains it and compares it with measurements.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.config import TrainConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.logs import configure_logging
from recsys_ray.models.registry import MODELS, registered_model
from recsys_ray.planning.cluster import Cluster, check_cluster
from recsys_ray.planning.plan import plan_cluster, smallest_plan
from recsys_ray.planning.plan_text import cluster_plan_text, too_small
from recsys_ray.planning.workload import make_workload
from recsys_ray.schema import Schema


@dataclass(frozen=True)
class PlanJob(TrainConfig):
    """A training run that is only planned."""

    schema: str = ""
    """A schema file, if there is no dataset directory yet; empty: the schema of `--data.path`."""
    list_values: float = 10.0
    """How many values a row of a multi-valued column has on average."""
    cluster: Cluster = field(default_factory=Cluster)


def planned(model: str) -> PlanJob:
    """Returns the settings that jobs/train_MODEL.py starts from, or the model's defaults if it has no such job."""
    job = f"train_{model}"
    config = import_module(job).CONFIG if find_spec(job) else TrainConfig(model=registered_model(model).config())
    return PlanJob(**{part.name: getattr(config, part.name) for part in dataclasses.fields(TrainConfig)})


def main(job: PlanJob) -> None:
    """Prints the plan. Raises ValueError if the model does not fit, naming the smallest cluster that it fits."""
    if not job.schema and not job.data.path:
        raise ValueError("there is nothing to plan for: give --schema FILE, or --data.path with a dataset directory")
    check_cluster(job.cluster)
    schema = Schema.load(job.schema) if job.schema else DatasetDirectory.open(job.data.path).schema
    workload = make_workload(job, schema, job.list_values)
    plan, smallest = plan_cluster(workload, job.cluster), smallest_plan(workload, job.cluster)
    if plan is None:
        raise ValueError(too_small(workload, job.cluster, smallest))
    print(cluster_plan_text(plan, smallest))


if __name__ == "__main__":
    configure_logging()
    models = {name.replace("_", "-"): (str(registered_model(name).config.__doc__), planned(name)) for name in MODELS}
    with readable_errors("nothing was started"):
        main(tyro.extras.overridable_config_cli(models, description=__doc__))

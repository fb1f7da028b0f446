"""Settings of the engine that starts the workers, and what it asks of the configuration that it hands to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True)
class RayConfig:
    """Settings of the ray engine: what each worker needs, and the Ray cluster to start on Spark."""

    resources: dict[str, float] = field(default_factory=dict)
    """Custom resources that each worker needs besides CPUs and GPUs, such as `accelerator_type:A10G 0.001`."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places the workers on nodes."""
    runtime_env: str = ""
    """A YAML file with a Ray runtime environment for the workers."""
    wait_seconds: float = 900.0
    """How long to wait for an autoscaling cluster to provide the nodes asked for."""
    resize_seconds: float = 60.0
    """Seconds between an elastic run's checks for room for more workers."""
    on_spark: Literal["auto", "always", "never"] = "auto"
    """Start Ray on the nodes of a Spark cluster, and stop it afterwards; auto: on Databricks."""
    spark_nodes: tuple[int, int] = (1, 4)
    """Minimum and maximum number of Ray worker nodes on Spark; the autoscaler stays between them."""
    spark_cpus_per_node: int | None = None
    """CPUs of a Ray worker node on Spark; set together with spark_gpus_per_node. None: all of a Spark worker's."""
    spark_gpus_per_node: int | None = None


@dataclass(frozen=True)
class SparkConfig:
    """Settings of the spark engine: the Spark session, and where in it the workers run."""

    mode: Literal["auto", "driver", "cluster"] = "auto"
    """driver: workers on the driver's machine. cluster: one Spark task each. auto: driver for a local master, else cluster."""
    master: str = ""
    """The master of the session that is made where none is active, such as spark://host:7077; empty: this machine."""


@dataclass(frozen=True)
class LaunchConfig:
    """The engine that starts the workers, how many there are, and what each needs."""

    engine: Literal["ray", "spark", "local"] = "ray"
    """ray: Ray Train. spark: TorchDistributor. local: torch elastic on this machine, no cluster."""
    workers: int = 1
    min_workers: int | None = None
    """Ray only: an elastic run starts with at least these and grows to `workers` as nodes join; None: exactly `workers`."""
    cpus_per_worker: float = 1.0
    gpus_per_worker: float | None = None
    """None: one where the cluster has GPUs, none elsewhere. Spark and local accept 0 and 1."""
    max_failures: int = 0
    """How often failed workers are started again; training then resumes from the last checkpoint."""
    ray: RayConfig = field(default_factory=RayConfig)
    spark: SparkConfig = field(default_factory=SparkConfig)


class LaunchedConfig(Protocol):
    """A configuration that a launcher can hand to every worker: a training run's, or a job's of another kind."""

    @property
    def run_dir(self) -> str:
        """The folder, on storage that all workers share, for the launcher's own files."""

    @property
    def launch(self) -> LaunchConfig:
        """The engine, and its workers."""

    @property
    def grace_seconds(self) -> float:
        """The time that the workers have to stop by themselves after SIGTERM to the launching process."""

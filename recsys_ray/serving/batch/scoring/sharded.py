"""Scoring by workers that share one model: a launcher starts them as for training, and each writes its part of the partitions."""

from __future__ import annotations

from dataclasses import dataclass

from recsys_ray.config import LaunchConfig, ShardingConfig
from recsys_ray.distributed import broadcast_value, join_world
from recsys_ray.launch.launcher import launcher
from recsys_ray.launch.stopping import StopRequest
from recsys_ray.logs import configure_logging
from recsys_ray.serving.batch.partitioned.stages import Stage
from recsys_ray.serving.batch.scoring.scorer import Scorer, ScoringPlan, write_scores
from recsys_ray.serving.batch.scoring.sharded_ranker import ScoringStopped, load_sharded_ranker


@dataclass(frozen=True)
class ShardedScoring:
    """Everything that a worker needs to know; a LaunchedConfig."""

    plan: ScoringPlan
    sharding: ShardingConfig
    launch: LaunchConfig
    grace_seconds: float = 25.0
    """The time that workers have to end their batch after SIGTERM to the job."""

    @property
    def run_dir(self) -> str:
        """The folder for the launcher's files, which is gone when the output is whole."""
        return str(self.plan.output.scratch)


def run_sharded(stage: Stage, scoring: ShardedScoring) -> None:
    """Launches the workers, which score the partitions that are missing, if any, and prints how far they are.

    Raises WorkerFailed; KeyboardInterrupt after SIGTERM.
    """
    if stage.missing():
        with stage.progress(), launcher(scoring.launch) as cluster:
            cluster.run(score_share, scoring)


def score_share(scoring: ShardedScoring) -> None:
    """Scores every n-th of the missing partitions, on one of n workers."""
    configure_logging()
    with join_world(scoring.launch.cpus_per_worker) as world:
        stop = StopRequest(scoring.run_dir, scoring.grace_seconds)
        ranker = load_sharded_ranker(scoring.plan.model, world, scoring.sharding, stop.requested)
        # Rank 0 lists them for all: file systems may show the same folder differently.
        missing = broadcast_value(scoring.plan.output.missing() if world.rank == 0 else [])
        try:
            for number in missing[world.rank :: world.size]:
                write_scores(scoring.plan, number, Scorer(ranker))
            ranker.attend()
        except ScoringStopped:
            return

"""Scores any table of raw rows with a ranking model: all its columns, and a score, the model's version and the time in every row.

    python jobs/score.py --model runs/dlrm --rows data/tonight --out scores/tonight
    python jobs/score.py --model runs/dlrm --rows s3://bucket/rows/*.parquet --out /shared/scores --engine spark
    ray job submit --working-dir . -- python jobs/score.py --model /shared/runs/dlrm --rows /shared/rows --out /shared/scores
    python jobs/score.py --model /shared/runs/dlrm --rows /shared/rows --out /shared/scores --sharded --launch.workers 8

The rows need the columns of the model's schema, raw; null stands for an unknown value. A row with a value that cannot be used has
no score, and the column `reason` says why. A job that was killed goes on when it is run again. With --sharded the workers
share one model that no host can hold.
"""

from __future__ import annotations

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.serving.batch.scoring.job import ScoreConfig, score


def main(job: ScoreConfig) -> None:
    """Scores the rows and prints how many have a score."""
    counts = score(job)
    print(f"{job.out}: {counts['rows'] - counts['not_scored']:,} rows scored, {counts['not_scored']:,} without a score")


if __name__ == "__main__":
    with readable_errors("run it again to go on with the partitions that are missing"):
        main(tyro.cli(ScoreConfig, description=__doc__))

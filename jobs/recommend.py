r"""Recommends items to all users, in two stages: a Two Tower finds hundreds of items for each, a DLRM puts them in order.

    python jobs/recommend.py --retriever runs/two_tower --ranker runs/dlrm --users data/ml-1m/users.parquet \
        --interactions data/ml-1m/interactions.parquet --history recent_items --item-columns title --out recommendations/tonight
    python jobs/recommend.py --retriever runs/two_tower --users s3://bucket/users/*.parquet --out /shared/tonight --engine spark
    ray job submit --working-dir . -- python jobs/recommend.py --retriever /shared/runs/two_tower ...

Nobody gets an item of --interactions again. Users whom the models do not know get the items that training rows have most often,
and are marked so. There is a row for each user and place, with the scores of both models and their versions. A job that was
killed goes on when it is run again.
"""

from __future__ import annotations

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.serving.batch.recommending.inputs import RecommendConfig
from recsys_ray.serving.batch.recommending.job import recommend
from recsys_ray.serving.batch.recommending.sample import recommendation_sample


def main(job: RecommendConfig) -> None:
    """Recommends, and prints to how many users."""
    counts = recommend(job)
    print(
        f"{job.out}: {counts['users']:,} users, {counts['rows']:,} rows; {counts['users_with_popular_items']:,} users got popular"
        f" items, {counts['users_with_fewer_than_k']:,} fewer than {job.k}"
    )
    if job.show and counts["rows"]:
        print(recommendation_sample(job.out, job.show, job.k, job.item_columns))


if __name__ == "__main__":
    with readable_errors("run it again to go on with the partitions that are missing"):
        main(tyro.cli(RecommendConfig, description=__doc__))

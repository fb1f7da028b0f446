"""Makes training rows for a ranking model that ranks after a retrieval model: what users chose, and what was retrieved instead.

    python jobs/sample_negatives.py --retriever runs/two_tower --interactions data/views.parquet --out data/ranking
    python jobs/sample_negatives.py --retriever runs/two_tower --interactions data/views --users data/users --out data/ranking
    python jobs/prepare_data.py --parquet data/ranking/interactions.parquet --items data/items --out datasets/ranking
    python jobs/train_dlrm.py --data.path datasets/ranking --run-dir runs/ranker

Every row of the interactions is kept, with its label as 0 or 1. Each positive row gets a few negatives: items that the retrieval
model finds for its user and that the user has no row with. A schema.json is written beside the rows. The interactions must fit in
this machine's memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.serving.recommender.negatives import NegativeSampling, write_ranking_rows


@dataclass(frozen=True)
class SampleNegatives:
    """The flags of this job."""

    retriever: str
    """A finished run of jobs/train_two_tower.py, or its bundle. Its dataset directory has the catalogue."""
    interactions: str
    """Parquet of interactions, as the retrieval model's dataset was prepared from."""
    out: str
    """The folder to write."""
    users: str = ""
    """Parquet of user columns, one row a user, as given to jobs/prepare_data.py."""
    sampling: NegativeSampling = field(default_factory=NegativeSampling)


def main(job: SampleNegatives) -> None:
    """Writes the rows and says how many there are."""
    print(write_ranking_rows(job.retriever, job.interactions, job.users, Path(job.out), sampling=job.sampling))


if __name__ == "__main__":
    with readable_errors(when_interrupted="nothing was written"):
        main(tyro.cli(SampleNegatives, description=__doc__))

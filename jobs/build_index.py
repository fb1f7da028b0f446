"""Builds the vector index of a Two Tower run: embeds every item of its catalogue in parallel, then replaces the index atomically.

    python jobs/build_index.py --run-dir runs/two_tower                                  # -> runs/two_tower/index
    python jobs/build_index.py --run-dir runs/two_tower --index s3://bucket/items        # object store
    python jobs/build_index.py --run-dir runs/two_tower --index faiss:/shared/index      # faster, in memory, from a file system
    python jobs/build_index.py --run-dir runs/two_tower --show 2                         # and recommendations for two users
    python jobs/build_index.py --run-dir runs/two_tower --index databricks:search/main.recsys.films     # AI Search
    ray job submit --working-dir . -- python jobs/build_index.py --run-dir /shared/runs/two_tower

It prints and stores the recall against exact search. Running it again rebuilds the index; searches continue meanwhile. A second
build at the same time is refused, and other tables at the same place are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.serving.index.build import build_index
from recsys_ray.serving.show import recommendations


@dataclass(frozen=True)
class IndexJob:
    """The flags of this job."""

    run_dir: str
    """A finished run of jobs/train_two_tower.py."""
    index: str = ""
    """A folder or an object-store URL (LanceDB), faiss:folder, or databricks:endpoint/catalog.schema.name; empty: `index` in the
    run directory."""
    show: int = 0
    """Prints, for this many users of the test split, what they liked and the ten items recommended to them."""
    title: str = "title"
    """With --show: the item column to print."""


def main(job: IndexJob) -> None:
    """Builds the index, then shows some recommendations from it."""
    run_dir = Path(job.run_dir).absolute()
    uri = job.index or str(run_dir / "index")
    print(f"index    {uri}: {build_index(run_dir, uri)}")
    if job.show:
        print("\n".join(recommendations(run_dir, uri, job.show, job.title)))


if __name__ == "__main__":
    with readable_errors(when_interrupted="an index that was served is still served"):
        main(tyro.cli(IndexJob, description=__doc__))

"""Build the vector index of a Two Tower run: every item of its catalogue embedded in parallel, searchable, replaced atomically.

    python jobs/build_index.py --run-dir runs/two_tower                                  # -> runs/two_tower/index
    python jobs/build_index.py --run-dir runs/two_tower --index s3://bucket/items        # object store
    python jobs/build_index.py --run-dir runs/two_tower --show 2                         # and what it recommends to two users
    python jobs/build_index.py --run-dir runs/two_tower --index databricks:search/main.recsys.films     # AI Search
    ray job submit --working-dir . -- python jobs/build_index.py --run-dir /shared/runs/two_tower

Prints and stores the recall against exact search. With the same run the index is built anew; searches go on meanwhile.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from recsys_ray.serving.index.build import build_index
from recsys_ray.serving.show import recommendations


@dataclass(frozen=True)
class IndexJob:
    run_dir: str
    """A finished run of jobs/train_two_tower.py."""
    index: str = ""
    """A folder, an object-store URL, or databricks:endpoint/catalog.schema.name; empty: `index` in the run directory."""
    show: int = 0
    """For so many users of the test split, print what they liked and the ten items recommended."""
    title: str = "title"
    """With --show: the item column to print."""


def main(job: IndexJob) -> None:
    run_dir = Path(job.run_dir).absolute()
    uri = job.index or str(run_dir / "index")
    print(f"index    {uri}: {build_index(run_dir, uri)}")
    if job.show:
        print("\n".join(recommendations(run_dir, uri, job.show, job.title)))


if __name__ == "__main__":
    try:
        main(tyro.cli(IndexJob, description=__doc__))
    except (ValueError, OSError) as error:
        sys.exit(f"{Path(__file__).stem}: {error}")

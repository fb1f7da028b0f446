"""Fetches, converts or generates a data set as Parquet, with the schema.json that jobs/prepare_data.py needs.

    python jobs/fetch_dataset.py movielens --out data/ml-1m
    python jobs/fetch_dataset.py movielens --out data/ml-1m --source folder-with-ratings.dat
    python jobs/fetch_dataset.py criteo --files day_0.gz day_1.gz --out data/criteo
    python jobs/fetch_dataset.py synthetic --rows 4000000 --out data/synthetic      # clicks, for ranking
    python jobs/fetch_dataset.py choices --users 20000 --out data/choices           # implicit feedback, for retrieval

It writes the whole data set or nothing; a second call with the same arguments returns at once.
"""

from __future__ import annotations

import time
from pathlib import Path

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.datasets import choices, criteo, movielens, synthetic

DATASETS = {
    "movielens": movielens.fetch,
    "criteo": criteo.convert,
    "synthetic": synthetic.generate_clicks,
    "choices": choices.generate_choices,
}


def main() -> None:
    """Makes the data set that the subcommand names, and prints where it is."""
    started = time.monotonic()
    out = tyro.extras.subcommand_cli_from_dict(DATASETS, description=__doc__)
    print(f"{describe(out)} in {time.monotonic() - started:.1f} s")


def describe(out: Path) -> str:
    """Returns the folder's name and the files in it."""
    files = [file for file in out.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 1e6
    return f"{out}: {', '.join(sorted(file.name for file in out.iterdir()))} ({size:.1f} MB)"


if __name__ == "__main__":
    with readable_errors("nothing was written"):
        main()

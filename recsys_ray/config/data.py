"""Settings of preparation and of the data that a run trains on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SplitConfig:
    """The rule by which rows are divided into train, validation and test."""

    by: Literal["random", "time", "leave_one_out", "column"] = "random"
    """random: by a hash of file and row. time: the latest rows are test, those before them validation. leave_one_out: each user's
    latest positive row is test, the one before it validation. column: what a column of the table says."""
    validation: float = 0.1
    """Fraction of the rows, for random and time."""
    test: float = 0.1
    """Fraction of the rows, for random and time."""
    column: str = ""
    """For `column`: the column that holds the words train, validation or test."""


@dataclass(frozen=True)
class PrepareConfig:
    """The settings of a preparation, from Parquet to a dataset directory."""

    engine: Literal["ray", "spark"] = "ray"
    """What reads, shuffles and writes: Ray Data, or Spark. Both write the same dataset directory."""
    parquet: str = ""
    """Interactions: a Parquet file, folder, glob or object-store URL; on Spark also `table:catalog.schema.name` (or a view)."""
    users: str = ""
    """Optional Parquet of user columns, one row a user, joined on `user_key`. Must fit in a worker's memory, like `items`."""
    items: str = ""
    """Optional Parquet of item columns, one row an item, joined on `item_key`."""
    user_key: str = "user_id"
    item_key: str = "item_id"
    out: str = ""
    """The dataset directory to write, on a file system that all workers share."""
    schema: str = ""
    """A schema file; empty: the `schema.json` beside the Parquet."""
    split: SplitConfig = field(default_factory=SplitConfig)
    seed: int = 0
    block_rows: int = 256
    """Rows in a row block, the unit that is stored, shuffled and batched."""
    max_rejected: float = 0.1
    """Give up, writing nothing, when more than this fraction of the rows is bad."""
    overwrite: bool = False
    """Replace an existing dataset directory, atomically."""
    grow_from: str = ""
    """A dataset directory of earlier data, such as yesterday's. Its vocabularies come first, as they are, then the values that
    are new, most frequent first; columns standardised in both keep its means and deviations. So a value keeps its row in the
    embedding table and a number its scale, and training may start from the weights of the earlier data. None of its values is
    dropped: `min_frequency` and `num_embeddings` of the schema limit the new ones."""


@dataclass(frozen=True)
class DataConfig:
    """The data that a run trains on: a prepared dataset directory, or raw Parquet that is prepared first."""

    path: str = ""
    """A dataset directory written by jobs/prepare_data.py, on a file system that all workers share."""
    parquet: str = ""
    """Raw Parquet, which is prepared first. Its schema is `--data.schema`, or the `schema.json` beside it."""
    schema: str = ""
    split: SplitConfig = field(default_factory=SplitConfig)
    """How raw Parquet, or the job's sample data, is split; a dataset directory is split already."""
    cache: str = ""
    """Folder on each node's own disk for unpacked copies of the shards, removed at the end; empty: the temporary folder."""
    loader_workers: int | None = None
    """Processes that decode blocks for each training worker; None: 2 on GPU, 0 (in the training process) on CPU."""
    num_canonical_nodes: int = 1
    """Mosaic Streaming's setting of this name: the order of rows is the same for any number of nodes that divides it or that it
    divides."""
    predownload: int = 1024
    """Blocks fetched ahead of training, per worker."""

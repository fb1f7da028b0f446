"""Embedding of every item of a catalogue, in parallel on Ray Data: on the connected cluster, or else on one started here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from recsys_ray.columns import FREQUENCY
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import CATALOGUE, load_catalogue
from recsys_ray.ray_address import check_ray_address
from recsys_ray.serving.bundle import load_retriever
from recsys_ray.serving.index.vector_index import VECTOR

ITEMS_PER_BATCH = 4096
ITEMS_PER_WORKER = 50_000


class Embedder:
    """A Ray Data worker that loads the model once and embeds batches of items.

    Raises FileNotFoundError on a node that cannot see the run directory.
    """

    def __init__(self, run_dir: str) -> None:
        self._retriever = load_retriever(run_dir)

    def __call__(self, items: pa.Table) -> pa.Table:
        """Returns the raw columns with VECTOR."""
        vectors = self._retriever.embed_candidates(items)
        kept = items.drop_columns([FREQUENCY])
        return kept.append_column(VECTOR, pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1]))


def item_vectors(run_dir: Path, dataset: DatasetDirectory, dim: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Returns the schema and the batches of the catalogue's raw columns with VECTOR, in the order in which workers finish.

    The run directory and the dataset must be on storage that all nodes see.
    """
    if not ray.is_initialized():
        check_ray_address()
        ray.init(logging_level=logging.ERROR, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    # Its newer reader, and any filter of extensions, find no file in a path that has a "?", which they take for a URL.
    context.use_datasource_v2 = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    catalogue = load_catalogue(dataset)
    workers = max(1, min(int(ray.cluster_resources().get("CPU", 1)), len(catalogue) // ITEMS_PER_WORKER))
    vectors = ray.data.read_parquet(str(dataset.root / CATALOGUE), file_extensions=None).map_batches(
        Embedder,
        fn_constructor_args=(str(run_dir),),
        batch_size=ITEMS_PER_BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=0,  # embedders that hold every CPU would leave none for the readers: a deadlock
    )
    schema = catalogue.schema.remove(catalogue.schema.get_field_index(FREQUENCY)).append(
        pa.field(VECTOR, pa.list_(pa.float32(), dim))
    )
    return schema, _batches(vectors, schema)


def _batches(vectors: Any, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for table in vectors.iter_batches(batch_size=ITEMS_PER_BATCH, batch_format="pyarrow"):
        yield from table.select(schema.names).cast(schema).combine_chunks().to_batches()

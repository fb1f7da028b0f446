"""Training rows for a ranking model that ranks after a retrieval model: what users chose, and what was retrieved and not chosen.

A ranking model that has only seen what users chose or rated learns to tell good items from bad among those, and not to tell the
items that a user would choose from the hundreds that the retrieval model finds. So each positive row gets a few negatives from
the candidates that its user would have been shown at that moment (Covington et al. 2016 train on impressions, for this reason).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from recsys_ray.data.dataset.atomic_folder import replaced_atomically
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.sources.joins import join_lookups
from recsys_ray.data.sources.parquet_files import find_parquet
from recsys_ray.data.transform import positive_rows
from recsys_ray.schema import Label, Schema
from recsys_ray.serving.bundle import load_retriever
from recsys_ray.serving.recommender.candidates import NONE, exact_candidates
from recsys_ray.serving.recommender.recommender import Recommender
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue

ROWS_EMBEDDED_AT_ONCE = 4096
DEFAULT_LABEL = "chosen"
"""The name of the label where the schema has none."""


@dataclass(frozen=True)
class NegativeSampling:
    """A rule for drawing negatives: how many a positive row gets, and from which candidates."""

    negatives: int = 4
    """Negatives for each positive row."""
    among: int = 500
    """They are drawn uniformly from so many of the best candidates: as many as will be ranked."""
    seed: int = 0


def ranking_rows(recommender: Recommender, interactions: pa.Table, sampling: NegativeSampling) -> Iterator[pa.Table]:
    """Yields tables of rows with label 1 or 0: those of `interactions`, then the negatives drawn for the positive ones.

    A negative has the user's columns and the timestamp of its positive row, and never an item of the same user in `interactions`.
    The columns of items are left out but for the key: joining the catalogue adds them.
    """
    schema, catalogue = recommender.retriever.schema, recommender.catalogue
    label, items = ranking_label(schema), torch.from_numpy(recommender.retriever.embed_candidates(catalogue.raw))
    positive = positive_rows(interactions, schema)
    own = _positions_by_user(recommender, interactions)
    users = interactions[recommender.retriever.user_key].to_pylist()
    random = np.random.default_rng(sampling.seed)
    yield _labelled(interactions, label, positive.astype(np.float32))
    chosen = np.flatnonzero(positive)
    for start in range(0, len(chosen), ROWS_EMBEDDED_AT_ONCE):
        rows = chosen[start : start + ROWS_EMBEDDED_AT_ONCE]
        batch = interactions.take(pa.array(rows))
        exclude = [own[users[row]] for row in rows]
        found = exact_candidates(recommender.queries(batch), items, sampling.among, exclude)
        yield _negatives(recommender, batch, _drawn(found.positions, sampling.negatives, random), label)


def write_ranking_rows(retriever: str, interactions: str, users: str, out: Path, *, sampling: NegativeSampling) -> str:
    """Writes `interactions.parquet` and `schema.json` for a ranking model into `out`, whole or not at all, and describes them.

    Args:
        retriever: a run or bundle of a retrieval model.
        interactions, users: Parquet paths; `users` may be empty.

    Raises ValueError for a column that the retrieval model reads and the tables do not have.
    """
    model = load_retriever(retriever)
    rows = _read_all(interactions)
    if users:
        table = _read_all(users)
        names = [name for name in table.column_names if name not in rows.column_names]
        rows = join_lookups(lambda: [(model.user_key, table)], [*rows.column_names, *names], rows)
    catalogue = ServedCatalogue.load(DatasetDirectory.open(model.dataset), model.item_key)
    with replaced_atomically(out) as folder:
        counts = [0, 0]
        with ExitStack() as stack:
            writer = None
            for part in ranking_rows(Recommender(model, None, catalogue), rows, sampling):
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(folder / "interactions.parquet", part.schema))
                writer.write_table(part)
                positives = int(pc.sum(part[ranking_label(model.schema).name]).as_py() or 0)
                counts = [counts[0] + positives, counts[1] + len(part) - positives]
        (folder / "schema.json").write_text(ranking_schema(model.schema).to_json())
    return f"{out}: {counts[0]:,} positive rows and {counts[1]:,} negative ones"


def _read_all(path: str) -> pa.Table:
    files = find_parquet(path)
    return files.read(files.arrow_schema.names)


def ranking_label(schema: Schema) -> Label:
    """Returns the label of the rows: that of the schema as 0 or 1, or one of its own."""
    return Label(schema.label.name if schema.label else DEFAULT_LABEL)


def ranking_schema(schema: Schema) -> Schema:
    """Returns the schema of the rows, for a preparation that finds vocabularies and means anew."""
    return Schema((ranking_label(schema), *(column for column in schema.columns if not isinstance(column, Label))))


def _positions_by_user(recommender: Recommender, interactions: pa.Table) -> dict[object, np.ndarray]:
    """Returns for each user the catalogue positions of all items in the table."""
    positions = recommender.catalogue.positions(interactions[recommender.catalogue.key].combine_chunks())
    codes = interactions[recommender.retriever.user_key].combine_chunks().dictionary_encode()
    order = np.argsort(codes.indices.to_numpy(), kind="stable")
    counts = np.bincount(codes.indices.to_numpy(), minlength=len(codes.dictionary))
    return dict(zip(codes.dictionary.to_pylist(), np.split(positions[order], np.cumsum(counts)[:-1]), strict=True))


def _drawn(positions: np.ndarray, negatives: int, random: np.random.Generator) -> np.ndarray:
    """Draws from each row's candidates without replacement; NONE where it has too few. int64 [rows, negatives]."""
    order = np.where(positions == NONE, np.inf, random.random(positions.shape))
    return np.take_along_axis(positions, np.argsort(order, axis=1)[:, :negatives], axis=1)


def _negatives(recommender: Recommender, batch: pa.Table, drawn: np.ndarray, label: Label) -> pa.Table:
    row, place = np.nonzero(drawn != NONE)
    rows = batch.take(pa.array(row))
    keys = recommender.catalogue.keys(drawn[row, place])
    key = recommender.catalogue.key
    rows = rows.set_column(rows.column_names.index(key), key, keys.cast(batch.schema.field(key).type))
    return _labelled(rows, label, np.zeros(len(row), np.float32))


def _labelled(rows: pa.Table, label: Label, values: np.ndarray) -> pa.Table:
    kept = rows.drop_columns([label.name]) if label.name in rows.column_names else rows
    return kept.append_column(label.name, pa.array(values))

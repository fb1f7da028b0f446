"""The batches of a Two Tower: rows of a training step with their uniform negatives, or one side (queries, candidates) alone."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys_ray.columns import LENGTHS, ROW_WEIGHT, Columns
from recsys_ray.models.embeddings import jagged
from recsys_ray.models.encoded_catalogue import EncodedCatalogue
from recsys_ray.models.task import Batch
from recsys_ray.schema import QUERY_SIDES, Categorical, Dense, Schema, Side

CANDIDATE: tuple[Side, ...] = ("item",)


@dataclass
class TwoTowerBatch(Batch):
    """B rows, then N uniform negatives. `dense` [B + N, D] and `sparse` hold both; `labels` and `weights` [B] hold the rows."""

    items: torch.Tensor
    """int64 [B + N]: the table row of each candidate's item key."""
    log_q: torch.Tensor
    """float32 [B + N]: the correction that the loss subtracts from each candidate's scores."""


class TrainingBatches:
    """Makes the training batches of a Two Tower: the rows of a step, then the uniform negatives drawn for them."""

    def __init__(self, schema: Schema, catalogue: EncodedCatalogue, seed: int, *, uniform_negatives: int, log_q: bool) -> None:
        self._schema, self._catalogue, self._seed = schema, catalogue, seed
        self._uniform_negatives, self._corrects = uniform_negatives, log_q
        self._log_q = lru_cache(1)(partial(catalogue.log_q, uniform=uniform_negatives))

    def __call__(self, columns: Columns) -> TwoTowerBatch:
        """Returns the batch. Its negatives depend on the seed and the items of the rows alone."""
        schema, weights, key = self._schema, columns[ROW_WEIGHT], self._catalogue.key.name
        drawn = self._catalogue.draw(self._uniform_negatives, zlib.crc32(columns[key].numpy().tobytes(), self._seed))
        columns = with_items(schema, columns, drawn)
        items = columns[key].long()
        corrections = self._log_q(len(weights))[items] if self._corrects else torch.zeros(len(items))
        labels = columns[schema.label.name] if schema.label else torch.ones_like(weights)
        return TwoTowerBatch(*inputs(schema, columns, len(items)), labels, weights, items, corrections)


def query_batch(schema: Schema, columns: Columns) -> Batch:
    """Makes a batch for `embed_query` of rows with user and context columns; item columns are left empty."""
    return _one_sided(schema, columns, QUERY_SIDES)


def candidate_batch(schema: Schema, columns: Columns) -> Batch:
    """Makes a batch for `embed_candidate` of rows with item columns; user and context columns are left empty."""
    return _one_sided(schema, columns, CANDIDATE)


def embed_queries(schema: Schema, module: Any, columns: Columns, device: torch.device) -> torch.Tensor:
    """Returns the query vectors of rows with user and context columns."""
    return module.model.embed_query(query_batch(schema, columns).to(device))


def embed_candidates(schema: Schema, module: Any, columns: Columns, device: torch.device) -> torch.Tensor:
    """Returns the candidate vectors of rows with item columns."""
    return module.model.embed_candidate(candidate_batch(schema, columns).to(device))


def _one_sided(schema: Schema, columns: Columns, sides: tuple[Side, ...]) -> Batch:
    own = schema.features_of(*sides)
    rows = len(columns.get(own[0].name + LENGTHS, columns[own[0].name]))
    kept = {name: columns[name] for column in own for name in (column.name, column.name + LENGTHS) if name in columns}
    for column in schema.categorical:
        if column.side not in sides:
            kept |= {column.name: torch.zeros(0, dtype=torch.int32), column.name + LENGTHS: torch.zeros(rows, dtype=torch.int32)}
    return Batch(*inputs(schema, kept, rows), torch.ones(rows), torch.ones(rows))


def inputs(schema: Schema, columns: Columns, rows: int) -> tuple[torch.Tensor, KeyedJaggedTensor]:
    """Returns `dense` and `sparse` of a batch; a dense column that is missing is 0."""
    dense = [columns.get(column.name, torch.zeros(rows)) for column in schema.dense]
    return torch.stack(dense, dim=1) if dense else torch.zeros(rows, 0), jagged(columns, schema.categorical)


def with_items(schema: Schema, columns: Columns, drawn: Columns) -> Columns:
    """Returns the rows of `columns`, then the items `drawn`, whose user and context columns are left empty."""
    key = schema.key("item")
    assert key is not None
    rows, more = len(columns[key.name]), len(drawn[key.name])
    if not more:
        return columns
    joined = dict(columns)
    for column in schema.features:
        name, lengths = column.name, column.name + LENGTHS
        match column:
            case Dense():
                joined[name] = torch.cat([columns[name], drawn.get(name, torch.zeros(more))])
            case Categorical(side="item"):
                joined |= {part: torch.cat([columns[part], drawn[part]]) for part in (name, lengths) if part in columns}
            case Categorical():
                own = columns.get(lengths, torch.ones(rows, dtype=torch.int32))
                joined[lengths] = torch.cat([own, torch.zeros(more, dtype=torch.int32)])
    return joined

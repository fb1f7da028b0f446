"""Columns -> what a Two Tower looks up: rows of a training step with its uniform negatives, or one side alone."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys_ray.columns import LENGTHS, Columns
from recsys_ray.config import TwoTowerConfig
from recsys_ray.models.embeddings import jagged
from recsys_ray.models.encoded_catalogue import Catalogue
from recsys_ray.models.task import Batch
from recsys_ray.schema import Categorical, Dense, Schema, Side

QUERY: tuple[Side, ...] = ("user", "context")
CANDIDATE: tuple[Side, ...] = ("item",)


@dataclass
class TwoTowerBatch(Batch):
    """B rows, then N uniform negatives: `dense` [B + N, D] and `sparse` are of both, `labels` and `weights` [B] of the rows."""

    items: torch.Tensor
    """int64 [B + N]: table row of the item key."""
    log_q: torch.Tensor
    """float32 [B + N]."""


def training_batch(
    config: TwoTowerConfig,
    schema: Schema,
    row_weight: str,
    catalogue: Catalogue,
    log_q: Callable[[int], torch.Tensor],
    seed: int,
    columns: Columns,
) -> TwoTowerBatch:
    weights = columns[row_weight]
    key = schema.key("item")
    assert key is not None
    drawn = catalogue.draw(config.uniform_negatives, zlib.crc32(columns[key.name].numpy().tobytes(), seed))
    columns = with_items(schema, columns, drawn)
    items = columns[key.name].long()
    corrections = log_q(len(weights))[items] if config.log_q else torch.zeros(len(items))
    labels = columns[schema.label.name] if schema.label else torch.ones_like(weights)
    return TwoTowerBatch(*inputs(schema, columns, len(items)), labels, weights, items, corrections)


def query_batch(schema: Schema, columns: Columns) -> Batch:
    """Of rows with user and context columns, for `embed_query`; items have no values."""
    return _one_sided(schema, columns, QUERY)


def candidate_batch(schema: Schema, columns: Columns) -> Batch:
    """Of rows with item columns, for `embed_candidate`; users and context have no values."""
    return _one_sided(schema, columns, CANDIDATE)


def _one_sided(schema: Schema, columns: Columns, sides: tuple[Side, ...]) -> Batch:
    own = [column for column in schema.features if column.side in sides]
    rows = len(columns.get(own[0].name + LENGTHS, columns[own[0].name]))
    kept = {name: columns[name] for column in own for name in (column.name, column.name + LENGTHS) if name in columns}
    for column in schema.categorical:
        if column.side not in sides:
            kept |= {column.name: torch.zeros(0, dtype=torch.int32), column.name + LENGTHS: torch.zeros(rows, dtype=torch.int32)}
    return Batch(*inputs(schema, kept, rows), torch.ones(rows), torch.ones(rows))


def inputs(schema: Schema, columns: Columns, rows: int) -> tuple[torch.Tensor, KeyedJaggedTensor]:
    """`dense` and `sparse` of a batch; a dense column that is not there is 0."""
    dense = [columns.get(column.name, torch.zeros(rows)) for column in schema.dense]
    return torch.stack(dense, dim=1) if dense else torch.zeros(rows, 0), jagged(columns, schema.categorical)


def with_items(schema: Schema, columns: Columns, drawn: Columns) -> Columns:
    """The rows of `columns`, then those of `drawn`, items alone: their users and context have no values."""
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

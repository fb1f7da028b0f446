"""Embedding tables of a schema, the KeyedJaggedTensor that looks rows up in them, and pooling of a feature's values."""

from __future__ import annotations

from typing import Literal

import torch
import torch.fx
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from recsys_ray.columns import LENGTHS
from recsys_ray.schema import Categorical, Schema


def embedding_tables(schema: Schema, embedding_dim: int, pooling: str) -> EmbeddingBagCollection:
    """Makes the tables of a schema on `meta`, where they take no memory until they are sharded."""

    def kind(columns: list[Categorical]) -> PoolingType:
        """Chooses sum where every row has one value: its mean is the same, and TorchRec then does not divide by lengths."""
        return PoolingType.MEAN if pooling == "mean" and any(column.multi for column in columns) else PoolingType.SUM

    configs = [
        EmbeddingBagConfig(
            name=module_name(name),
            embedding_dim=embedding_dim,
            num_embeddings=columns[0].num_embeddings,
            feature_names=[column.name for column in columns],
            pooling=kind(columns),
        )
        for name, columns in schema.tables.items()
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device("meta"))


def module_name(table: str) -> str:
    """Returns the name of a table as a child module, which "items", "type" or a name with a dot cannot be."""
    return table.replace(".", ":") + "_table"


def jagged(columns: dict[str, torch.Tensor], features: tuple[Categorical, ...]) -> KeyedJaggedTensor:
    """Makes the input of a lookup: table rows of F features x B rows, int32, feature-major.

    A feature without `.lengths` has length 1 everywhere. Sharded tables convert to int64 only after the exchange between workers.
    """
    name = features[0].name
    rows, device = len(columns.get(name + LENGTHS, columns[name])), columns[name].device
    if any(feature.name + LENGTHS in columns for feature in features):
        ones = torch.ones(rows, dtype=torch.int32, device=device)
        lengths = torch.cat([columns.get(feature.name + LENGTHS, ones) for feature in features])
    else:
        lengths = torch.ones(rows * len(features), dtype=torch.int32, device=device)
    values = torch.cat([columns[feature.name] for feature in features])
    return KeyedJaggedTensor(keys=[feature.name for feature in features], values=values, lengths=lengths)


class PooledEmbeddings(nn.Module):
    """A lookup that pools each feature to [B, embedding_dim]: by TorchRec's fused bags (sum, mean), or by attention."""

    def __init__(
        self,
        schema: Schema,
        embedding_dim: int,
        device: torch.device,
        *,
        pooling: Literal["mean", "sum", "attention"],
        max_values: int,
    ) -> None:
        super().__init__()
        self.attention = nn.ModuleDict()
        self._bags = pooling != "attention"
        if pooling != "attention":
            self.tables: EmbeddingBagCollection | EmbeddingCollection = embedding_tables(schema, embedding_dim, pooling)
            return
        self.tables = _single_embeddings(schema, embedding_dim)
        for column in schema.categorical:
            if column.multi:
                self.attention[module_name(column.name)] = AttentionPooling(embedding_dim, max_values, device)

    def forward(self, features: KeyedJaggedTensor, wanted: list[str]) -> list[torch.Tensor]:
        """Returns one tensor [B, embedding_dim] for each feature named in `wanted`, in that order."""
        found = self.tables(features)
        if self._bags:
            return [found[name] for name in wanted]
        return [self._pooled(name, found[name]) for name in wanted]

    def _pooled(self, name: str, embeddings: JaggedTensor) -> torch.Tensor:
        if module_name(name) in self.attention:
            return self.attention[module_name(name)](embeddings)
        return embeddings.to_padded_dense(1).squeeze(1)


def _single_embeddings(schema: Schema, embedding_dim: int) -> EmbeddingCollection:
    configs = [
        EmbeddingConfig(
            name=module_name(name),
            embedding_dim=embedding_dim,
            num_embeddings=columns[0].num_embeddings,
            feature_names=[column.name for column in columns],
        )
        for name, columns in schema.tables.items()
    ]
    return EmbeddingCollection(tables=configs, device=torch.device("meta"))


class AttentionPooling(nn.Module):
    """A mean of a row's embeddings, weighted by the softmax of (learned query . embedding + learned bias of its position).

    This is the self-attentive pooling of Lin et al. 2017 (arXiv:1703.03130) with one hop. Position 0 is the first value of the
    list; values beyond `positions` are left out; a row without values becomes zeros.
    """

    def __init__(self, embedding_dim: int, positions: int, device: torch.device) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(embedding_dim, device=device))
        self.position_bias = nn.Parameter(torch.zeros(positions, device=device))
        self._positions = positions

    def forward(self, embeddings: JaggedTensor) -> torch.Tensor:
        """Returns one vector for each row, float32 [rows, embedding_dim]."""
        return _attend(embeddings.to_padded_dense(self._positions), embeddings.lengths(), self.query, self.position_bias)


@torch.fx.wrap
def _attend(padded: torch.Tensor, lengths: torch.Tensor, query: torch.Tensor, position_bias: torch.Tensor) -> torch.Tensor:
    """Pools `padded` [B, positions, D], which is zero beyond a row's length."""
    there = torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1)
    scores = (padded @ query + position_bias).masked_fill(~there, torch.finfo(padded.dtype).min)
    return torch.bmm(torch.softmax(scores, dim=1).unsqueeze(1), padded).squeeze(1)

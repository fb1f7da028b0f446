"""Schema -> embedding tables, columns -> the KeyedJaggedTensor they look up, and each feature's values -> one vector."""

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
    """On `meta`: the tables take no memory until they are sharded."""

    def kind(columns: list[Categorical]) -> PoolingType:
        """The mean of one value is its sum, for which TorchRec does not divide by lengths."""
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
    """A table is a child module, and "items", "type" or a name with a dot cannot name one."""
    return table.replace(".", ":") + "_table"


def jagged(columns: dict[str, torch.Tensor], features: tuple[Categorical, ...]) -> KeyedJaggedTensor:
    """Table rows of F features x B rows, int32, feature-major; a feature without `.lengths` has length 1 everywhere. Sharded
    tables make int64 of them only after workers have exchanged them."""
    name = features[0].name
    rows = len(columns.get(name + LENGTHS, columns[name]))
    ones = torch.ones(rows, dtype=torch.int32)
    return KeyedJaggedTensor(
        keys=[feature.name for feature in features],
        values=torch.cat([columns[feature.name] for feature in features]),
        lengths=torch.cat([columns.get(feature.name + LENGTHS, ones) for feature in features]),
    )


class PooledEmbeddings(nn.Module):
    """[B, embedding_dim] of every feature: TorchRec's fused bags for sum and mean, attention over single embeddings otherwise."""

    def __init__(
        self, schema: Schema, embedding_dim: int, pooling: Literal["mean", "sum", "attention"], values: int, device: torch.device
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
                self.attention[module_name(column.name)] = AttentionPooling(embedding_dim, values, device)

    def forward(self, features: KeyedJaggedTensor, wanted: list[str]) -> list[torch.Tensor]:
        """In the order of `wanted`, feature names."""
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
    """The mean of a row's embeddings, each weighted by the softmax of (learned query . embedding + learned bias of its position).

    A self-attentive pooling (Lin et al. 2017, arXiv:1703.03130, with one hop) that knows order: position 0 is the first value of
    the list. Values beyond `positions` are left out; a row without values becomes zeros.
    """

    def __init__(self, embedding_dim: int, positions: int, device: torch.device) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(embedding_dim, device=device))
        self.position_bias = nn.Parameter(torch.zeros(positions, device=device))
        self._positions = positions

    def forward(self, embeddings: JaggedTensor) -> torch.Tensor:
        return _attend(embeddings.to_padded_dense(self._positions), embeddings.lengths(), self.query, self.position_bias)


@torch.fx.wrap
def _attend(padded: torch.Tensor, lengths: torch.Tensor, query: torch.Tensor, position_bias: torch.Tensor) -> torch.Tensor:
    """padded: [B, positions, D], zeros beyond a row's length."""
    there = torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1)
    scores = (padded @ query + position_bias).masked_fill(~there, torch.finfo(padded.dtype).min)
    return torch.bmm(torch.softmax(scores, dim=1).unsqueeze(1), padded).squeeze(1)

"""Schema -> embedding tables, and columns -> the KeyedJaggedTensor they look up."""

from __future__ import annotations

import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys_ray.schema import Categorical, Schema

LENGTHS = ".lengths"


def embedding_tables(schema: Schema, embedding_dim: int, pooling: str) -> EmbeddingBagCollection:
    """On `meta`: the tables take no memory until they are sharded."""
    kind = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}[pooling]
    configs = [
        EmbeddingBagConfig(
            name=module_name(name),
            embedding_dim=embedding_dim,
            num_embeddings=columns[0].num_embeddings,
            feature_names=[column.name for column in columns],
            pooling=kind,
        )
        for name, columns in schema.tables.items()
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device("meta"))


def module_name(table: str) -> str:
    """A table is a child module, and "items", "type" or a name with a dot cannot name one."""
    return table.replace(".", ":") + "_table"


def jagged(columns: dict[str, torch.Tensor], features: tuple[Categorical, ...]) -> KeyedJaggedTensor:
    """Table rows of F features x B rows, feature-major; a single-valued feature has length 1 everywhere."""
    ones = torch.ones(len(columns[next(f.name + LENGTHS if f.multi else f.name for f in features)]), dtype=torch.int32)
    return KeyedJaggedTensor(
        keys=[feature.name for feature in features],
        values=torch.cat([columns[feature.name] for feature in features]).long(),
        lengths=torch.cat([columns[feature.name + LENGTHS] if feature.multi else ones for feature in features]),
    )

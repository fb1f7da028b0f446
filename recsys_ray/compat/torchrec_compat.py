"""Gives access to what TorchRec does not make public: the lookup of a sharded module without the exchange between workers.

Why each private name is needed:

* `_create_input_dist`, `_has_uninitialized_input_dist`, `_has_features_permute`, `_features_order`, `_features_order_tensor`,
  `_feature_splits`: a ShardedEmbeddingBagCollection groups the features by the kernel that looks them up, and learns their order
  from its first input.
* `_sharding_types`: how the tables are cut, a type for each kernel.
* `_lookups`, `_embedding_names`, `_embedding_dims`: the kernels, and the layout of what they return.
"""

from __future__ import annotations

from collections.abc import Callable

from recsys_ray.compat.versions import require_version

require_version("torchrec", ["1.6", "1.8"])

import torch
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

__all__ = ["ShardedEmbeddingBagCollection", "holds_whole_tables", "lookup_without_exchange"]


def holds_whole_tables(bags: ShardedEmbeddingBagCollection) -> bool:
    """Returns whether every table lies whole on one worker. Of tables cut by rows, a mean of several values is not one lookup."""
    return set(bags._sharding_types) == {ShardingType.TABLE_WISE.value}


def lookup_without_exchange(bags: ShardedEmbeddingBagCollection) -> Callable[[KeyedJaggedTensor], KeyedTensor]:
    """Returns a replacement for the forward of tables that all lie whole with the only worker.

    TorchRec's own forward sends the features, and then the embeddings, through collectives of one worker.
    """

    def forward(features: KeyedJaggedTensor) -> KeyedTensor:
        if bags._has_uninitialized_input_dist:
            bags._create_input_dist(features.keys())
            bags._has_uninitialized_input_dist = False
        with torch.no_grad():
            if bags._has_features_permute:
                features = features.permute(bags._features_order, bags._features_order_tensor)
            groups = features.split(bags._feature_splits)
        found = [lookup(group) for lookup, group in zip(bags._lookups, groups, strict=True)]
        values = found[0] if len(found) == 1 else torch.cat(found, dim=1)
        return KeyedTensor(bags._embedding_names, bags._embedding_dims, values)

    return forward

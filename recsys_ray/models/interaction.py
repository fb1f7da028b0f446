"""The parts of TorchRec's DLRM that took most of its time, doing the same in half of it: what goes into the interaction of
features, and the dot-product interaction itself (Naumov et al. 2019).

TorchRec picks the pairs out of the matrix of all dot products by indexing, whose gradient is summed into place one by one,
and then multiplies twice, once for each side of a pair. Both sides are the same features: their gradient is one product with the
gradients of the pairs laid out as a symmetric matrix.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.fx
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

WIDTHS = 8
"""What the interaction returns is this many columns wide, or a multiple of it: rows that do not begin at such places multiply a
third slower on a CPU, and not in tensor cores at all."""


class SparseFeatures(nn.Module):
    """In the place of TorchRec's SparseArch, which takes the embeddings apart and puts them together again."""

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.embedding_bag_collection = tables
        self.sparse_feature_names = [name for table in tables.embedding_bag_configs() for name in table.feature_names]

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """[B, F, D], in the order of `sparse_feature_names`."""
        return in_order(self.embedding_bag_collection(features), self.sparse_feature_names)


@torch.fx.wrap
def in_order(found: KeyedTensor, names: list[str]) -> torch.Tensor:
    """[B, F, D]; shards may return the features in another order."""
    values, keys = found.values(), found.keys()
    values = values.view(-1, len(names), values.shape[1] // len(names))
    return values if keys == names else _Reordered.apply(values, *_order(tuple(keys), tuple(names), values.device))


@cache
def _order(keys: tuple[str, ...], names: tuple[str, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each name the place among the keys, and of each key its place among the names."""
    order, back = [keys.index(name) for name in names], [names.index(key) for key in keys]
    return torch.tensor(order, device=device), torch.tensor(back, device=device)


class _Reordered(torch.autograd.Function):
    """As `features[:, order]`; its gradient is no sum, but the same the other way round."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, order: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return features.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.index_select(1, back), None, None


class DotInteraction(nn.Module):
    """`sparse_features`: how many features besides the dense one, F. In the place of TorchRec's InteractionArch; no weights."""

    def __init__(self, sparse_features: int) -> None:
        super().__init__()
        self._features = sparse_features + 1

    def width(self, dim: int) -> int:
        """Of what it returns for embeddings of `dim`."""
        pairs = self._features * (self._features - 1) // 2
        return -(-(dim + pairs) // WIDTHS) * WIDTHS

    def forward(self, dense_features: torch.Tensor, sparse_features: torch.Tensor) -> torch.Tensor:
        """[B, D] and [B, F, D] -> [B, width]: the dense features, the dot products of all pairs, and zeros."""
        together = torch.cat([dense_features.unsqueeze(1), sparse_features], dim=1)
        return beside(dense_features, pairwise_dots(together), self.width(dense_features.shape[1]))


@torch.fx.wrap
def beside(dense_features: torch.Tensor, dots: torch.Tensor, width: int) -> torch.Tensor:
    zeros = dots.new_zeros(()).expand(len(dots), width - dense_features.shape[1] - dots.shape[1])
    return torch.cat([dense_features, dots, zeros], dim=1)


@torch.fx.wrap
def pairwise_dots(features: torch.Tensor) -> torch.Tensor:
    """[B, F, D] -> [B, F (F - 1) / 2], in the order of torch.triu_indices."""
    return _PairwiseDots.apply(features, *_places(features.shape[1], features.device))


@cache
def _places(features: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """In the matrix of all products: of every pair its place, and of every place its pair. The diagonal has none, so that of a
    column of zeros. No buffers of the module: to_empty() would leave them empty."""
    first, second = torch.triu_indices(features, features, offset=1)
    pairs = torch.full((features, features), len(first))
    pairs[first, second] = pairs[second, first] = torch.arange(len(first))
    return (first * features + second).to(device), pairs.flatten().to(device)


class _PairwiseDots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, upper: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        dots = torch.bmm(features, features.transpose(1, 2))
        # Under autocast the product is of another type than its factors, and the backward pass is not under it.
        ctx.save_for_backward(features.to(dots.dtype), pair)
        ctx.dtype = features.dtype
        return dots.flatten(1).gather(1, upper.expand(len(dots), -1))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        features, pair = ctx.saved_tensors
        rows, count, _ = features.shape
        padded = torch.nn.functional.pad(gradient, (0, 1))
        symmetric = padded.gather(1, pair.expand(rows, -1)).view(rows, count, count)
        return torch.bmm(symmetric, features).to(ctx.dtype), None, None

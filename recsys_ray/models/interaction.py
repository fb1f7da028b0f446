"""Faster replacements for parts of TorchRec's DLRM: its SparseArch, its dot-product interaction and its cross network.

TorchRec selects the pairs from the matrix of all dot products by indexing, whose gradient is a slow scatter-add, and its backward
pass then has two products, one for each side of a pair. Both sides are the same features, so here the gradients of the pairs are
laid out as a symmetric matrix, and one product gives the gradient of the features.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.nn import functional
from torchrec.models.dlrm import InteractionDCNArch
from torchrec.modules.crossnet import LowRankCrossNet
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

WIDTHS = 8
"""The width of the interaction's output is a multiple of this: unaligned rows multiply a third slower on a CPU, and cannot use
tensor cores at all."""


class SparseFeatures(nn.Module):
    """A replacement for TorchRec's SparseArch, which splits the embeddings by feature and concatenates them again."""

    def __init__(self, tables: EmbeddingBagCollection) -> None:
        super().__init__()
        self.embedding_bag_collection = tables
        self.sparse_feature_names = [name for table in tables.embedding_bag_configs() for name in table.feature_names]

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Returns embeddings [B, F, D], in the order of `sparse_feature_names`."""
        return in_order(self.embedding_bag_collection(features), self.sparse_feature_names)


@torch.fx.wrap
def in_order(found: KeyedTensor, names: list[str]) -> torch.Tensor:
    """Returns [B, F, D] with the features in the order of `names`; sharded tables may return them in another order."""
    values, keys = found.values(), found.keys()
    values = values.view(-1, len(names), values.shape[1] // len(names))
    return values if keys == names else _Reordered.apply(values, *_order(tuple(keys), tuple(names), values.device))


@cache
def _order(keys: tuple[str, ...], names: tuple[str, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the permutation from keys to names, and its inverse."""
    order, back = [keys.index(name) for name in names], [names.index(key) for key in keys]
    with torch.inference_mode(False):  # a model that has predicted may train afterwards, with what is cached here
        return torch.tensor(order, device=device), torch.tensor(back, device=device)


class _Reordered(torch.autograd.Function):
    """A permutation `features[:, order]` whose gradient is the inverse permutation rather than a scatter-add."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, order: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(back)
        return features.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return gradient.index_select(1, back), None, None


class DotInteraction(nn.Module):
    """A replacement for TorchRec's InteractionArch, for one dense feature and F = `sparse_features` others. It has no weights."""

    def __init__(self, sparse_features: int) -> None:
        super().__init__()
        self._features = sparse_features + 1

    def width(self, dim: int) -> int:
        """Returns how many columns the output has for embeddings of `dim` numbers."""
        pairs = self._features * (self._features - 1) // 2
        return -(-(dim + pairs) // WIDTHS) * WIDTHS

    def forward(self, dense_features: torch.Tensor, sparse_features: torch.Tensor) -> torch.Tensor:
        """Returns [B, width] of inputs [B, D] and [B, F, D]: dense features, the dot products of all pairs, zero padding."""
        # Under autocast the dense features are of its type, and the rest of the arithmetic is too.
        together = torch.cat([dense_features.unsqueeze(1), sparse_features.to(dense_features.dtype)], dim=1)
        return concat_dots(dense_features, pairwise_dots(together), self.width(dense_features.shape[1]))


class CrossInteraction(InteractionDCNArch):
    """TorchRec's interaction by a cross network, computed in the type of the dense features: autocast's, where it is on."""

    def forward(self, dense_features: torch.Tensor, sparse_features: torch.Tensor) -> torch.Tensor:
        """Returns [B, (F + 1) D] of inputs [B, D] and [B, F, D]."""
        return super().forward(dense_features, sparse_features.to(dense_features.dtype))


class CrossNetwork(LowRankCrossNet):
    """A low-rank cross network whose element-wise arithmetic is of the type of its input.

    TorchRec's adds biases of float32, and so is left with float32 between its products under autocast: twice the memory traffic
    of what is bound by memory.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Returns [B, N] of an input [B, N]."""
        crossed = input
        for narrow, wide, bias in zip(self.V_kernels, self.W_kernels, self.bias, strict=True):
            product = functional.linear(functional.linear(crossed, narrow), wide)
            crossed = input * (product + bias.to(product.dtype)) + crossed
        return crossed


@torch.fx.wrap
def concat_dots(dense_features: torch.Tensor, dots: torch.Tensor, width: int) -> torch.Tensor:
    """Concatenates the dense features, the dot products, and zeros up to `width` columns."""
    zeros = dots.new_zeros(()).expand(dots.shape[0], width - dense_features.shape[1] - dots.shape[1])
    return torch.cat([dense_features, dots, zeros], dim=1)


@torch.fx.wrap
def pairwise_dots(features: torch.Tensor) -> torch.Tensor:
    """Returns the dot products of all pairs of features: [B, F, D] -> [B, F (F - 1) / 2], in the order of torch.triu_indices."""
    return _PairwiseDots.apply(features, *_pair_positions(features.shape[1], features.device))


@torch.compiler.assume_constant_result  # else compiled code would make them in every step: it sees through a cache
def _pair_positions(features: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return _cached_pair_positions(features, device)


@cache
def _cached_pair_positions(features: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns, for the flattened matrix of all products, the position of every pair, and the pair at every position.

    The diagonal has no pair: it points to a column of zeros. These are not buffers of the module, which to_empty() would wipe.
    """
    with torch.inference_mode(False):  # as above
        first, second = torch.triu_indices(features, features, offset=1)
        pairs = torch.full((features, features), len(first))
        pairs[first, second] = pairs[second, first] = torch.arange(len(first))
        return (first * features + second).to(device), pairs.flatten().to(device)


class _PairwiseDots(torch.autograd.Function):
    """The dot products of all pairs, with one matrix product in the backward pass."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, upper: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        dots = torch.bmm(features, features.transpose(1, 2))
        # Under autocast the product is of another type than its factors, and the backward pass is not under it.
        ctx.save_for_backward(features.to(dots.dtype), pair)
        ctx.dtype = features.dtype
        return dots.flatten(1).gather(1, upper.expand(dots.shape[0], -1))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        features, pair = ctx.saved_tensors
        rows, count, _ = features.shape
        padded = torch.nn.functional.pad(gradient, (0, 1))
        symmetric = padded.gather(1, pair.expand(rows, -1)).view(rows, count, count)
        return torch.bmm(symmetric, features).to(ctx.dtype), None, None

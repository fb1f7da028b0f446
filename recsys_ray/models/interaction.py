"""DLRM's dot-product interaction (Naumov et al. 2019), as TorchRec's InteractionArch, in half the time.

TorchRec picks the pairs out of the matrix of all dot products by indexing, whose gradient is summed into place one by one,
and then multiplies twice, once for each side of a pair. Both sides are the same features: their gradient is one product with the
gradients of the pairs laid out as a symmetric matrix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import nn


class DotInteraction(nn.Module):
    """`sparse_features`: how many features besides the dense one, F. Takes TorchRec's place in its DLRM, and has no weights."""

    upper: torch.Tensor
    pair: torch.Tensor

    def __init__(self, sparse_features: int, device: torch.device) -> None:
        super().__init__()
        features = sparse_features + 1
        first, second = torch.triu_indices(features, features, offset=1)
        self.register_buffer("upper", (first * features + second).to(device), persistent=False)
        # Of every place in the matrix the number of its pair; the diagonal has none, so that of a column of zeros.
        pairs = torch.full((features, features), len(first))
        pairs[first, second] = pairs[second, first] = torch.arange(len(first))
        self.register_buffer("pair", pairs.flatten().to(device), persistent=False)

    def forward(self, dense_features: torch.Tensor, sparse_features: torch.Tensor) -> torch.Tensor:
        """[B, D] and [B, F, D] -> [B, D + (F + 1) F / 2]: the dense features, and the dot products of all pairs."""
        together = torch.cat([dense_features.unsqueeze(1), sparse_features], dim=1)
        return torch.cat([dense_features, pairwise_dots(together, self.upper, self.pair)], dim=1)


@torch.fx.wrap
def pairwise_dots(features: torch.Tensor, upper: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
    """[B, F, D] -> [B, F (F - 1) / 2], in the order of torch.triu_indices."""
    return _PairwiseDots.apply(features, upper, pair)


class _PairwiseDots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, upper: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        dots = torch.bmm(features, features.transpose(1, 2))
        # Under autocast the product is of another type than its factors, and the backward pass is not under it.
        ctx.save_for_backward(features.to(dots.dtype), pair)
        ctx.dtype = features.dtype
        return dots.flatten(1).index_select(1, upper)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        features, pair = ctx.saved_tensors
        rows, count, _ = features.shape
        symmetric = torch.nn.functional.pad(gradient, (0, 1)).index_select(1, pair).view(rows, count, count)
        return torch.bmm(symmetric, features).to(ctx.dtype), None, None

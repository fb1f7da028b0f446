"""Losses over the rows of the *global* batch: every worker's local sum is scaled so that the average of losses and gradients over
workers, as DDP and TorchRec form it, is exact even where workers hold unequal weights: a short last block, repeated blocks, a
weight column, rows that are no positives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn import functional

from recsys_ray.models.collectives import gather_equal, gather_with_gradient, my_rank, workers


def _global_mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    total = weights.sum()
    if workers() > 1:
        dist.all_reduce(total)
    return (losses * weights).sum() * workers() / total.clamp(min=torch.finfo(torch.float32).tiny)


def global_mean_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy, weighted; all arguments are [B]."""
    return _global_mean(functional.binary_cross_entropy_with_logits(logits, labels, reduction="none"), weights)


@dataclass(frozen=True)
class Candidates:
    """C of them: a worker's own rows, then its uniform negatives."""

    vectors: torch.Tensor
    """float32 [C, D]."""
    items: torch.Tensor
    """int64 [C]: which item each is."""
    log_q: torch.Tensor
    """float32 [C]: logarithm of how likely the item is to be among the candidates, up to a constant; 0 for no correction."""
    counted: torch.Tensor
    """bool [C]: whether it is a negative for other rows: a positive row's item, or a uniform negative."""

    def of_all_workers(self) -> Candidates:
        gathered = (gather_equal(part) for part in (self.items, self.log_q, self.counted))
        return Candidates(gather_with_gradient(self.vectors), *gathered)


def sampled_softmax(
    queries: torch.Tensor, own: Candidates, weights: torch.Tensor, temperature: float, hard_negatives: int
) -> torch.Tensor:
    """Mean over the rows of -log of the softmax of a row's own item among the candidates of all workers.

    queries: [B, D]; row i's item is candidate i. weights: [B], 0 for rows that are no positives.

    In-batch negatives appear by popularity, so each score has log Q of its item subtracted: the softmax then is an estimate of
    that over the whole catalogue (Bengio and Senecal 2008; Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large
    Corpus Item Recommendations"). Uniform negatives beside them are Yang et al. 2020, "Mixed Negative Sampling for Learning
    Two-tower Neural Networks in Recommendations"; Q is then that of the mixture. A candidate that is the row's own item by
    accident is no negative. With `hard_negatives`, the loss is averaged with a softmax over that many highest-scoring negatives
    alone (online hard negative mining, Huang et al. 2020, "Embedding-based Retrieval in Facebook Search", arXiv:2006.11632).
    """
    rows = len(queries)
    every = own.of_all_workers()
    first = my_rank() * len(own.items)
    mine = torch.arange(first, first + rows, device=queries.device)
    hidden = (own.items[:rows].unsqueeze(1) == every.items) | ~every.counted
    hidden[torch.arange(rows, device=queries.device), mine] = False
    scores = torch.addmm(-every.log_q, queries / temperature, every.vectors.T)
    scores = scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
    losses = functional.cross_entropy(scores, mine, reduction="none")
    if hard_negatives:
        losses = (losses + _cross_entropy_of_hardest(scores, mine, hard_negatives)) / 2
    return _global_mean(losses, weights)


def _cross_entropy_of_hardest(scores: torch.Tensor, mine: torch.Tensor, hard_negatives: int) -> torch.Tensor:
    positive = scores.gather(1, mine.unsqueeze(1))
    negatives = scores.scatter(1, mine.unsqueeze(1), torch.finfo(scores.dtype).min)
    hardest = negatives.topk(min(hard_negatives, negatives.shape[1]), dim=1).values
    return torch.logsumexp(torch.cat([positive, hardest], dim=1), dim=1) - positive.squeeze(1)

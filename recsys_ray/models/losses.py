"""Losses over the rows of the *global* batch.

DDP and TorchRec average losses and gradients over workers. Every worker's local sum is scaled so that this average is exact even
where workers hold unequal weights: a short last block, repeated blocks, a weight column, rows that are no positives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn import functional

from recsys_ray.distributed import all_gather_equal, all_gather_with_gradient, get_rank, get_world_size


def _global_mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    total = weights.sum()
    if get_world_size() > 1:
        dist.all_reduce(total)
    return (losses * weights).sum() * get_world_size() / total.clamp(min=torch.finfo(torch.float32).tiny)


def global_mean_loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Returns the weighted mean binary cross-entropy of the global batch; all arguments are [B]."""
    return _global_mean(functional.binary_cross_entropy_with_logits(logits, labels, reduction="none"), weights)


@dataclass(frozen=True)
class Candidates:
    """C candidates of a softmax: the items of a worker's own rows, then its uniform negatives."""

    vectors: torch.Tensor
    """float32 [C, D]."""
    items: torch.Tensor
    """int64 [C]: the table row of each candidate's item key."""
    log_q: torch.Tensor
    """float32 [C]: log of the probability that the item is among the candidates, up to a constant; 0 for no correction."""
    counted: torch.Tensor
    """bool [C]: whether the candidate is a negative for other rows: a positive row's item, or a uniform negative."""

    def of_all_workers(self) -> Candidates:
        """Gathers the candidates of every worker, by rank."""
        gathered = (all_gather_equal(part) for part in (self.items, self.log_q, self.counted))
        return Candidates(all_gather_with_gradient(self.vectors), *gathered)


def sampled_softmax(
    queries: torch.Tensor, own: Candidates, weights: torch.Tensor, *, temperature: float, hard_negatives: int
) -> torch.Tensor:
    """Returns the mean over the rows of -log softmax of a row's own item among the candidates of all workers.

    Args:
        queries: [B, D]; row i's item is candidate i.
        own: this worker's candidates.
        weights: [B], 0 for rows that are no positives.
        temperature: divides the scores.
        hard_negatives: 0, or how many of the highest-scoring negatives the second softmax below takes.

    In-batch negatives appear by popularity, so log Q of the item is subtracted from each score: the softmax then estimates the
    one over the whole catalogue (Bengio and Senecal 2008; Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large
    Corpus Item Recommendations"). Uniform negatives beside them are Yang et al. 2020, "Mixed Negative Sampling for Learning
    Two-tower Neural Networks in Recommendations"; Q is then that of the mixture. A candidate that happens to be the row's own
    item is not a negative. With `hard_negatives`, the loss is averaged with a softmax over that many highest-scoring negatives
    alone (online hard negative mining, Huang et al. 2020, "Embedding-based Retrieval in Facebook Search", arXiv:2006.11632).
    """
    rows = len(queries)
    every = own.of_all_workers()
    first = get_rank() * len(own.items)
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

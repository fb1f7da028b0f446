"""The settings of a Two Tower, whose code is in models/two_tower.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recsys_ray.config.run import ModelConfig


@dataclass(frozen=True)
class TwoTowerConfig(ModelConfig):
    """The settings of a Two Tower, whose score is the dot product of a query vector and a candidate vector."""

    embedding_dim: int = 64
    """Numbers in each row of the embedding tables, and in both towers' vectors."""
    pooling: Literal["mean", "sum", "attention"] = "mean"
    """The way in which a multi-valued column becomes one vector; attention: weighted by a learned query and position."""
    pooled_values: int = 20
    """The number of values of a row that attention takes, from the first."""
    query_layers: tuple[int, ...] = (128,)
    """Hidden layers; a last one of embedding_dim is added. Without any, the tower is the sum of its columns' embeddings; with one
    column a side that is matrix factorisation."""
    candidate_layers: tuple[int, ...] = (128,)
    dropout: float = 0.0
    """Dropout on the input of each tower, while training."""
    normalize: bool = False
    """Scale the vectors to length 1, so that a score is a cosine over the temperature."""
    temperature: float = 1.0
    loss: Literal["softmax", "bce"] = "softmax"
    """softmax: over the positive rows' items in the batches of all workers. bce: binary cross-entropy of each row's own label."""
    log_q: bool = True
    """Correct the softmax for items being in the batch by popularity."""
    uniform_negatives: int = 0
    """Items of the catalogue that are drawn into each worker's batch as additional negatives."""
    hard_negatives: int = 0
    """Average the loss with one over this many highest-scoring negatives of each row; 0: do not."""
    metrics_at: tuple[int, ...] = (10, 20, 100)
    """The k of recall@k, NDCG@k and hit rate@k; the first is that of early stopping."""
    group_by: str = ""
    """A single-valued user column, for whose values test metrics are reported separately."""
    ials: bool = False
    """Compare with iALS too, trained on one worker with all training pairs; popularity is always compared with."""

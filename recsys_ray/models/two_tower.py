"""Two Tower for retrieval: a query tower of user and context columns, a candidate tower of item columns, scores by dot product
(Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations"; Yi et al. 2019). Tables are TorchRec's, sharded like a
DLRM's. With no hidden layers it is matrix factorisation, or with several columns a side SVD++ (Koren 2008)."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import nn
from torch.nn import functional
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys_ray.config import TwoTowerConfig
from recsys_ray.models.embeddings import PooledEmbeddings
from recsys_ray.models.encoded_catalogue import Catalogue
from recsys_ray.models.evaluation.retrieval_evaluation import RetrievalEvaluator
from recsys_ray.models.losses import Candidates, global_mean_loss, sampled_softmax
from recsys_ray.models.task import Batch, Task
from recsys_ray.models.two_tower_batch import CANDIDATE, QUERY, TwoTowerBatch, training_batch
from recsys_ray.schema import Schema, Side


def build_two_tower(
    config: TwoTowerConfig,
    schema: Schema,
    row_weight: str,
    device: torch.device,
    autocast: torch.dtype | None,
    catalogue: Catalogue,
    seed: int,
) -> Task:
    """Raises ValueError for a schema without keys, or a loss that settings or schema do not fit."""
    check_retrieval_schema(schema)
    check_loss(config, schema)
    module = TwoTowerLoss(TwoTower(config, schema, device), config, device, autocast)
    log_q = lru_cache(1)(partial(catalogue.log_q, uniform=config.uniform_negatives))
    to_batch = partial(training_batch, config, schema, row_weight, catalogue, log_q, seed)
    evaluate = RetrievalEvaluator(config, schema, row_weight, catalogue)
    first = config.metrics_at[0]
    headline = (f"recall_at_{first}", f"ndcg_at_{first}", "mrr")
    return Task(module, to_batch, evaluate, f"ndcg_at_{first}", False, headline)


def check_retrieval_schema(schema: Schema) -> None:
    for side in ("user", "item"):
        key = schema.key(side)
        if key is None:
            raise ValueError(f'the schema has no {side} key: set "key": true at the column that tells {side}s apart')
        if side == "item" and key.encoding == "hash":
            raise ValueError(f"item key {key.name!r} is hashed, so items may share a row: use encoding vocabulary or identity")


def check_loss(config: TwoTowerConfig, schema: Schema) -> None:
    if config.loss == "bce" and (config.uniform_negatives or config.hard_negatives):
        raise ValueError("--model.loss bce takes the negatives from the rows' labels: uniform and hard ones are the softmax's")
    if config.loss == "bce" and schema.label is None:
        raise ValueError("--model.loss bce wants a label column in the schema: without one every row is a positive one")


class TwoTower(nn.Module):
    """`embed_query` and `embed_candidate` map a batch to vectors [rows, embedding_dim], whose dot products are the scores."""

    def __init__(self, config: TwoTowerConfig, schema: Schema, device: torch.device) -> None:
        super().__init__()
        self.embeddings = PooledEmbeddings(schema, config.embedding_dim, config.pooling, config.pooled_values, device)
        self.query_tower = Tower(config, schema, QUERY, config.query_layers, device)
        self.candidate_tower = Tower(config, schema, CANDIDATE, config.candidate_layers, device)

    def forward(self, dense: torch.Tensor, sparse: KeyedJaggedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and candidate vectors of the same rows."""
        pooled = self.embeddings(sparse, [*self.query_tower.features, *self.candidate_tower.features])
        split = len(self.query_tower.features)
        return self.query_tower(dense, pooled[:split]), self.candidate_tower(dense, pooled[split:])

    def embed_query(self, batch: Batch) -> torch.Tensor:
        return self.query_tower(batch.dense, self.embeddings(batch.sparse, self.query_tower.features))

    def embed_candidate(self, batch: Batch) -> torch.Tensor:
        return self.candidate_tower(batch.dense, self.embeddings(batch.sparse, self.candidate_tower.features))


class Tower(nn.Module):
    """The columns of `sides` -> one vector: an MLP of all of them side by side, or without layers the sum of their embeddings."""

    def __init__(
        self, config: TwoTowerConfig, schema: Schema, sides: tuple[Side, ...], layers: tuple[int, ...], device: torch.device
    ) -> None:
        super().__init__()
        self.features = [column.name for column in schema.categorical if column.side in sides]
        places = [place for place, column in enumerate(schema.dense) if column.side in sides]
        self._dense: torch.Tensor
        self.register_buffer("_dense", torch.tensor(places, dtype=torch.int64, device=device), persistent=False)
        self._normalize, dim = config.normalize, config.embedding_dim
        self.dropout = nn.Dropout(config.dropout)
        self.mlp: nn.Module | None = None
        self.dense_part: nn.Module | None = None
        if layers:
            inside = MLP(dim * len(self.features) + len(places), list(layers), device=device)
            self.mlp = nn.Sequential(inside, nn.Linear(layers[-1], dim, device=device))
        elif places:
            self.dense_part = nn.Linear(len(places), dim, bias=False, device=device)

    def forward(self, dense: torch.Tensor, pooled: list[torch.Tensor]) -> torch.Tensor:
        own_dense = dense.index_select(1, self._dense)
        if self.mlp is not None:
            vectors = self.mlp(self.dropout(torch.cat([*pooled, own_dense], dim=1)))
        else:
            vectors = self.dropout(torch.stack(pooled).sum(dim=0))
            if self.dense_part is not None:
                vectors = vectors + self.dense_part(own_dense)
        vectors = vectors.float()
        return functional.normalize(vectors, dim=1) if self._normalize else vectors


class TwoTowerLoss(nn.Module):
    """A Two Tower with its loss, as TorchRec's DLRMTrain; TrainPipelineSparseDist traces `forward` with torch.fx."""

    def __init__(self, model: TwoTower, config: TwoTowerConfig, device: torch.device, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self.bias = nn.Parameter(torch.zeros((), device=device)) if config.loss == "bce" else None
        self._config, self._device_type, self._autocast = config, device.type, autocast

    def forward(self, batch: TwoTowerBatch) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        with torch.autocast(self._device_type, dtype=self._autocast, enabled=self._autocast is not None):
            queries, candidates = self.model(batch.dense, batch.sparse)
        logits, loss = _logits_and_loss(queries, candidates, batch, self.bias, self._config)
        return loss, (loss.detach(), logits.detach(), batch.labels)


@torch.fx.wrap
def _logits_and_loss(
    queries: torch.Tensor, candidates: torch.Tensor, batch: TwoTowerBatch, bias: torch.Tensor | None, config: TwoTowerConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(batch.labels)
    queries = queries[:rows]
    logits = (queries * candidates[:rows]).sum(dim=1) / config.temperature
    if bias is not None:
        return logits + bias, global_mean_loss(logits + bias, batch.labels, batch.weights)
    weights = batch.labels * batch.weights
    counted = torch.cat([weights > 0, torch.ones(len(candidates) - rows, dtype=torch.bool, device=weights.device)])
    own = Candidates(candidates, batch.items, batch.log_q, counted)
    return logits, sampled_softmax(queries, own, weights, config.temperature, config.hard_negatives)

"""Two Tower for retrieval: a query tower of user and context columns, a candidate tower of item columns, scores by dot product
(Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations"; Yi et al. 2019). Tables are TorchRec's, sharded like a
DLRM's. With no hidden layers it is matrix factorisation, or with several columns a side SVD++ (Koren 2008)."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys_ray.config.two_tower import TwoTowerConfig
from recsys_ray.models.embeddings import PooledEmbeddings
from recsys_ray.models.encoded_catalogue import EncodedCatalogue
from recsys_ray.models.evaluation.retrieval_evaluation import RetrievalEvaluator
from recsys_ray.models.losses import Candidates, global_mean_loss, sampled_softmax
from recsys_ray.models.step_cost import step_cost
from recsys_ray.models.task import Batch, BuildContext, Outputs, RegisteredModel, StepCost, Task, Towers, needs_dataset
from recsys_ray.models.two_tower_batch import CANDIDATE, TrainingBatches, TwoTowerBatch, embed_candidates, embed_queries
from recsys_ray.schema import QUERY_SIDES, Schema, Side


def build_two_tower(config: TwoTowerConfig, context: BuildContext) -> Task:
    """Builds a Two Tower. Raises ValueError for a schema without keys, or a loss that the settings or the schema do not fit."""
    check_retrieval_schema(context.schema)
    check_loss(config, context.schema)
    module = TwoTowerLoss(TwoTower(config, context.schema, context.device), config, context.device, context.autocast)
    to_batch, evaluate = _with_catalogue(config, context)
    k = config.metrics_at[0]
    return Task(
        module=module,
        to_batch=to_batch,
        evaluate=evaluate,
        predict=dot_product,
        cost=_cost(config, context.schema, module),
        objective=f"ndcg_at_{k}",
        lower_is_better=False,
        headline=(f"recall_at_{k}", f"ndcg_at_{k}", "mrr"),
        batches_on_host=True,
        loss_name="softmax loss" if config.loss == "softmax" else "log loss",
        towers=Towers(partial(embed_queries, context.schema), partial(embed_candidates, context.schema), config.embedding_dim),
    )


MODEL = RegisteredModel(TwoTowerConfig, build_two_tower)


def _with_catalogue(config: TwoTowerConfig, context: BuildContext) -> tuple[Any, Any]:
    """Returns Task.to_batch and Task.evaluate, which need the dataset's catalogue; without one, stand-ins that raise."""
    key = context.schema.key("item")
    if context.dataset is None or key is None:
        return needs_dataset, needs_dataset
    catalogue = EncodedCatalogue(*context.dataset.catalogue(), key)
    to_batch = TrainingBatches(
        context.schema, catalogue, context.seed, uniform_negatives=config.uniform_negatives, log_q=config.log_q
    )
    evaluate = RetrievalEvaluator(
        context.schema,
        catalogue,
        metrics_at=config.metrics_at,
        group_by=config.group_by,
        group_names=context.dataset.value_names(config.group_by) if config.group_by else (),
        ials=config.ials,
    )
    return to_batch, evaluate


def _cost(config: TwoTowerConfig, schema: Schema, module: nn.Module) -> StepCost:
    padded = config.pooled_values if config.pooling == "attention" else 1
    vectors = sum(padded if column.multi else 1 for column in schema.categorical)
    return dataclasses.replace(
        step_cost(module, config.embedding_dim, vectors),
        sampled_rows=config.uniform_negatives,
        scores_all_candidates=config.loss == "softmax",
    )


def check_retrieval_schema(schema: Schema) -> None:
    """Raises ValueError where the schema does not tell users and items apart."""
    for side in ("user", "item"):
        key = schema.key(side)
        if key is None:
            raise ValueError(f'the schema has no {side} key: set "key": true at the column that tells {side}s apart')
        if side == "item" and key.encoding == "hash":
            raise ValueError(f"item key {key.name!r} is hashed, so items may share a row: use encoding vocabulary or identity")


def check_loss(config: TwoTowerConfig, schema: Schema) -> None:
    """Raises ValueError where the loss does not fit the other settings or the schema."""
    if config.loss == "bce" and (config.uniform_negatives or config.hard_negatives):
        raise ValueError("--model.loss bce takes the negatives from the rows' labels: uniform and hard ones are the softmax's")
    if config.loss == "bce" and schema.label is None:
        raise ValueError("--model.loss bce wants a label column in the schema: without one every row is a positive one")


class TwoTower(nn.Module):
    """A pair of towers over shared embedding tables; the dot products of their vectors [rows, embedding_dim] are the scores."""

    def __init__(self, config: TwoTowerConfig, schema: Schema, device: torch.device) -> None:
        super().__init__()
        self.embeddings = PooledEmbeddings(
            schema, config.embedding_dim, device, pooling=config.pooling, max_values=config.pooled_values
        )
        self.query_tower = Tower(config, schema, device, sides=QUERY_SIDES, layers=config.query_layers)
        self.candidate_tower = Tower(config, schema, device, sides=CANDIDATE, layers=config.candidate_layers)

    def forward(self, dense: torch.Tensor, sparse: KeyedJaggedTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns query and candidate vectors of the same rows."""
        pooled = self.embeddings(sparse, [*self.query_tower.features, *self.candidate_tower.features])
        split = len(self.query_tower.features)
        return self.query_tower(dense, pooled[:split]), self.candidate_tower(dense, pooled[split:])

    def embed_query(self, batch: Batch) -> torch.Tensor:
        """Returns query vectors, float32 [rows, embedding_dim]; item columns are not read."""
        return self.query_tower(batch.dense, self.embeddings(batch.sparse, self.query_tower.features))

    def embed_candidate(self, batch: Batch) -> torch.Tensor:
        """Returns candidate vectors, float32 [rows, embedding_dim]; user and context columns are not read."""
        return self.candidate_tower(batch.dense, self.embeddings(batch.sparse, self.candidate_tower.features))


class Tower(nn.Module):
    """A tower that maps the columns of `sides` to one vector: an MLP of their concatenation, or without layers the sum of their
    embeddings."""

    def __init__(
        self,
        config: TwoTowerConfig,
        schema: Schema,
        device: torch.device,
        *,
        sides: tuple[Side, ...],
        layers: tuple[int, ...],
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
        """Returns vectors, float32 [rows, embedding_dim], of all dense columns and the pooled embeddings of `features`."""
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
    """A Two Tower with its loss, like TorchRec's DLRMTrain; TrainPipelineSparseDist traces `forward` with torch.fx."""

    def __init__(self, model: TwoTower, config: TwoTowerConfig, device: torch.device, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self.bias = nn.Parameter(torch.zeros((), device=device)) if config.loss == "bce" else None
        self._config, self._device_type, self._autocast = config, device.type, autocast

    def forward(self, batch: TwoTowerBatch) -> tuple[torch.Tensor, Outputs]:
        """Returns the mean loss of the global batch, and the scores [B] of the rows with their labels."""
        with torch.autocast(self._device_type, dtype=self._autocast, enabled=self._autocast is not None):
            queries, candidates = self.model(batch.dense, batch.sparse)
        logits, loss = _logits_and_loss(queries, candidates, batch, bias=self.bias, config=self._config)
        return loss, {"loss": loss.detach(), "logits": logits.detach(), "labels": batch.labels}


@torch.fx.wrap
def _logits_and_loss(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    batch: TwoTowerBatch,
    *,
    bias: torch.Tensor | None,
    config: TwoTowerConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(batch.labels)
    queries = queries[:rows]
    logits = (queries * candidates[:rows]).sum(dim=1) / config.temperature
    if bias is not None:
        return logits + bias, global_mean_loss(logits + bias, batch.labels, batch.weights)
    weights = batch.labels * batch.weights
    counted = torch.cat([weights > 0, torch.ones(len(candidates) - rows, dtype=torch.bool, device=weights.device)])
    own = Candidates(candidates, batch.items, batch.log_q, counted)
    return logits, sampled_softmax(queries, own, weights, temperature=config.temperature, hard_negatives=config.hard_negatives)


def dot_product(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Returns the score of every row's user and item, float32 [B]."""
    return module(batch)[1]["logits"]

"""DLRM for ranking, with TorchRec's own modules: dot-product interaction (Naumov et al. 2019, arXiv:1906.00091) or a low-rank
cross network (DCNv2, Wang et al. 2020, arXiv:2008.13535)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.fx
from torch import nn
from torchrec.models.dlrm import DLRM, DLRM_DCN, OverArch

from recsys_ray.columns import ROW_WEIGHT, Columns
from recsys_ray.config.dlrm import DLRMConfig
from recsys_ray.models.embeddings import embedding_tables, jagged
from recsys_ray.models.evaluation.binary_metrics import evaluate_binary
from recsys_ray.models.interaction import CrossInteraction, CrossNetwork, DotInteraction, SparseFeatures
from recsys_ray.models.losses import global_mean_loss
from recsys_ray.models.step_cost import step_cost
from recsys_ray.models.task import Batch, BuildContext, Outputs, RegisteredModel, SplitRanker, Task
from recsys_ray.schema import Schema

# torch.fx finds functions to wrap by name in the module that calls them, so the decorator in losses.py would not reach this one.
torch.fx.wrap("global_mean_loss")


def build_dlrm(config: DLRMConfig, context: BuildContext) -> Task:
    """Builds a DLRM. Raises ValueError where the schema has no label."""
    schema = context.schema
    if schema.label is None:
        raise ValueError("the schema has no label column, which a DLRM predicts: add one, or train a Two Tower")
    model = _dlrm(config, schema, context.device)
    module = WeightedBinaryLoss(model, context.device, context.autocast)
    to_batch = partial(labelled_batch, schema)
    features = len(schema.categorical)
    dots = (features + 1) ** 2 * config.embedding_dim if config.interaction == "dot" else 0
    return Task(
        module=module,
        to_batch=to_batch,
        evaluate=partial(evaluate_binary, to_batch=to_batch, predict=predicted_probability),
        predict=predicted_probability,
        cost=step_cost(module, config.embedding_dim, vectors=features, extra_multiplications=dots),
        objective="ne",
        lower_is_better=True,
        headline=("auc", "ne"),
        loss_name="log loss",
        split=split_ranker(module, config.embedding_dim),
    )


MODEL = RegisteredModel(DLRMConfig, build_dlrm)


def labelled_batch(schema: Schema, columns: Columns) -> Batch:
    """Makes a batch of all dense and categorical columns, the label, and the rows' weights."""
    assert schema.label is not None
    weights = columns[ROW_WEIGHT]
    dense = [columns[column.name] for column in schema.dense] or [torch.zeros_like(weights)]
    return Batch(torch.stack(dense, dim=1), jagged(columns, schema.categorical), columns[schema.label.name], weights)


def _dlrm(config: DLRMConfig, schema: Schema, device: torch.device) -> DLRM:
    tables = embedding_tables(schema, config.embedding_dim, config.pooling)
    dense_in = max(len(schema.dense), 1)
    bottom, top = [*config.dense_layers, config.embedding_dim], [*config.over_layers, 1]
    match config.interaction:
        case "dot":
            model = DLRM(tables, dense_in, bottom, top, dense_device=device)
            model.inter_arch = DotInteraction(len(schema.categorical))
            model.over_arch = OverArch(model.inter_arch.width(config.embedding_dim), top, device)
        case "dcn":
            model = DLRM_DCN(tables, dense_in, bottom, top, config.cross_layers, config.cross_rank, dense_device=device)
            cross = CrossNetwork((len(schema.categorical) + 1) * config.embedding_dim, config.cross_layers, config.cross_rank)
            cross.load_state_dict(model.inter_arch.crossnet.state_dict())
            model.inter_arch = CrossInteraction(len(schema.categorical), cross).to(device)
    model.sparse_arch = SparseFeatures(tables)
    return model


def split_ranker(module: WeightedBinaryLoss, dim: int) -> SplitRanker:
    """Returns the embedding tables and the rest of a DLRM as two parts."""
    model: DLRM = module.model
    features = tuple(model.sparse_arch.sparse_feature_names)
    return SplitRanker(lambda batch: model.sparse_arch(batch.sparse), features, DenseScores(model), dim, module.loss_of)


class WeightedBinaryLoss(nn.Module):
    """A model of logits with its loss, like TorchRec's DLRMTrain; TrainPipelineSparseDist traces `forward` with torch.fx."""

    def __init__(self, model: nn.Module, device: torch.device, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model: Any = model
        self._device_type, self._autocast = device.type, autocast

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Outputs]:
        """Returns the mean loss of the global batch, and the logits [B] with their labels."""
        with self.autocast():
            logits = self.model(batch.dense, batch.sparse)
        logits = logits.squeeze(-1).float()
        loss = global_mean_loss(logits, batch.labels, batch.weights)
        return loss, {"loss": loss.detach(), "logits": logits.detach(), "labels": batch.labels}

    def autocast(self) -> torch.autocast:
        """Returns the context of the model's arithmetic."""
        return torch.autocast(self._device_type, dtype=self._autocast, enabled=self._autocast is not None)

    def loss_of(self, dense: torch.Tensor, embeddings: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Returns the loss of a DLRM, given what it has looked up, [B, F, dim]."""
        with self.autocast():
            mixed = self.model.inter_arch(dense_features=self.model.dense_arch(dense), sparse_features=embeddings)
            logits = self.model.over_arch(mixed)
        return global_mean_loss(logits.squeeze(-1).float(), labels, weights)


class DenseScores(nn.Module):
    """A DLRM without its embedding tables, whose output is the probability of a positive label."""

    def __init__(self, model: DLRM) -> None:
        super().__init__()
        self.dense_arch, self.inter_arch, self.over_arch = model.dense_arch, model.inter_arch, model.over_arch

    def forward(self, dense: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """Returns probabilities [B] of dense features [B, D] and pooled embeddings [B, F, dim]."""
        mixed = self.inter_arch(dense_features=self.dense_arch(dense), sparse_features=embeddings)
        return self.over_arch(mixed).squeeze(-1).sigmoid()


def predicted_probability(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Returns the probability of a positive label of every row, float32 [B]."""
    return module(batch)[1]["logits"].sigmoid()

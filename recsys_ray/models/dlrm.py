"""DLRM for ranking, with TorchRec's own modules: dot-product interaction (Naumov et al. 2019, arXiv:1906.00091) or a low-rank
cross network (DCNv2, Wang et al. 2020, arXiv:2008.13535)."""

from __future__ import annotations

from functools import partial

import torch
import torch.fx
from torch import nn
from torchrec.models.dlrm import DLRM, DLRM_DCN, OverArch

from recsys_ray.columns import Columns
from recsys_ray.config import DLRMConfig
from recsys_ray.models.embeddings import embedding_tables, jagged
from recsys_ray.models.evaluation.binary_evaluation import evaluate_binary
from recsys_ray.models.interaction import DotInteraction, SparseFeatures
from recsys_ray.models.losses import global_mean_loss
from recsys_ray.models.task import Batch, Task
from recsys_ray.schema import Schema

# By name and here: what a decorator wraps is wrapped in the module of its own alone.
torch.fx.wrap("global_mean_loss")


def build_dlrm(config: DLRMConfig, schema: Schema, row_weight: str, device: torch.device, autocast: torch.dtype | None) -> Task:
    """`row_weight` names the column of `to_batch`'s input that weighs the rows. Raises ValueError where there is no label."""
    if (label := schema.label) is None:
        raise ValueError("the schema has no label column, which a DLRM predicts: add one, or train a Two Tower")

    def to_batch(columns: Columns) -> Batch:
        weights = columns[row_weight]
        dense = [columns[column.name] for column in schema.dense] or [torch.zeros_like(weights)]
        return Batch(torch.stack(dense, dim=1), jagged(columns, schema.categorical), columns[label.name], weights)

    module = WeightedBinaryLoss(_dlrm(config, schema, device), device, autocast)
    return Task(module, to_batch, partial(evaluate_binary, to_batch), "ne", True, ("auc", "ne"))


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
            model.inter_arch.to(device)
    model.sparse_arch = SparseFeatures(tables)
    return model


class WeightedBinaryLoss(nn.Module):
    """A model's logits with their loss, as TorchRec's DLRMTrain; TrainPipelineSparseDist traces `forward` with torch.fx."""

    def __init__(self, model: nn.Module, device: torch.device, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self._device_type, self._autocast = device.type, autocast

    def forward(self, batch: Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        with torch.autocast(self._device_type, dtype=self._autocast, enabled=self._autocast is not None):
            logits = self.model(batch.dense, batch.sparse)
        logits = logits.squeeze(-1).float()
        loss = global_mean_loss(logits, batch.labels, batch.weights)
        return loss, (loss.detach(), logits.detach(), batch.labels)

"""Config -> task. A new model is one file, one config class and one `case` here."""

from __future__ import annotations

import torch

from recsys_ray.config import DLRMConfig
from recsys_ray.models.dlrm import build_dlrm
from recsys_ray.models.task import Task
from recsys_ray.schema import Schema


def build_task(
    config: DLRMConfig, schema: Schema, row_weight: str, device: torch.device, autocast: torch.dtype | None, seed: int
) -> Task:
    """Dense parameters are drawn from `seed`, alike on every worker; embedding tables stay on `meta`."""
    torch.manual_seed(seed)
    match config:
        case DLRMConfig():
            return build_dlrm(config, schema, row_weight, device, autocast)

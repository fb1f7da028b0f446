"""Config -> task. A new model is one file, one config class and one `case` here."""

from __future__ import annotations

import torch

from recsys_ray.config import DLRMConfig, TwoTowerConfig
from recsys_ray.models.dlrm import build_dlrm
from recsys_ray.models.encoded_catalogue import Catalogue
from recsys_ray.models.task import Task
from recsys_ray.models.two_tower import build_two_tower
from recsys_ray.schema import Schema


def build_task(
    config: DLRMConfig | TwoTowerConfig,
    schema: Schema,
    row_weight: str,
    device: torch.device,
    autocast: torch.dtype | None,
    seed: int,
    catalogue: Catalogue | None = None,
) -> Task:
    """Dense parameters are drawn from `seed`, alike on every worker; embedding tables stay on `meta`. A Two Tower wants the
    catalogue."""
    torch.manual_seed(seed)
    match config:
        case DLRMConfig():
            return build_dlrm(config, schema, row_weight, device, autocast)
        case TwoTowerConfig():
            assert catalogue is not None
            return build_two_tower(config, schema, row_weight, device, autocast, catalogue, seed)

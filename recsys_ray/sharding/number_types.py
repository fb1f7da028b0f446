"""The types of numbers in which embedding tables are stored, and in which workers exchange embeddings."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import nn
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from recsys_ray.config import ShardingConfig
from recsys_ray.sharding.search import Codecs, table_configs

log = logging.getLogger(__name__)
TYPES = {"fp16": (torch.float16, DataType.FP16), "bf16": (torch.bfloat16, DataType.BF16)}


def set_table_type(module: nn.Module, config: ShardingConfig, device: torch.device) -> ShardingConfig:
    """Makes the tables of `module`, which are on `meta`, of --sharding.table-type, and returns the settings for such tables.

    The optimizer of data-parallel tables does not round by chance, so they are left out. Raises ValueError for bf16 on CPU.
    """
    if config.table_type == "fp32":
        return config
    if device.type == "cpu":
        if config.table_type == "bf16":
            raise ValueError("--sharding.table-type bf16: fbgemm's CPU kernels have no bf16; take fp16, or train on GPUs")
        log.warning("--sharding.table-type fp16 on CPU: updates of less than half a unit of the last place are lost")
    numbers, data_type = TYPES[config.table_type]
    for part in module.modules():
        if isinstance(part, EmbeddingBagCollection | EmbeddingCollection):
            part.to(numbers)
    for table in table_configs(module):
        table.data_type = data_type
    types = tuple(kind for kind in config.types if kind != "data_parallel")
    return replace(config, types=types or ("table_wise",))


def exchange_codecs(config: ShardingConfig, device: torch.device) -> Codecs | None:
    """Returns what converts embeddings and gradients before and after an exchange; None where they are sent as they are."""
    if config.exchange_type == "fp32":
        return None
    numbers = CommType(config.exchange_type)
    return get_qcomm_codecs_registry(QCommsConfig(forward_precision=numbers, backward_precision=numbers), device=device)

"""Smaller embedding tables for inference: TorchRec's quantised modules, in fp16 or int8."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.inference.modules import quantize_embeddings

TABLE_TYPES = {"fp16": torch.half, "int8": torch.qint8}


def quantize_tables(module: nn.Module, precision: str) -> None:
    """Replaces the tables of `module` in place."""
    quantize_embeddings(module, TABLE_TYPES[precision], inplace=True, output_dtype=torch.float)

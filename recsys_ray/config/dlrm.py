"""The settings of a DLRM, whose code is in models/dlrm.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recsys_ray.config.run import ModelConfig


@dataclass(frozen=True)
class DLRMConfig(ModelConfig):
    """The settings of a DLRM (Naumov et al. 2019), or with interaction dcn of its variant with a cross network (DCNv2)."""

    interaction: Literal["dot", "dcn"] = "dot"
    pooling: Literal["sum", "mean"] = "mean"
    """The way in which the embeddings of a multi-valued column become one."""
    dense_layers: tuple[int, ...] = (64,)
    """Hidden layers of the bottom MLP; a last one of embedding_dim is added."""
    over_layers: tuple[int, ...] = (128, 64)
    """Hidden layers of the top MLP; a last one of 1 is added."""
    cross_layers: int = 3
    cross_rank: int = 64

"""The vector index at its default settings on a million vectors: recall against exact search and queries per second, beside faiss.

    python benchmarks/index_recall.py [--vectors 1000000] [--dim 64]        # wants pip install 'recsys-ray[benchmarks]'

Recall@100 of 500 queries, one at a time, on one thread each. faiss HNSW searches by inner product too, with the smallest efSearch
that reaches the recall found here. The vectors are what a random two-layer network makes of 16 latent numbers, plus noise: like
the vectors of a trained tower they have fewer directions than dimensions; `--latent 0` draws independent Gaussians instead.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["LANCE_CPU_THREADS"] = "1"  # Read by Lance when it is loaded; both searches use one thread.

import faiss
import numpy as np
import pyarrow as pa
import tyro

from recsys_ray.serving.index import Settings, exact_search, open_index, write_index


@dataclass(frozen=True)
class Arguments:
    vectors: int = 1_000_000
    dim: int = 64
    queries: int = 500
    latent: int = 16
    k: int = 100
    work: Path = Path("runs/index-recall")


def draw(rows: int, arguments: Arguments, seed: int) -> np.ndarray:
    """float32 [rows, dim]."""
    random = np.random.default_rng(seed)
    if not arguments.latent:
        return random.standard_normal((rows, arguments.dim), np.float32)
    network = np.random.default_rng(0)
    first = network.standard_normal((arguments.latent, 128), np.float32) / 4
    second = network.standard_normal((128, arguments.dim), np.float32) / 128**0.5
    noise = 0.1 * random.standard_normal((rows, arguments.dim), np.float32)
    return np.tanh(random.standard_normal((rows, arguments.latent), np.float32) @ first) @ second + noise

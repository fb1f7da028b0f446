"""One Ray and one small dataset for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from recsys_ray.config import PrepareConfig
from recsys_ray.data.prepare import prepare
from recsys_ray.datasets import synthetic

ROWS = 61_000  # leaves a short block in every split
BLOCK_ROWS = 128


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    # "local": never a cluster that happens to run on this machine. Four workers, so that writers run beside one another.
    ray.init("local", num_cpus=4, include_dashboard=False, ignore_reinit_error=True)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def dataset(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset directory with a multi-valued column."""
    root = tmp_path_factory.mktemp("synthetic")
    raw = synthetic.generate(root / "raw", ROWS, dense=3, categorical=4, num_embeddings=500, multi=True)
    prepare(PrepareConfig(parquet=str(raw / "interactions"), out=str(root / "dataset"), block_rows=BLOCK_ROWS))
    return root / "dataset"

"""Small inputs for preparation, a small dataset directory, and splits read back with plain Mosaic Streaming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.compat.streaming_compat import StreamingDataset
from recsys_ray.config import PrepareConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import synthetic
from recsys_ray.schema import Categorical, Column, Dense, Label, Schema, Timestamp

SYNTHETIC_ROWS = 61_000
"""Leaves a short block in every split."""
CLICKS: tuple[Column, ...] = (
    Label("click"),
    Dense("price", scale="standard"),
    Categorical("user", "user", encoding="identity", num_embeddings=102),
    Categorical("city", dtype="string", encoding="vocabulary"),
    Categorical("tags", "item", num_embeddings=1000, multi=True),
    Timestamp("at"),
)


def clicks(rows: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Returns random columns for the schema CLICKS. `at` differs in every row, and so identifies it."""
    random = np.random.default_rng(seed)
    return {
        "click": random.integers(0, 2, rows),
        "price": random.normal(50, 10, rows),
        "user": random.integers(0, 100, rows),
        "city": random.choice(["Rome", "Oslo", "Bern"], rows, p=[0.6, 0.3, 0.1]),
        "tags": [random.integers(0, 50, size).tolist() for size in random.integers(0, 4, rows)],
        "at": random.permutation(rows),
    }


def write_input(folder: Path, columns: Any = None, schema: tuple[Column, ...] = CLICKS, files: int = 1) -> Path:
    """Writes a folder of Parquet files and a schema.json."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns or clicks())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schema.json").write_text(Schema(schema).to_json())
    size = -(-table.num_rows // files)
    for number in range(files):
        pq.write_table(table.slice(number * size, size), folder / f"{number}.parquet")
    return folder


def config_for(folder: Path, **settings: Any) -> PrepareConfig:
    """Returns the settings that prepare `folder` into the folder `dataset` beside it."""
    return PrepareConfig(**({"parquet": str(folder), "out": str(folder.parent / "dataset"), "block_rows": 64} | settings))


def synthetic_dataset(folder: Path, rows: int = SYNTHETIC_ROWS) -> Path:
    """Prepares folder/dataset from synthetic clicks in folder/raw, with a multi-valued column; needs Ray."""
    raw = synthetic.generate_clicks(folder / "raw", rows, dense=3, categorical=4, num_embeddings=500, multi=True)
    prepare(PrepareConfig(parquet=str(raw / "interactions"), out=str(folder / "dataset"), block_rows=128))
    return folder / "dataset"


def to_frame(block: dict[str, np.ndarray]) -> pd.DataFrame:
    """Returns the rows of a row block; a multi-valued column holds arrays."""
    lists = {
        name: np.split(block[name], np.cumsum(block[f"{name}.lengths"])[:-1]) for name in block if f"{name}.lengths" in block
    }
    return pd.DataFrame({name: values for name, values in (block | lists).items() if not name.endswith(".lengths")})


def read_split(root: Path, split: str) -> tuple[pd.DataFrame, list[int]]:
    """Returns all rows of a split, and the number of rows in each block."""
    frames = [to_frame(block) for block in StreamingDataset(local=str(root / split), batch_size=1)]
    return pd.concat(frames), [len(frame) for frame in frames]

"""The usual recipe, as tutorials have it.

Spark's `repartition` and Mosaic Streaming's `dataframe_to_mds` with one row per sample, `StreamingDataset(shuffle=True)` and
`StreamingDataLoader`, and a plain TorchRec loop with DistributedModelParallel.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.speed.side_by_side import DATA
from recsys_ray.compat.streaming_compat import StreamingDataset
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.schema import Categorical, Dense, Schema

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextmanager
def spark() -> Iterator[SparkSession]:
    from pyspark.sql import SparkSession

    if not shutil.which("java"):
        sys.exit("the usual recipe runs on Spark, which needs Java 17, and there is no `java` here")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    # Spark's Python workers import all of Mosaic Streaming, whose parts for images need torchvision, which is not installed.
    stand_ins = DATA / "stand-ins"
    stand_ins.mkdir(parents=True, exist_ok=True)
    parts = [f"streaming.{part}" for part in ("vision", "text", "multimodal")]
    lines = ["import sys, types", f"sys.modules |= {{name: types.ModuleType(name) for name in {parts}}}", ""]
    (stand_ins / "sitecustomize.py").write_text("\n".join(lines))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(stand_ins.absolute()), os.environ.get("PYTHONPATH")]))
    quiet = {"spark.ui.enabled": "false", "spark.log.level": "FATAL", "spark.ui.showConsoleProgress": "false"}
    session = SparkSession.builder.master("local[*]").config(map={**quiet, "spark.driver.memory": "4g"}).getOrCreate()
    yield session
    session.stop()


def convert(session: SparkSession, parquet: list[str], schema: Schema, out: Path, rows: int) -> None:
    """Writes the first `rows` rows, one per sample."""
    from streaming.base.converters import dataframe_to_mds

    shutil.rmtree(out, ignore_errors=True)
    columns = {column.name: "int64" if isinstance(column, Categorical) else "float32" for column in schema.columns}
    frame = session.read.parquet(*parquet).limit(rows)
    label = schema.label
    assert label is not None
    frame = frame.withColumn(label.name, frame[label.name].cast("float")).select(*columns)
    shuffled = frame.repartition(session.sparkContext.defaultParallelism)
    dataframe_to_mds(shuffled, merge_index=True, mds_kwargs={"out": str(out), "columns": columns, "compression": "zstd"})


def loader(folder: Path, cache: Path, batch: int) -> Any:
    from streaming import StreamingDataLoader

    dataset = StreamingDataset(remote=str(folder), local=str(cache), shuffle=True, batch_size=batch)
    return StreamingDataLoader(dataset, batch_size=batch)


def to_batch(columns: dict[str, torch.Tensor], schema: Schema) -> Batch:
    features = [column.name for column in schema.categorical]
    ids = torch.cat([columns[name].long() for name in features])
    lengths = torch.ones(len(ids), dtype=torch.int32, device=ids.device)
    dense = torch.stack([columns[column.name].float() for column in schema.columns if isinstance(column, Dense)], dim=1)
    label = schema.label
    assert label is not None
    return Batch(dense, KeyedJaggedTensor.from_lengths_sync(features, ids, lengths), columns[label.name].float())


def tables(config: DLRMConfig, schema: Schema) -> EmbeddingBagCollection:
    """Returns a table for each categorical column, on `meta`."""
    return EmbeddingBagCollection(
        device=torch.device("meta"),
        tables=[
            EmbeddingBagConfig(
                name=f"t_{column.name}",
                embedding_dim=config.embedding_dim,
                num_embeddings=column.num_embeddings,
                feature_names=[column.name],
            )
            for column in schema.categorical
        ],
    )


def model(config: DLRMConfig, schema: Schema) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Returns a model sharded by TorchRec's defaults, and its optimizer.

    The optimizer is not fused, so the tables are updated by their kernel's own plain SGD.
    """
    dense, top = [*config.dense_layers, config.embedding_dim], [*config.over_layers, 1]
    dlrm = DLRM(tables(config, schema), len(schema.dense), dense, top, dense_device=torch.device("cpu"))
    sharded = DistributedModelParallel(DLRMTrain(dlrm), device=torch.device("cpu"))
    return sharded, torch.optim.Adam(sharded.parameters(), lr=1e-3)


def step(sharded: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    loss, _ = sharded(batch)
    loss.backward()
    optimizer.step()

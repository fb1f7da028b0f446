"""Settings of optimization, the training loop, checkpoints, sharding and tracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NumberType = Literal["fp32", "fp16", "bf16"]
ShardingType = Literal["data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise"]


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizers: embeddings are updated within the backward pass (fused), the dense part by Adam."""

    sparse: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad"
    sparse_learning_rate: float = 0.05
    sparse_weight_decay: float = 0.0
    """L2 penalty on the rows that a batch looks up."""
    dense_learning_rate: float = 1e-3
    dense_weight_decay: float = 0.0
    warmup_steps: int = 0
    """Steps over which both learning rates grow linearly to their value."""
    decay_steps: int = 0
    """Steps after warm-up over which both learning rates fall linearly to `final_rate` times their value; 0: no decay."""
    final_rate: float = 0.1
    clip_norm: float = 10.0
    """Largest global norm of the dense gradient; 0: no clipping."""


@dataclass(frozen=True)
class LoopConfig:
    """The training loop: how long to train, on how large a batch, and when to stop early."""

    epochs: int = 5
    global_batch: int = 4096
    """Rows in a step over all workers, a multiple of the dataset's block_rows. Uneven shares are padded with rows of weight 0."""
    max_steps: int = 0
    """Stop after this many steps; 0: no limit."""
    log_every: int = 50
    """Steps between progress lines and tracked points."""
    patience: int = 2
    """Stop after this many epochs without a better validation metric (DLRM: NE, Two Tower: NDCG); 0: never stop early."""
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast of the dense part on GPUs that have it, fp32 elsewhere."""
    compile: bool = True
    """On a single GPU, compile the training step of a DLRM, but for its lookups, and replay it as one CUDA graph. The first step
    then takes half a minute. It needs a C compiler, such as gcc."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When and where checkpoints are written: at the end of each epoch, on SIGTERM, and within an epoch by steps or minutes.

    Training continues while they are written."""

    folder: str = ""
    """Where checkpoints are kept: a folder that all workers share, or the URL of an object store, such as s3://bucket/run; empty:
    `checkpoints` in the run directory."""
    every_steps: int = 0
    """Steps between checkpoints within an epoch; 0: no such checkpoints."""
    every_minutes: float = 15.0
    """Minutes between checkpoints within an epoch; 0: no such checkpoints."""
    keep_last: int = 2
    """How many of the newest checkpoints are kept. With 1, a damaged one leaves nothing to resume from."""
    keep_best: int = 1
    """How many more are kept: those at the ends of the epochs with the best validation metric."""
    grace_seconds: float = 25.0
    """How long SIGTERM leaves the workers to finish their step and write a checkpoint before they are ended."""


@dataclass(frozen=True)
class ShardingConfig:
    """The ways in which embedding tables may be spread over the workers."""

    types: tuple[ShardingType, ...] = ("data_parallel", "table_wise", "row_wise")
    """The sharding types that the planner may choose from. data_parallel: every worker holds the whole table, which saves the
    exchange of ids and embeddings where a table has fewer rows than a batch. With column_wise, row-wise Adagrad keeps a state for
    each shard's columns, and so trains differently on another number of workers."""
    table_type: NumberType = "fp32"
    """The type of the numbers in embedding tables: fp16 and bf16 take half the memory, and no table is then data-parallel. GPUs
    round updates up or down by chance, so that small ones are not lost; fbgemm's CPU kernels round to the nearest, and have no
    bf16."""
    exchange_type: NumberType = "fp32"
    """The type in which workers exchange embeddings and their gradients: fp16 and bf16 halve the bytes, where links are slow."""
    memory_gib: float = 0.0
    """Memory that a worker may use for tables and activations; 0: what is free on its GPU, or its share of the host's."""
    cache_share: float = 0.2
    """On GPUs, tables that do not fit in GPU memory are in host memory, behind a cache on the GPU of this share of their rows. A
    larger cache is faster and leaves GPU memory for fewer whole tables. 0: such tables are refused."""
    host_memory_gib: float = 0.0
    """Host memory that a worker on a GPU may use for such tables; 0: in training half of its share of what is free, less what the
    GPU holds, since checkpoints are written from a copy in host memory."""


@dataclass(frozen=True)
class TrackingConfig:
    """The experiment tracker in which parameters, metrics and artifacts of a run are recorded."""

    backend: Literal["mlflow", "none"] = "mlflow"
    """mlflow: an MLflow server or database. none: nothing is recorded outside the run directory."""
    uri: str = ""
    """MLflow tracking URI; empty: SQLite, in `mlflow.db` beside the run directory."""
    registry_uri: str = ""
    """MLflow model registry of `--register`, such as databricks-uc; empty: MLflow's default for the tracking URI."""
    experiment: str = "recsys_ray"
    log_weights_below_mib: int = 1024
    """The trained weights are logged as an artifact when they are smaller than this."""
